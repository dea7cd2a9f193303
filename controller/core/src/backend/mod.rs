//! The pods behind a Service, where its gateway leads connections straight to
//! them.

pub mod convergence;
pub mod endpoints;
pub mod readiness_gate;
