//! `check`: what the controller would do with objects, and why not. Its own index,
//! allocator and plan decide; only what the API server adds to an object is made up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use lb_svc_controller::api_server::read::{self, AnyClaim};
use lb_svc_controller::api_server::write::typed;
use lb_svc_controller::index::Index;
use lb_svc_core::action::Action;
use lb_svc_core::gateway::assignment::gateway_of;
use lb_svc_core::gateway::pod_settings::Configuration;
use lb_svc_core::ipam::{AddressRequest, AllocationError, Claim, ClaimId, claim};
use lb_svc_core::model::{Condition, OwnedObject, ServiceRef};
use lb_svc_core::node_mode::claim::{self as port_claim, PortRequest};
use lb_svc_core::observed::Observed;
use lb_svc_core::service::conditions::{ADDRESS_ALLOCATED, GATEWAY_READY, NODE_ADDRESSES_READY};
use lb_svc_core::service::passing;
use lb_svc_core::service::plan::plan;
use lb_svc_core::subnet;

use crate::cluster::{Cluster, Seen};
use crate::screen::{Cell, Screen, Table};
use crate::view::{Controller, left_alone, show};

/// How often a Service is planned for: claims first, then what a gateway is made of.
const RUNS_MAX: usize = 16;

/// What would become of the objects in `cluster`, which Services are created in the
/// order in which they are in the file.
pub fn check(mut cluster: Cluster) -> Screen {
    let mut screen = Screen::new("check");
    complete(&mut cluster);
    let controller = Controller::of(&cluster);
    let configuration = controller.configuration(&cluster).unwrap_or_else(|error| {
        screen.trouble.push(format!("the controller does not start: {error}"));
        Configuration::default()
    });
    if controller.deployment.is_none() {
        screen.unseen.push("the controller's configuration: its defaults are taken".to_owned());
    } else if controller.args.as_ref().is_some_and(|args| !args.enable_lb_svc) {
        screen
            .trouble
            .push("the controller runs without --enable-lb-svc=true: it does none of this".to_owned());
    }
    let configuration = Arc::new(configuration);
    let mut index = Index::new(controller.gateway_namespace());
    let are_made = cluster.deployments.iter().next().is_some() || cluster.pods.iter().next().is_some();
    if are_made {
        screen.unseen.push("gateways' own objects: each gateway is planned as if it were new".to_owned());
    }
    // What they are made from, keys and images among it, only the controller has.
    let (configs, deployments, pods, budgets) = (Seen::Not, Seen::Not, Seen::Not, Seen::Not);
    let mut cluster = Cluster { configs, deployments, pods, budgets, ..cluster };
    show(&mut index, &cluster);

    let mut services =
        Table::new("services", &["namespace", "name", "address", "subnet", "gateway", "pods", "outcome"]);
    let mut conditions = Table::new("conditions", &["service", "type", "status", "reason", "message"]);
    let mut writes = Table::new("writes", &["service", "what"]);
    for service in cluster.services.iter() {
        let name = read::service_ref(service);
        let Outcome { observed, actions, conditions: said } =
            decide(&mut index, &name, &configuration, &cluster);
        services.rows.push(row(service, &name, &observed, &actions, &said));
        for condition in &said {
            let is_bad = is_trouble(condition);
            if is_bad {
                screen.trouble.push(format!("Service {name}: {}: {}", condition.reason, condition.message));
            }
            conditions.rows.push(vec![
                name.to_string().into(),
                condition.kind.as_str().into(),
                Cell::from(if condition.status { "True" } else { "False" }).bad_if(is_bad),
                Cell::from(condition.reason.as_str()).bad_if(is_bad),
                condition.message.as_str().into(),
            ]);
        }
        for action in &actions {
            if let Some(what) = write(action) {
                writes.rows.push(vec![name.to_string().into(), what.into()]);
            }
        }
    }
    let subnets = subnets(&index, &mut screen);
    screen.unseen.extend(std::mem::take(&mut cluster.unseen));
    screen.unseen.push(
        "objects that are not in the file, what an API server or its admission refuses, and the LAN itself"
            .to_owned(),
    );
    // A condition may say twice what is one problem.
    let mut said = Vec::new();
    screen.trouble.retain(|line| {
        !said.contains(line) && {
            said.push(line.clone());
            true
        }
    });
    screen.tables.extend([services, conditions, writes, subnets]);
    screen
}

