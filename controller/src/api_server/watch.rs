//! The watches: one per kind, each feeding [`Index`] and telling the queue
//! whom a change concerns.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, OptionFuture};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ListParams, WatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};
use lb_svc_core::model::ObjectName;
use lb_svc_crds::{IP, Subnet, names};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::bounded::TooLarge;
use super::client::timed;
use super::read::{NetworkAttachmentDefinition, SERVICE_NAME_LABEL, WatchedPod};
use crate::index::{Index, Key};
use crate::panics::contain;
use crate::reconcile::queue::Queue;

mod kinds;

/// How long one watch request lasts before it is made anew.
pub(crate) const WATCH_SECONDS: u32 = 30;
/// On EndpointSlices of Services without a ClusterIP, which are never ours
/// (Kubernetes API).
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Objects of an answer to a list: what a whole one takes while it is read
/// would stay with the process. Where they are too large for an answer, there
/// are half as many.
const PAGE: u32 = 100;
/// How often it is asked whether a watch that was forbidden is allowed by now:
/// an API server that starts forbids what it will allow.
const ASKED_AGAIN: Duration = Duration::from_secs(60);
/// How long after the start all pods are watched, where no Service is served directly
/// or at nodes.
const PODS_AFTER: Duration = Duration::from_secs(60);

/// How one kind of object gets into the index.
pub trait Watched:
    Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static
{
    /// What is read of it, and what is not readable.
    type Read: Read<Self>;

    /// Whether the object is any business of ours. One that is not leaves no
    /// trace, for there may be very many.
    fn matters(&self) -> bool {
        true
    }

    /// A list of all objects begins.
    fn begin(_index: &mut Index) {}

    /// The object is so.
    fn set(index: &mut Index, object: Self) -> Vec<Key>;
    /// An object of this name and uid is there that is not of the type.
    fn unreadable(_index: &mut Index, _name: &str, _uid: &str) -> Vec<Key> {
        Vec::new()
    }
    /// The object is gone.
    fn gone(index: &mut Index, object: &Self) -> Vec<Key>;
    /// An object that was not of the type is gone.
    fn unreadable_gone(_index: &mut Index, _name: &str, _uid: &str) -> Vec<Key> {
        Vec::new()
    }
    /// A new list shows these objects and no others.
    fn listed(index: &mut Index, names: &BTreeSet<ObjectName>) -> Vec<Key>;
}

/// An object as it is read: one of kind `K`, or one that cannot be read as that.
pub trait Read<K>:
    Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static
{
    /// The object.
    fn get(&self) -> Option<&K>;

    /// The object.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn into_object(self) -> Result<K, String>;
}

impl<K: Watched> Read<K> for DeserializeGuard<K> {
    fn get(&self) -> Option<&K> {
        self.0.as_ref().ok()
    }

    fn into_object(self) -> Result<K, String> {
        self.0.map_err(|error| error.error)
    }
}

/// The API server itself writes what is read of it.
impl Read<Self> for WatchedPod {
    fn get(&self) -> Option<&Self> {
        Some(self)
    }

    fn into_object(self) -> Result<Self, String> {
        Ok(self)
    }
}

/// Starts all watches. Each task ends when the queue is gone.
///
/// Gateways are looked for in every namespace: they may have to move. Where
/// there is a gateway namespace and no right to look into others, it is only
/// in that one, until there is.
///
/// The receivers turn true when a watch has seen its first whole list.
pub fn start(
    client: &Client,
    index: &Arc<Mutex<Index>>,
    queue: &Queue,
    gateway_namespace: Option<&str>,
) -> Vec<watch::Receiver<bool>> {
    // Short, so that a connection that died without a word is noticed soon;
    // the client gives up reading a little later (see `run`).
    let all = || watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let ours = || all().labels(&format!("{}={}", names::MANAGED_BY_LABEL, names::MANAGED_BY));
    let of_services = format!("{},!{}", SERVICE_NAME_LABEL, HEADLESS_LABEL);
    let start = Start { client, index, queue };
    let (services, claims) = (start.one::<Service>(all()), start.one::<IP>(all()));
    // What gateways' objects hold is kept only where a Service or a claim says
    // that there is a gateway: those have to be seen first.
    let first = [services.clone(), claims.clone()];
    let gateways = Gateways { config: ours(), namespace: gateway_namespace, after: &first };
    let pods = start.gateways::<Pod>(&gateways);
    vec![
        services.clone(),
        claims,
        start.gateways::<ConfigMap>(&gateways),
        start.gateways::<Deployment>(&gateways),
        start.gateways::<PodDisruptionBudget>(&gateways),
        pods.clone(),
        start.one::<EndpointSlice>(all().labels(&of_services)),
        start.one::<Namespace>(all()),
        start.all_pods(all(), services),
        // A node that a later list does not have is one that a pod has lost.
        start.watch::<Node>(all(), None, all_listed(vec![pods])),
        start.one::<NetworkAttachmentDefinition>(all()),
        start.one::<Subnet>(all()),
    ]
}

