//! The types that lb-svc's parts share.
//!
//! - [`Subnet`] and [`IP`]: the custom resources (`kubeovn.io/v1`);
//! - [`gateway`]: what the controller tells a gateway, and what the gateway
//!   answers;
//! - [`range`]: the grammar of addresses and ranges in `spec.excludeIps`;
//! - [`names`]: every annotation, label, port and object name, in one place.
//!
//! The crate holds types and their grammar, no client and no logic. The custom
//! resources need the feature `kube`; the gateway does without it.

pub mod gateway;
pub mod names;
pub mod range;

#[cfg(feature = "kube")]
mod ip;
#[cfg(feature = "kube")]
mod subnet;

#[cfg(feature = "kube")]
pub use ip::{IP, IPSpec, Requested};
#[cfg(feature = "kube")]
pub use subnet::{Protocol, Subnet, SubnetSpec, SubnetStatus};
