//! Which address goes to whom: pure, no Kubernetes, no IO.
//!
//! - [`Network`]: a Subnet's spec, validated;
//! - [`Pool`]: the addresses of one network that are still free;
//! - [`Ledger`]: all networks and all claims, and the choice of an address.
//!
//! The ledger is a cache. What makes a claim exclusive is its object's name in
//! the API server; a ledger that is stale costs a retry, never a second owner.

mod ledger;
mod network;
mod pool;

pub use ledger::{BEING_FREED, Candidate, Claim, ClaimId, Ledger, Refusal, Usage, Wish};
pub use network::{Invalid, Network};
pub use pool::Pool;
