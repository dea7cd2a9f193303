//! Claims.

use std::collections::BTreeSet;

use kube::api::{Api, Patch};
use kube::core::DeserializeGuard;
use lb_svc_core::ipam::{AddressRequest, Claim, ClaimId, Reservation, claim};
use lb_svc_core::model::{GatewayLocation, ServiceId};
use lb_svc_core::node_mode::claim::{self as port_claim, PortClaim, PortRequest};
use lb_svc_crds::{IP, names};
use serde_json::{Value, json};

use super::typed;
use crate::api_server::client::{ApiServer, Error, exactly, merge, post, timed, timed_opt};
use crate::api_server::read::{self, AnyClaim};

/// What came of an attempt to claim an address, or a port of nodes.
#[derive(Debug)]
pub enum Claimed<C = Claim> {
    /// The claim exists; its owner may be another.
    Exists(Box<C>),
    /// An object of the name exists that is no claim.
    NoClaim(ClaimId),
    /// Another's existed, and is gone again.
    Vanished,
}

impl ApiServer {
    /// Claims a reserved address, for a gateway in `gateway_namespace`: a
    /// plain POST, which the API server refuses if the address is anyone's.
    ///
    /// # Errors
    /// Whether the claim was made is not known.
    pub async fn claim(
        &self,
        request: &AddressRequest,
        reservation: &Reservation,
        gateway_namespace: &str,
    ) -> Result<Claimed, Error> {
        let claim = typed(claim::manifest(request, reservation, gateway_namespace))?;
        self.post_claim(&reservation.name, &claim, |object| read::claim(object).ok()).await
    }

    /// Claims a port of nodes: a plain POST, which the API server refuses if the pool's
    /// port is anyone's.
    ///
    /// # Errors
    /// Whether the claim was made is not known.
    pub async fn claim_port(&self, request: &PortRequest) -> Result<Claimed<PortClaim>, Error> {
        let claim = typed(port_claim::manifest(request))?;
        let read = |object: &IP| match read::any_claim(object) {
            Ok(AnyClaim::Port(claim)) => Some(claim),
            Ok(AnyClaim::Address(_)) | Err(_) => None,
        };
        self.post_claim(&request.name(), &claim, read).await
    }

    /// Makes a claim, or reads the object that has its name.
    async fn post_claim<C>(
        &self,
        name: &str,
        claim: &IP,
        read: impl Fn(&IP) -> Option<C>,
    ) -> Result<Claimed<C>, Error> {
        let claims: Api<IP> = Api::all(self.client.clone());
        let object = match timed(claims.create(&post(), claim)).await {
            Ok(object) => Some(DeserializeGuard(Ok(object))),
            Err(error) if error.is_conflict() => {
                let objects: Api<DeserializeGuard<IP>> = Api::all(self.client.clone());
                timed(objects.get_opt(name)).await?
            }
            Err(error) => return Err(error),
        };
        let Some(object) = object else { return Ok(Claimed::Vanished) };
        let id = read::claim_id(&object);
        let claim = object.0.ok().and_then(|object| read(&object));
        Ok(claim.map_or(Claimed::NoClaim(id), |claim| Claimed::Exists(Box::new(claim))))
    }

    /// Records in a claim on a port the nodes whose port it is, if the claim is still
    /// as it was seen.
    ///
    /// # Errors
    /// The claim is unchanged then.
    pub async fn set_port_nodes(
        &self,
        claim: &ClaimId,
        nodes: &BTreeSet<String>,
    ) -> Result<Option<IP>, Error> {
        self.patch_claim(claim, json!({ "spec": { "nodePort": { "nodes": nodes } } })).await
    }

    /// Deletes a claim, exactly the one seen. That it is gone is a success.
    ///
    /// # Errors
    /// The claim was not deleted.
    pub async fn release(&self, claim: &ClaimId) -> Result<(), Error> {
        let claims: Api<IP> = Api::all(self.client.clone());
        timed_opt(claims.delete(&claim.name, &exactly(&claim.uid, &claim.resource_version))).await.map(drop)
    }

    /// Makes the claim that of another Service, if it is still as it was seen.
    /// A foreign host may have taken the address meanwhile: it is to be probed.
    ///
    /// # Errors
    /// The claim is unchanged then.
    pub async fn adopt_claim(&self, claim: &ClaimId, owner: &ServiceId) -> Result<Option<IP>, Error> {
        self.patch_claim(claim, json!({ "spec": { "serviceUid": owner.uid, "probed": false } })).await
    }

    /// Records in a claim that the foreign host with the hardware address `mac`
    /// has the address, if the claim is still as it was seen.
    ///
    /// # Errors
    /// The claim is unchanged then.
    pub async fn mark_conflict(&self, claim: &ClaimId, mac: &str) -> Result<Option<IP>, Error> {
        self.patch_claim(claim, json!({ "spec": { "conflict": mac } })).await
    }

    /// Records in a claim the hardware address of the interface that answers,
    /// and whether the address has been in service, if the claim is still as it
    /// was seen.
    ///
    /// # Errors
    /// The claim is unchanged then.
    pub async fn record_mac(&self, claim: &ClaimId, mac: &str, probed: bool) -> Result<Option<IP>, Error> {
        let spec = json!({ "macAddress": mac, "probed": probed, "conflict": "" });
        self.patch_claim(claim, json!({ "spec": spec })).await
    }

    /// Makes a claim outlive its Service, or not, if it is still as it was seen.
    ///
    /// # Errors
    /// The claim is unchanged then.
    pub async fn set_retain(&self, claim: &ClaimId, keep: bool) -> Result<Option<IP>, Error> {
        self.patch_claim(claim, json!({ "spec": { "keep": keep } })).await
    }

    /// Records in a claim the namespace of its gateway, if the claim is still as
    /// it was seen.
    ///
    /// # Errors
    /// The claim is unchanged then.
    pub async fn set_gateway_namespace(
        &self,
        claim: &ClaimId,
        gateway: &GatewayLocation,
    ) -> Result<Option<IP>, Error> {
        let namespace = (!gateway.is_at_home()).then_some(&gateway.namespace);
        let labels = json!({ names::GATEWAY_NAMESPACE_LABEL: namespace });
        self.patch_claim(claim, json!({ "metadata": { "labels": labels } })).await
    }

    async fn patch_claim(&self, claim: &ClaimId, mut patch: Value) -> Result<Option<IP>, Error> {
        let claims: Api<IP> = Api::all(self.client.clone());
        patch["metadata"]["uid"] = json!(claim.uid);
        patch["metadata"]["resourceVersion"] = json!(claim.resource_version);
        timed_opt(claims.patch(&claim.name, &merge(), &Patch::Merge(patch))).await
    }
}
