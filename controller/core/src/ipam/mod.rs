//! Addresses: which Service gets which.
//!
//! - [`Network`]: a Subnet's spec, validated;
//! - [`Pool`]: the addresses of one network that are still free;
//! - [`Rules`]: to whom a Subnet hands out addresses, and when;
//! - [`known::Known`]: claims as last seen, of addresses as of ports of nodes;
//! - [`Allocator`]: all networks and all claims, and the choice of an address.
//!
//! The allocator is a cache. What makes a claim exclusive is its object's name in
//! the API server; an allocator that is stale costs a retry, never a second owner.

mod allocator;
pub mod claim;
pub mod known;
mod network;
mod overlap;
mod pool;
mod rules;

pub use allocator::{Allocator, Usage};
pub use claim::{AddressRequest, AllocationError, Claim, ClaimId, Reservation};
pub use network::{InvalidSubnet, Network};
pub use pool::Pool;
pub use rules::Rules;
