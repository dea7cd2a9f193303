//! Carries a [`Plan`](crate::plan::Plan) out: the only place that writes.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{self as core, ConfigMap, ObjectReference, Pod, Secret, Service};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use lb_svc_crds::{IP, Subnet, names};
use serde_json::{Value, json};

use crate::convert::{self, GatedPod};
use crate::domain::{Child, Condition, DeploymentView, Ingress, Owner, Place};
use crate::ipam::{Candidate, Claim, ClaimId, Wish};
use crate::keys::Master;
use crate::render;
use crate::state::{self, ObjectName};

/// The name under which the controller owns fields it writes.
pub const MANAGER: &str = "lb-svc-controller";
/// No request to the API server waits longer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest note an Event takes (Kubernetes API).
const NOTE_MAX: usize = 1024;

/// Why a pod that has a node gets nothing to run with, in the kubelet's words.
const HANGS: [&str; 3] = ["FailedCreatePodSandBox", "FailedMount", "NetworkNotReady"];
/// A digest or a UUID is no shorter.
const ID_LENGTH: usize = 32;

/// The text without what is another at each attempt, so that the same cause is
/// the same text.
fn without_ids(text: &str) -> String {
    let of_id = |c: char| c.is_ascii_hexdigit() || c == '-';
    let pieces = text.split_inclusive(|c| !of_id(c)).map(|piece| {
        let word = piece.trim_end_matches(|c| !of_id(c));
        if word.len() < ID_LENGTH { piece.to_owned() } else { piece.replacen(word, "…", 1) }
    });
    pieces.collect()
}

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server said no, or could not be reached.
    #[error("{}", said(.0))]
    Api(#[source] Box<kube::Error>),
    /// It did not answer.
    #[error("the API server did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// Others took every address that was tried.
    #[error("every address tried was taken in the meantime")]
    Contended,
    /// An object that is not ours has a name that the gateway needs.
    #[error("the name is taken by an object that lb-svc did not make")]
    Taken,
    /// What was to be written is not what the API takes: a defect here.
    #[error("rendering: {0}")]
    Render(#[from] serde_json::Error),
    /// There is nothing to derive keys from.
    #[error(
        "the Secret {namespace}/{} has no {} of 32 bytes: delete it",
        names::MASTER_SECRET,
        names::MASTER_KEY
    )]
    Master {
        /// Its namespace.
        namespace: String,
    },
    /// The system gives no randomness.
    #[error("no randomness for a key: {0}")]
    Random(#[from] std::io::Error),
}

/// The API server's own words, without the rest of its answer.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

impl Error {
    /// One word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api(error) => match &**error {
                kube::Error::Api(status) if status.code == 409 => "conflict",
                kube::Error::Api(status) if status.code == 403 => "forbidden",
                kube::Error::Api(_) => "refused",
                _ => "transport",
            },
            Self::Taken => "conflict",
            Self::Timeout => "timeout",
            Self::Contended => "contended",
            Self::Render(_) => "render",
            Self::Master { .. } | Self::Random(_) => "key",
        }
    }

    /// Whether someone else was quicker; what is seen is out of date.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409) || matches!(self, Self::Taken)
    }

    /// Whether the API server understood and will not have it: a quota, an
    /// admission policy, missing rights, no such namespace. Trying again helps
    /// when that changes.
    pub fn is_refusal(&self) -> bool {
        matches!(self.code(), Some(400 | 403 | 404 | 422)) || matches!(self, Self::Master { .. })
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => match &**error {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// What came of an attempt to claim an address.
#[derive(Debug)]
pub enum Claimed {
    /// The claim exists, and is as it says: ours, or another's.
    Exists(Box<Claim>),
    /// It was another's, and is gone again.
    Vanished,
}

/// What came of writing an object.
#[derive(Clone, Debug)]
pub enum Written<K> {
    /// It is so now.
    Ours(Box<K>),
    /// It was so before, or another attempt was first.
    Already,
    /// An object that is not ours has the name.
    Foreign,
}

/// The kinds of object that a gateway is made of.
trait Piece:
    kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
    + Clone
    + std::fmt::Debug
    + serde::Serialize
    + serde::de::DeserializeOwned
{
}

impl Piece for ConfigMap {}
impl Piece for Deployment {}
impl Piece for PodDisruptionBudget {}

/// Writes to the API server.
#[derive(Clone)]
pub struct Actor {
    client: Client,
    instance: String,
}

async fn timed<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    Ok(tokio::time::timeout(TIMEOUT, call).await.map_err(|_| Error::Timeout)??)
}

/// `Ok(None)` instead of an error if the object is gone.
async fn timed_opt<T>(call: impl Future<Output = kube::Result<T>>) -> Result<Option<T>, Error> {
    match timed(call).await {
        Err(error) if error.code() == Some(404) => Ok(None),
        other => other.map(Some),
    }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

fn apply() -> PatchParams {
    PatchParams::apply(MANAGER).force()
}

fn merge() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

fn exactly(uid: &str, resource_version: &str) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: Some(resource_version.to_owned()),
    })
}

