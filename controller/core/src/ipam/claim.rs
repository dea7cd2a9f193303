//! Claims: address requests, reservations, claims, and allocation errors.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_svc_crds::names::{self, Provider};
use lb_svc_crds::reason::Reason;
use lb_svc_crds::{IPSpec, Requested};
use serde_json::{Value, json};

use super::InvalidSubnet;
use super::known::Holding;
use crate::model::{Service, ServiceId};

/// One Service's hold on one address: an IP object, as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The object.
    pub id: ClaimId,
    /// The attachment.
    pub provider: Provider,
    /// The Subnet's name.
    pub subnet: String,
    /// The address.
    pub address: IpAddr,
    /// The Service, by uid.
    pub owner: ServiceId,
    /// Whether the Service named the address.
    pub requested: Requested,
    /// Hardware address recorded in it; may be empty.
    pub mac: String,
    /// Whether it outlives its Service.
    pub keep: bool,
    /// Whether the address has been in service.
    pub probed: bool,
    /// Hardware address of the foreign host that it is in conflict with; may be
    /// empty.
    pub conflict: String,
    /// The namespace of the gateway that may answer for it.
    pub gateway_namespace: String,
}

impl Holding for Claim {
    fn id(&self) -> &ClaimId {
        &self.id
    }

    fn owner(&self) -> &ServiceId {
        &self.owner
    }
}

impl Claim {
    /// Whether the LAN is to be probed for the address: it has never been in
    /// service, as far as the claim or the status of its Service says.
    pub fn is_unproven(&self, service: &Service) -> bool {
        !self.probed && !service.has_ingress(self.address)
    }
}

/// An IP object in one version: what a conditional write must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimId {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
}

/// A request of a Service for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressRequest {
    /// The Service.
    pub owner: ServiceId,
    /// The attachment.
    pub provider: Provider,
    /// The Subnet; any of the attachment's if `None`.
    pub subnet: Option<String>,
    /// The address; any if `None`.
    pub address: Option<IpAddr>,
    /// Whether the claim is to outlive the Service.
    pub keep: bool,
    /// How many addresses the Service's namespace may have, this one among them;
    /// any number if `None`.
    pub limit: Option<usize>,
}

/// An address chosen for an [`AddressRequest`], reserved until its claim is
/// [applied](super::Allocator::apply) or the reservation [dropped](super::Allocator::unreserve).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The name its claim will have.
    pub name: String,
    /// The Subnet it is from.
    pub subnet: String,
    /// The address.
    pub address: IpAddr,
}

/// Why a request cannot be fulfilled now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// The attachment has no Subnet.
    #[error("no Subnet has spec.provider {0}: create one")]
    NoSubnet(Provider),
    /// The Subnet asked for does not exist.
    #[error("there is no Subnet {0}: create it, or correct the annotation {1}")]
    UnknownSubnet(String, String),
    /// The Subnet asked for is another attachment's.
    #[error("Subnet {0} is not for {1}: its spec.provider says otherwise")]
    OtherProvider(String, Provider),
    /// The Subnet's spec makes no sense.
    #[error("Subnet {0} is not valid: {1}")]
    InvalidSubnet(String, InvalidSubnet),
    /// The Subnet is being deleted.
    #[error("Subnet {0} is being deleted and hands out no addresses")]
    Deleting(String),
    /// The Subnet is not for this namespace.
    #[error("Subnet {0} is not open to namespace {1} (spec.namespaces)")]
    NotAdmitted(String, String),
    /// The Subnets that there are serve only requests that name them.
    #[error(
        "{0} serves only Services that name it or an address in it (annotation {auto} of the Subnet)",
        auto = names::AUTO_ASSIGN_ANNOTATION
    )]
    OnRequestOnly(String),
    /// The address asked for is in none of the Subnets.
    #[error("{0} is not an address of {1}")]
    Outside(IpAddr, String),
    /// The address asked for is none that a Service can have.
    #[error("{0} is {1} and cannot be a Service's")]
    NotAssignable(IpAddr, String),
    /// The address asked for is another Service's; of one in the same namespace
    /// with its name.
    #[error("{0} belongs to {holder}", holder = holder(.1.as_deref()))]
    Taken(IpAddr, Option<String>),
    /// An IP object has the name of the claim on the address asked for, and is none.
    #[error(
        "{0} is taken by the object {1} (ips.kubeovn.io), which is no claim: an administrator has to correct or delete it"
    )]
    NoClaim(IpAddr, String),
    /// The address asked for is still an earlier Service's of this name.
    #[error("{0} was the address of an earlier Service of this name, and is being given back")]
    BeingFreed(IpAddr),
    /// Nothing is free.
    #[error("no free address in {0}")]
    Full(String),
    /// The namespace has as many as it may.
    #[error(
        "namespace {0} has {1} addresses, as many as it may (addressesPerNamespace of the controller's configuration): delete a Service or a kept address there"
    )]
    NamespaceFull(String, usize),
}

