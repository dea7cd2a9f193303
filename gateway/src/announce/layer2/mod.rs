//! Announcing addresses on an Ethernet segment, by exactly one of a gateway's
//! pods at a time.
//!
//! ```text
//!                      election frames              ARP
//!                            │                       │
//!   LAN ═════════════════════╪═══════════════════════╪═══════════════
//!                            │                       │
//!                     ┌──────┴────────┐     ┌────────┴──────────┐
//!   kernel: lease ◀── │ election task │     │ conflict detection│
//!   (renewed by the   │  + isolation  │     │ GARP schedule     │
//!    frames it sends) │  + start guard│     └────────┬──────────┘
//!                     └──────┬────────┘              │
//!                            └──── active? ───▶ agent ── verified? ─▶ addresses
//! ```
//!
//! | File | Holds |
//! |---|---|
//! | [`announcer`] | all of it, as the agent drives it |
//! | [`election_task`] | one member of the election, on its own thread |
//! | `member` | its socket, clock and key |
//! | [`watchdog`] | no election while the agent's loop stands still |
//! | [`lease`] | the kernel's table that lets only the active pod answer |
//! | [`isolation`] | whether the pod is cut off from the LAN |
//! | `startup_guard` | no take-over while a foreign host has the addresses |
//! | `lan` | the sockets of the two above |
//! | [`conflict_detection`] | probing for an address before it is assigned (RFC 5227) |
//! | [`router_watch`] | whether the LAN's routers answer |
//! | [`stranger_watch`] | whether other hosts answer for the addresses |
//! | [`garp_schedule`] | when to send gratuitous ARP |

pub mod announcer;
pub mod conflict_detection;
pub mod election_task;
pub mod garp_schedule;
pub mod isolation;
mod lan;
pub mod lease;
mod member;
pub mod router_watch;
mod startup_guard;
pub mod stranger_watch;
pub mod watchdog;

pub use announcer::Layer2;