/// Adds what an API server would have added to objects that are not created yet.
fn complete(cluster: &mut Cluster) {
    let Seen::All(services) = &mut cluster.services else { return };
    for (number, service) in services.iter_mut().enumerate() {
        let meta = &mut service.metadata;
        meta.uid.get_or_insert_with(|| format!("00000000-0000-4000-8000-{number:012}"));
        meta.resource_version.get_or_insert_with(|| "0".to_owned());
        if let Some(spec) = &mut service.spec
            && spec.cluster_ip.is_none()
            && spec.cluster_ips.is_none()
        {
            // Documentation addresses (RFC 5737, RFC 3849): which they are decides nothing.
            let families = spec.ip_families.clone().unwrap_or_else(|| vec!["IPv4".to_owned()]);
            let address = |family: &String| if family == "IPv6" { "2001:db8::1" } else { "192.0.2.1" };
            spec.cluster_ips = Some(families.iter().map(|family| address(family).to_owned()).collect());
        }
    }
}

/// What is decided for one Service.
struct Outcome {
    observed: Observed,
    /// All writes, in order, those of claims among them.
    actions: Vec<Action>,
    /// The conditions as they would be.
    conditions: Vec<Condition>,
}

/// Plans for a Service until nothing is to be written that other writes wait for, as the
/// controller does; all is written into the index only.
fn decide(
    index: &mut Index,
    name: &ServiceRef,
    configuration: &Arc<Configuration>,
    cluster: &Cluster,
) -> Outcome {
    let gateway = gateway_of(name);
    let mut done: Vec<Action> = Vec::new();
    let (mut error, mut key_written) = (None, None);
    let mut runs = 0;
    loop {
        let mut observed = index.observe(&gateway, Instant::now());
        observed.configuration = Arc::clone(configuration);
        observed.now = cluster.now;
        observed.addresses.allocation_error = error.take();
        observed.remembered.key_written = key_written;
        let planned = plan(&observed);
        runs += 1;
        let mut is_new = false;
        for action in planned.steps() {
            is_new |= match action {
                Action::Claim(request) => match claimed(index, request, &observed.gateway.location.namespace)
                {
                    Ok(()) => true,
                    Err(refused) => {
                        error = Some(refused);
                        continue;
                    }
                },
                Action::ClaimPorts(requests) => claim_ports(index, requests),
                Action::Adopt(id) => adopt(index, id, &observed),
                Action::WriteConfig(content) => {
                    let known = observed.gateway.config.as_ref();
                    let config = OwnedObject {
                        uid: known.map_or_else(String::new, |known| known.uid.clone()),
                        resource_version: String::new(),
                        deleting: false,
                        gateway_id: observed.gateway_id(),
                        content: content.clone(),
                    };
                    index.set_config(observed.gateway.location.clone(), Some(config), None);
                    true
                }
                Action::WriteKey(_) => key_written.replace(Duration::ZERO).is_none(),
                _ => false,
            };
            if !done.contains(action) {
                done.push(action.clone());
            }
        }
        if (is_new || error.is_some()) && runs < RUNS_MAX {
            continue;
        }
        let before = observed.service.as_ref().map(|service| service.conditions.clone());
        let status = planned.steps().find_map(|action| match action {
            Action::SetStatus { conditions, .. } => Some(conditions.clone()),
            _ => None,
        });
        return Outcome { observed, conditions: status.or(before).unwrap_or_default(), actions: done };
    }
}

/// Gives a kept claim to the Service of its name. Returns whether that is news.
fn adopt(index: &mut Index, id: &ClaimId, observed: &Observed) -> bool {
    let kept = observed.addresses.claims.iter().find(|claim| claim.id == *id);
    let Some((kept, service)) = kept.zip(observed.service.as_ref()) else { return false };
    index.set_claim(Claim { owner: service.id.clone(), ..kept.clone() });
    true
}

/// Claims ports of nodes as the controller does, in the index. Returns whether that is
/// news.
fn claim_ports(index: &mut Index, requests: &[PortRequest]) -> bool {
    let manifests = requests.iter().map(port_claim::manifest);
    let objects = manifests.filter_map(|manifest| typed(manifest).ok());
    let claims = objects.filter_map(|object| read::any_claim(&object).ok());
    let made = claims.map(|claim| match claim {
        AnyClaim::Port(claim) => !index.set_port_claim(claim, true).is_empty(),
        AnyClaim::Address(_) => false,
    });
    made.filter(|made| *made).count() > 0
}

/// Claims an address as the controller does, in the index.
fn claimed(index: &mut Index, request: &AddressRequest, namespace: &str) -> Result<(), AllocationError> {
    let reservation = index.allocator.reserve(request)?;
    let manifest = claim::manifest(request, &reservation, namespace);
    let claim = typed(manifest).ok().and_then(|object| read::claim(&object).ok());
    match claim {
        Some(claim) => drop(index.set_claim(claim)),
        // The manifest is the controller's own, and is one.
        None => index.allocator.unreserve(&reservation),
    }
    Ok(())
}