fn holder(name: Option<&str>) -> String {
    name.map_or("another Service".to_owned(), |name| format!("Service {name}"))
}

impl AllocationError {
    /// Whether an address that the Service had until now may be another's.
    pub fn leaves_to_another(&self) -> bool {
        match self {
            Self::Taken(..) | Self::BeingFreed(_) | Self::Full(_) | Self::NotAssignable(..) => true,
            // Nobody can claim it.
            Self::NoClaim(..)
            | Self::NoSubnet(_)
            | Self::UnknownSubnet(..)
            | Self::OtherProvider(..)
            | Self::InvalidSubnet(..)
            | Self::Deleting(_)
            | Self::NotAdmitted(..)
            | Self::NamespaceFull(..)
            | Self::OnRequestOnly(_)
            | Self::Outside(..) => false,
        }
    }

    /// The reason that conditions have for it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoSubnet(_)
            | Self::UnknownSubnet(..)
            | Self::OtherProvider(..)
            | Self::OnRequestOnly(_) => Reason::SubnetNotFound,
            Self::InvalidSubnet(..) => Reason::SubnetInvalid,
            Self::Deleting(_) => Reason::SubnetDeleting,
            Self::NotAdmitted(..) => Reason::NamespaceNotAllowed,
            Self::Outside(..) | Self::NotAssignable(..) => Reason::AddressNotAssignable,
            Self::Taken(..) | Self::NoClaim(..) => Reason::AddressInUse,
            Self::BeingFreed(_) => Reason::AddressBeingFreed,
            Self::Full(_) => Reason::SubnetFull,
            Self::NamespaceFull(..) => Reason::NamespaceFull,
        }
    }
}

/// The IP object that claims what is reserved, for a gateway in
/// `gateway_namespace`.
pub fn manifest(request: &AddressRequest, reservation: &Reservation, gateway_namespace: &str) -> Value {
    let address = reservation.address.to_string();
    let (v4, v6) = if reservation.address.is_ipv4() {
        (address.clone(), String::new())
    } else {
        (String::new(), address.clone())
    };
    let spec = IPSpec {
        subnet: reservation.subnet.clone(),
        provider: request.provider.to_string(),
        ip_address: address,
        v4_ip_address: v4,
        v6_ip_address: v6,
        mac_address: String::new(),
        namespace: request.owner.service.namespace.clone(),
        service_name: request.owner.service.name.clone(),
        service_uid: request.owner.uid.clone(),
        requested: if request.address.is_some() { Requested::Static } else { Requested::Dynamic },
        keep: request.keep,
        probed: false,
        conflict: String::new(),
        node_port: None,
    };
    let mut labels = BTreeMap::from([(names::MANAGED_BY_LABEL, names::MANAGED_BY)]);
    if gateway_namespace != request.owner.service.namespace {
        labels.insert(names::GATEWAY_NAMESPACE_LABEL, gateway_namespace);
    }
    json!({
        "apiVersion": "kubeovn.io/v1",
        "kind": "IP",
        "metadata": { "name": reservation.name, "labels": labels },
        "spec": spec,
    })
}
