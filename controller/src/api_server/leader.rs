//! Which of several controllers works: the one that holds the leader's Lease.
//!
//! The Lease only spares them doing everything twice. What must not happen
//! twice is excluded where it is written.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::Api;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;

use super::client::MANAGER;

const NAME: &str = "lb-svc-controller";
/// A leader that dies leaves its work to another after this.
const LEASE_SECONDS: u64 = 15;
const LEASE_GRACE_SECONDS: u64 = 5;
/// How often one that waits looks whether a leader that stopped has given the
/// Lease back.
const LOOKS: Duration = Duration::from_secs(1);
/// How often a leader looks whether the Lease still names it. The manager takes
/// a Lease that was deleted for a passing error.
const LEADER_LOOKS: Duration = Duration::from_secs(3);
/// How long the API server gets for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// This process's part in the election.
pub struct Election {
    client: Client,
    namespace: String,
    identity: String,
    leading: Receiver<bool>,
    task: JoinHandle<kube_lease_manager::Result<LeaseManager>>,
}

async fn manager(client: &Client, namespace: &str, identity: &str) -> anyhow::Result<LeaseManager> {
    let built = LeaseManagerBuilder::new(client.clone(), NAME)
        .with_namespace(namespace)
        .with_identity(identity)
        // The manager's lock is the API server's conflict between two field
        // managers, so each process needs one of its own.
        .with_field_manager(field_manager(identity))
        .with_duration(LEASE_SECONDS)
        .with_grace(LEASE_GRACE_SECONDS)
        .build();
    tokio::time::timeout(TIMEOUT, built)
        .await
        .context("the API server does not answer")
        .and_then(|built| Ok(built?))
        .with_context(|| format!("the Lease {namespace}/{NAME}"))
}

/// A name for this process among field managers, which take 128 bytes
/// (Kubernetes API).
fn field_manager(identity: &str) -> String {
    let name = format!("{MANAGER}-lease-{identity}");
    name[..name.floor_char_boundary(128)].to_owned()
}

impl Election {
    /// Stands for leader under the name `identity`, with the Lease in
    /// `namespace`.
    ///
    /// # Errors
    /// When there is no Lease and none can be made.
    pub async fn stand(client: Client, namespace: String, identity: String) -> anyhow::Result<Self> {
        let (leading, task) = manager(&client, &namespace, &identity).await?.watch().await;
        Ok(Self { client, namespace, identity, leading, task })
    }

    /// Returns once this process leads.
    ///
    /// # Errors
    /// The election has ended, which is a defect.
    pub async fn led(&mut self) -> anyhow::Result<()> {
        let Self { client, namespace, identity, leading, task } = self;
        let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
        loop {
            tokio::select! {
                led = leading.wait_for(|leading| *leading) => {
                    return led.map(drop).context("the leader election ended");
                }
                () = until(&leases, LOOKS, |holder| holder.is_none()) => {}
            }
            // Who has seen another hold the Lease sleeps until it would
            // expire; who comes anew takes it.
            match manager(client, namespace, identity).await {
                Ok(manager) => {
                    task.abort();
                    (*leading, *task) = manager.watch().await;
                }
                Err(error) => tracing::warn!(error = format!("{error:#}"), "lease not available, retrying"),
            }
        }
    }

    /// Returns once this process leads no longer, or the Lease does not say so
    /// any more: it was deleted, or another holds it.
    pub async fn lost(&mut self) {
        let Self { client, namespace, identity, leading, .. } = self;
        let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
        tokio::select! {
            _ = leading.wait_for(|leading| !*leading) => {}
            () = until(&leases, LEADER_LOOKS, |holder| holder.is_none_or(|holder| holder != *identity)) => {}
        }
    }

    /// Gives the Lease back, also one that it has just got.
    pub async fn leave(self) {
        let Self { leading, task, .. } = self;
        drop(leading);
        let _ = tokio::time::timeout(TIMEOUT, task).await;
    }
}

