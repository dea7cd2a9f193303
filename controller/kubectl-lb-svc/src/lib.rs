//! `kubectl lb-svc`: what lb-svc does, and why not, from objects alone.
//!
//! ```text
//!  API server ──▶ reader ────┐
//!                            ├──▶ Cluster ──▶ View ──▶ screens ──▶ Screen ──▶ render
//!  files ──────▶ documents ──┘                  │
//!                            lb_svc_controller::index, lb_svc_core
//! ```
//!
//! A screen is a pure function of objects. What objects mean, and what would be
//! done with them, is not decided here: the controller's own index and plan are
//! asked. Nothing is written, and nothing runs in a pod.

pub mod cli;
pub mod cluster;
pub mod documents;
pub mod finding;
pub mod reader;
pub mod render;
pub mod run;
pub mod screen;
pub mod screens;
pub mod view;
