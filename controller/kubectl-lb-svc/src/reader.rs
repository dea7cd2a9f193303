//! Reading a cluster: lists in pages, within bounds, and what is not allowed is
//! said.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DeserializeGuard;
use kube::{Client, Config, Resource, ResourceExt};
use lb_svc_controller::api_server::bounded::{self, TooLarge};
use lb_svc_controller::api_server::read::SERVICE_NAME_LABEL;
use lb_svc_core::model::ServiceRef;
use lb_svc_crds::names;
use serde::de::DeserializeOwned;

use crate::cli::Common;
use crate::cluster::{Cluster, Seen};
use crate::view::{CONTROLLER_LABEL, Controller, LEASE, View};

/// For how long a connection is tried.
const CONNECT: Duration = Duration::from_secs(5);
/// For how long one answer is waited for.
const ANSWER: Duration = Duration::from_secs(30);
/// How many objects are asked for at once.
const PAGE: u32 = 250;
/// The most objects of one kind that are read.
const OBJECTS_MAX: usize = 50_000;

/// What of a cluster is asked for, beside Subnets.
#[derive(Clone, Debug)]
pub enum Want {
    /// Nothing else.
    Subnets,
    /// Services and gateways, and what these depend on.
    Gateways {
        /// The Events that say which pod became active.
        events: bool,
        /// The controller's Lease.
        lease: bool,
        /// All PodDisruptionBudgets where gateways are.
        budgets: bool,
    },
    /// One Service, with its gateway's ConfigMap and its EndpointSlices.
    Service(ServiceRef),
}

/// A reader of one cluster.
pub struct Reader {
    client: Client,
    /// The namespace of the context.
    pub namespace: String,
}

/// Why objects of a kind were not read.
enum Failure {
    /// They may not be, or there is no such kind; nothing keeps others from being read.
    Refused(String),
    /// The API server does not answer.
    Unreachable(anyhow::Error),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(format!("{} ({})", status.message, status.code)),
            error if TooLarge::is(&error) => Self::Refused(error.to_string()),
            error => Self::Unreachable(error.into()),
        }
    }
}

async fn timed<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(answered) => Ok(answered?),
        Err(_) => {
            Err(Failure::Unreachable(anyhow!("the API server did not answer within {} s", ANSWER.as_secs())))
        }
    }
}

impl Reader {
    /// A reader of the cluster that the kubeconfig's context names.
    ///
    /// # Errors
    /// There is no such context, or no way to tell which cluster is meant.
    pub async fn connect(common: &Common) -> anyhow::Result<Self> {
        let options = KubeConfigOptions { context: common.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &common.kubeconfig {
            Some(file) => {
                let kubeconfig = Kubeconfig::read_from(file)
                    .with_context(|| format!("the kubeconfig {}", file.display()))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await?
            }
            None if options.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await.context("no kubeconfig names a cluster, and this is no pod")?,
        };
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(ANSWER);
        let namespace = config.default_namespace.clone();
        Ok(Self { client: bounded::client(config)?, namespace })
    }

    /// Reads what is wanted of the Services of a namespace, or of all.
    ///
    /// # Errors
    /// The API server does not answer, or does not let the Services be read.
    pub async fn read(&self, namespace: Option<&str>, want: &Want) -> anyhow::Result<Cluster> {
        let mut reading = Reading {
            client: &self.client,
            cluster: Cluster { now: Timestamp::now(), ..Cluster::default() },
        };
        reading.read(namespace, want).await?;
        Ok(reading.cluster)
    }
}

/// A cluster that is being read.
struct Reading<'a> {
    client: &'a Client,
    cluster: Cluster,
}

/// The kind of a Kubernetes object that can be listed.
trait Kind: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + 'static {}

impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + 'static> Kind for K {}

