//! How a gateway fares that leads connections straight to endpoints.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use jiff::{SignedDuration, Timestamp};
use lb_svc_crds::gateway::{GatewayStatus, HealthCheck, Port, Subset, TargetPort, Transport};

use crate::domain::{Answer, Pod};

/// For so long a gateway may be behind with its endpoints and still be said to
/// serve: they come and go, and its configuration with each of them.
const BEHIND: SignedDuration = SignedDuration::from_secs(10);
/// How much longer than its time limit a check has to have failed everywhere
/// before that is said: no endpoint is healthy before it has been asked.
const ASKED: SignedDuration = SignedDuration::from_secs(1);

/// Where a gateway is to lead connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Led {
    /// The ports served.
    pub ports: Vec<Port>,
    /// The endpoints.
    pub subsets: Vec<Subset>,
    /// How they are checked, if they are.
    pub check: Option<HealthCheck>,
    /// Digest of the gateway's configuration without them.
    pub rest: String,
}

/// What is to be remembered from one look at a gateway to the next. It may be
/// lost: then less is known for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// What its pods carry out but for the endpoints, if they do.
    rest: Option<String>,
    /// The digests that they say.
    digests: BTreeSet<String>,
    /// Since when these have stayed the same, while others were to come.
    behind: Option<Timestamp>,
    /// Since when all endpoints of some port have failed their check.
    failing: Option<Timestamp>,
}

/// A look at a gateway.
pub struct Look<'a> {
    /// Where it is to lead connections.
    pub led: &'a Led,
    /// Its ready pods.
    pub pods: &'a [&'a Pod],
    /// Whether the gateway carries out its whole configuration, as far as can
    /// be told.
    pub follows: bool,
    /// Now.
    pub now: Timestamp,
}

/// What is seen of a gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sight {
    /// To be remembered.
    pub course: Course,
    /// Whether it serves: all, or all but the last changes of endpoints.
    pub serves: bool,
    /// Whether it checks its endpoints.
    pub checks: bool,
    /// The ports all whose endpoints have failed their check for a while.
    pub failing: Vec<Port>,
    /// Whether that has yet to show.
    pub may_fail: bool,
}

impl Look<'_> {
    /// What is seen, by who saw `before`.
    pub fn see(&self, before: Option<&Course>) -> Sight {
        let failing = self.failing();
        let course = self.course(before, !failing.is_empty());
        let is_recent = |since: Timestamp| self.now.duration_since(since) < BEHIND;
        let patience = self.led.check.as_ref().map(|check| {
            let limit = SignedDuration::from_millis(check.timeout_ms.into());
            limit + ASKED
        });
        let fails = course.failing.zip(patience);
        let fails = fails.map(|(since, patience)| self.now.duration_since(since) >= patience);
        Sight {
            serves: course.rest.is_some() && course.behind.is_none_or(is_recent),
            checks: self.led.check.is_some(),
            failing: failing.into_iter().filter(|_| fails == Some(true)).collect(),
            may_fail: fails == Some(false),
            course,
        }
    }

    fn course(&self, before: Option<&Course>, fails: bool) -> Course {
        let digests = self.pods.iter().filter_map(|pod| status(pod)?.digest.clone()).collect();
        let known = before.filter(|before| before.rest.as_ref() == Some(&self.led.rest));
        let behind = match known {
            _ if self.follows => None,
            Some(known) if known.digests == digests => Some(known.behind.unwrap_or(self.now)),
            // It moves.
            _ => Some(self.now),
        };
        let rest = (self.follows || known.is_some()).then(|| self.led.rest.clone());
        let failing = fails.then(|| before.and_then(|before| before.failing).unwrap_or(self.now));
        Course { rest, digests, behind, failing }
    }

    /// The ports all whose endpoints a pod finds unhealthy.
    fn failing(&self) -> Vec<Port> {
        let finds = |pod: &Pod, port: &Port| {
            let Some(status) = status(pod).filter(|status| !status.unhealthy.is_empty()) else {
                return false;
            };
            let is = |target: &&TargetPort| (target.protocol, target.port) == (port.protocol, port.port);
            let of_port = self.led.subsets.iter().filter_map(|subset| {
                let number = subset.ports.iter().find(is)?.target_port;
                Some(subset.addresses.iter().map(move |address| SocketAddr::new(*address, number)))
            });
            let mut sockets = of_port.flatten().peekable();
            sockets.peek().is_some() && sockets.all(|socket| status.unhealthy.contains(&socket))
        };
        let checked = self.led.ports.iter().filter(|port| port.protocol == Transport::Tcp);
        checked.filter(|port| self.pods.iter().any(|pod| finds(pod, port))).cloned().collect()
    }
}

