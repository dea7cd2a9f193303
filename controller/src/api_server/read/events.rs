//! Events of nodes about pods that do not start.

use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, ListParams};
use lb_svc_core::model::MESSAGE_MAX;
use lb_svc_crds::bounded::cut;

use crate::api_server::client::{ApiServer, Error, timed};

/// The reasons of Events by which a node says why a pod does not start.
pub const START_FAILURES: [&str; 3] = ["FailedCreatePodSandBox", "FailedMount", "NetworkNotReady"];
/// A digest or a UUID is no shorter.
const ID_LENGTH: usize = 32;

/// The text without digests and UUIDs, which differ at each attempt: one cause is
/// one text.
fn without_ids(text: &str) -> String {
    let of_id = |c: char| c.is_ascii_hexdigit() || c == '-';
    let pieces = text.split_inclusive(|c| !of_id(c)).map(|piece| {
        let word = piece.trim_end_matches(|c| !of_id(c));
        if word.len() < ID_LENGTH { piece.to_owned() } else { piece.replacen(word, "…", 1) }
    });
    pieces.collect()
}

/// What an Event says, within bounds: anyone may write it.
fn told(message: &str) -> String {
    cut(&without_ids(&cut(message, MESSAGE_MAX)), MESSAGE_MAX)
}

impl ApiServer {
    /// The last start failure that the node of the pod with this uid reports: reason
    /// and message.
    ///
    /// # Errors
    /// The Events could not be listed.
    pub async fn start_failure(&self, namespace: &str, pod: &str) -> Result<Option<(String, String)>, Error> {
        let events: Api<core::Event> = self.namespaced(namespace);
        let on_it =
            ListParams::default().fields(&format!("involvedObject.uid={pod},type=Warning")).limit(100);
        let all = timed(events.list(&on_it)).await?.items.into_iter();
        let failures =
            all.filter(|event| START_FAILURES.contains(&event.reason.as_deref().unwrap_or_default()));
        let at = |event: &core::Event| {
            let at = event.last_timestamp.as_ref().map(|time| time.0);
            at.or(event.event_time.as_ref().map(|time| time.0))
        };
        let last = failures.max_by_key(at);
        Ok(last.map(|event| (event.reason.unwrap_or_default(), told(&event.message.unwrap_or_default()))))
    }
}
