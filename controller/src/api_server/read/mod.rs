//! Kubernetes objects, as the core's model has them: one file for each kind.

mod attachment;
mod backend;
mod claim;
mod conditions;
mod endpoint_slice;
mod events;
mod gateway_objects;
mod gateway_pod;
mod master_key;
mod node;
mod pod_settings;
mod service;
mod signing_keys;
mod subnet;

pub use attachment::{NetworkAttachmentDefinition, NetworkAttachmentDefinitionSpec, attachment};
pub use backend::{WatchedPod, backend, proxy_of, published_ports};
pub use claim::{AnyClaim, NoClaim, any_claim, claim, claim_id};
pub use endpoint_slice::{SERVICE_NAME_LABEL, slice};
pub use events::START_FAILURES;
pub use gateway_objects::{budget, config, deployment, gateway_of, live, seal};
pub use gateway_pod::{gateway_of_pod, is_alone, is_set_of, pod};
pub use node::node;
pub use pod_settings::pod_settings;
pub use service::{ingress_entry, service, service_ref};
pub use subnet::subnet;

use conditions::conditions;
