//! How each kind of object gets into the index.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use lb_svc_core::model::{GatewayLocation, ObjectKind, ObjectName, ServiceRef};
use lb_svc_crds::{IP, Subnet, names};

use super::{Watched, object_name};
use crate::api_server::read::{self, AnyClaim, NetworkAttachmentDefinition, WatchedPod};
use crate::index::{Index, Key};

impl Watched for Service {
    type Read = DeserializeGuard<Self>;

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        let name = read::service_ref(&object);
        index.set_service(name, read::service(&object))
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        index.set_service(read::service_ref(object), None)
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        let missing =
            |service: &ServiceRef| !names.contains(&(service.namespace.clone(), service.name.clone()));
        let gone = index.known_services().into_iter().filter(missing);
        gone.flat_map(|service| index.set_service(service, None)).collect()
    }
}

/// The name of a gateway's ConfigMap, Deployment and PodDisruptionBudget.
fn part_name(gateway: &GatewayLocation) -> ObjectName {
    (gateway.namespace.clone(), gateway.name())
}

/// The gateways that are known to have this part, and do not.
fn parts_gone(index: &Index, part: ObjectKind, names: &BTreeSet<ObjectName>) -> Vec<GatewayLocation> {
    let mut known = index.known_parts(part);
    known.retain(|gateway| !names.contains(&part_name(gateway)));
    known
}

impl Watched for ConfigMap {
    type Read = DeserializeGuard<Self>;

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        match read::gateway_of(&object) {
            Some(gateway) => index.set_config(gateway, Some(read::config(&object)), read::seal(&object)),
            None => Vec::new(),
        }
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        read::gateway_of(object).map_or_else(Vec::new, |gateway| index.set_config(gateway, None, None))
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        let gone = parts_gone(index, ObjectKind::Config, names);
        gone.into_iter().flat_map(|gateway| index.set_config(gateway, None, None)).collect()
    }
}

impl Watched for Deployment {
    type Read = DeserializeGuard<Self>;

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        match read::gateway_of(&object) {
            Some(gateway) => index.set_deployment(gateway, Some(read::deployment(&object))),
            None => Vec::new(),
        }
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        read::gateway_of(object).map_or_else(Vec::new, |gateway| index.set_deployment(gateway, None))
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        let gone = parts_gone(index, ObjectKind::Deployment, names);
        gone.into_iter().flat_map(|gateway| index.set_deployment(gateway, None)).collect()
    }
}

impl Watched for PodDisruptionBudget {
    type Read = DeserializeGuard<Self>;

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        match read::gateway_of(&object) {
            Some(gateway) => index.set_budget(gateway, Some(read::budget(&object))),
            None => Vec::new(),
        }
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        read::gateway_of(object).map_or_else(Vec::new, |gateway| index.set_budget(gateway, None))
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        let gone = parts_gone(index, ObjectKind::Budget, names);
        gone.into_iter().flat_map(|gateway| index.set_budget(gateway, None)).collect()
    }
}

impl Watched for Pod {
    type Read = DeserializeGuard<Self>;

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        match read::gateway_of_pod(&object) {
            Some(gateway) => index.set_pod(gateway, &object.name_any(), Some(read::pod(&object))),
            None => Vec::new(),
        }
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        read::gateway_of_pod(object)
            .map_or_else(Vec::new, |gateway| index.set_pod(gateway, &object.name_any(), None))
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        let missing = |(gateway, name): &(GatewayLocation, String)| {
            !names.contains(&(gateway.namespace.clone(), name.clone()))
        };
        let gone = index.known_pods().into_iter().filter(missing);
        gone.flat_map(|(gateway, name)| index.set_pod(gateway, &name, None)).collect()
    }
}

impl Watched for EndpointSlice {
    type Read = DeserializeGuard<Self>;

    fn matters(&self) -> bool {
        self.address_type == "IPv4"
    }

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        index.set_slice(&object_name(&object), read::slice(&object))
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        index.set_slice(&object_name(object), None)
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        let gone = index.known_slices().into_iter().filter(|slice| !names.contains(slice));
        gone.flat_map(|slice| index.set_slice(&slice, None)).collect()
    }
}

