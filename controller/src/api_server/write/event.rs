//! Events on Services.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::Api;
use lb_svc_core::model::ServiceId;
use lb_svc_crds::names;

use crate::api_server::client::{ApiServer, Error, post, timed};

/// The longest note an Event takes (Kubernetes API).
const NOTE_MAX: usize = 1024;

impl ApiServer {
    /// Creates an Event of a Service, where `kubectl describe` shows it.
    ///
    /// # Errors
    /// The Event was not created.
    pub async fn create_event(
        &self,
        owner: &ServiceId,
        warning: bool,
        reason: &str,
        message: &str,
    ) -> Result<(), Error> {
        let mut note = message.to_owned();
        while note.len() > NOTE_MAX {
            note.pop();
        }
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", owner.service.name.chars().take(50).collect::<String>())),
                namespace: Some(owner.service.namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            event_time: Some(MicroTime(jiff::Timestamp::now())),
            note: Some(note),
            reason: Some(reason.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Service".to_owned()),
                name: Some(owner.service.name.clone()),
                namespace: Some(owner.service.namespace.clone()),
                uid: Some(owner.uid.clone()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(format!("{}/controller", names::DOMAIN)),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(if warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        };
        let events: Api<Event> = self.namespaced(&owner.service.namespace);
        timed(events.create(&post(), &event)).await.map(drop)
    }
}
