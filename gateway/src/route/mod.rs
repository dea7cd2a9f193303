//! Interfaces' settings, addresses, routes and rules: what the kernel should hold,
//! compared with what it holds, as a list of changes.
//!
//! ```text
//!   configuration ─▶ desired ─┐
//!                             ├─▶ plan ─▶ Op, Op, … ─▶ netlink ─▶ kernel
//!   kernel ─▶ netlink ─▶ model ┘
//! ```
//!
//! | File | Holds |
//! |---|---|
//! | [`policy`] | the routing table and the priorities of the rules |
//! | [`model`] | the kernel's state as values |
//! | [`desired`] | the state that a configuration asks for |
//! | [`plan`] | the changes from one to the other, in a safe order |
//! | [`ipv6`] | what the kernel made of router advertisements on the LAN, to remove |
//! | [`netlink`] | reading the state and carrying out one change |

pub mod desired;
pub mod ipv6;
pub mod model;
pub mod netlink;
pub mod plan;
pub mod policy;
