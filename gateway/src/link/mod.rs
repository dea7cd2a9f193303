//! The pod's interfaces by role.
//!
//! ```text
//!   LAN ═══ [lan] ── pod ── [primary] ═══ pod network, cluster
//! ```
//!
//! | File | Holds |
//! |---|---|
//! | [`network_status`] | Multus's report of the pod's networks |
//! | [`roles`] | which interface is the LAN's, and which the primary |

pub mod network_status;
pub mod roles;
