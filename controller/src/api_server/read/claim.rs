//! Claims.

use std::net::IpAddr;

use kube::ResourceExt;
use lb_svc_core::ipam::{Claim, ClaimId};
use lb_svc_core::model::{ServiceId, ServiceRef};
use lb_svc_core::node_mode::claim::PortClaim;
use lb_svc_core::node_mode::plan::NODES_MAX;
use lb_svc_crds::IP;
use lb_svc_crds::gateway::Port;
use lb_svc_crds::names::{self, Provider};

/// Why an IP object is no claim of ours.
#[derive(Debug, thiserror::Error)]
pub enum NoClaim {
    /// Its address.
    #[error("spec.ipAddress is not an address")]
    Address,
    /// Its provider.
    #[error("spec.provider: {0}")]
    Provider(#[from] names::ProviderError),
    /// Its name is not that of its address, so it excludes nobody.
    #[error("its name should be {0}")]
    Name(String),
    /// No Service can have that name.
    #[error("spec.namespace and spec.serviceName name no Service")]
    Service,
}

/// A claim on an address, or on a port of nodes.
#[derive(Debug)]
pub enum AnyClaim {
    /// On an address.
    Address(Claim),
    /// On a port of nodes.
    Port(PortClaim),
}

/// The most nodes of a claim that are kept: more than one ever has.
const NODES_KEPT: usize = 4 * NODES_MAX;

/// A claim, on whatever it is.
///
/// # Errors
/// What about it no claim of ours has.
pub fn any_claim(object: &IP) -> Result<AnyClaim, NoClaim> {
    let Some(node_port) = &object.spec.node_port else { return claim(object).map(AnyClaim::Address) };
    let port = Port { protocol: node_port.protocol, port: node_port.port };
    let name = names::node_claim_name(&node_port.pool, &port);
    if name != object.name_any() {
        return Err(NoClaim::Name(name));
    }
    Ok(AnyClaim::Port(PortClaim {
        id: claim_id(object),
        pool: node_port.pool.clone(),
        port,
        nodes: node_port.nodes.iter().take(NODES_KEPT).cloned().collect(),
        owner: owner(object)?,
        created: object.creation_timestamp().map(|created| created.0),
    }))
}

/// The Service that a claim is of.
fn owner(object: &IP) -> Result<ServiceId, NoClaim> {
    let service =
        ServiceRef::checked(&object.spec.namespace, &object.spec.service_name).ok_or(NoClaim::Service)?;
    Ok(ServiceId { service, uid: object.spec.service_uid.clone() })
}

/// Which object it is, and in which version.
pub fn claim_id(object: &impl ResourceExt) -> ClaimId {
    ClaimId {
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        resource_version: object.resource_version().unwrap_or_default(),
    }
}

/// A claim on an address.
///
/// # Errors
/// What about it no claim of ours has.
pub fn claim(object: &IP) -> Result<Claim, NoClaim> {
    let address: IpAddr = object.spec.ip_address.parse().map_err(|_| NoClaim::Address)?;
    let provider: Provider = object.spec.provider.parse()?;
    let name = provider.claim_name(address);
    if name != object.name_any() {
        return Err(NoClaim::Name(name));
    }
    let owner = owner(object)?;
    Ok(Claim {
        id: claim_id(object),
        provider,
        subnet: object.spec.subnet.clone(),
        address,
        owner,
        requested: object.spec.requested,
        mac: object.spec.mac_address.clone(),
        keep: object.spec.keep,
        probed: object.spec.probed,
        conflict: object.spec.conflict.clone(),
        gateway_namespace: object
            .labels()
            .get(names::GATEWAY_NAMESPACE_LABEL)
            .unwrap_or(&object.spec.namespace)
            .clone(),
    })
}