/// Looks at the Lease every `pause`; returns once its holder is as asked. One
/// that does not exist has none.
async fn until(leases: &Api<Lease>, pause: Duration, is_so: impl Fn(Option<&str>) -> bool) {
    loop {
        tokio::time::sleep(pause).await;
        // An API server that does not answer says nothing of the holder.
        if let Ok(Ok(lease)) = tokio::time::timeout(TIMEOUT, leases.get_opt(NAME)).await {
            let holder = lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity);
            if is_so(holder.as_deref()) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use http::{Request, Response};
    use http_body_util::BodyExt;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::time::Instant;
    use tower_test::mock;

    use super::*;

    /// An API server with one Lease, which is given back, or deleted, when it has
    /// been looked at so often.
    async fn serve(
        mut handle: mock::Handle<Request<Body>, Response<Body>>,
        mut looks: u32,
        deleted: Arc<AtomicBool>,
    ) {
        let now = serde_json::to_value(MicroTime(jiff::Timestamp::now())).unwrap();
        let mut spec = json!({ "holderIdentity": "other", "leaseDurationSeconds": 15, "renewTime": now });
        while let Some((request, send)) = handle.next_request().await {
            if request.method() == http::Method::POST {
                deleted.store(false, Ordering::Relaxed);
                spec = json!({});
            }
            if deleted.load(Ordering::Relaxed) {
                let status =
                    json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 });
                let body = Body::from(status.to_string().into_bytes());
                send.send_response(Response::builder().status(404).body(body).unwrap());
                continue;
            }
            if request.method() == http::Method::PATCH {
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                let patch: Value = serde_json::from_slice(&bytes).unwrap();
                let fields = spec.as_object_mut().unwrap();
                fields.extend(patch["spec"].as_object().unwrap().clone());
                fields.retain(|_, value| !value.is_null());
            } else if looks == 0 && spec["holderIdentity"] == "other" {
                spec = json!({});
            } else {
                looks = looks.saturating_sub(1);
            }
            let lease = json!({ "metadata": { "name": NAME }, "spec": spec });
            send.send_response(Response::new(Body::from(lease.to_string().into_bytes())));
        }
    }

    #[test]
    fn r20_each_controller_is_a_field_manager_of_its_own() {
        assert_ne!(field_manager("a"), field_manager("b"));
        assert!(field_manager(&"ä".repeat(100)).len() <= 128);
    }

    #[tokio::test(start_paused = true)]
    async fn r20_leader_whose_lease_is_deleted_leads_no_longer_and_can_lead_again() {
        let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
        let deleted = Arc::new(AtomicBool::new(false));
        tokio::spawn(serve(handle, 0, Arc::clone(&deleted)));
        let client = Client::new(service, "default");
        let stand =
            async || Election::stand(client.clone(), "lb-svc-system".into(), "us".into()).await.unwrap();
        let mut election = stand().await;
        election.led().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(60), election.lost()).await.is_err(), "it leads on");
        deleted.store(true, Ordering::Relaxed);
        tokio::time::timeout(Duration::from_secs(10), election.lost()).await.unwrap();
        let mut again = stand().await;
        tokio::time::timeout(Duration::from_secs(10), again.led()).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn released_lease_is_taken_at_once() {
        let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
        tokio::spawn(serve(handle, 5, Arc::default()));
        let (client, start) = (Client::new(service, "default"), Instant::now());
        let mut election = Election::stand(client, "lb-svc-system".into(), "us".into()).await.unwrap();
        election.led().await.unwrap();
        let took = start.elapsed();
        assert!(took >= LOOKS && took < Duration::from_secs(10), "{took:?}");
        let leases: Api<Lease> = Api::namespaced(election.client.clone(), "lb-svc-system");
        let holder = async || leases.get(NAME).await.unwrap().spec.unwrap().holder_identity;
        assert_eq!(holder().await.as_deref(), Some("us"));
        election.leave().await;
        assert_eq!(holder().await, None);
    }
}
