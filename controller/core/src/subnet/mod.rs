//! Subnets.

pub mod plan;