impl Actor {
    /// An actor that signs its Events as `instance`.
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance }
    }

    fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    // === claims ===

    /// Claims the candidate's address, for a gateway in `gateway_namespace`: a
    /// plain POST, which the API server refuses if the address is anyone's.
    ///
    /// # Errors
    /// Nothing is known of the claim then; trying again finds out.
    pub async fn claim(
        &self,
        wish: &Wish,
        candidate: &Candidate,
        gateway_namespace: &str,
    ) -> Result<Claimed, Error> {
        let claims: Api<IP> = Api::all(self.client.clone());
        let claim = render::claim(wish, candidate, gateway_namespace);
        let object = match timed(claims.create(&post(), &claim)).await {
            Ok(object) => Some(object),
            Err(error) if error.is_conflict() => timed(claims.get_opt(&candidate.name)).await?,
            Err(error) => return Err(error),
        };
        Ok(match object.and_then(|object| convert::claim(&object).ok()) {
            Some(claim) => Claimed::Exists(Box::new(claim)),
            None => Claimed::Vanished,
        })
    }

    /// Gives an address back.
    ///
    /// # Errors
    /// The claim stands then, unless it was gone before.
    pub async fn release(&self, claim: &ClaimId) -> Result<(), Error> {
        let claims: Api<IP> = Api::all(self.client.clone());
        timed_opt(claims.delete(&claim.name, &exactly(&claim.uid, &claim.resource_version))).await.map(drop)
    }

    /// Changes fields of a claim, if it is still as it was seen.
    ///
    /// # Errors
    /// The claim is unchanged then.
    pub async fn change_claim(&self, claim: &ClaimId, spec: Value) -> Result<Option<IP>, Error> {
        self.patch_claim(claim, json!({ "metadata": {}, "spec": spec })).await
    }

    /// Records in a claim where its gateway is, if it is still as it was seen.
    ///
    /// # Errors
    /// The claim is unchanged then.
    pub async fn settle_claim(&self, claim: &ClaimId, place: &Place) -> Result<Option<IP>, Error> {
        let namespace = (!place.is_beside()).then_some(&place.namespace);
        let labels = json!({ names::GATEWAY_NAMESPACE_LABEL: namespace });
        self.patch_claim(claim, json!({ "metadata": { "labels": labels } })).await
    }

    async fn patch_claim(&self, claim: &ClaimId, mut patch: Value) -> Result<Option<IP>, Error> {
        let claims: Api<IP> = Api::all(self.client.clone());
        patch["metadata"]["uid"] = json!(claim.uid);
        patch["metadata"]["resourceVersion"] = json!(claim.resource_version);
        timed_opt(claims.patch(&claim.name, &merge(), &Patch::Merge(patch))).await
    }

    // === the Service ===

    /// Writes, or with `None` clears, `spec.loadBalancerIP`, if the Service is
    /// still as it was seen.
    ///
    /// # Errors
    /// The Service is unchanged then.
    pub async fn set_address(
        &self,
        owner: &Owner,
        resource_version: &str,
        address: Option<&str>,
    ) -> Result<Option<Service>, Error> {
        let services: Api<Service> = self.namespaced(&owner.service.namespace);
        let patch = json!({
            "metadata": { "uid": owner.uid, "resourceVersion": resource_version },
            "spec": { "loadBalancerIP": address },
        });
        timed_opt(services.patch(&owner.service.name, &merge(), &Patch::Merge(patch))).await
    }

    /// Writes ingress and our conditions; an empty status takes back all that
    /// we own of it.
    ///
    /// # Errors
    /// The status is unchanged then.
    pub async fn set_status(
        &self,
        service: &crate::domain::Service,
        ingress: &[Ingress],
        conditions: &[Condition],
    ) -> Result<Option<Service>, Error> {
        let owner = &service.owner;
        let mut status = json!({});
        if !ingress.is_empty() {
            let ingress: Vec<_> = ingress.iter().map(convert::ingress_entry).collect();
            status["loadBalancer"] = json!({ "ingress": ingress });
        }
        if !conditions.is_empty() {
            let known = Known { conditions: &service.conditions, since: &service.since };
            status["conditions"] = known.stamp(conditions, service.generation);
        }
        let object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": owner.service.name, "namespace": owner.service.namespace, "uid": owner.uid },
            "status": status,
        });
        let services: Api<Service> = self.namespaced(&owner.service.namespace);
        timed_opt(services.patch_status(&owner.service.name, &apply(), &Patch::Apply(object))).await
    }

    /// Tells something about a Service, where `kubectl describe` shows it.
    ///
    /// # Errors
    /// It was not told then.
    pub async fn tell(&self, owner: &Owner, warning: bool, reason: &str, message: &str) -> Result<(), Error> {
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

    /// Why the node of the pod with this uid cannot give it what it runs with,
    /// as the node says: reason and message.
    ///
    /// # Errors
    /// It is not known then.
    pub async fn why(&self, namespace: &str, pod: &str) -> Result<Option<(String, String)>, Error> {
        let events: Api<core::Event> = self.namespaced(namespace);
        let on_it =
            ListParams::default().fields(&format!("involvedObject.uid={pod},type=Warning")).limit(100);
        let told = timed(events.list(&on_it)).await?.items.into_iter();
        let told = told.filter(|event| HANGS.contains(&event.reason.as_deref().unwrap_or_default()));
        let at = |event: &core::Event| {
            let at = event.last_timestamp.as_ref().map(|time| time.0);
            at.or(event.event_time.as_ref().map(|time| time.0))
        };
        let last = told.max_by_key(at);
        Ok(last
            .map(|event| (event.reason.unwrap_or_default(), without_ids(&event.message.unwrap_or_default()))))
    }

    // === the gateway ===

    /// Writes a gateway's ConfigMap; `known` is the one seen.
    ///
    /// # Errors
    /// It is unchanged then.
    pub async fn write_config(
        &self,
        owner: &Owner,
        place: &Place,
        content: &str,
        known: Option<&Child<String>>,
    ) -> Result<Written<ConfigMap>, Error> {
        self.make_or_apply(place, render::config(owner, place, content), known).await
    }

    /// Makes a gateway's Deployment, or makes the one seen what is `wanted`.
    ///
    /// It is replaced, not applied: an apply takes away only what an earlier
    /// apply had set, and it was not made by one.
    ///
    /// # Errors
    /// It is unchanged then.
    pub async fn write_deployment(
        &self,
        place: &Place,
        wanted: &Value,
        known: Option<&Child<DeploymentView>>,
    ) -> Result<Written<Deployment>, Error> {
        let mut wanted = wanted.clone();
        let Some(known) = known else { return self.make(place, wanted).await };
        let metadata = &mut wanted["metadata"];
        metadata["uid"] = json!(known.uid);
        metadata["resourceVersion"] = json!(known.resource_version);
        // What others say of the object is theirs; its content is ours.
        let live = &known.content.live["metadata"];
        metadata["finalizers"] = live["finalizers"].clone();
        for field in ["labels", "annotations"] {
            for (key, theirs) in live[field].as_object().into_iter().flatten() {
                if metadata[field][key].is_null() {
                    metadata[field][key] = theirs.clone();
                }
            }
        }
        let api: Api<Deployment> = self.namespaced(&place.namespace);
        let object = timed_opt(api.replace(&place.name(), &post(), &render::typed(wanted)?)).await?;
        // If it is gone, the watch will say so.
        Ok(object.map_or(Written::Already, |object| Written::Ours(Box::new(object))))
    }

    /// Makes a gateway's PodDisruptionBudget, or makes the one seen what is
    /// `wanted`.
    ///
    /// # Errors
    /// It is unchanged then.
    pub async fn write_budget(
        &self,
        place: &Place,
        wanted: &Value,
        known: Option<&Child<Value>>,
    ) -> Result<Written<PodDisruptionBudget>, Error> {
        self.make_or_apply(place, wanted.clone(), known).await
    }

    /// Makes the Secret with a gateway's key, unless it is there; it goes with
    /// the ConfigMap with this uid. It may not be read, so one that is there is
    /// taken for ours.
    ///
    /// # Errors
    /// There may be none then.
    pub async fn write_key(
        &self,
        owner: &Owner,
        place: &Place,
        config: &str,
        master: &Master,
    ) -> Result<(), Error> {
        let secrets: Api<Secret> = self.namespaced(&place.namespace);
        let secret = render::typed(render::key(owner, place, config, master.key(&owner.uid)))?;
        match timed(secrets.create(&post(), &secret)).await {
            Err(error) if error.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }

    /// What all keys are derived from, kept in a Secret in `namespace`; it is
    /// made if there is none.
    ///
    /// # Errors
    /// When it cannot be had, or is none.
    pub async fn master(&self, namespace: &str) -> Result<Master, Error> {
        let secrets: Api<Secret> = self.namespaced(namespace);
        let read = |secret: Secret| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(names::MASTER_KEY));
            let master = bytes.and_then(|bytes| Master::kept(&bytes.0));
            master.ok_or_else(|| Error::Master { namespace: namespace.to_owned() })
        };
        if let Some(secret) = timed(secrets.get_opt(names::MASTER_SECRET)).await? {
            return read(secret);
        }
        let master = Master::random()?;
        let secret = render::typed(render::master(namespace, &master))?;
        match timed(secrets.create(&post(), &secret)).await {
            Ok(_) => Ok(master),
            // Another controller was first.
            Err(error) if error.is_conflict() => read(timed(secrets.get(names::MASTER_SECRET)).await?),
            Err(error) => Err(error),
        }
    }

    /// Makes an object of a gateway, or applies what is `wanted` to the one seen.
    async fn make_or_apply<K: Piece, T>(
        &self,
        place: &Place,
        mut wanted: Value,
        known: Option<&Child<T>>,
    ) -> Result<Written<K>, Error> {
        let Some(known) = known else { return self.make(place, wanted).await };
        wanted["metadata"]["uid"] = json!(known.uid);
        let api: Api<K> = self.namespaced(&place.namespace);
        let object = timed(api.patch(&place.name(), &apply(), &Patch::Apply(&wanted))).await?;
        Ok(Written::Ours(Box::new(object)))
    }

    /// Makes an object of a gateway by a plain POST, which cannot overwrite
    /// what is not ours.
    async fn make<K: Piece>(&self, place: &Place, wanted: Value) -> Result<Written<K>, Error> {
        let api: Api<K> = self.namespaced(&place.namespace);
        match timed(api.create(&post(), &render::typed(wanted)?)).await {
            Ok(object) => Ok(Written::Ours(Box::new(object))),
            Err(error) if error.is_conflict() => {
                let taken = timed(api.get_opt(&place.name())).await?;
                let ours = taken.is_none_or(|object| convert::gateway_of(&object).as_ref() == Some(place));
                Ok(if ours { Written::Already } else { Written::Foreign })
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes a gateway's ConfigMap, exactly the one seen.
    ///
    /// # Errors
    /// It stands then, unless it was gone before.
    pub async fn delete_config(&self, place: &Place, uid: &str, resource_version: &str) -> Result<(), Error> {
        let api: Api<ConfigMap> = self.namespaced(&place.namespace);
        timed_opt(api.delete(&place.name(), &exactly(uid, resource_version))).await.map(drop)
    }

    /// Deletes a gateway's Deployment, exactly the one seen. It stays visible
    /// until its pods are gone, so that no pod can appear after it.
    ///
    /// # Errors
    /// It stands then, unless it was gone before.
    pub async fn delete_deployment(
        &self,
        place: &Place,
        uid: &str,
        resource_version: &str,
    ) -> Result<(), Error> {
        let api: Api<Deployment> = self.namespaced(&place.namespace);
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..exactly(uid, resource_version)
        };
        timed_opt(api.delete(&place.name(), &params)).await.map(drop)
    }

    /// Deletes a gateway's PodDisruptionBudget, exactly the one seen.
    ///
    /// # Errors
    /// It stands then, unless it was gone before.
    pub async fn delete_budget(&self, place: &Place, uid: &str, resource_version: &str) -> Result<(), Error> {
        let api: Api<PodDisruptionBudget> = self.namespaced(&place.namespace);
        timed_opt(api.delete(&place.name(), &exactly(uid, resource_version))).await.map(drop)
    }

    /// Sets annotations on a gateway's pod, which also makes the kubelet
    /// refresh what is mounted into it.
    ///
    /// # Errors
    /// The pod is unchanged then.
    pub async fn annotate(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<Pod>, Error> {
        let pods: Api<Pod> = self.namespaced(namespace);
        let patch = json!({ "metadata": { "uid": uid, "annotations": annotations } });
        timed_opt(pods.patch(pod, &merge(), &Patch::Merge(patch))).await
    }

    // === backends ===

    /// Sets the condition of our readiness gate on a pod.
    ///
    /// # Errors
    /// The pod is unchanged then, unless it is gone.
    pub async fn set_gate(
        &self,
        (namespace, pod): &ObjectName,
        uid: &str,
        status: bool,
        reason: &str,
        message: &str,
    ) -> Result<Option<GatedPod>, Error> {
        let condition = Condition {
            kind: names::READINESS_GATE.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let known = Known { conditions: &[], since: &BTreeMap::new() };
        let conditions = known.stamp(&[condition], None);
        // Of the conditions, those of the same type are merged.
        let patch = json!({ "metadata": { "uid": uid }, "status": { "conditions": conditions } });
        let pods: Api<GatedPod> = self.namespaced(namespace);
        timed_opt(pods.patch_status(pod, &merge(), &Patch::Strategic(patch))).await
    }

    // === Subnets ===

    /// Sets or takes back our finalizer on a Subnet.
    ///
    /// # Errors
    /// The Subnet is unchanged then.
    pub async fn hold_subnet(&self, name: &str, subnet: &state::Subnet, held: bool) -> Result<(), Error> {
        let finalizers = if held { json!([names::SUBNET_FINALIZER]) } else { json!([]) };
        let object = json!({
            "apiVersion": "kubeovn.io/v1",
            "kind": "Subnet",
            "metadata": { "name": name, "uid": subnet.uid, "finalizers": finalizers },
        });
        let params = PatchParams::apply("lb-svc-controller-finalizer").force();
        let subnets: Api<Subnet> = Api::all(self.client.clone());
        timed_opt(subnets.patch_metadata(name, &params, &Patch::Apply(object))).await.map(drop)
    }

    /// Writes a Subnet's status.
    ///
    /// # Errors
    /// The status is unchanged then.
    pub async fn set_subnet_status(
        &self,
        name: &str,
        subnet: &state::Subnet,
        status: &state::SubnetView,
    ) -> Result<(), Error> {
        let known = Known { conditions: &subnet.status.conditions, since: &subnet.since };
        let object = json!({
            "apiVersion": "kubeovn.io/v1",
            "kind": "Subnet",
            "metadata": { "name": name, "uid": subnet.uid },
            "status": {
                "v4usingIPs": status.using,
                "v4availableIPs": status.available,
                "v4usingIPrange": status.using_range,
                "v4availableIPrange": status.available_range,
                "conditions": known.stamp(&status.conditions, subnet.generation),
            },
        });
        let subnets: Api<Subnet> = Api::all(self.client.clone());
        timed_opt(subnets.patch_status(name, &apply(), &Patch::Apply(object))).await.map(drop)
    }
}

/// Conditions as they stand, with the times of their last change.
struct Known<'a> {
    conditions: &'a [Condition],
    since: &'a BTreeMap<String, jiff::Timestamp>,
}

impl Known<'_> {
    /// `conditions` as the API takes them; one whose status stays keeps its
    /// time.
    fn stamp(&self, conditions: &[Condition], generation: Option<i64>) -> Value {
        let stamped = conditions.iter().map(|condition| {
            let same = |known: &&Condition| known.kind == condition.kind && known.status == condition.status;
            let since =
                self.conditions.iter().find(same).and_then(|known| self.since.get(&known.kind)).copied();
            let since = since.unwrap_or_else(|| {
                // The API keeps whole seconds.
                let now = jiff::Timestamp::now();
                jiff::Timestamp::from_second(now.as_second()).unwrap_or(now)
            });
            let mut object = json!({
                "type": condition.kind,
                "status": if condition.status { "True" } else { "False" },
                "reason": condition.reason,
                "message": condition.message,
                "lastTransitionTime": since,
            });
            if let Some(generation) = generation {
                object["observedGeneration"] = json!(generation);
            }
            object
        });
        stamped.collect()
    }
}
