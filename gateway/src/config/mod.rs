//! The gateway's configuration: what is mounted or was pushed, validated, and reduced to
//! what the IPv4 data path uses.
//!
//! | File | Holds |
//! |---|---|
//! | [`model`] | the configuration as values: addresses, frontends and their forwards |
//! | [`validate`] | the file's bytes to those values, or why it is invalid |
//! | [`sealed`] | a configuration with the seal on it, checked |

pub mod model;
pub mod sealed;
pub mod validate;

pub use model::{
    Address, Config, Election, Endpoints, Forward, Forwards, Frontend, Part, Services, SourceRanges, Target,
    Targets, cluster_ips, services, targets,
};
pub use validate::{Invalid, parse};
