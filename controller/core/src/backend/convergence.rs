//! Convergence of a gateway whose targets are endpoints (direct access): how far
//! its pods are with the configuration, and what they report of the endpoints.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lb_svc_crds::gateway::{HealthCheck, Port, Subset, TargetPort, Transport};

use super::readiness_gate::Verdict;
use crate::gateway::rendered::PartDigests;
use crate::model::{EndpointSlice, Pod, PodId};

/// How long a gateway may be behind with its endpoints and still count as
/// serving: endpoints come and go, and the configuration changes with each.
const BEHIND: SignedDuration = SignedDuration::from_secs(10);
/// How much longer than its timeout a check has to have failed everywhere before
/// it is reported: no endpoint is healthy before its first check.
const ASKED: SignedDuration = SignedDuration::from_secs(1);

/// The number of configurations remembered that target pods which wait for the
/// readiness gate.
const RECENT: usize = 32;

/// The endpoints that a gateway forwards connections to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointTargets {
    /// The ports served.
    pub ports: Vec<Port>,
    /// The endpoints.
    pub subsets: Vec<Subset>,
    /// Their health check, if there is one.
    pub check: Option<HealthCheck>,
    /// Digest of the Service's part of the configuration without them.
    pub rest: String,
}

/// What is remembered from one observation of a gateway to the next. It may be
/// lost: then less is known for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConvergenceState {
    /// The digest of the part without endpoints that its pods carry out.
    rest: Option<String>,
    /// The digests of what the pods report to carry out.
    digests: BTreeSet<String>,
    /// Since when these have not changed, though they were to.
    behind: Option<Timestamp>,
    /// Since when all endpoints of some port have failed their check.
    failing: Option<Timestamp>,
    /// The last configurations, by their digests, with the pods among their targets that
    /// wait for the readiness gate.
    recent: VecDeque<Recent>,
}

/// The digests of a configuration, and the pods that it targets.
type Recent = ([String; 2], BTreeSet<PodId>);

/// An observation of a gateway.
pub struct Observation<'a> {
    /// Its endpoint targets.
    pub targets: &'a EndpointTargets,
    /// The digests of the Service's part of its configuration.
    pub part: &'a PartDigests,
    /// Its ready pods.
    pub pods: &'a [&'a Pod],
    /// Whether a ready pod carries out all of that.
    pub acknowledged: bool,
    /// The Service's slices.
    pub slices: &'a [Arc<EndpointSlice>],
    /// The pods that are ready except for the readiness gate, and whether they
    /// have satisfied it.
    pub gated_pods: &'a BTreeMap<PodId, bool>,
    /// Now.
    pub now: Timestamp,
}

/// How far a gateway is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Convergence {
    /// What is to be remembered.
    pub state: ConvergenceState,
    /// Whether it serves all, or all but the last changes of endpoints.
    pub keeps_up: bool,
    /// Whether it checks its endpoints.
    pub checks: bool,
    /// The ports of which every endpoint has failed its check for a while.
    pub all_unhealthy: Vec<Port>,
    /// Whether a port may become one of these soon.
    pub may_become_unhealthy: bool,
    /// Whether pods wait for the readiness gate.
    pub holds_gates: bool,
    /// The verdicts on those.
    pub verdicts: BTreeMap<PodId, Verdict>,
}

