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
pub use condition::{Condition, Problem};
pub use endpoint_slice::{Endpoint, Slice, SlicePort};
pub use gateway::{Child, DeploymentView, Part, Place};
pub use node::Node;
pub use pod::{Answer, Pod, PodId};
pub use service::{Ingress, Owner, PortStatus, Service, ServicePort, ServiceRef};
pub use setting::Setting;
pub use subnet::{Subnet, SubnetView};

/// Namespace and name of an object; the namespace is empty for a cluster's.
pub type ObjectName = (String, String);
