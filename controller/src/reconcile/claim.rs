//! The protocol by which an address is claimed: reserve it, hold its Subnet,
//! POST the claim, then apply what the API server has or drop the reservation.

use lb_svc_core::ipam::{AddressRequest, AllocationError, Reservation};
use lb_svc_crds::IP;

use super::{Reconciler, lock};
use crate::api_server::client::Error;
use crate::api_server::write::Claimed;

/// The most addresses that are tried in one run when others are quicker.
const CLAIM_TRIES: usize = 32;

impl Reconciler {
    /// Claims an address for a gateway in `gateway_namespace`. `Some`: why there
    /// is none to be had.
    pub(super) async fn claim(
        &self,
        request: &AddressRequest,
        gateway_namespace: &str,
    ) -> Result<Option<AllocationError>, Error> {
        for _ in 0..CLAIM_TRIES {
            let reservation = match lock(&self.index).allocator.reserve(request) {
                Ok(reservation) => reservation,
                Err(error) => return Ok(Some(error)),
            };
            let claimed = self.post_claim(request, &reservation, gateway_namespace).await;
            if self.resolve(request, &reservation, claimed)? {
                let (service, Reservation { address, subnet, .. }) = (&request.owner.service, reservation);
                tracing::info!(%service, %address, subnet, "address claimed");
                return Ok(None);
            }
        }
        Err(Error::Contended)
    }

    /// Makes the claim. The Subnet must outlive it: held first, claimed then.
    async fn post_claim(
        &self,
        request: &AddressRequest,
        reservation: &Reservation,
        gateway_namespace: &str,
    ) -> Result<Claimed, Error> {
        let subnet = lock(&self.index).subnet(&reservation.subnet).cloned();
        if let Some(subnet) = subnet.filter(|subnet| !subnet.held) {
            self.api_server.hold_subnet(&reservation.subnet, &subnet, true).await?;
        }
        self.api_server.claim(request, reservation, gateway_namespace).await
    }

    /// Resolves a reservation by what came of its claim. Returns whether the
    /// claim is that of the request.
    fn resolve(
        &self,
        request: &AddressRequest,
        reservation: &Reservation,
        claimed: Result<Claimed, Error>,
    ) -> Result<bool, Error> {
        let mut index = lock(&self.index);
        match claimed {
            Ok(Claimed::Exists(claim)) => {
                let is_own = claim.owner == request.owner;
                if index.versions.see::<IP>(&claim.id.uid, &claim.id.resource_version) {
                    index.allocator.apply(*claim, false);
                } else {
                    // The watch has shown what became of it.
                    index.allocator.unreserve(reservation);
                }
                Ok(is_own)
            }
            Ok(Claimed::NoClaim(object)) => {
                index.allocator.unreserve(reservation);
                if index.versions.see::<IP>(&object.uid, &object.resource_version) {
                    index.allocator.set_stranger(&object.name, &object.uid);
                }
                Ok(false)
            }
            Ok(Claimed::Vanished) => {
                index.allocator.unreserve(reservation);
                Ok(false)
            }
            Err(error) => {
                index.allocator.unreserve(reservation);
                Err(error)
            }
        }
    }
}
