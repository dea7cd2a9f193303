//! What the controller knows of the cluster: one type for each kind of object,
//! with the fields that decisions are made by.

mod attachment;
mod backend;
mod condition;
mod endpoint_slice;
mod gateway;
mod node;
mod pod;
mod service;
mod setting;
mod subnet;

pub use attachment::Attachment;
pub use backend::Backend;
pub use condition::{Condition, MESSAGE_MAX, Problem};
pub use endpoint_slice::{Endpoint, EndpointPort, EndpointSlice};
pub use gateway::{DeploymentState, GatewayId, GatewayLocation, GatewayRef, ObjectKind, OwnedObject};
pub use node::{Node, NodeId};
pub use pod::{Pod, PodId, StatusReport};
pub use service::{Ingress, PortStatus, Service, ServiceId, ServicePort, ServiceRef};
pub use setting::Setting;
pub use subnet::{Subnet, SubnetStatus};

/// Namespace and name of an object; the namespace is empty for a cluster's.
pub type ObjectName = (String, String);
