//! What is to be done for a Service that asks for node addresses.
//!
//! A node serves the Service if a claim of it lists the node for each of its ports,
//! and no pod publishes one of them there. Claims grow before the status names a
//! node, and shrink after it no longer does: what the status names is always held.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_svc_crds::gateway::Port;
use lb_svc_crds::names;
use lb_svc_crds::reason::Reason;

use super::claim::{PortClaim, PortRequest};
use super::nodes::{self, ADDRESSES_MAX};
use super::ports::Named;
use super::proxy;
use super::request::{self, NodeRequest, Scope};
use crate::action::Action;
use crate::model::{Ingress, Node, NodeId, Problem, Service};
use crate::observed::{Observed, ObservedNodes};
use crate::service::conditions::{self, Conditions, Ready, Server};
use crate::service::plan::{IndexUpdate, Plan, Requeue};

/// The most nodes that serve a Service.
pub const NODES_MAX: usize = 64;

/// Takes a Service from the nodes, and gives its ports back: nobody asks for them
/// any more. The status comes first, for kube-proxy serves what that names.
pub fn leave(observed: &Observed) -> Plan {
    let mut actions = Vec::new();
    let shows = |service: &&Service| !service.ingress.is_empty() && !own(service, observed).is_empty();
    if observed.service.as_ref().is_some_and(|service| shows(&service)) {
        actions.push(Action::SetStatus { ingress: Vec::new(), conditions: Vec::new(), exact: false });
    }
    actions.extend(observed.nodes.claims.iter().map(|claim| Action::Release(claim.id.clone())));
    Plan { actions, next: soon(false), ..Plan::default() }
}

/// Plans for a Service that asks for node addresses and has nothing of a gateway
/// left. `refused`: why what it asks is not heeded, so that all stays as it is.
pub fn plan(service: &Service, refused: Option<Problem>, observed: &Observed) -> Plan {
    let is_k3s_in_use = nodes::is_k3s_in_use(&observed.nodes.nodes);
    let earlier = observed.nodes.claims.iter().filter(|claim| claim.owner.uid != service.id.uid);
    let actions: Vec<Action> = earlier.map(|claim| Action::Release(claim.id.clone())).collect();
    let planner =
        Planner { service, observed, own: own(service, observed), local_nodes: local_nodes(observed) };
    match request::read(service, &observed.configuration.node_mode, is_k3s_in_use) {
        Err(problem) => planner.withhold(refused.as_ref().unwrap_or(&problem), actions),
        Ok(request) => {
            let scope = refused.map_or(request.scope.clone(), Err);
            planner.serve(&NodeRequest { scope, ..request }, actions)
        }
    }
}

/// The nodes with a ready endpoint.
fn local_nodes(observed: &Observed) -> BTreeSet<NodeId> {
    let endpoints = observed.endpoints.slices.iter().flat_map(|slice| &slice.endpoints);
    endpoints.filter(|endpoint| endpoint.ready).filter_map(|endpoint| endpoint.node).collect()
}

fn own<'a>(service: &Service, observed: &'a Observed) -> Vec<&'a Arc<PortClaim>> {
    observed.nodes.claims.iter().filter(|claim| claim.owner.uid == service.id.uid).collect()
}

/// Soon again: a claim was made, or something is on its way.
fn soon(restart: bool) -> Requeue {
    Requeue::Unconverged { restart, holds_gates: false, reports: false, within: None }
}

struct Planner<'a> {
    service: &'a Service,
    observed: &'a Observed,
    own: Vec<&'a Arc<PortClaim>>,
    /// The nodes with a ready endpoint.
    local_nodes: BTreeSet<NodeId>,
}

/// What the status is to say.
struct Said {
    ingress: Vec<Ingress>,
    allocated: Result<String, Problem>,
    ready: Ready,
    warnings: Vec<Problem>,
}

