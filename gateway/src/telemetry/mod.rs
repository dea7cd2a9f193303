//! What the gateway tells about itself.
//!
//! | File | Holds |
//! |---|---|
//! | [`metrics`] | every metric, and its labels |
//! | [`collectors`] | the seam for metrics that are read when scraped |
//! | `connections` | how many connections a client of the HTTP server may have |
//! | [`http`] | `/readyz`, `/livez`, `/status` and `/metrics` |
//! | [`push`] | `/config`, where the controller hands over the configuration |

pub mod collectors;
mod connections;
pub mod http;
pub mod metrics;
pub mod push;
