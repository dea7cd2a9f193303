//! Which address goes to whom: pure, no Kubernetes, no IO.
//!
//! - [`Network`]: a Subnet's spec, validated;
//! - [`Pool`]: the addresses of one network that are still free;
//! - [`Ledger`]: all networks and all claims, and the choice of an address.
//!
//! The ledger is a cache. What makes a claim exclusive is its object's name in
//! the API server; a ledger that is stale costs a retry, never a second owner.

mod allocator;
pub mod claim;
mod network;
mod pool;

pub use allocator::{Ledger, Usage};
pub use claim::{BEING_FREED, Candidate, Claim, ClaimId, Refusal, Wish};
pub use network::{Invalid, Network};
pub use pool::Pool;