impl<'a> Planner<'a> {
    fn nodes(&self) -> &'a ObservedNodes {
        &self.observed.nodes
    }

    /// What is not to be served at any node has no port either.
    fn withhold(&self, problem: &Problem, actions: Vec<Action>) -> Plan {
        let said = Said {
            ingress: Vec::new(),
            allocated: Err(problem.clone()),
            ready: Ready::Impossible(problem.clone()),
            warnings: Vec::new(),
        };
        let after = self.own.iter().map(|claim| Action::Release(claim.id.clone())).collect();
        self.finish(said, actions, after, false)
    }

    fn serve(&self, request: &NodeRequest, mut actions: Vec<Action>) -> Plan {
        let scope = match &request.scope {
            Ok(scope) => scope,
            Err(problem) => return self.keep(request, problem, actions, false),
        };
        if !self.nodes().are_pods_seen {
            let message = "which ports pods publish on the nodes is being read";
            let problem = Problem::new(Reason::NodeAddressesPending, message);
            return self.keep(request, &problem, actions, false);
        }
        let fitting = nodes::of_scope(&self.nodes().nodes, scope, &request.families, &self.nodes().claimed);
        let mut clashes: BTreeMap<&str, Problem> = BTreeMap::new();
        clashes.extend(fitting.keys().filter_map(|name| Some((*name, self.clash(request, name)?))));
        let mut free: Vec<&str> =
            fitting.keys().copied().filter(|name| !clashes.contains_key(name)).collect();
        // Who serves goes on, before others.
        free.sort_by_key(|name| (!self.is_held(request, name), *name));
        let wanted: BTreeSet<String> = free.iter().take(NODES_MAX).map(|name| (*name).to_owned()).collect();
        let mut warnings = request.warnings.clone();
        warnings.extend(self.nodes().stands_in.map(proxy::untried));
        if free.len() > NODES_MAX {
            let message = format!(
                "{} nodes fit, {NODES_MAX} serve: name fewer by the annotation {}",
                free.len(),
                names::NODE_POOL
            );
            warnings.push(Problem::new(Reason::TooManyNodes, message));
        }
        if let Some(problem) = self.blocked(request, scope) {
            return self.keep(request, &problem, actions, true);
        }
        if wanted.is_empty() {
            return match clashes.pop_first() {
                Some((_, clash)) => self.keep(request, &clash, actions, true),
                None => {
                    let message = format!(
                        "no node{} has an address for the Service",
                        scope.pool.as_ref().map_or(String::new(), |pool| format!(" of pool {pool}"))
                    );
                    self.keep(request, &Problem::new(Reason::NoNodeAddress, message), actions, false)
                }
            };
        }
        let missing = self.missing(request, scope, &wanted);
        if !missing.is_empty() {
            actions.push(Action::ClaimPorts(missing));
            return Plan { actions, next: soon(true), conditions: Some(self.claiming()), ..Plan::default() };
        }

        let mut after = Vec::new();
        for claim in &self.own {
            let is_wanted = request.ports.contains(&claim.port) && claim.pool == scope.pool();
            if !is_wanted {
                after.push(Action::Release(claim.id.clone()));
            } else if !wanted.is_subset(&claim.nodes) {
                let nodes = wanted.union(&claim.nodes).cloned().collect();
                actions.push(Action::SetPortNodes(claim.id.clone(), nodes));
            } else if claim.nodes != wanted {
                after.push(Action::SetPortNodes(claim.id.clone(), wanted.clone()));
            }
        }
        let serving: Vec<&Node> = wanted.iter().filter_map(|name| self.serving(request, name)).collect();
        let mut addresses = nodes::addresses(&serving, scope, &request.families, &self.nodes().claimed);
        if addresses.len() > ADDRESSES_MAX {
            let message = format!("{} addresses fit, the status names {ADDRESSES_MAX}", addresses.len());
            warnings.push(Problem::new(Reason::TooManyNodes, message));
            addresses.truncate(ADDRESSES_MAX);
        }
        let is_clash = !clashes.is_empty();
        warnings.extend(clashes.into_values().next());
        let pool = scope.pool.as_ref().map_or(String::new(), |pool| format!(" of pool {pool}"));
        let said = Said {
            ready: match addresses.is_empty() {
                false => Ready::Yes(format!(" by kube-proxy, on {}", request::named(&request.ports))),
                true => Ready::NotYet(no_address(request)),
            },
            ingress: addresses.into_iter().map(entry).collect(),
            allocated: Ok(format!("{} on {} nodes{pool}", request::named(&request.ports), wanted.len())),
            warnings,
        };
        self.finish(said, actions, after, is_clash)
    }

    /// Leaves the Service with what it has: of the addresses in its status those that
    /// are still its own. With nothing of that left, a Service that `is_refused` its
    /// ports gives them back.
    fn keep(&self, request: &NodeRequest, problem: &Problem, actions: Vec<Action>, is_refused: bool) -> Plan {
        let held = self
            .nodes()
            .nodes
            .keys()
            .filter(|name| self.is_held(request, name) && self.clash(request, name).is_none());
        let serving: Vec<&Node> = held.filter_map(|name| self.serving(request, name)).collect();
        let own = |address: IpAddr| {
            let has = |node: &&Node| node.internal.contains(&address) || node.external.contains(&address);
            nodes::is_node_address(address)
                && request.families.iter().any(|family| family.has(address))
                && !self.nodes().claimed.contains(&address)
                && serving.iter().any(has)
        };
        let known = self.service.ingress.iter().filter_map(|entry| entry.ip.parse().ok());
        let ingress: Vec<Ingress> = known.filter(|address| own(*address)).map(entry).collect();
        let after = match is_refused && ingress.is_empty() {
            true => self.own.iter().map(|claim| Action::Release(claim.id.clone())).collect(),
            false => Vec::new(),
        };
        let said = Said {
            ingress,
            allocated: Err(problem.clone()),
            ready: Ready::Impossible(problem.clone()),
            warnings: request.warnings.clone(),
        };
        self.finish(said, actions, after, is_refused)
    }

    /// The plan that has the status say so, with what comes before that and after.
    fn finish(&self, said: Said, actions: Vec<Action>, after: Vec<Action>, waits_for_port: bool) -> Plan {
        let conditions = Conditions {
            ingress: said.ingress,
            server: Server::Nodes,
            allocated: said.allocated,
            ready: said.ready,
            warnings: said.warnings,
            degraded: None,
            known: conditions::known(self.service, self.observed),
        };
        let (mut report, postponed) = (conditions.report(None), conditions.postponed());
        report.extend(after);
        let waits = conditions.is_passing();
        let is_settled = actions.is_empty() && report.is_empty() && postponed.is_none();
        let next = match is_settled && !waits {
            true => Requeue::Converged { poll: false },
            false => soon(false).within(postponed),
        };
        Plan {
            actions,
            report,
            next,
            waits,
            conditions: Some(conditions),
            index: IndexUpdate { address_pending: waits_for_port, ..IndexUpdate::default() },
            remember: None,
        }
    }

    /// What is said while ports are being claimed, if that fails.
    fn claiming(&self) -> Conditions {
        Conditions {
            ingress: Vec::new(),
            server: Server::Nodes,
            allocated: Err(Problem::new(Reason::NodeAddressesPending, "ports are being claimed")),
            ready: Ready::AsBefore,
            warnings: Vec::new(),
            degraded: None,
            known: conditions::known(self.service, self.observed),
        }
    }

    /// Whether claims of the Service list the node for each of its ports.
    fn is_held(&self, request: &NodeRequest, node: &str) -> bool {
        request.ports.iter().all(|port| self.own_on(port, node).is_some())
    }

    /// The claim of the Service that lists the node for a port: the oldest.
    fn own_on(&self, port: &Port, node: &str) -> Option<&'a PortClaim> {
        let mut found: Option<&PortClaim> = None;
        for claim in self.own.iter().filter(|claim| claim.port == *port && claim.nodes.contains(node)) {
            if found.is_none_or(|known| claim.precedes(known)) {
                found = Some(claim);
            }
        }
        found
    }

    /// Who has one of the ports on a node, if not the Service.
    fn clash(&self, request: &NodeRequest, node: &str) -> Option<Problem> {
        request.ports.iter().find_map(|port| {
            let published = |(used, on, _): &&(Port, String, _)| used == port && on == node;
            if let Some((_, _, (namespace, name))) = self.nodes().publishers.iter().find(published) {
                let pod = match *namespace == self.service.id.service.namespace {
                    true => format!("pod {namespace}/{name}"),
                    false => "a pod of another namespace".to_owned(),
                };
                let message = format!(
                    "port {} of node {node} is published by {pod} (hostPort or hostNetwork): the node does not serve it for the Service",
                    Named(port)
                );
                return Some(Problem::new(Reason::PortInUse, message));
            }
            let mine = self.own_on(port, node);
            let lists = |claim: &&Arc<PortClaim>| claim.port == *port && claim.nodes.contains(node);
            let mut others = self.nodes().others.iter().filter(lists);
            let other = others.find(|other| mine.is_none_or(|mine| other.precedes(mine)))?;
            let message =
                format!("port {} of node {node} belongs to {}", Named(port), self.holder(other));
            Some(Problem::new(Reason::PortInUse, message))
        })
    }

    /// Why one of the claims that are missing cannot be made.
    fn blocked(&self, request: &NodeRequest, scope: &Scope) -> Option<Problem> {
        let pool = scope.pool();
        request.ports.iter().find_map(|port| {
            let name = names::node_claim_name(pool, port);
            let port = Named(port);
            if self.nodes().strangers.contains(&name) {
                let message = format!(
                    "port {port} is taken by the object {name} (ips.kubeovn.io), which is no claim: an administrator has to correct or delete it"
                );
                return Some(Problem::new(Reason::PortInUse, message));
            }
            let other = self.nodes().others.iter().find(|claim| claim.id.name == name)?;
            let message = format!(
                "port {port} of the nodes of pool {pool} belongs to {}: choose another port, or name another pool by the annotation {}",
                self.holder(other),
                names::NODE_POOL
            );
            Some(Problem::new(Reason::PortInUse, message))
        })
    }

    /// Who has a claim, as far as the Service may know.
    fn holder(&self, claim: &PortClaim) -> String {
        match claim.owner.service.namespace == self.service.id.service.namespace {
            true => format!("Service {}", claim.owner.service),
            false => "another Service".to_owned(),
        }
    }

    fn missing(&self, request: &NodeRequest, scope: &Scope, wanted: &BTreeSet<String>) -> Vec<PortRequest> {
        let pool = scope.pool();
        let is_missing =
            |port: &&Port| !self.own.iter().any(|claim| claim.port == **port && claim.pool == pool);
        let missing = request.ports.iter().filter(is_missing);
        let claim = |port: &Port| PortRequest {
            owner: self.service.id.clone(),
            pool: pool.to_owned(),
            port: port.clone(),
            nodes: wanted.clone(),
        };
        missing.map(claim).collect()
    }

    /// The node, if it is ready, and with policy Local has a ready endpoint.
    fn serving(&self, request: &NodeRequest, name: &str) -> Option<&'a Node> {
        let node = self.nodes().nodes.get(name)?;
        let is_serving = node.ready
            && !node.excluded
            && !node.lost
            && (!request.local || self.local_nodes.contains(&NodeId::of(name)));
        is_serving.then_some(node)
    }
}

