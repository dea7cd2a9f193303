//! How the LAN learns where the gateway's addresses are, and which pod of the
//! gateway may have them.
//!
//! | Room | Holds |
//! |---|---|
//! | [`layer2`] | by ARP on the attached Ethernet segment |

pub mod layer2;
