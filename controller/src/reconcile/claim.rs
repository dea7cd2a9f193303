//! The protocol by which an address is claimed: reserve it, hold its Subnet,
//! POST the claim, then apply what the API server has or drop the reservation.

use lb_svc_core::ipam::{AddressRequest, AllocationError};
use lb_svc_core::model::ServiceRef;
use lb_svc_crds::IP;

use super::{Reconciler, lock};
use crate::api_server::client::Error;
use crate::api_server::write::Claimed;

/// How many addresses are tried in one run when others are quicker.
const CLAIM_TRIES: usize = 32;

impl Reconciler {
    /// Chooses an address and claims it; `Some` says why there is none.
    pub(super) async fn claim(
        &self,
        service: &ServiceRef,
        request: &AddressRequest,
        gateway_namespace: &str,
    ) -> Result<Option<AllocationError>, Error> {
        for _ in 0..CLAIM_TRIES {
            let reservation = match lock(&self.index).allocator.reserve(request) {
                Ok(reservation) => reservation,
                Err(allocation_error) => return Ok(Some(allocation_error)),
            };
            // The Subnet must outlive the claim: held first, claimed then.
            let subnet = lock(&self.index).subnet(&reservation.subnet).cloned();
            let claimed = match subnet.filter(|subnet| !subnet.held) {
                Some(subnet) => match self.api_server.hold_subnet(&reservation.subnet, &subnet, true).await {
                    Ok(()) => self.api_server.claim(request, &reservation, gateway_namespace).await,
                    Err(error) => Err(error),
                },
                None => self.api_server.claim(request, &reservation, gateway_namespace).await,
            };
            match claimed {
                Ok(Claimed::Exists(claim)) => {
                    let ours = claim.owner == request.owner;
                    let mut index = lock(&self.index);
                    if index.versions.see::<IP>(&claim.id.uid, &claim.id.resource_version) {
                        index.allocator.apply(*claim, false);
                    } else {
                        // The watch has shown what became of it.
                        index.allocator.unreserve(&reservation);
                    }
                    drop(index);
                    if ours {
                        tracing::info!(%service, address = %reservation.address, subnet = reservation.subnet, "address claimed");
                        return Ok(None);
                    }
                }
                Ok(Claimed::Vanished) => lock(&self.index).allocator.unreserve(&reservation),
                Err(error) => {
                    lock(&self.index).allocator.unreserve(&reservation);
                    return Err(error);
                }
            }
        }
        Err(Error::Contended)
    }
}
