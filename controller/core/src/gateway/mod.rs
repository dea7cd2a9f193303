//! Gateways: their configuration, their objects, and which of their pods is
//! active. The files are the stages in which a gateway is planned, see
//! [`crate::service::plan`].

pub mod acknowledgement;
pub mod apply;
pub mod assignment;
pub mod cleanup;
pub mod config;
pub mod config_sync;
pub mod election;
pub mod election_report;
pub mod manifests;
pub mod migration;
pub mod placement;
pub mod plan;
pub mod pod_settings;
pub mod rendered;
pub mod repair;
pub mod rollout;
pub mod workload;
