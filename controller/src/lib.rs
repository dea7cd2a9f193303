//! The lb-svc controller.
//!
//! ```text
//!  API server ──watch──▶ watch ──convert──▶ State (domain terms, ipam::Ledger)
//!                                             │ whom it concerns
//!                                             ▼
//!                                           queue ──key──▶ reconcile
//!                                                            │ observe: State, and ask the gateways
//!                                                            │ plan:    pure, what to write
//!  API server ◀──────────────── act (render) ◀───────────────┘ act
//! ```
//!
//! [`domain`], [`ipam`], [`request`], [`health`], [`endpoints`], [`plan`],
//! [`active`], [`direct`], [`gate`] and [`subnets`] hold the decisions: no
//! Kubernetes types, no IO. [`settings`] and [`render`] know
//! what Kubernetes objects look like. [`act`] is the only module that writes.

pub mod act;
pub mod active;
mod admin;
mod args;
mod ask;
pub mod convert;
pub mod direct;
pub mod domain;
pub mod endpoints;
pub mod gate;
pub mod health;
pub mod ipam;
pub mod keys;
mod leader;
pub mod metrics;
pub mod plan;
mod quantity;
mod queue;
mod reconcile;
pub mod render;
pub mod request;
mod run;
pub mod settings;
pub mod state;
pub mod subnets;
pub mod versions;
mod watch;

pub use args::Args;
pub use run::run;
