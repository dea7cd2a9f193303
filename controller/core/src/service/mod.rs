//! What a Service asks, and what is done for it.

pub mod addresses;
pub mod allocation;
pub mod conditions;
pub mod health_check;
pub mod passing;
pub mod plan;
pub mod publication;
pub mod spec;
pub mod unheeded;
