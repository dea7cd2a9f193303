//! The decisions of the lb-svc controller, as functions of what is seen: no
//! client, no Kubernetes types, no IO.
//!
//! ```text
//!  model ──▶ service::spec    what a Service asks
//!        ──▶ ipam             which address it gets
//!        ──▶ gateway          the objects that serve it, and which pod is active
//!        ──▶ backend          where connections go, and when a pod may be Ready
//!        ──▶ node_mode        Services at the nodes' own addresses, without a gateway
//!        ──▶ service::plan, subnet::plan ──▶ action   what is to be written
//! ```

pub mod action;
pub mod backend;
pub mod gateway;
pub mod ipam;
pub mod model;
pub mod node_mode;
pub mod observed;
pub mod service;
pub mod subnet;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