impl Reading<'_> {
    async fn read(&mut self, namespace: Option<&str>, want: &Want) -> anyhow::Result<()> {
        match want {
            Want::Subnets => {}
            Want::Gateways { .. } => self.services(namespace).await?,
            Want::Service(name) => self.service(name).await?,
        }
        self.cluster.subnets = self.everywhere().await?;
        if matches!(want, Want::Subnets) {
            return Ok(());
        }
        self.cluster.claims = self.everywhere().await?;
        self.cluster.nodes = self.everywhere().await?;
        self.cluster.attachments = self.within(None, &ListParams::default()).await?;
        let (label, value) = CONTROLLER_LABEL;
        let of_controller = ListParams::default().labels(&format!("{label}={value}"));
        self.cluster.controllers = self.within(None, &of_controller).await?;

        let namespaces = namespace.map(|namespace| self.gateway_namespaces(namespace));
        let ours =
            ListParams::default().labels(&format!("{}={}", names::MANAGED_BY_LABEL, names::MANAGED_BY));
        self.cluster.deployments = self.within(namespaces.as_ref(), &ours).await?;
        self.cluster.pods = self.within(namespaces.as_ref(), &ours).await?;
        let of_services = namespace.map(|namespace| [namespace.to_owned()].into());
        match want {
            Want::Subnets => {}
            Want::Gateways { events, lease, budgets } => {
                if *events {
                    self.cluster.events = self.within(of_services.as_ref(), &active_changes()).await?;
                }
                if *lease {
                    self.lease().await?;
                }
                if *budgets {
                    self.cluster.budgets = self.within(namespaces.as_ref(), &ListParams::default()).await?;
                }
            }
            Want::Service(name) => {
                self.cluster.events = self.within(of_services.as_ref(), &active_changes()).await?;
                let of_service = ListParams::default().labels(&format!("{SERVICE_NAME_LABEL}={}", name.name));
                self.cluster.slices = self.within(of_services.as_ref(), &of_service).await?;
                self.config(name).await?;
            }
        }
        Ok(())
    }

    async fn services(&mut self, namespace: Option<&str>) -> anyhow::Result<()> {
        let api = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let services = self.list::<Service>(&api, &ListParams::default()).await.map_err(fatal);
        self.cluster.services = Seen::All(services.context("Services cannot be listed")?);
        Ok(())
    }

    async fn service(&mut self, name: &ServiceRef) -> anyhow::Result<()> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), &name.namespace);
        let service = timed(api.get(&name.name)).await.map_err(fatal)?;
        self.cluster.services.push(service);
        Ok(())
    }

    /// The ConfigMap of one Service's gateway.
    async fn config(&mut self, name: &ServiceRef) -> anyhow::Result<()> {
        let location = {
            let view = View::of(&self.cluster);
            view.gateway(name, None).observed.gateway.location
        };
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &location.namespace);
        let config = timed(api.get_opt(&location.name())).await;
        self.cluster.configs = self.seen(config.map(|config| config.into_iter().collect()), "ConfigMap")?;
        Ok(())
    }

    async fn lease(&mut self) -> anyhow::Result<()> {
        let namespace = Controller::of(&self.cluster).deployment.and_then(ResourceExt::namespace);
        let Some(namespace) = namespace else { return Ok(()) };
        let api = Api::namespaced(self.client.clone(), &namespace);
        let lease = timed(api.get_opt(LEASE)).await;
        self.cluster.leases = self.seen(lease.map(|lease| lease.into_iter().collect()), "Lease")?;
        Ok(())
    }

    /// The namespaces where gateways of Services of `namespace` may be.
    fn gateway_namespaces(&self, namespace: &str) -> BTreeSet<String> {
        let claims = self.cluster.claims.iter().filter(|claim| claim.spec.namespace == namespace);
        let said = claims.filter_map(|claim| claim.labels().get(names::GATEWAY_NAMESPACE_LABEL).cloned());
        let desired = Controller::of(&self.cluster).gateway_namespace();
        said.chain(desired).chain([namespace.to_owned()]).collect()
    }

    /// All objects of a kind without namespaces.
    async fn everywhere<K: Kind + Resource<Scope = ClusterResourceScope>>(
        &mut self,
    ) -> anyhow::Result<Seen<K>> {
        let objects = self.list(&Api::all(self.client.clone()), &ListParams::default()).await;
        self.seen(objects, &K::plural(&()))
    }

    /// The objects of a kind in some namespaces, or in all.
    async fn within<K: Kind + Resource<Scope = NamespaceResourceScope>>(
        &mut self,
        namespaces: Option<&BTreeSet<String>>,
        params: &ListParams,
    ) -> anyhow::Result<Seen<K>> {
        let apis: Vec<Api<DeserializeGuard<K>>> = match namespaces {
            None => vec![Api::all(self.client.clone())],
            Some(namespaces) => {
                let within = |namespace: &String| Api::namespaced(self.client.clone(), namespace);
                namespaces.iter().map(within).collect()
            }
        };
        let mut all = Vec::new();
        for api in apis {
            match self.list(&api, params).await {
                Ok(objects) => all.extend(objects),
                refused => return self.seen(refused, &K::plural(&())),
            }
        }
        Ok(Seen::All(all))
    }

    /// Lists page by page.
    async fn list<K: Kind>(
        &mut self,
        api: &Api<DeserializeGuard<K>>,
        params: &ListParams,
    ) -> Result<Vec<K>, Failure> {
        let mut params = params.clone().limit(PAGE);
        let (mut objects, mut odd) = (Vec::new(), 0usize);
        let kind = K::plural(&());
        loop {
            let page = timed(api.list(&params)).await?;
            for object in page.items {
                match object.0 {
                    Ok(object) => objects.push(object),
                    Err(_) => odd += 1,
                }
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                break;
            }
            if objects.len() >= OBJECTS_MAX {
                self.cluster.unseen.push(format!("{kind} beyond the first {}", objects.len()));
                break;
            }
        }
        if odd > 0 {
            self.cluster.unseen.push(format!("{odd} of the {kind}: not of their kind's form"));
        }
        Ok(objects)
    }

    /// What was read of a kind; that it may not be read is noted.
    fn seen<K>(&mut self, read: Result<Vec<K>, Failure>, kind: &str) -> anyhow::Result<Seen<K>> {
        match read {
            Ok(objects) => Ok(Seen::All(objects)),
            Err(Failure::Refused(why)) => {
                self.cluster.unseen.push(format!("{kind}: {why}"));
                Ok(Seen::Not)
            }
            Err(Failure::Unreachable(error)) => Err(error),
        }
    }
}