impl Watched for WatchedPod {
    type Read = Self;

    fn matters(&self) -> bool {
        self.is_gated() || read::published_ports(self).is_some() || read::proxy_of(self).is_some()
    }

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        let backend = object.is_gated().then(|| read::backend(&object));
        let mut keys = index.set_publisher(&object_name(&object), read::published_ports(&object));
        keys.extend(index.set_proxy(&object_name(&object), read::proxy_of(&object)));
        keys.extend(index.set_backend(object_name(&object), backend));
        keys
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        let mut keys = index.set_publisher(&object_name(object), None);
        keys.extend(index.set_proxy(&object_name(object), None));
        keys.extend(index.set_backend(object_name(object), None));
        keys
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        let gone = index.known_backends().into_iter().filter(|pod| !names.contains(pod));
        let mut keys: Vec<Key> = gone.flat_map(|pod| index.set_backend(pod, None)).collect();
        keys.extend(index.publishers_listed(names));
        keys
    }
}

impl Watched for Node {
    type Read = DeserializeGuard<Self>;

    fn begin(index: &mut Index) {
        index.begin_nodes();
    }

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        index.set_node(&object.name_any(), Some(read::node(&object)))
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        index.set_node(&object.name_any(), None)
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        let gone =
            index.known_nodes().into_iter().filter(|node| !names.contains(&(String::new(), node.clone())));
        let mut keys: Vec<Key> = gone.flat_map(|node| index.set_node(&node, None)).collect();
        keys.extend(index.complete_nodes());
        keys
    }
}

impl Watched for Namespace {
    type Read = DeserializeGuard<Self>;

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        index.set_namespace(&object.name_any(), true)
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        index.set_namespace(&object.name_any(), false)
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        index.set_namespaces(names.iter().map(|(_, name)| name.clone()).collect())
    }
}

impl Watched for NetworkAttachmentDefinition {
    type Read = DeserializeGuard<Self>;

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        let attachment = read::attachment(&object);
        index.set_attachment((object.namespace().unwrap_or_default(), object.name_any()), Some(attachment))
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        index.set_attachment((object.namespace().unwrap_or_default(), object.name_any()), None)
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        let gone = index.known_attachments().into_iter().filter(|name| !names.contains(name));
        gone.flat_map(|name| index.set_attachment(name, None)).collect()
    }
}

impl Watched for Subnet {
    type Read = DeserializeGuard<Self>;

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        // Kube-OVN's own Subnets are none of our business.
        let subnet = (!names::Provider::is_ovn(&object.spec.provider)).then(|| read::subnet(&object));
        index.set_subnet(&object.name_any(), subnet)
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        index.set_subnet(&object.name_any(), None)
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        let gone = index
            .known_subnets()
            .into_iter()
            .filter(|subnet| !names.contains(&(String::new(), subnet.clone())));
        gone.flat_map(|subnet| index.set_subnet(&subnet, None)).collect()
    }
}

impl Watched for IP {
    type Read = DeserializeGuard<Self>;

    fn set(index: &mut Index, object: Self) -> Vec<Key> {
        match read::any_claim(&object) {
            Ok(AnyClaim::Address(claim)) => index.set_claim(claim),
            Ok(AnyClaim::Port(claim)) => index.set_port_claim(claim, true),
            Err(error) => {
                tracing::warn!(name = object.name_any(), %error, "no claim, and nobody's address");
                Self::unreadable(index, &object.name_any(), &object.uid().unwrap_or_default())
            }
        }
    }

    fn unreadable(index: &mut Index, name: &str, uid: &str) -> Vec<Key> {
        index.set_no_claim(name, uid);
        Vec::new()
    }

    fn gone(index: &mut Index, object: &Self) -> Vec<Key> {
        index.claim_gone(&object.name_any(), &object.uid().unwrap_or_default())
    }

    fn unreadable_gone(index: &mut Index, name: &str, uid: &str) -> Vec<Key> {
        index.claim_gone(name, uid)
    }

    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key> {
        index.claims_listed(&names.iter().map(|(_, name)| name.clone()).collect())
    }
}
