//! Gateways: their objects, their settings, and who of their pods is active.

pub mod election;
pub mod manifests;
pub mod migration;
pub mod pod_settings;
pub mod rollout;