fn active_changes() -> ListParams {
    ListParams::default().fields("involvedObject.kind=Service,reason=ActiveChanged")
}

fn fatal(failure: Failure) -> anyhow::Error {
    match failure {
        Failure::Refused(why) => anyhow!(why),
        Failure::Unreachable(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower_test::mock;

    use super::*;

    /// Reads from an API server that answers like this, by path and query; also what it
    /// was asked.
    async fn read(
        want: Want,
        namespace: Option<&str>,
        answer: impl Fn(&str) -> (u16, Value),
    ) -> (anyhow::Result<Cluster>, Vec<String>) {
        let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
        let reader = Reader { client: Client::new(service, "default"), namespace: "default".into() };
        let mut asked = Vec::new();
        let serve = async {
            while let Some((request, send)) = handle.next_request().await {
                let line = request.uri().to_string();
                drop(request.into_body().collect().await);
                let (code, body) = answer(&line);
                asked.push(line);
                let body = Body::from(body.to_string().into_bytes());
                send.send_response(Response::builder().status(code).body(body).unwrap());
            }
        };
        let read = async move { reader.read(namespace, &want).await };
        let (cluster, ()) = tokio::join!(read, serve);
        (cluster, asked)
    }

    fn list(items: &Value, next: &str) -> (u16, Value) {
        (200, json!({ "metadata": { "continue": next }, "items": items }))
    }

    fn refusal(code: u16) -> (u16, Value) {
        let message = "you may not";
        (code, json!({ "status": "Failure", "message": message, "reason": "Forbidden", "code": code }))
    }

    const GATEWAYS: Want = Want::Gateways { events: true, lease: true, budgets: true };

    #[tokio::test]
    async fn kind_that_may_not_be_listed_is_said_and_others_are_read() {
        let (cluster, _) = read(GATEWAYS, None, |line| match line {
            line if line.starts_with("/apis/kubeovn.io/v1/ips") => refusal(403),
            line if line.starts_with("/apis/k8s.cni.cncf.io") => refusal(404),
            _ => list(&json!([]), ""),
        })
        .await;
        let cluster = cluster.unwrap();
        let expected = ["ips: you may not (403)", "network-attachment-definitions: you may not (404)"];
        assert_eq!(cluster.unseen, expected);
        assert!(!cluster.claims.is_whole() && cluster.subnets.is_whole() && cluster.pods.is_whole());
    }

    #[tokio::test]
    async fn services_that_may_not_be_listed_are_an_error() {
        let (cluster, asked) = read(GATEWAYS, None, |_| refusal(403)).await;
        assert_eq!(format!("{:#}", cluster.unwrap_err()), "Services cannot be listed: you may not (403)");
        assert_eq!(asked.len(), 1);
    }

    #[tokio::test]
    async fn all_pages_are_read_and_odd_objects_are_counted() {
        let service = |name: &str| json!({ "metadata": { "name": name, "namespace": "shop" } });
        let (cluster, asked) = read(GATEWAYS, None, |line| match line {
            line if !line.starts_with("/api/v1/services") => list(&json!([]), ""),
            line if line.contains("continue=more") => list(&json!([service("b")]), ""),
            _ => list(&json!([service("a"), { "metadata": { "name": "x" }, "spec": 1 }]), "more"),
        })
        .await;
        let cluster = cluster.unwrap();
        assert_eq!(cluster.services.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(cluster.unseen, ["1 of the services: not of their kind's form"]);
        assert!(asked.iter().all(|line| line.contains("limit=250")), "{asked:?}");
    }

    #[tokio::test]
    async fn one_namespace_is_read_with_the_namespaces_where_its_gateways_are() {
        let claim = json!({
            "metadata": { "name": "lan.kube-system.10.0.0.9", "labels": { names::GATEWAY_NAMESPACE_LABEL: "gateways" } },
            "spec": {
                "subnet": "lan", "provider": "lan.kube-system", "ipAddress": "10.0.0.9", "namespace": "shop",
                "serviceName": "web", "serviceUid": "u", "requested": "dynamic",
            },
        });
        let (cluster, asked) = read(GATEWAYS, Some("shop"), |line| match line {
            line if line.starts_with("/apis/kubeovn.io/v1/ips") => list(&json!([claim]), ""),
            _ => list(&json!([]), ""),
        })
        .await;
        assert!(cluster.is_ok());
        let pods: Vec<&str> = asked
            .iter()
            .filter(|line| line.contains("/pods"))
            .filter_map(|line| line.split('?').next())
            .collect();
        assert_eq!(pods, ["/api/v1/namespaces/gateways/pods", "/api/v1/namespaces/shop/pods"]);
        assert!(asked.iter().any(|line| line.starts_with("/api/v1/namespaces/shop/services")));
    }
}