/// Why no address is published though ports are claimed.
fn no_address(request: &NodeRequest) -> Problem {
    let message = match request.local {
        true => "no ready node has a ready endpoint, and spec.externalTrafficPolicy is Local",
        false => "none of the nodes is ready",
    };
    Problem::new(Reason::NoNodeAddress, message)
}

fn entry(address: IpAddr) -> Ingress {
    Ingress { ip: address.to_string(), proxy: false, ports: Vec::new() }
}

#[cfg(test)]
mod tests {
    use lb_svc_crds::gateway::Transport;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Endpoint, EndpointSlice};
    use crate::node_mode::nodes::is_node_address;
    use crate::service::conditions::{ADDRESS_ALLOCATED, LIMITED, NODE_ADDRESSES_READY};
    use crate::service::plan::plan;
    use crate::testing::gateway::{reason, status};
    use crate::testing::nodes::{claim, nodes, observed, port, service};

    const THREE: [&str; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];

    /// Carries a plan out in what is observed. Returns whether there was anything.
    fn carry_out(observed: &mut Observed, plan: &Plan) -> bool {
        for action in plan.steps() {
            match action {
                Action::ClaimPorts(requests) => {
                    for request in requests {
                        let taken = observed.nodes.others.iter().any(|other| other.id.name == request.name());
                        assert!(!taken, "tried in vain");
                        let nodes: Vec<&str> = request.nodes.iter().map(String::as_str).collect();
                        let mut made =
                            claim(&request.owner.service.name, &request.pool, request.port.port, &nodes);
                        (made.owner, made.port) = (request.owner.clone(), request.port.clone());
                        made.id.name = request.name();
                        observed.nodes.claims.push(Arc::new(made));
                    }
                }
                Action::SetPortNodes(id, nodes) => {
                    let known = observed.nodes.claims.iter_mut().find(|claim| claim.id == *id).unwrap();
                    let mut changed = PortClaim::clone(known);
                    changed.nodes.clone_from(nodes);
                    changed.id.resource_version += "1";
                    *known = Arc::new(changed);
                }
                Action::Release(id) => observed.nodes.claims.retain(|claim| claim.id != *id),
                Action::SetStatus { ingress, conditions, .. } => {
                    let service = observed.service.as_mut().unwrap();
                    (service.ingress, service.conditions) = (ingress.clone(), conditions.clone());
                    assert_held(observed);
                }
                Action::Event { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        observed.remembered.warned = Some(std::time::Duration::ZERO);
        plan.steps().next().is_some()
    }

    /// What the status names is an address of a ready node whose ports are all claimed.
    fn assert_held(observed: &Observed) {
        let service = observed.service.as_ref().unwrap();
        for entry in &service.ingress {
            let address: IpAddr = entry.ip.parse().unwrap();
            assert!(is_node_address(address), "{address}");
            let has = |node: &Node| node.internal.contains(&address) || node.external.contains(&address);
            let own = |name: &str, port: &Port| {
                let mut claims = observed.nodes.claims.iter();
                claims.any(|claim| {
                    claim.owner.uid == service.id.uid && claim.port == *port && claim.nodes.contains(name)
                })
            };
            let holds = |name: &str| {
                service
                    .ports
                    .iter()
                    .all(|asked| own(name, &Port { protocol: Transport::Tcp, port: asked.port }))
            };
            let mut nodes = observed.nodes.nodes.iter();
            assert!(nodes.any(|(name, node)| node.ready && has(node) && holds(name)), "{address}");
        }
    }

    fn settle(mut observed: Observed) -> Observed {
        for _ in 0..8 {
            let planned = plan(&observed);
            if !carry_out(&mut observed, &planned) {
                assert_eq!(planned.next, Requeue::Converged { poll: false });
                return observed;
            }
        }
        panic!("it never settles");
    }

    fn shown(observed: &Observed) -> Vec<&str> {
        conditions::ips(&observed.service.as_ref().unwrap().ingress)
    }

    fn said<'a>(observed: &'a Observed, kind: &str) -> &'a str {
        reason(&observed.service.as_ref().unwrap().conditions, kind)
    }

    fn message(observed: &Observed, kind: &str) -> String {
        let conditions = &observed.service.as_ref().unwrap().conditions;
        conditions.iter().find(|condition| condition.kind == kind).unwrap().message.clone()
    }

    fn change(observed: &mut Observed, name: &str, change: impl FnOnce(&mut Node)) {
        change(Arc::make_mut(&mut observed.nodes.nodes).get_mut(name).unwrap());
    }

    fn edit(observed: &mut Observed) -> &mut Service {
        observed.service.as_mut().unwrap()
    }

    #[test]
    fn ready_nodes_are_published_once_the_port_is_claimed() {
        let mut observed = observed(service(), nodes(&THREE));
        change(&mut observed, "n2", |node| node.ready = false);
        let first = plan(&observed);
        assert!(matches!(&first.actions[..], [Action::ClaimPorts(ports)] if ports.len() == 1), "{first:?}");
        assert!(status(&first).is_none(), "not before");
        let mut observed = settle(observed);
        assert_eq!(shown(&observed), ["10.0.0.1", "10.0.0.3"]);
        assert_eq!(said(&observed, ADDRESS_ALLOCATED), "PortsClaimed");
        assert_eq!(said(&observed, NODE_ADDRESSES_READY), "NodeAddressesPublished");
        assert_eq!(observed.nodes.claims[0].nodes.len(), 3, "one that comes back finds its port");

        change(&mut observed, "n2", |node| node.ready = true);
        change(&mut observed, "n1", |node| node.ready = false);
        let planned = plan(&observed);
        assert!(planned.actions.is_empty(), "the status is all that waits for a node that dies");
        assert!(planned.steps().any(|action| matches!(action, Action::SetStatus { exact: true, .. })));
        assert_eq!(shown(&settle(observed)), ["10.0.0.2", "10.0.0.3"]);
    }

    #[test]
    fn node_that_is_gone_leaves_the_status_before_the_claim() {
        let mut observed = settle(observed(service(), nodes(&THREE)));
        Arc::make_mut(&mut observed.nodes.nodes).remove("n1");
        let planned = plan(&observed);
        let place = |is: fn(&Action) -> bool| planned.steps().position(is).unwrap();
        let status = place(|action| matches!(action, Action::SetStatus { .. }));
        assert!(status < place(|action| matches!(action, Action::SetPortNodes(..))));
        let observed = settle(observed);
        assert_eq!(
            (shown(&observed), observed.nodes.claims[0].nodes.len()),
            (vec!["10.0.0.2", "10.0.0.3"], 2)
        );
    }

    #[test]
    fn port_that_another_has_is_refused_and_named_where_that_may_be_known() {
        let mut observed = observed(service(), nodes(&THREE));
        let holder = claim("web", "all", 80, &["n1", "n2", "n3"]);
        observed.nodes.others = vec![Arc::new(holder.clone())];
        let mut observed = settle(observed);
        assert_eq!((shown(&observed), said(&observed, NODE_ADDRESSES_READY)), (vec![], "PortInUse"));
        assert!(message(&observed, NODE_ADDRESSES_READY).contains("Service default/web"));
        assert!(plan(&observed).index.address_pending, "it gets the port when that is free");
        let mut foreign = holder;
        foreign.owner.service.namespace = "tenant".into();
        observed.nodes.others = vec![Arc::new(foreign)];
        let observed = settle(observed);
        let said = message(&observed, NODE_ADDRESSES_READY);
        assert!(said.contains("another Service") && !said.contains("tenant"), "{said}");
    }

    #[test]
    fn service_with_a_port_that_is_taken_holds_none_and_is_not_published() {
        let mut service = service();
        service.ports.push(crate::testing::port("TCP", 443));
        let mut observed = observed(service, nodes(&THREE));
        observed.nodes.others = vec![Arc::new(claim("web", "all", 443, &["n1", "n2", "n3"]))];
        let observed = settle(observed);
        assert_eq!((shown(&observed).len(), observed.nodes.claims.len()), (0, 0));
        assert!(message(&observed, ADDRESS_ALLOCATED).contains("443/TCP"));
    }

    #[test]
    fn port_that_is_added_and_taken_takes_the_whole_service_out() {
        let mut observed = settle(observed(service(), nodes(&THREE)));
        observed.nodes.others = vec![Arc::new(claim("web", "all", 443, &["n1", "n2", "n3"]))];
        edit(&mut observed).ports.push(crate::testing::port("TCP", 443));
        let mut observed = settle(observed);
        assert_eq!(
            (shown(&observed).len(), observed.nodes.claims.len()),
            (0, 0),
            "kube-proxy serves all ports"
        );
        edit(&mut observed).ports.pop();
        assert_eq!(shown(&settle(observed)), THREE);
    }

    #[test]
    fn nodes_that_pools_share_are_those_of_who_has_them() {
        let mut edge = service();
        edge.annotations.insert(names::NODE_POOL.into(), "edge".into());
        let mut nodes = nodes(&THREE);
        for name in ["n1", "n2"] {
            nodes.get_mut(name).unwrap().pools = ["edge".to_owned()].into();
        }
        let mut observed = observed(edge, nodes);
        observed.nodes.others = vec![Arc::new(claim("web", "all", 80, &["n2", "n3"]))];
        let mut observed = settle(observed);
        assert_eq!((shown(&observed), said(&observed, LIMITED)), (vec!["10.0.0.1"], "PortInUse"));
        assert!(message(&observed, LIMITED).contains("node n2"));
        // Two that were quicker than their caches: the older has the node.
        let mut younger = claim("web", "all", 80, &["n1"]);
        younger.created = Some(jiff::Timestamp::MAX);
        observed.nodes.others = vec![Arc::new(younger.clone())];
        assert_eq!(shown(&settle(observed.clone())), ["10.0.0.1", "10.0.0.2"]);
        let older = PortClaim {
            created: None,
            id: crate::ipam::ClaimId { uid: "a".into(), ..younger.id.clone() },
            ..younger
        };
        observed.nodes.others = vec![Arc::new(older)];
        assert_eq!(shown(&settle(observed)), ["10.0.0.2"]);
    }

    #[test]
    fn node_where_a_pod_publishes_the_port_is_left_out() {
        let mut observed = settle(observed(service(), nodes(&THREE)));
        let pod = |namespace: &str| (namespace.to_owned(), "ingress-x".to_owned());
        observed.nodes.publishers =
            vec![(port(80), "n1".to_owned(), pod("default")), (port(8080), "n2".to_owned(), pod("default"))];
        let mut observed = settle(observed);
        assert_eq!(shown(&observed), ["10.0.0.2", "10.0.0.3"]);
        assert!(message(&observed, LIMITED).contains("pod default/ingress-x"));
        observed.nodes.publishers =
            ["n1", "n2", "n3"].map(|node| (port(80), node.to_owned(), pod("kube-system"))).into();
        let observed = settle(observed);
        assert_eq!((shown(&observed).len(), said(&observed, NODE_ADDRESSES_READY)), (0, "PortInUse"));
        assert!(!message(&observed, NODE_ADDRESSES_READY).contains("kube-system"));
    }

    #[test]
    fn local_policy_names_only_nodes_with_a_ready_endpoint() {
        let mut observed = observed(Service { local_policy: true, ..service() }, nodes(&THREE));
        let on = |node: &str, said: &str| Endpoint {
            node: Some(NodeId::of(node)),
            ..crate::testing::endpoint(1, said)
        };
        let slice = |endpoints: Vec<Endpoint>| vec![Arc::new(EndpointSlice { ports: Vec::new(), endpoints })];
        observed.endpoints.slices = slice(vec![on("n2", "ready"), on("n3", "unready"), on("gone", "ready")]);
        let mut observed = settle(observed);
        assert_eq!(shown(&observed), ["10.0.0.2"]);
        observed.endpoints.slices = slice(vec![on("n2", "leaving")]);
        let observed = settle(observed);
        assert_eq!((shown(&observed).len(), said(&observed, NODE_ADDRESSES_READY)), (0, "NoNodeAddress"));
        assert_eq!(observed.nodes.claims.len(), 1, "the port stays its own");
    }

    #[test]
    fn what_may_stand_in_for_kube_proxy_is_named_and_the_service_published() {
        let mut observed = observed(service(), nodes(&THREE));
        observed.nodes.stands_in = Some("Cilium");
        let observed = settle(observed);
        assert_eq!((shown(&observed), said(&observed, LIMITED)), (THREE.into(), "ProxyUntried"));
        assert!(message(&observed, LIMITED).contains("Cilium"));
    }

    #[test]
    fn who_may_no_longer_is_taken_out_and_holds_nothing() {
        let mut observed = settle(observed(service(), nodes(&THREE)));
        let mut configuration = (*observed.configuration).clone();
        configuration.node_mode = Default::default();
        observed.configuration = Arc::new(configuration);
        let observed = settle(observed);
        assert_eq!((shown(&observed).len(), observed.nodes.claims.len()), (0, 0));
        assert_eq!(said(&observed, NODE_ADDRESSES_READY), "NodeModeNotAllowed");
    }

    #[test]
    fn what_cannot_be_read_leaves_what_is_served_but_for_nodes_that_die() {
        let mut observed = settle(observed(service(), nodes(&THREE)));
        let annotations = &mut edit(&mut observed).annotations;
        annotations.insert(names::NODE_ADDRESS_ANNOTATION.into(), "10.0.0.0/99".into());
        annotations.insert(names::PROVIDER_ANNOTATION.into(), "lan.kube-system".into());
        let mut observed = settle(observed);
        assert_eq!(
            (shown(&observed), said(&observed, ADDRESS_ALLOCATED)),
            (THREE.into(), "NodeModeContradicted")
        );
        edit(&mut observed).annotations.remove(names::PROVIDER_ANNOTATION);
        change(&mut observed, "n1", |node| node.ready = false);
        let mut observed = settle(observed);
        assert_eq!(
            (shown(&observed), said(&observed, ADDRESS_ALLOCATED)),
            (THREE[1..].into(), "InvalidAnnotation")
        );
        // An address that no node has stays with nobody.
        change(&mut observed, "n2", |node| node.internal = vec!["10.9.9.9".parse().unwrap()]);
        assert_eq!(shown(&settle(observed)), ["10.0.0.3"]);
    }

    #[test]
    fn another_pool_is_claimed_before_the_first_is_given_back() {
        let mut observed = settle(observed(service(), nodes(&THREE)));
        edit(&mut observed).annotations.insert(names::NODE_POOL.into(), "edge".into());
        change(&mut observed, "n3", |node| node.pools = ["edge".to_owned()].into());
        let mut taken = observed.clone();
        taken.nodes.others = vec![Arc::new(claim("web", "edge", 80, &[]))];
        let taken = settle(taken);
        assert_eq!(
            (shown(&taken), said(&taken, ADDRESS_ALLOCATED)),
            (THREE.into(), "PortInUse"),
            "it keeps the first"
        );
        let observed = settle(observed);
        assert_eq!(shown(&observed), ["10.0.0.3"]);
        let pools: Vec<&str> = observed.nodes.claims.iter().map(|claim| claim.pool.as_str()).collect();
        assert_eq!(pools, ["edge"]);
    }

    #[test]
    fn service_leaves_the_status_first_then_its_ports() {
        let observed = settle(observed(service(), nodes(&THREE)));
        for opt_out in [
            |service: &mut Service| drop(service.annotations.remove(names::MODE_ANNOTATION)),
            |service: &mut Service| service.deleting = true,
            |service: &mut Service| service.load_balancer = false,
            |service: &mut Service| {
                service.annotations = crate::testing::service().annotations;
            },
        ] {
            let mut observed = observed.clone();
            opt_out(edit(&mut observed));
            let planned = plan(&observed);
            let status = Action::SetStatus { ingress: Vec::new(), conditions: Vec::new(), exact: false };
            let claim = observed.nodes.claims[0].id.clone();
            assert_eq!(planned.steps().collect::<Vec<_>>(), [&status, &Action::Release(claim)]);
        }
        // Without the Service there is no status.
        let gone = Observed { service: None, ..observed.clone() };
        assert!(matches!(&plan(&gone).actions[..], [Action::Release(_)]));
        // The next of its name has to wait for nothing.
        let mut next = observed;
        let service = edit(&mut next);
        (service.id.uid, service.ingress, service.conditions) = ("uid-2".into(), Vec::new(), Vec::new());
        let next = settle(next);
        assert_eq!((shown(&next), next.nodes.claims.len()), (THREE.into(), 1));
    }

    #[test]
    fn gateway_is_gone_before_nodes_serve() {
        use crate::testing::gateway::{carried_out, claimed};
        let mut observed = carried_out(
            claimed(&[crate::testing::gateway::claim("172.18.0.11", lb_svc_crds::Requested::Dynamic)]),
            "172.18.0.11",
        );
        assert_eq!(shown(&observed), ["172.18.0.11"]);
        let of_nodes = super::tests::observed(service(), nodes(&THREE));
        (observed.nodes, observed.configuration) = (of_nodes.nodes, of_nodes.configuration);
        edit(&mut observed).annotations = service().annotations;
        let planned = plan(&observed);
        let (ingress, conditions) = status(&planned).unwrap();
        assert!(ingress.is_empty());
        assert_eq!(reason(conditions, NODE_ADDRESSES_READY), "Replacing");
        assert!(planned.actions.iter().any(|action| matches!(action, Action::DeleteDeployment(..))));
        assert!(
            !planned
                .steps()
                .any(|action| matches!(action, Action::ClaimPorts(_) | Action::WriteDeployment(_)))
        );
        // Its pod answers still.
        (observed.gateway.deployment, observed.gateway.config) = (None, None);
        assert!(
            !plan(&observed)
                .steps()
                .any(|action| matches!(action, Action::ClaimPorts(_) | Action::Release(_)))
        );
        observed.gateway.pods.clear();
        assert!(plan(&observed).steps().any(|action| matches!(action, Action::Release(_))));
        observed.addresses.claims.clear();
        let observed = settle(observed);
        assert_eq!(shown(&observed), THREE);
    }

    #[test]
    fn contradiction_of_a_service_that_nothing_serves_yet_is_said() {
        let mut both = crate::testing::service();
        both.class = Some(names::NODE_CLASS.into());
        for permissions in [crate::testing::nodes::permissions(), Default::default()] {
            let mut observed = observed(both.clone(), nodes(&THREE));
            Arc::make_mut(&mut observed.configuration).node_mode = permissions;
            let observed = settle(observed);
            assert_eq!(said(&observed, NODE_ADDRESSES_READY), "NodeModeContradicted");
            assert_eq!((shown(&observed).len(), observed.nodes.claims.len()), (0, 0));
        }
    }

    #[test]
    fn contradiction_leaves_a_gateway_alone() {
        use crate::testing::gateway::{carried_out, claimed};
        let mut observed = carried_out(
            claimed(&[crate::testing::gateway::claim("172.18.0.11", lb_svc_crds::Requested::Dynamic)]),
            "172.18.0.11",
        );
        edit(&mut observed).annotations.insert(names::MODE_ANNOTATION.into(), names::MODE_NODE.into());
        let planned = plan(&observed);
        let (ingress, conditions) = status(&planned).unwrap();
        assert_eq!(conditions::ips(ingress), ["172.18.0.11"]);
        assert_eq!(reason(conditions, ADDRESS_ALLOCATED), "NodeModeContradicted");
        let removes = |action: &Action| {
            matches!(action, Action::DeleteDeployment(..) | Action::Release(_) | Action::ClaimPorts(_))
        };
        assert!(!planned.steps().any(removes), "{planned:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn whatever_changes_the_status_names_only_what_is_held(
            steps in prop::collection::vec((0..7_u8, 1..4_u8, any::<bool>()), 1..24),
        ) {
            let mut observed = observed(service(), nodes(&THREE));
            for (what, which, on) in steps {
                let name = format!("n{which}");
                match what {
                    0 => change(&mut observed, &name, |node| node.ready = on),
                    1 => change(&mut observed, &name, |node| node.excluded = on),
                    2 => observed.nodes.others = on
                        .then(|| Arc::new(claim("web", "edge", 80, &[&name])))
                        .into_iter().collect(),
                    3 => observed.nodes.publishers = on
                        .then(|| (port(80), name, ("default".to_owned(), "pod".to_owned())))
                        .into_iter().collect(),
                    4 => {
                        let asked = if on { vec!["80", "443"] } else { vec!["80"] };
                        edit(&mut observed).ports = asked.iter()
                            .map(|port| crate::testing::port("TCP", port.parse().unwrap())).collect();
                    }
                    5 => { observed.nodes.are_pods_seen = on; }
                    _ => change(&mut observed, &name, |node| {
                        node.internal = vec![format!("10.0.{}.{which}", u8::from(on)).parse().unwrap()];
                    }),
                }
                // Some plans are carried out to the end, some only in part.
                for _ in 0..which {
                    let planned = plan(&observed);
                    carry_out(&mut observed, &planned);
                }
            }
            observed.nodes.are_pods_seen = true;
            settle(observed);
        }
    }
}
