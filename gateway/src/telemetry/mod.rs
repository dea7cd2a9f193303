//! What the gateway tells about itself.
//!
//! | File | Holds |
//! |---|---|
//! | [`metrics`] | every metric, and its labels |
//! | [`collectors`] | the seam for metrics that are read when scraped |
//! | [`http`] | `/readyz`, `/livez`, `/status` and `/metrics` |

pub mod collectors;
pub mod http;
pub mod metrics;