/// Whether a condition says that the Service will not be served, not just that it is
/// not yet.
fn is_trouble(condition: &Condition) -> bool {
    let judges = [ADDRESS_ALLOCATED, GATEWAY_READY, NODE_ADDRESSES_READY].contains(&condition.kind.as_str());
    judges && !condition.status && !passing::passes(&condition.reason)
}

fn row(
    service: &Service,
    name: &ServiceRef,
    observed: &Observed,
    actions: &[Action],
    conditions: &[Condition],
) -> Vec<Cell> {
    let uid = service.uid().unwrap_or_default();
    let claim = observed.addresses.claims.iter().find(|claim| claim.owner.uid == uid);
    let wanted = actions.iter().find_map(|action| match action {
        Action::WriteDeployment(wanted) => Some(wanted),
        _ => None,
    });
    let live = observed.gateway.deployment.as_ref().map(|deployment| &deployment.content.live);
    let deployment = wanted.or(live);
    let location = &observed.gateway.location;
    let outcome = match left_alone(service) {
        Some(why) => Cell::from(format!("left alone: {why}")),
        None if conditions.iter().any(is_trouble) => Cell::from("not served").bad_if(true),
        None => Cell::from("served"),
    };
    vec![
        name.namespace.as_str().into(),
        name.name.as_str().into(),
        Cell::some(claim.map(|claim| claim.address.to_string())),
        Cell::some(claim.map(|claim| claim.subnet.clone())),
        Cell::some(deployment.map(|_| location.to_string())),
        Cell::some(deployment.map(|live| live["spec"]["replicas"].as_u64().unwrap_or(1).to_string())),
        outcome,
    ]
}

/// A write, for people; `None` for what only accompanies others.
fn write(action: &Action) -> Option<String> {
    Some(match action {
        Action::Claim(request) => match request.address {
            Some(address) => format!("claim {address}"),
            None => "claim the lowest free address".to_owned(),
        },
        Action::ClaimPorts(requests) => {
            let names: Vec<String> = requests.iter().map(PortRequest::name).collect();
            format!("claim {}", names.join(", "))
        }
        Action::Adopt(claim) => format!("take the kept claim {} over", claim.name),
        Action::Release(claim) => format!("release the claim {}", claim.name),
        Action::FillAddress(address) => format!("fill {address} into spec.loadBalancerIP"),
        Action::ClearAddress => "clear spec.loadBalancerIP".to_owned(),
        Action::DeletePod { pod, why, .. } => format!("delete pod {pod}: {why}"),
        Action::PushConfig { pods, .. } => format!("hand the configuration to {} pod(s)", pods.len()),
        Action::AnnotatePod { pod, .. } => format!("annotate pod {pod}"),
        Action::DeleteConfig(..) | Action::DeleteDeployment(..) | Action::DeleteBudget(..) => {
            format!("delete {}", action.what())
        }
        Action::OrphanDeployment(..) => "delete the gateway's Deployment, and leave its pods".to_owned(),
        Action::DeleteLegacyReplicaSets | Action::DeleteOrphans(_) => format!("delete {}", action.what()),
        Action::WriteConfig(_)
        | Action::WriteKey(_)
        | Action::WriteDeployment(_)
        | Action::WriteBudget(_)
        | Action::RecordMac { .. }
        | Action::MarkConflict(..)
        | Action::SetRetain(..)
        | Action::SetGatewayNamespace(_)
        | Action::SetPortNodes(..)
        | Action::SetStatus { .. } => format!("write {}", action.what()),
        Action::Event { .. } | Action::RememberElection(_) => return None,
    })
}

fn subnets(index: &Index, screen: &mut Screen) -> Table {
    let mut table = Table::new("subnets", &["name", "used", "available", "ready", "reason", "message"]);
    for name in index.known_subnets() {
        let (Some(subnet), Some(usage)) = (index.subnet(&name), index.allocator.usage(&name)) else {
            continue;
        };
        let status = subnet::plan::plan(subnet, &usage).status.unwrap_or_else(|| subnet.status.clone());
        let ready = status.conditions.iter().find(|condition| condition.kind == "Ready");
        let is_bad = ready.is_none_or(|ready| !ready.status);
        if let Some(ready) = ready.filter(|_| is_bad) {
            screen.trouble.push(format!("Subnet {name}: {}: {}", ready.reason, ready.message));
        }
        table.rows.push(vec![
            name.into(),
            status.using.into(),
            status.available.into(),
            Cell::from(if is_bad { "False" } else { "True" }).bad_if(is_bad),
            Cell::some(ready.map(|ready| ready.reason.as_str())).bad_if(is_bad),
            Cell::some(ready.map(|ready| ready.message.as_str())),
        ]);
    }
    table
}
