//! What the controller shows of itself.

pub mod health;
pub mod memory;
pub mod metrics;
