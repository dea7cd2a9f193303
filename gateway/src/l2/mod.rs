//! Ethernet frames and the packet sockets that carry them.
//!
//! | File | Holds |
//! |---|---|
//! | [`arp`] | ARP for IPv4: building requests, reading frames |
//! | [`socket`] | packet sockets, with a BPF filter in the kernel where they receive |
//!
//! Nothing in this room decides anything: what is sent, and what a received
//! frame means, is up to [`announce`](crate::announce) and
//! [`podnet`](crate::podnet).

pub mod arp;
pub mod socket;