/// How gateways' objects are watched.
struct Gateways<'a> {
    config: watcher::Config,
    /// The only namespace to look into, where others are forbidden.
    namespace: Option<&'a str>,
    /// The watches that must have seen their first list before.
    after: &'a [watch::Receiver<bool>],
}

struct Start<'a> {
    client: &'a Client,
    index: &'a Arc<Mutex<Index>>,
    queue: &'a Queue,
}

impl Start<'_> {
    fn one<K: Watched>(&self, config: watcher::Config) -> watch::Receiver<bool> {
        self.watch::<K>(config, None, std::future::ready(()))
    }

    /// Watches all pods, for their readiness gate and the ports that they publish.
    /// Until a Service is served directly, or at nodes, nothing waits for that but
    /// pods whose gate no Service asks for.
    fn all_pods(
        &self,
        config: watcher::Config,
        mut services: watch::Receiver<bool>,
    ) -> watch::Receiver<bool> {
        let (synced, receiver) = watch::channel(false);
        let needs = self.index.lock().unwrap_or_else(PoisonError::into_inner).needs_pods();
        let (mut listed, mut needed) = (services.clone(), needs.clone());
        let begin = async move {
            let _ = listed.wait_for(|listed| *listed).await;
            let _ = tokio::time::timeout(PODS_AFTER, needed.wait_for(|needed| *needed)).await;
        };
        let mut seen = self.watch::<WatchedPod>(config, None, begin);
        tokio::spawn(async move {
            let _ = services.wait_for(|listed| *listed).await;
            if *needs.borrow() {
                let _ = seen.wait_for(|seen| *seen).await;
            }
            synced.send_replace(true);
        });
        receiver
    }

    fn gateways<K>(&self, gateways: &Gateways<'_>) -> watch::Receiver<bool>
    where
        K: Watched<Read = DeserializeGuard<K>> + Resource<Scope = NamespaceResourceScope>,
    {
        let narrow = gateways.namespace.map(|namespace| Api::namespaced(self.client.clone(), namespace));
        self.watch::<K>(gateways.config.clone(), narrow, all_listed(gateways.after.to_vec()))
    }

    /// Watches, once `begin` is done, everywhere, or where that is forbidden in a `narrow` scope until it
    /// is allowed.
    fn watch<K: Watched>(
        &self,
        config: watcher::Config,
        narrow: Option<Api<K::Read>>,
        begin: impl Future<Output = ()> + Send + 'static,
    ) -> watch::Receiver<bool> {
        let (synced, receiver) = watch::channel(false);
        let (wide, index, queue) =
            (Api::<K::Read>::all(self.client.clone()), Arc::clone(self.index), self.queue.clone());
        tokio::spawn(async move {
            begin.await;
            let mut scope = Scope::<K> { wide, narrow, is_narrow: false, allowed: None.into(), config };
            let mut events = scope.events();
            let mut listed = BTreeSet::new();
            loop {
                let event = tokio::select! {
                    Some(()) = &mut scope.allowed => {
                        tracing::info!(kind = %K::kind(&()), "watching every namespace again");
                        events = scope.widen();
                        continue;
                    }
                    Some(event) = events.next() => event,
                    else => break,
                };
                match event {
                    Ok(event) => {
                        let done = matches!(event, Event::InitDone);
                        let keys = {
                            let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
                            let keys = feed::<K>(&mut index, event, &mut listed).into_iter();
                            // Until then its objects elsewhere are not known to be gone.
                            let seen = (done && !scope.is_narrow).then(|| index.set_wide::<K>());
                            keys.chain(seen.into_iter().flatten())
                        };
                        queue.extend(keys);
                        if done {
                            synced.send_replace(true);
                        }
                    }
                    Err(error) if is_forbidden(&error) && scope.can_narrow() => {
                        tracing::info!(kind = %K::kind(&()), %error, "watching the gateway namespace only");
                        index.lock().unwrap_or_else(PoisonError::into_inner).set_narrow::<K>();
                        events = scope.narrow();
                    }
                    Err(error) if is_too_large(&error) && scope.halve_page() => {
                        let page = scope.config.page_size;
                        tracing::warn!(kind = %K::kind(&()), page, %error, "listing fewer objects at once");
                        events = scope.events();
                    }
                    Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch failed, retrying"),
                }
            }
        });
        receiver
    }
}

