//! EndpointSlices.

use k8s_openapi::api::discovery::v1::{self as discovery, EndpointSlice};
use kube::ResourceExt;
use lb_svc_core::model::{self, Endpoint, EndpointPort, NodeId, PodId};
use lb_svc_core::service::spec::transport;

/// On EndpointSlices: the Service they are of (Kubernetes API).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The Service that an EndpointSlice is of, and what it says.
pub fn slice(object: &EndpointSlice) -> Option<(String, model::EndpointSlice)> {
    let service = object.labels().get(SERVICE_NAME_LABEL)?;
    let port = |port: &discovery::EndpointPort| {
        Some(EndpointPort {
            name: port.name.clone().unwrap_or_default(),
            protocol: transport(port.protocol.as_deref().unwrap_or("TCP"))?,
            port: u16::try_from(port.port?).ok().filter(|port| *port != 0)?,
        })
    };
    // All that an endpoint has more than one address for is the same to us; and
    // what is not said is meant well, except that it ends.
    let endpoint = |endpoint: &discovery::Endpoint| {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        Some(Endpoint {
            address: endpoint.addresses.first()?.parse().ok()?,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            pod: pod.and_then(|pod| pod.uid.as_deref()).map(PodId::of),
            node: endpoint.node_name.as_deref().map(NodeId::of),
        })
    };
    let slice = model::EndpointSlice {
        ports: object.ports.iter().flatten().filter_map(port).collect(),
        endpoints: object.endpoints.iter().filter_map(endpoint).collect(),
    };
    Some((service.clone(), slice))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use std::net::Ipv4Addr;

    use serde_json::Value;

    #[test]
    fn endpoint_slice_is_read_as_kube_proxy_does() {
        let of = |ports: Value, endpoints: Value| {
            let metadata = json!({ "labels": { SERVICE_NAME_LABEL: "web" } });
            let object = json!({
                "metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
            });
            slice(&serde_json::from_value(object).unwrap()).unwrap().1
        };
        let read = of(
            json!([
                { "name": "web", "port": 8080, "protocol": "TCP" }, { "port": 53 }, { "name": "all" },
                { "name": "sctp", "port": 9, "protocol": "SCTP" },
            ]),
            json!([
                { "addresses": ["10.0.0.1", "10.0.0.9"] },
                {
                    "addresses": ["10.0.0.2"],
                    "conditions": { "ready": false, "serving": false, "terminating": true },
                    "targetRef": { "kind": "Pod", "uid": "p-2" },
                },
                {
                    "addresses": ["10.0.0.3"], "nodeName": "n1",
                    "targetRef": { "kind": "VirtualMachine", "uid": "v-3" },
                },
                { "addresses": ["host.example"] },
            ]),
        );
        let ports: Vec<_> = read.ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
        assert_eq!(ports, [("web", 8080), ("", 53)]);
        let one = |last, ready, pod: Option<&str>| Endpoint {
            address: Ipv4Addr::new(10, 0, 0, last),
            ready,
            serving: ready,
            terminating: !ready,
            pod: pod.map(PodId::of),
            node: None,
        };
        let third = Endpoint { node: Some(NodeId::of("n1")), ..one(3, true, None) };
        assert_eq!(read.endpoints, [one(1, true, None), one(2, false, Some("p-2")), third]);
    }
}
