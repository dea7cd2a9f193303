//! Objects in the controller's terms: its index of them, and each gateway as it
//! observes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use lb_svc_controller::api_server::read;
use lb_svc_controller::api_server::watch::Watched;
use lb_svc_controller::index::{Index, Key};
use lb_svc_controller::{Args, config_file};
use lb_svc_core::gateway::pod_settings::Configuration;
use lb_svc_core::ipam::Claim;
use lb_svc_core::model::{Condition, GatewayRef, Pod, ServiceRef};
use lb_svc_core::observed::Observed;
use lb_svc_core::service::allocation;
use lb_svc_core::service::conditions::{GATEWAY_READY, NODE_ADDRESSES_READY};
use lb_svc_crds::names;

use crate::cluster::Cluster;

/// The label of the controller's pods and Deployment, and its value.
pub const CONTROLLER_LABEL: (&str, &str) = ("app", "lb-svc-controller");
/// The Lease of the controller that leads.
pub const LEASE: &str = "lb-svc-controller";

/// The image of gateways where the controller is not seen; no decision depends on it.
const IMAGE: &str = "lb-svc-gateway";

/// The controller, by its Deployment.
#[derive(Debug)]
pub struct Controller<'a> {
    /// Its Deployment, if that is seen.
    pub deployment: Option<&'a Deployment>,
    /// Its command line; `None` where the Deployment is not seen or has another.
    pub args: Option<Args>,
    /// The Lease by which one of its pods leads.
    pub lease: Option<&'a Lease>,
}

impl<'a> Controller<'a> {
    /// The controller among the objects of `cluster`.
    pub fn of(cluster: &'a Cluster) -> Self {
        let deployment = cluster.controllers.iter().next();
        let args = deployment.and_then(args);
        let namespace = deployment.and_then(ResourceExt::namespace).unwrap_or_default();
        Self { deployment, args, lease: cluster.leases.get(&namespace, LEASE) }
    }

    /// The namespace of all gateways, if they have one.
    pub fn gateway_namespace(&self) -> Option<String> {
        self.args.as_ref()?.gateway_namespace.clone()
    }

    /// The configuration that it runs with, as far as objects have it.
    ///
    /// # Errors
    /// What is wrong with it: the controller does not start so.
    pub fn configuration(&self, cluster: &Cluster) -> Result<Configuration, String> {
        let apart = self.gateway_namespace().is_some();
        let image = self.args.as_ref().map_or(IMAGE, |args| &args.gateway_image);
        let file = self.deployment.and_then(config_name).and_then(|name| {
            let namespace = self.deployment?.namespace()?;
            cluster.configs.get(&namespace, &name)?.data.as_ref()?.get("config.yaml")
        });
        let configuration = match file {
            Some(text) => {
                config_file::parse(text, image, apart).map_err(|error| format!("config.yaml: {error}"))?
            }
            None => Configuration::new(image, apart),
        };
        Ok(Configuration {
            nat_backend: self.args.as_ref().map(|args| args.nat_backend).unwrap_or_default(),
            ..configuration
        })
    }
}

/// Whether a Deployment is the controller's.
pub fn is_controller(deployment: &Deployment) -> bool {
    let (label, value) = CONTROLLER_LABEL;
    deployment.labels().get(label).is_some_and(|found| found == value)
}

fn container(deployment: &Deployment) -> Option<&core::Container> {
    deployment.spec.as_ref()?.template.spec.as_ref()?.containers.first()
}

fn args(deployment: &Deployment) -> Option<Args> {
    let args = container(deployment)?.args.as_deref().unwrap_or_default();
    Args::try_parse_from(std::iter::once("lb-svc-controller").chain(args.iter().map(String::as_str))).ok()
}

/// The ConfigMap with the controller's configuration.
pub fn config_name(deployment: &Deployment) -> Option<String> {
    let volumes = deployment.spec.as_ref()?.template.spec.as_ref()?.volumes.as_deref().unwrap_or_default();
    volumes.iter().find_map(|volume| Some(volume.config_map.as_ref()?.name.clone()))
}

/// Shows the index all objects of `cluster`.
pub fn show(index: &mut Index, cluster: &Cluster) {
    fn set<'a, K: Watched>(index: &mut Index, objects: impl Iterator<Item = &'a K>) {
        for object in objects.filter(|object| object.matters()) {
            K::set(index, object.clone());
        }
    }
    // A gateway's objects are kept only where its Service or a claim of it is known.
    set(index, cluster.attachments.iter());
    set(index, cluster.subnets.iter());
    set(index, cluster.claims.iter());
    set(index, cluster.services.iter());
    if cluster.nodes.iter().next().is_some() {
        index.begin_nodes();
        set(index, cluster.nodes.iter());
        index.complete_nodes();
    }
    set(index, cluster.configs.iter());
    set(index, cluster.deployments.iter());
    set(index, cluster.budgets.iter());
    set(index, cluster.pods.iter());
    set(index, cluster.slices.iter());
    // Which ports pods publish on nodes is not asked for: conditions say what is taken.
    index.publishers_listed(&BTreeSet::new());
}

/// What is seen of a cluster, in the controller's terms.
#[derive(Debug)]
pub struct View<'a> {
    /// The objects.
    pub cluster: &'a Cluster,
    /// The controller.
    pub controller: Controller<'a>,
    /// The controller's index of them.
    pub index: Index,
}