/// Returns once these watches have seen their first list.
async fn all_listed(watches: Vec<watch::Receiver<bool>>) {
    for mut synced in watches {
        // One that has ended is noticed by the caller.
        let _ = synced.wait_for(|synced| *synced).await;
    }
}

/// Where one kind of object is watched, and how.
struct Scope<K: Watched> {
    /// Everywhere.
    wide: Api<K::Read>,
    /// Where to watch instead, if that is forbidden.
    narrow: Option<Api<K::Read>>,
    is_narrow: bool,
    /// While it is: done once the wide watch is allowed.
    allowed: OptionFuture<BoxFuture<'static, ()>>,
    config: watcher::Config,
}

type Events<K> = BoxStream<'static, watcher::Result<Event<<K as Watched>::Read>>>;

impl<K: Watched> Scope<K> {
    fn events(&self) -> Events<K> {
        let api = self.narrow.as_ref().filter(|_| self.is_narrow).unwrap_or(&self.wide);
        watcher(api.clone(), self.config.clone()).default_backoff().boxed()
    }

    fn can_narrow(&self) -> bool {
        self.narrow.is_some() && !self.is_narrow
    }

    fn narrow(&mut self) -> Events<K> {
        self.is_narrow = true;
        self.allowed = Some(until_allowed::<K>(self.wide.clone(), self.config.clone()).boxed()).into();
        self.events()
    }

    fn widen(&mut self) -> Events<K> {
        self.is_narrow = false;
        self.allowed = None.into();
        self.events()
    }

    /// Lists half as many objects at once. Returns whether that is fewer.
    fn halve_page(&mut self) -> bool {
        let page = self.config.page_size.unwrap_or(PAGE);
        self.config.page_size = Some((page / 2).max(1));
        page > 1
    }
}

/// Returns once everything may be listed and watched.
async fn until_allowed<K: Watched>(api: Api<K::Read>, config: watcher::Config) {
    let labels = config.label_selector.unwrap_or_default();
    let one = ListParams::default().labels(&labels).limit(1);
    let short = WatchParams::default().labels(&labels).timeout(1);
    loop {
        tokio::time::sleep(ASKED_AGAIN).await;
        let Ok(list) = timed(api.list_metadata(&one)).await else { continue };
        let version = list.metadata.resource_version.unwrap_or_default();
        if timed(api.watch_metadata(&short, &version)).await.is_ok() {
            return;
        }
    }
}

fn is_too_large(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(error) if TooLarge::is(error))
}

fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == 403,
        _ => false,
    }
}

/// Takes in what the API server answered to our own write, so that the next
/// run does not write it again. The watch will show it too, later.
pub(crate) fn learn<K: Watched>(index: &mut Index, object: K) {
    if see::<K>(index, &object) {
        K::set(index, object);
    }
}

fn identity(object: &impl Resource) -> (&str, &str) {
    let meta = object.meta();
    (meta.uid.as_deref().unwrap_or_default(), meta.resource_version.as_deref().unwrap_or_default())
}

/// Whether nothing newer has been seen of `object`, of kind `K`.
fn see<K: Watched>(index: &mut Index, object: &impl Resource) -> bool {
    let (uid, version) = identity(object);
    index.versions.see::<K>(uid, version)
}

