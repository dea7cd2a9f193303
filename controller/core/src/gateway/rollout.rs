//! How many gateways are rolled out at a time.

/// How many gateways are rolled at once when all are to be.
pub const ROLLS_AT_ONCE: usize = 4;
