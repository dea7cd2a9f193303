//! The types that lb-svc's parts share.
//!
//! - [`Subnet`] and [`IP`]: the custom resources (`kubeovn.io/v1`);
//! - [`gateway`]: what the controller tells a gateway, and what the gateway
//!   answers;
//! - [`bounded`]: reading no more than a bound of what others write;
//! - [`range`]: the grammar of addresses and ranges in `spec.excludeIps`;
//! - [`reason`]: every reason of a condition, an Event or a fault;
//! - [`seal`]: the controller's signature on a gateway's configuration;
//! - [`names`]: every annotation, label, port and object name, in one place.
//!
//! The crate holds types and their grammar, no client and no logic beyond checking
//! them. The specs of
//! the custom resources are plain types; as Kubernetes objects they need the
//! feature `kube`, which the gateway and the controller's core do without.

pub mod bounded;
pub mod feature;
pub mod gateway;
pub mod names;
pub mod parts;
pub mod range;
pub mod reason;
pub mod seal;

#[cfg(feature = "kube")]
mod definition;
mod ignored;
mod ip;
mod subnet;

#[cfg(feature = "kube")]
pub use definition::definitions;
pub use ignored::IgnoredFields;
#[cfg(feature = "kube")]
pub use ip::IP;
pub use ip::{IPSpec, NodePort, Requested};
pub use subnet::{Protocol, SubnetSpec};
#[cfg(feature = "kube")]
pub use subnet::{Subnet, SubnetStatus};