/// Feeds an object to `known`, or the name and uid of one that is not of the type
/// to `unreadable`. One that cannot be handled is dropped, and named.
fn feed_one<K: Watched>(
    index: &mut Index,
    read: K::Read,
    known: impl FnOnce(&mut Index, K) -> Vec<Key>,
    unreadable: impl FnOnce(&mut Index, &str, &str) -> Vec<Key>,
) -> Vec<Key> {
    let (namespace, name) = object_name(&read);
    let uid = read.uid().unwrap_or_default();
    let work = || match read.into_object() {
        Ok(object) => known(index, object),
        Err(error) => {
            tracing::warn!(kind = %K::kind(&()), namespace, name, "not readable, and ignored: {error}");
            unreadable(index, &name, &uid)
        }
    };
    contain(work).unwrap_or_else(|error| {
        tracing::error!(kind = %K::kind(&()), namespace, name, %error, "object dropped");
        Vec::new()
    })
}

fn object_name(object: &impl ResourceExt) -> ObjectName {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn feed<K: Watched>(index: &mut Index, event: Event<K::Read>, listed: &mut BTreeSet<ObjectName>) -> Vec<Key> {
    let set = |index: &mut Index, read| feed_one(index, read, K::set, K::unreadable);
    let gone = |index: &mut Index, read| {
        feed_one::<K>(index, read, |index, object| K::gone(index, &object), K::unreadable_gone)
    };
    let foreign = |read: &K::Read| read.get().is_some_and(|object| !object.matters());
    match event {
        Event::InitApply(read) if foreign(&read) => Vec::new(),
        // It may have been ours.
        Event::Apply(read) | Event::Delete(read) if foreign(&read) => gone(index, read),
        Event::Init => {
            listed.clear();
            index.versions.forget::<K>();
            K::begin(index);
            Vec::new()
        }
        Event::InitApply(read) => {
            see::<K>(index, &read);
            listed.insert(object_name(&read));
            set(index, read)
        }
        Event::InitDone => K::listed(index, &std::mem::take(listed)),
        Event::Apply(read) if !see::<K>(index, &read) => Vec::new(),
        Event::Apply(read) => set(index, read),
        Event::Delete(read) => {
            let (uid, version) = identity(&read);
            index.versions.end::<K>(uid, version, Instant::now());
            gone(index, read)
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_svc_core::gateway::assignment::{gateway_of, id_of};
    use lb_svc_core::gateway::manifests;
    use lb_svc_core::model::{GatewayLocation, GatewayRef, ServiceRef};
    use serde_json::{Value, json};

    use super::*;
    use crate::api_server::write::typed;

    fn service(version: &str, address: &str) -> Service {
        let object = json!({
            "metadata": {
                "namespace": "default", "name": "web", "uid": "uid-1", "resourceVersion": version,
                "annotations": { names::PROVIDER_ANNOTATION: "lan.kube-system" },
            },
            "spec": { "type": "LoadBalancer", "loadBalancerIP": address },
        });
        serde_json::from_value(object).unwrap()
    }

    fn show(
        index: &mut Index,
        event: fn(DeserializeGuard<Service>) -> Event<DeserializeGuard<Service>>,
        object: Service,
    ) {
        feed::<Service>(index, event(DeserializeGuard(Ok(object))), &mut BTreeSet::new());
    }

    fn address(index: &Index) -> Option<String> {
        let seen = index.observe(&gateway_of(&ServiceRef::new("default", "web")), Instant::now()).service;
        seen.map(|service| service.load_balancer_ip)
    }

    #[test]
    fn r1_object_that_cannot_be_handled_is_dropped_alone() {
        let feed_to = |known: fn(&mut Index, Service) -> Vec<Key>| {
            feed_one(
                &mut Index::default(),
                DeserializeGuard(Ok(service("1", ""))),
                known,
                Service::unreadable,
            )
        };
        assert_eq!(feed_to(|_, _| panic!("a mistake")), []);
        assert_eq!(feed_to(|_, object| vec![Key::Backend(object_name(&object))]).len(), 1);
    }

    /// An IP object, of a Service of this name; one without is not of the type.
    fn ip(uid: &str, version: &str, service: Option<&str>) -> DeserializeGuard<IP> {
        let mut object = json!({
            "apiVersion": "kubeovn.io/v1", "kind": "IP",
            "metadata": { "name": "lan.kube-system.172.18.0.11", "uid": uid, "resourceVersion": version },
            "spec": {
                "subnet": "lan", "provider": "lan.kube-system", "ipAddress": "172.18.0.11",
                "namespace": "default", "serviceUid": "uid-1", "requested": "static",
            },
        });
        if let Some(service) = service {
            object["spec"]["serviceName"] = service.into();
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn r40_object_that_is_no_claim_is_known_until_it_is_gone() {
        let mut index = Index::default();
        let waiting = ServiceRef::new("default", "waits");
        index.set_address_pending(&waiting, true);
        let mut listed = BTreeSet::new();
        let mut show = |index: &mut Index, event| feed::<IP>(index, event, &mut listed);
        for (uid, service) in [("u-1", Some("No Service")), ("u-2", None)] {
            assert_eq!(show(&mut index, Event::Apply(ip(uid, "5", service))), []);
            let gone = show(&mut index, Event::Delete(ip(uid, "6", service)));
            assert_eq!(gone, [Key::Gateway(gateway_of(&waiting))], "{service:?}");
            show(&mut index, Event::Apply(ip(uid, "7", service)));
        }
        // A list that shows it no longer is as good.
        show(&mut index, Event::Init);
        assert_eq!(show(&mut index, Event::InitDone), [Key::Gateway(gateway_of(&waiting))]);

        // A claim that was spoiled is gone when its object is.
        show(&mut index, Event::Apply(ip("u-3", "8", Some("web"))));
        let owner = ServiceRef::new("default", "web");
        for service in [Some("No Service"), None] {
            show(&mut index, Event::Apply(ip("u-3", "9", service)));
            assert!(index.allocator.has_claims(&owner), "as last seen");
        }
        let gone = show(&mut index, Event::Delete(ip("u-3", "10", None)));
        assert!(gone.contains(&Key::Gateway(gateway_of(&owner))) && !index.allocator.has_claims(&owner));
    }

    #[test]
    fn answer_older_than_watch_is_ignored() {
        let mut index = Index::default();
        show(&mut index, Event::Apply, service("7", ""));
        // We write, someone edits that, and the watch is quicker.
        show(&mut index, Event::Apply, service("8", "172.18.0.11"));
        show(&mut index, Event::Apply, service("9", "172.18.0.18"));
        learn(&mut index, service("8", "172.18.0.11"));
        assert_eq!(address(&index).as_deref(), Some("172.18.0.18"));
        // Nor is it brought back to life.
        show(&mut index, Event::Delete, service("11", "172.18.0.18"));
        learn(&mut index, service("10", "172.18.0.18"));
        assert_eq!(address(&index), None);
    }

    #[test]
    fn budget_is_indexed_by_its_gateway() {
        let owner =
            lb_svc_core::model::ServiceId { service: ServiceRef::new("default", "web"), uid: "uid-1".into() };
        let gateway = GatewayLocation {
            gateway: GatewayRef::Dedicated(owner.service.clone()),
            namespace: "default".into(),
        };
        let budget: PodDisruptionBudget = typed(manifests::budget(&id_of(&owner), &gateway)).unwrap();
        let mut index = Index::default();
        let seen = |index: &Index| {
            index
                .observe(&gateway_of(&owner.service), Instant::now())
                .gateway
                .budget
                .map(|child| child.gateway_id)
        };
        let concerned = [Key::Gateway(gateway_of(&owner.service))];
        assert_eq!(PodDisruptionBudget::set(&mut index, budget.clone()), concerned);
        assert_eq!(PodDisruptionBudget::set(&mut index, budget.clone()), []);
        assert_eq!(seen(&index), Some(Some("uid-1".into())));
        let names = [("default".to_owned(), "lb-svc-web".to_owned())].into();
        assert_eq!(PodDisruptionBudget::listed(&mut index, &names), []);
        assert_eq!(PodDisruptionBudget::listed(&mut index, &BTreeSet::new()), concerned);
        assert_eq!(seen(&index), None);
        PodDisruptionBudget::set(&mut index, budget.clone());
        assert_eq!(PodDisruptionBudget::gone(&mut index, &budget), concerned);
    }

    fn feed_all<K: Watched>(index: &mut Index, event: Event<Value>) -> Vec<Key> {
        let guard = |object: Value| serde_json::from_str::<K::Read>(&object.to_string()).unwrap();
        let event = match event {
            Event::Init => Event::Init,
            Event::InitApply(object) => Event::InitApply(guard(object)),
            Event::InitDone => Event::InitDone,
            Event::Apply(object) => Event::Apply(guard(object)),
            Event::Delete(object) => Event::Delete(guard(object)),
        };
        feed::<K>(index, event, &mut BTreeSet::new())
    }

    #[test]
    fn endpoint_slice_concerns_gateway_with_direct_access() {
        let web = ServiceRef::new("default", "web");
        let slice = |kind: &str, address: &str| {
            json!({
                "metadata": {
                    "namespace": "default", "name": "web-1", "uid": "s-1", "resourceVersion": "1",
                    "labels": { "kubernetes.io/service-name": "web" },
                },
                "addressType": kind,
                "ports": [{ "port": 80 }],
                "endpoints": [{ "addresses": [address] }],
            })
        };
        let mut index = Index::default();
        let count = |index: &Index| index.observe(&gateway_of(&web), Instant::now()).endpoints.slices.len();
        let apply = |address| Event::Apply(slice("IPv4", address));
        show(&mut index, Event::Apply, service("7", ""));
        assert_eq!(feed_all::<EndpointSlice>(&mut index, apply("10.0.0.1")), [], "it may become so later");
        assert_eq!(count(&index), 1);
        let mut direct = service("8", "");
        let annotations = direct.metadata.annotations.as_mut().unwrap();
        annotations.insert(names::DIRECT_ACCESS_ANNOTATION.into(), "true".into());
        show(&mut index, Event::Apply, direct);
        let concerned = [Key::Gateway(gateway_of(&web))];
        assert_eq!(feed_all::<EndpointSlice>(&mut index, apply("10.0.0.2")), concerned);
        assert_eq!(feed_all::<EndpointSlice>(&mut index, apply("10.0.0.2")), []);
        assert_eq!(feed_all::<EndpointSlice>(&mut index, Event::Apply(slice("IPv6", "fd00::1"))), concerned);
        assert_eq!(count(&index), 0, "nor is the other family's kept");
        feed_all::<EndpointSlice>(&mut index, apply("10.0.0.1"));
        assert_eq!(feed_all::<EndpointSlice>(&mut index, Event::InitDone), concerned);
        assert_eq!(count(&index), 0);
        // What cannot be read is passed over.
        let mut bad = slice("IPv4", "10.0.0.1");
        bad["endpoints"] = json!("none");
        assert_eq!(feed_all::<EndpointSlice>(&mut index, Event::Apply(bad)), []);
    }

    #[test]
    fn pod_without_gate_is_not_indexed() {
        let pod = |gate: &str| {
            json!({
                "metadata": { "namespace": "default", "name": "web-0", "uid": "p-1", "resourceVersion": "1" },
                "spec": { "readinessGates": [{ "conditionType": gate }], "containers": [] },
            })
        };
        let key = Key::Backend(("default".into(), "web-0".into()));
        let mut index = Index::default();
        assert_eq!(feed_all::<WatchedPod>(&mut index, Event::Apply(pod("example.com/other"))), []);
        assert_eq!(index.known_backends(), []);
        assert!(index.versions.see::<WatchedPod>("p-1", "0"), "it leaves no trace");
        let ours = || pod(names::READINESS_GATE);
        assert_eq!(feed_all::<WatchedPod>(&mut index, Event::Apply(ours())), std::slice::from_ref(&key));
        assert_eq!(index.keys(), std::slice::from_ref(&key), "nor does a controller that starts miss it");
        assert_eq!(feed_all::<WatchedPod>(&mut index, Event::Delete(ours())), std::slice::from_ref(&key));
        feed_all::<WatchedPod>(&mut index, Event::Apply(ours()));
        assert_eq!(feed_all::<WatchedPod>(&mut index, Event::InitDone), std::slice::from_ref(&key));
        assert_eq!(index.known_backends(), []);
    }

    #[test]
    fn watch_older_than_answer_is_ignored() {
        let mut index = Index::default();
        learn(&mut index, service("8", "172.18.0.11"));
        show(&mut index, Event::Apply, service("7", ""));
        assert_eq!(address(&index).as_deref(), Some("172.18.0.11"));
        // But a new list is.
        show(&mut index, |_| Event::Init, service("0", ""));
        show(&mut index, Event::InitApply, service("7", ""));
        assert_eq!(address(&index).as_deref(), Some(""));
    }
}
