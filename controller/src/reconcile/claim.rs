//! The protocol by which an address is claimed: reserve it, hold its Subnet,
//! POST the claim, then apply what the API server has or drop the reservation.

use lb_svc_core::ipam::{Refusal, Wish};
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
        wish: &Wish,
        gateway_namespace: &str,
    ) -> Result<Option<Refusal>, Error> {
        for _ in 0..CLAIM_TRIES {
            let candidate = match lock(&self.state).ledger.reserve(wish) {
                Ok(candidate) => candidate,
                Err(refusal) => return Ok(Some(refusal)),
            };
            // The Subnet must outlive the claim: held first, claimed then.
            let subnet = lock(&self.state).subnet(&candidate.subnet).cloned();
            let claimed = match subnet.filter(|subnet| !subnet.held) {
                Some(subnet) => match self.api_server.hold_subnet(&candidate.subnet, &subnet, true).await {
                    Ok(()) => self.api_server.claim(wish, &candidate, gateway_namespace).await,
                    Err(error) => Err(error),
                },
                None => self.api_server.claim(wish, &candidate, gateway_namespace).await,
            };
            match claimed {
                Ok(Claimed::Exists(claim)) => {
                    let ours = claim.owner == wish.owner;
                    let mut state = lock(&self.state);
                    if state.versions.see::<IP>(&claim.id.uid, &claim.id.resource_version) {
                        state.ledger.apply(*claim, false);
                    } else {
                        // The watch has shown what became of it.
                        state.ledger.unreserve(&candidate);
                    }
                    drop(state);
                    if ours {
                        tracing::info!(%service, address = %candidate.address, subnet = candidate.subnet, "address claimed");
                        return Ok(None);
                    }
                }
                Ok(Claimed::Vanished) => lock(&self.state).ledger.unreserve(&candidate),
                Err(error) => {
                    lock(&self.state).ledger.unreserve(&candidate);
                    return Err(error);
                }
            }
        }
        Err(Error::Contended)
    }
}