impl Observation<'_> {
    /// The convergence, after `before`.
    pub fn convergence(&self, before: Option<&ConvergenceState>) -> Convergence {
        let waiting = self.waiting();
        let failing = self.failing();
        let state = self.next_state(before, &waiting, !failing.is_empty());
        let is_recent = |since: Timestamp| self.now.duration_since(since) < BEHIND;
        let patience = self.targets.check.as_ref().map(|check| {
            let limit = SignedDuration::from_millis(check.timeout_ms.into());
            limit + ASKED
        });
        let fails = state.failing.zip(patience);
        let fails = fails.map(|(since, patience)| self.now.duration_since(since) >= patience);
        Convergence {
            keeps_up: state.rest.is_some() && state.behind.is_none_or(is_recent),
            checks: self.targets.check.is_some(),
            all_unhealthy: failing.into_iter().filter(|_| fails == Some(true)).collect(),
            may_become_unhealthy: fails == Some(false),
            holds_gates: !waiting.is_empty(),
            verdicts: self.verdicts(&waiting, &state.recent),
            state,
        }
    }

    fn next_state(
        &self,
        before: Option<&ConvergenceState>,
        waiting: &BTreeMap<PodId, IpAddr>,
        fails: bool,
    ) -> ConvergenceState {
        let reported = self.pods.iter().filter_map(|pod| self.part.reported(pod.reported()?));
        let digests = reported.map(str::to_owned).collect();
        let known = before.filter(|before| before.rest.as_ref() == Some(&self.targets.rest));
        let behind = match known {
            _ if self.acknowledged => None,
            Some(known) if known.digests == digests => Some(known.behind.unwrap_or(self.now)),
            // It changes.
            _ => Some(self.now),
        };
        let rest = (self.acknowledged || known.is_some()).then(|| self.targets.rest.clone());
        let failing = fails.then(|| before.and_then(|before| before.failing).unwrap_or(self.now));
        let mut recent = VecDeque::new();
        if !waiting.is_empty() {
            recent = before.map(|before| before.recent.clone()).unwrap_or_default();
            let wanted = self.part.wanted().map(str::to_owned);
            recent.retain(|(digests, _)| *digests != wanted);
            recent.truncate(RECENT - 1);
            let targeted = waiting.iter().filter(|(_, address)| self.leading(**address).next().is_some());
            recent.push_front((wanted, targeted.map(|(pod, _)| *pod).collect()));
        }
        ConvergenceState { rest, digests, behind, failing, recent }
    }

    /// The ports of which some pod finds every endpoint unhealthy.
    fn failing(&self) -> Vec<Port> {
        let finds = |pod: &Pod, port: &Port| {
            let Some(status) = pod.reported().filter(|status| !status.unhealthy.is_empty()) else {
                return false;
            };
            let is = |target: &&TargetPort| (target.protocol, target.port) == (port.protocol, port.port);
            let of_port = self.targets.subsets.iter().filter_map(|subset| {
                let number = subset.ports.iter().find(is)?.target_port;
                Some(subset.addresses.iter().map(move |address| SocketAddr::new(*address, number)))
            });
            let mut sockets = of_port.flatten().peekable();
            sockets.peek().is_some() && sockets.all(|socket| status.unhealthy.contains(&socket))
        };
        let checked = self.targets.ports.iter().filter(|port| port.protocol == Transport::Tcp);
        checked.filter(|port| self.pods.iter().any(|pod| finds(pod, port))).cloned().collect()
    }

    /// The endpoints that are pods waiting for the readiness gate.
    fn waiting(&self) -> BTreeMap<PodId, IpAddr> {
        let endpoints = self.slices.iter().flat_map(|slice| &slice.endpoints);
        let pods = endpoints.filter_map(|endpoint| Some((endpoint.pod?, endpoint.address.into())));
        pods.filter(|(pod, _)| self.gated_pods.get(pod) == Some(&false)).collect()
    }

    /// The subsets that have `address`.
    fn leading(&self, address: IpAddr) -> impl Iterator<Item = &Subset> {
        self.targets.subsets.iter().filter(move |subset| subset.addresses.contains(&address))
    }

    fn verdicts(
        &self,
        waiting: &BTreeMap<PodId, IpAddr>,
        recent: &VecDeque<Recent>,
    ) -> BTreeMap<PodId, Verdict> {
        // A pod that does not respond may not have the configuration. One that is
        // behind, in the middle of a roll-out, may have one that targets the pod.
        let leads = |pod: &Pod, to: PodId| {
            let Some(status) = pod.reported() else { return false };
            let knew = |(digests, targeted): &Recent| {
                let reported = self.part.reported(status);
                reported.is_some_and(|reported| digests.iter().any(|digest| digest == reported))
                    && targeted.contains(&to)
            };
            self.part.acknowledged_by(status) || recent.iter().any(knew)
        };
        let verdict = |to: PodId, address: IpAddr| {
            let mut subsets = self.leading(address).peekable();
            subsets.peek()?;
            let ports = subsets.flat_map(|subset| &subset.ports);
            let checked = ports.filter(|port| port.protocol == Transport::Tcp);
            let sockets: Vec<_> = checked.map(|port| SocketAddr::new(address, port.target_port)).collect();
            let unhealthy = self.pods.iter().find_map(|pod| {
                let unhealthy = &pod.reported()?.unhealthy;
                Some((pod, sockets.iter().find(|socket| unhealthy.contains(socket))?))
            });
            match unhealthy {
                Some((pod, socket)) => {
                    Some(Verdict::Unhealthy(format!("{socket} fails the check of gateway pod {}", pod.name)))
                }
                None => {
                    let all = !self.pods.is_empty() && self.pods.iter().all(|pod| leads(pod, to));
                    all.then_some(Verdict::Programmed)
                }
            }
        };
        waiting.iter().filter_map(|(pod, address)| Some((*pod, verdict(*pod, *address)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::rendered::tests::{SERVICE, part};
    use crate::model::StatusReport;
    use crate::testing::slice;
    use lb_svc_crds::gateway::GatewayStatus;

    /// A pod that carries this out: `a` says it of the Service's part, `b`, of an earlier
    /// release, of the whole.
    fn gateway(name: &str, digest: &str, unhealthy: &[&str]) -> Pod {
        let unhealthy = unhealthy.iter().map(|socket| socket.parse().unwrap()).collect();
        let (whole, parts) = match name {
            "a" => ("changed by others", Some([(SERVICE.to_owned(), digest.to_owned())].into())),
            _ => (digest, None),
        };
        let status =
            GatewayStatus { digest: Some(whole.into()), parts, unhealthy, ..GatewayStatus::default() };
        Pod {
            name: name.into(),
            ready: true,
            report: StatusReport::Reported(Box::new(status)),
            ..Pod::default()
        }
    }

    /// Two endpoints on port 80, of which the second waits for the gate, and
    /// port 53 by UDP.
    fn targets() -> EndpointTargets {
        let target = |protocol, port, target_port| TargetPort { protocol, port, target_port };
        let subset = Subset {
            ports: vec![target(Transport::Tcp, 80, 8080), target(Transport::Udp, 53, 53)],
            addresses: vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()],
            draining: Vec::new(),
        };
        let port = |protocol, port| Port { protocol, port };
        let check =
            HealthCheck { path: None, port: None, interval_ms: 5000, timeout_ms: 2000, rise: 2, fall: 3 };
        EndpointTargets {
            ports: vec![port(Transport::Tcp, 80), port(Transport::Udp, 53)],
            subsets: vec![subset],
            check: Some(check),
            rest: "rest".into(),
        }
    }

    fn second() -> PodId {
        PodId::of("uid-2")
    }

    struct Scene {
        targets: EndpointTargets,
        digest: &'static str,
        pods: Vec<Pod>,
        acknowledged: bool,
        start: Timestamp,
        state: Option<ConvergenceState>,
    }

    impl Scene {
        fn new(pods: Vec<Pod>) -> Self {
            Self {
                targets: targets(),
                digest: "now",
                pods,
                acknowledged: true,
                start: Timestamp::UNIX_EPOCH,
                state: None,
            }
        }

        /// What is seen after so many seconds, and remembered.
        fn see(&mut self, seconds: i64) -> Convergence {
            let slices = [Arc::new(slice(&[], &[(1, "ready"), (2, "unready"), (3, "unready")]))];
            let gated_pods =
                [(PodId::of("uid-1"), true), (second(), false), (PodId::of("uid-4"), false)].into();
            let pods: Vec<&Pod> = self.pods.iter().collect();
            let part = part(self.digest);
            let observation = Observation {
                targets: &self.targets,
                part: &part,
                pods: &pods,
                acknowledged: self.acknowledged,
                slices: &slices,
                gated_pods: &gated_pods,
                now: self.start + SignedDuration::from_secs(seconds),
            };
            let convergence = observation.convergence(self.state.as_ref());
            self.state = Some(convergence.state.clone());
            convergence
        }
    }

    #[test]
    fn gateway_behind_with_endpoints_serves_while_it_moves() {
        let mut scene = Scene::new(vec![gateway("a", "1", &[])]);
        scene.acknowledged = false;
        assert!(!scene.see(0).keeps_up, "it never did");
        scene.acknowledged = true;
        assert!(scene.see(60).keeps_up);
        scene.acknowledged = false;
        assert!(scene.see(120).keeps_up && scene.see(129).keeps_up);
        scene.pods = vec![gateway("a", "2", &[])];
        assert!(scene.see(131).keeps_up && scene.see(140).keeps_up, "it came nearer");
        assert!(!scene.see(141).keeps_up, "and then no more");
        scene.acknowledged = true;
        assert!(scene.see(142).keeps_up);
        (scene.acknowledged, scene.targets.rest) = (false, "other".into());
        assert!(!scene.see(143).keeps_up, "that is more than endpoints");
    }

    #[test]
    fn check_failing_everywhere_is_reported_after_its_timeout() {
        let all = ["10.0.0.1:8080", "10.0.0.2:8080"];
        let mut scene = Scene::new(vec![gateway("a", "now", &[]), gateway("b", "now", &all)]);
        let seen = |convergence: Convergence| {
            (
                convergence.all_unhealthy.iter().map(|port| port.port).collect(),
                convergence.may_become_unhealthy,
            )
        };
        assert_eq!(seen(scene.see(0)), (vec![], true));
        assert_eq!(seen(scene.see(2)), (vec![], true), "there was one time limit so far");
        assert_eq!(seen(scene.see(3)), (vec![80], false));
        scene.pods[1] = gateway("b", "now", &all[..1]);
        assert_eq!(seen(scene.see(4)), (vec![], false));
        scene.pods[1] = gateway("b", "now", &all);
        assert_eq!(seen(scene.see(5)), (vec![], true), "it begins anew");

        // A port is all its endpoints, by whatever number they serve it.
        let mut other = scene.targets.subsets[0].clone();
        other.ports[0].target_port = 8081;
        scene.targets.subsets.push(other);
        assert_eq!(seen(scene.see(60)), (vec![], false));
        scene.targets.subsets.clear();
        assert_eq!(seen(scene.see(61)), (vec![], false), "nobody cannot fail");
        assert!(scene.see(62).checks);
    }

    #[test]
    fn backend_is_programmed_when_every_gateway_pod_reports_it() {
        let verdict = |pods: &[Pod]| {
            let convergence = Scene::new(pods.to_vec()).see(0);
            assert!(convergence.holds_gates);
            convergence.verdicts.get(&second()).cloned()
        };
        let taken = Some(Verdict::Programmed);
        let now = |name: &str| gateway(name, "now", &[]);
        assert_eq!(verdict(&[now("a"), now("b")]), taken);
        assert_eq!(verdict(&[]), None);
        assert_eq!(verdict(&[now("a"), gateway("b", "earlier", &[])]), None);
        let silent = Pod { report: StatusReport::NoResponse, ..now("b") };
        assert_eq!(verdict(&[now("a"), silent]), None, "it may not know");
        // Others' failures, and of what is not checked, are none of its own.
        assert_eq!(verdict(&[gateway("a", "now", &["10.0.0.1:8080", "10.0.0.2:53"])]), taken);
        let fails = |digest| match verdict(&[now("a"), gateway("b", digest, &["10.0.0.2:8080"])]) {
            Some(Verdict::Unhealthy(message)) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(fails("now"), "10.0.0.2:8080 fails the check of gateway pod b");
        assert_eq!(fails("earlier"), fails("now"));

        // In a roll-out it may have heard of this one, but not of the last.
        let mut scene = Scene::new(vec![now("a")]);
        scene.see(0);
        scene.digest = "later";
        assert_eq!(scene.see(1).verdicts.get(&second()).cloned(), taken);
        for n in 0..2 * RECENT {
            scene.digest = format!("{n}").leak();
            scene.see(2);
        }
        assert_eq!(scene.see(3).verdicts.get(&second()), None);
        assert_eq!(scene.state.unwrap().recent.len(), RECENT);

        let mut scene = Scene::new(vec![now("a")]);
        scene.targets.subsets[0].addresses.pop();
        let convergence = scene.see(0);
        assert!(convergence.holds_gates && convergence.verdicts.is_empty(), "it leads nowhere yet");
    }
}