impl<'a> View<'a> {
    /// A view of `cluster`.
    pub fn of(cluster: &'a Cluster) -> Self {
        let controller = Controller::of(cluster);
        let mut index = Index::new(controller.gateway_namespace());
        show(&mut index, cluster);
        Self { cluster, controller, index }
    }

    /// The gateways of Services that are or were any business of the controller's, by
    /// namespace and name; those of one namespace only, or of all.
    pub fn gateways(&self, namespace: Option<&str>) -> Vec<Gateway> {
        let raw: BTreeMap<ServiceRef, &core::Service> =
            self.cluster.services.iter().map(|service| (read::service_ref(service), service)).collect();
        let keys = self.index.keys().into_iter();
        let services = keys.filter_map(|key| match key {
            Key::Gateway(GatewayRef::Dedicated(service)) => Some(service),
            Key::Subnet(_) | Key::Backend(_) => None,
        });
        let services = services.filter(|service| namespace.is_none_or(|only| service.namespace == only));
        services.map(|service| self.gateway(&service, raw.get(&service).copied())).collect()
    }

    /// The gateway of one Service.
    pub fn gateway(&self, service: &ServiceRef, raw: Option<&core::Service>) -> Gateway {
        let mut observed = self.index.observe(&self.index.gateway_of(service), Instant::now());
        observed.now = self.cluster.now;
        observed.configuration = Arc::default();
        Gateway { service: service.clone(), observed, described: raw.and_then(described) }
    }
}

/// The generation of the spec that a Service's conditions are about, where that is not
/// its present one.
fn described(service: &core::Service) -> Option<i64> {
    let now = service.metadata.generation?;
    let conditions = service.status.as_ref()?.conditions.as_deref()?;
    let ours = conditions.iter().filter(|condition| condition.type_.starts_with(names::DOMAIN));
    ours.filter_map(|condition| condition.observed_generation).max().filter(|described| *described < now)
}

/// Why a Service is no business of the controller's, if it is none.
pub fn left_alone(service: &core::Service) -> Option<String> {
    let spec = service.spec.as_ref();
    let kind = spec.and_then(|spec| spec.type_.as_deref()).unwrap_or("ClusterIP");
    if kind != "LoadBalancer" {
        return Some(format!("it is of type {kind}"));
    }
    let class = spec.and_then(|spec| spec.load_balancer_class.as_deref());
    let ours = [names::LOAD_BALANCER_CLASS, names::NODE_CLASS];
    if let Some(class) = class.filter(|class| !ours.contains(class)) {
        return Some(format!("its spec.loadBalancerClass is {class}"));
    }
    if service.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".to_owned());
    }
    let opt_ins = [names::PROVIDER_ANNOTATION, names::MODE_ANNOTATION];
    let is_asked = opt_ins.iter().any(|name| service.annotations().contains_key(*name)) || class.is_some();
    (!is_asked).then(|| format!("it has no annotation {}", names::PROVIDER_ANNOTATION))
}

/// One gateway and its Service.
#[derive(Debug)]
pub struct Gateway {
    /// The Service.
    pub service: ServiceRef,
    /// All that is seen of both.
    pub observed: Observed,
    /// The generation of the Service that its conditions are about, where that is an
    /// earlier one.
    pub described: Option<i64>,
}

impl Gateway {
    /// The condition of this type in the Service's status.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.observed.service.as_ref()?.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// The condition that says whether the Service is served, by whatever it is to be.
    pub fn ready(&self) -> Option<&Condition> {
        self.condition(GATEWAY_READY).or_else(|| self.condition(NODE_ADDRESSES_READY))
    }

    /// Whether the controller says that the Service is served.
    pub fn is_served(&self) -> bool {
        self.ready().is_some_and(|condition| condition.status)
    }

    /// The Service's claim: that on the address in its status before others.
    pub fn claim(&self) -> Option<&Claim> {
        let service = self.observed.service.as_ref()?;
        let own = allocation::own_claims(service, &self.observed.addresses);
        let shown = own.iter().find(|claim| service.has_ingress(claim.address));
        shown.or(own.first()).copied()
    }

    /// The Service's address, or the one that is claimed for it.
    pub fn address(&self) -> Option<String> {
        let ingress = self.observed.service.as_ref().and_then(|service| service.ingress.first());
        ingress.map(|entry| entry.ip.clone()).or_else(|| Some(self.claim()?.address.to_string()))
    }

    /// The living pods of the Service's gateway, by name: those of its Deployment, for
    /// labels are anyone's to write.
    pub fn pods(&self) -> Vec<&Pod> {
        let Some(id) = self.observed.gateway_id() else { return Vec::new() };
        let mut pods = self.observed.gateway.living_pods(&id);
        pods.retain(|pod| pod.of_deployment);
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        pods
    }

    /// The pod that answers for the address, as the claim has it: by the hardware
    /// address of the interface that last did.
    pub fn active(&self) -> Option<&Pod> {
        let mac = self.claim().map(|claim| &claim.mac).filter(|mac| !mac.is_empty())?;
        let has = |pod: &&Pod| pod.mac.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(mac));
        self.pods().into_iter().find(has)
    }

    /// How many pods the gateway's Deployment asks for.
    pub fn replicas(&self) -> Option<u64> {
        let deployment = self.observed.gateway.deployment.as_ref()?;
        Some(deployment.content.live["spec"]["replicas"].as_u64().unwrap_or(1))
    }
}
