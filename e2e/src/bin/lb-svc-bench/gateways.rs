//! Gateways of several pods, as the measurements need them.

use k8s_openapi::api::core::v1::Pod;
use lb_svc_crds::gateway::{ElectionStatus, Role};
use lb_svc_e2e::Scene;

/// The active pod of a gateway of two and the standby, each with its part in
/// the election: nothing unless each hears the other.
///
/// # Errors
/// When one does not answer.
pub async fn pair(scene: &Scene, service: &str) -> anyhow::Result<Option<[(Pod, ElectionStatus); 2]>> {
    let (mut active, mut standby) = (None, None);
    for pod in scene.gateways(service).await {
        let election = scene.status(&pod).await?.election.unwrap_or_default();
        match election.role {
            Role::Active if election.peers.len() == 1 => active = Some((pod, election)),
            Role::Standby if election.peers.len() == 1 => standby = Some((pod, election)),
            _ => return Ok(None),
        }
    }
    Ok(active.zip(standby).map(Into::into))
}
