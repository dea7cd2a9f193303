//! Writes to the API server: one file for each kind of object.

mod backend;
mod claim;
mod conditions;
mod config_map;
mod deployment;
mod disruption_budget;
mod event;
mod owned_object;
mod pod;
mod secret;
mod service;
mod subnet;
mod typed;

pub use claim::Claimed;
pub use owned_object::Written;
pub use typed::typed;
