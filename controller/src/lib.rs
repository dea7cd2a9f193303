//! The lb-svc controller.
//!
//! ```text
//!  API server ──▶ api_server::watch ──▶ api_server::read ──▶ index (lb_svc_core::model)
//!                                                              │ whom a change concerns
//!                                                              ▼
//!                                                    reconcile::queue ──key──▶ reconcile
//!                                       index, gateway_client ──▶ observe ──┐     │
//!                                                 lb_svc_core ──▶ plan ◀────┘◀────┘
//!  API server ◀── api_server::write ◀── act ◀─────────────────────┘
//! ```
//!
//! What is decided is in `lb_svc_core`, which knows no client and no Kubernetes
//! types. Here is what watches, reads, writes and paces.

pub mod api_server;
mod app;
mod cli;
pub mod config_file;
pub mod election_key;
mod gateway_client;
pub mod index;
pub mod panics;
mod reconcile;
mod signing;
mod strict_yaml;
pub mod telemetry;

pub use app::run;
pub use cli::Args;
pub use reconcile::queue;
