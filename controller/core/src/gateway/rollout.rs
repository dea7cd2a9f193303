//! How many gateways are rolled out at a time.

/// How many gateways are rolled at once when all are to be.
pub const MAX_CONCURRENT_ROLLOUTS: usize = 4;