fn status(pod: &Pod) -> Option<&GatewayStatus> {
    match &pod.answer {
        Answer::Said(status) => Some(status),
        Answer::Unasked | Answer::Silence => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(name: &str, digest: &str, unhealthy: &[&str]) -> Pod {
        let unhealthy = unhealthy.iter().map(|socket| socket.parse().unwrap()).collect();
        let status = GatewayStatus { digest: Some(digest.into()), unhealthy, ..GatewayStatus::default() };
        Pod { name: name.into(), ready: true, answer: Answer::Said(Box::new(status)), ..Pod::default() }
    }

    /// Two endpoints on port 80, and on port 53 by UDP.
    fn led() -> Led {
        let target = |protocol, port, target_port| TargetPort { protocol, port, target_port };
        let subset = Subset {
            ports: vec![target(Transport::Tcp, 80, 8080), target(Transport::Udp, 53, 53)],
            addresses: vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()],
            draining: Vec::new(),
        };
        let port = |protocol, port| Port { protocol, port };
        let check = HealthCheck { path: None, interval_ms: 5000, timeout_ms: 2000, rise: 2, fall: 3 };
        Led {
            ports: vec![port(Transport::Tcp, 80), port(Transport::Udp, 53)],
            subsets: vec![subset],
            check: Some(check),
            rest: "rest".into(),
        }
    }

    struct Scene {
        led: Led,
        pods: Vec<Pod>,
        follows: bool,
        start: Timestamp,
        course: Option<Course>,
    }

    impl Scene {
        fn new(pods: Vec<Pod>) -> Self {
            Self { led: led(), pods, follows: true, start: Timestamp::UNIX_EPOCH, course: None }
        }

        /// What is seen after so many seconds, and remembered.
        fn see(&mut self, seconds: i64) -> Sight {
            let pods: Vec<&Pod> = self.pods.iter().collect();
            let look = Look {
                led: &self.led,
                pods: &pods,
                follows: self.follows,
                now: self.start + SignedDuration::from_secs(seconds),
            };
            let sight = look.see(self.course.as_ref());
            self.course = Some(sight.course.clone());
            sight
        }
    }

    #[test]
    fn one_that_is_behind_with_endpoints_serves_for_as_long_as_it_moves() {
        let mut scene = Scene::new(vec![gateway("a", "1", &[])]);
        scene.follows = false;
        assert!(!scene.see(0).serves, "it never did");
        scene.follows = true;
        assert!(scene.see(60).serves);
        scene.follows = false;
        assert!(scene.see(120).serves && scene.see(129).serves);
        scene.pods = vec![gateway("a", "2", &[])];
        assert!(scene.see(131).serves && scene.see(140).serves, "it came nearer");
        assert!(!scene.see(141).serves, "and then no more");
        scene.follows = true;
        assert!(scene.see(142).serves);
        (scene.follows, scene.led.rest) = (false, "other".into());
        assert!(!scene.see(143).serves, "that is more than endpoints");
    }

    #[test]
    fn a_check_that_fails_everywhere_is_said_after_a_while() {
        let all = ["10.0.0.1:8080", "10.0.0.2:8080"];
        let mut scene = Scene::new(vec![gateway("a", "now", &[]), gateway("b", "now", &all)]);
        let seen = |sight: Sight| (sight.failing.iter().map(|port| port.port).collect(), sight.may_fail);
        assert_eq!(seen(scene.see(0)), (vec![], true));
        assert_eq!(seen(scene.see(2)), (vec![], true), "there was one time limit so far");
        assert_eq!(seen(scene.see(3)), (vec![80], false));
        scene.pods[1] = gateway("b", "now", &all[..1]);
        assert_eq!(seen(scene.see(4)), (vec![], false));
        scene.pods[1] = gateway("b", "now", &all);
        assert_eq!(seen(scene.see(5)), (vec![], true), "it begins anew");

        // A port is all its endpoints, by whatever number they serve it.
        let mut other = scene.led.subsets[0].clone();
        other.ports[0].target_port = 8081;
        scene.led.subsets.push(other);
        assert_eq!(seen(scene.see(60)), (vec![], false));
        scene.led.subsets.clear();
        assert_eq!(seen(scene.see(61)), (vec![], false), "nobody cannot fail");
        assert!(scene.see(62).checks);
    }
}
