//! Claims.

use std::net::IpAddr;

use kube::ResourceExt;
use lb_svc_core::ipam::{Claim, ClaimId};
use lb_svc_core::model::{ServiceId, ServiceRef};
use lb_svc_crds::IP;
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

/// Which object it is, and in which version.
pub fn claim_id(object: &impl ResourceExt) -> ClaimId {
    ClaimId {
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        resource_version: object.resource_version().unwrap_or_default(),
    }
}

/// A claim.
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
    let service =
        ServiceRef::checked(&object.spec.namespace, &object.spec.service_name).ok_or(NoClaim::Service)?;
    Ok(Claim {
        id: claim_id(object),
        provider,
        subnet: object.spec.subnet.clone(),
        address,
        owner: ServiceId { service, uid: object.spec.service_uid.clone() },
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
