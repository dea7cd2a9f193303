//! Gateways of several pods, as the measurements need them.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use lb_svc_crds::gateway::{ElectionStatus, GatewayStatus, Role};
use lb_svc_crds::names;
use lb_svc_e2e::{Scene, client};
use serde_json::{Value, json};

/// Keeps a Service's gateways off the first node, where the backends are.
pub fn elsewhere(service: &mut Value, replicas: u32) {
    let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchExpressions": [
            { "key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n1"] },
        ] }],
    } } });
    let annotations = &mut service["metadata"]["annotations"];
    annotations[names::AFFINITY_ANNOTATION] = json!(affinity.to_string());
    annotations[names::REPLICAS_ANNOTATION] = json!(replicas.to_string());
}

/// What a gateway pod says of itself.
///
/// # Errors
/// When it does not answer.
pub async fn status(scene: &Scene, pod: &Pod) -> anyhow::Result<GatewayStatus> {
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}:{}/proxy/status",
        scene.namespace,
        pod.name_any(),
        names::GATEWAY_PORT
    );
    let request = http::Request::get(path).body(Vec::new())?;
    Ok(tokio::time::timeout(client::ATTEMPT, scene.lab.client.request(request)).await??)
}

/// The active pod of a gateway of two and the standby, each with its part in
/// the election: nothing unless each hears the other.
///
/// # Errors
/// When one does not answer.
pub async fn pair(scene: &Scene, service: &str) -> anyhow::Result<Option<[(Pod, ElectionStatus); 2]>> {
    let (mut active, mut standby) = (None, None);
    for pod in scene.gateways(service).await {
        let election = status(scene, &pod).await?.election.unwrap_or_default();
        match election.role {
            Role::Active if election.peers.len() == 1 => active = Some((pod, election)),
            Role::Standby if election.peers.len() == 1 => standby = Some((pod, election)),
            _ => return Ok(None),
        }
    }
    Ok(active.zip(standby).map(Into::into))
}
