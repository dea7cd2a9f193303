//! Whether this pod is cut off from the LAN. A member that receives from no
//! other member decides by this: if the router is reachable, the others are gone
//! and this pod serves; if nothing is reachable, it has no clients to serve, and
//! staying active would only put two active pods side by side when the link
//! comes back.
//!
//! Pure: time and received frames are inputs.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::l2::arp::{Frame, Mac};

/// Interval of ARP requests to the routers in normal operation.
const NORMAL_INTERVAL: Duration = Duration::from_secs(10);
/// Interval while the other members are missing.
const URGENT_INTERVAL: Duration = Duration::from_millis(50);
/// Interval while this pod is isolated.
const ISOLATED_INTERVAL: Duration = Duration::from_secs(1);
/// How long no router may answer before this pod is isolated.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(200);
/// A router that has not answered for this long may not answer ARP at all: its
/// silence means nothing.
const ANSWER_MEMORY: Duration = Duration::from_secs(25);
/// A longer gap between two checks means that the process slept and missed what
/// was sent meanwhile.
const SLEEP: Duration = Duration::from_millis(150);

/// Whether other members of the election are received from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerVisibility {
    /// At least one is reachable.
    Reachable,
    /// Some were reachable lately, none is now.
    Missing,
    /// There are none.
    NoPeers,
}

/// The addresses that matter on the LAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    /// The interface's own hardware address.
    pub mac: Mac,
    /// The gateway's addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// The LAN's routers.
    pub routers: Vec<Ipv4Addr>,
}

/// Detects that this pod is cut off from its LAN.
#[derive(Clone, Debug)]
pub struct IsolationDetector {
    /// When a router last answered; `None` if its silence means nothing.
    answered: Option<Instant>,
    /// The hardware addresses that routers answered from since the last request.
    routers: BTreeMap<Ipv4Addr, Mac>,
    missing_since: Option<Instant>,
    checked: Instant,
    next_request: Instant,
    isolated: bool,
}

impl IsolationDetector {
    /// A detector that has received nothing yet. The first request is due.
    pub fn new(now: Instant) -> Self {
        Self {
            answered: None,
            routers: BTreeMap::new(),
            missing_since: None,
            checked: now,
            next_request: now,
            isolated: false,
        }
    }

    /// Processes a received ARP frame.
    pub fn receive_arp(&mut self, now: Instant, hosts: &Hosts, arp: &Frame) {
        let is_own = |address| hosts.addresses.contains(address);
        if arp.mac == hosts.mac {
            return;
        }
        if hosts.routers.contains(&arp.sender) {
            self.answered = Some(now);
            self.routers.insert(arp.sender, arp.mac);
            self.isolated = false;
        } else if is_own(&arp.target) && !is_own(&arp.sender) && !arp.sender.is_unspecified() {
            self.client_seen();
        }
    }

    /// Processes a received frame of any type.
    pub fn receive(&mut self, now: Instant, hosts: &Hosts, frame: &[u8]) {
        let destination = || <[u8; 4]>::try_from(frame.get(30..34)?).ok().map(Ipv4Addr::from);
        if let Some(arp) = Frame::parse(frame) {
            self.receive_arp(now, hosts, &arp);
        } else if frame.get(12..14) == Some(&[0x08, 0])
            && frame.get(6..12) != Some(&hosts.mac)
            && destination().is_some_and(|address| hosts.addresses.contains(&address))
        {
            self.client_seen();
        }
    }

    /// There is a client to serve, so it is the router that is gone.
    fn client_seen(&mut self) {
        if self.isolated {
            self.answered = None;
            self.isolated = false;
        }
    }

    /// Checks whether this pod is isolated.
    pub fn check(&mut self, now: Instant, peers: PeerVisibility) -> bool {
        let slept = self.checked + SLEEP < now;
        self.checked = now;
        match peers {
            PeerVisibility::Reachable => {
                self.isolated = false;
                self.missing_since = None;
            }
            PeerVisibility::NoPeers => self.missing_since = None,
            PeerVisibility::Missing => {
                if self.missing_since.is_none() || slept {
                    self.missing_since = Some(now);
                    self.next_request = now;
                }
                let since = self.missing_since.unwrap_or(now);
                self.isolated |= self.answered.is_some_and(|answered| {
                    answered + ANSWER_MEMORY >= since && answered.max(since) + ANSWER_TIMEOUT <= now
                });
            }
        }
        self.isolated
    }

    /// Returns the routers to send a request to now, each with the hardware
    /// address it last answered from, for a unicast. After a request without an
    /// answer there is none: the router may have moved, so the next request is a
    /// broadcast.
    pub fn poll(&mut self, now: Instant, hosts: &Hosts) -> Vec<(Ipv4Addr, Option<Mac>)> {
        if now < self.next_request {
            return Vec::new();
        }
        self.next_request = now
            + match self.missing_since {
                _ if self.isolated => ISOLATED_INTERVAL,
                Some(_) => URGENT_INTERVAL,
                None => NORMAL_INTERVAL,
            };
        let request = |router: &Ipv4Addr| (*router, self.routers.remove(router));
        hosts.routers.iter().map(request).collect()
    }

    /// When to call [`Self::poll`] next.
    pub fn due(&self) -> Instant {
        self.next_request
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PeerVisibility::{Missing, NoPeers, Reachable};

    const ROUTER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 50);
    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);
    const UNSPECIFIED: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 9];

    fn hosts() -> Hosts {
        Hosts { mac: OURS, addresses: vec![VIP], routers: vec![ROUTER] }
    }

    /// A pod that checks every 50 ms, as the election task does.
    struct Pod {
        detector: IsolationDetector,
        start: Instant,
        now: u64,
    }

    impl Pod {
        fn new() -> Self {
            let start = Instant::now();
            Self { detector: IsolationDetector::new(start), start, now: 0 }
        }

        fn receive(&mut self, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) {
            let now = self.start + Duration::from_millis(self.now);
            self.detector.receive_arp(now, &hosts(), &Frame { request: true, mac, sender, target });
        }

        /// Runs until that time, in ms. Returns whether the pod is isolated then,
        /// and how many requests were sent.
        fn run(&mut self, until: u64, peers: PeerVisibility) -> (bool, usize) {
            let (mut isolated, mut requests) = (false, 0);
            while self.now <= until {
                let now = self.start + Duration::from_millis(self.now);
                isolated = self.detector.check(now, peers);
                requests += self.detector.poll(now, &hosts()).len();
                self.now += 50;
            }
            (isolated, requests)
        }
    }

    #[test]
    fn no_peers_and_no_router_isolates() {
        let mut pod = Pod::new();
        assert_eq!(pod.run(50, Reachable), (false, 1));
        pod.receive(OTHER, ROUTER, UNSPECIFIED);
        assert_eq!(pod.run(10_100, Reachable), (false, 1), "one request in ten seconds");
        pod.receive(OTHER, ROUTER, UNSPECIFIED);
        assert_eq!(pod.run(10_300, Missing), (false, 4), "requests at once, and often");
        assert!(pod.run(10_350, Missing).0);
        assert_eq!(pod.run(20_350, NoPeers), (true, 10), "and it stays so");
        pod.receive(OURS, ROUTER, UNSPECIFIED);
        assert!(pod.run(20_400, NoPeers).0, "our own frame, reflected");
        pod.receive(OTHER, ROUTER, UNSPECIFIED);
        assert!(!pod.run(20_450, NoPeers).0);
    }

    #[test]
    fn request_is_unicast_to_an_answering_router_and_broadcast_otherwise() {
        let mut detector = IsolationDetector::new(Instant::now());
        let poll = |detector: &mut IsolationDetector| {
            let now = detector.due();
            detector.poll(now, &hosts())
        };
        assert_eq!(poll(&mut detector), [(ROUTER, None)]);
        detector.receive_arp(
            detector.due(),
            &hosts(),
            &Frame { request: false, mac: OTHER, sender: ROUTER, target: UNSPECIFIED },
        );
        assert_eq!(poll(&mut detector), [(ROUTER, Some(OTHER))]);
        assert_eq!(poll(&mut detector), [(ROUTER, None)]);
    }

    #[test]
    fn reachable_router_prevents_isolation() {
        let mut pod = Pod::new();
        for round in 1..40 {
            pod.receive(OTHER, ROUTER, UNSPECIFIED);
            assert!(!pod.run(round * 100, Missing).0);
        }
    }

    #[test]
    fn router_that_never_answered_or_long_ago_is_not_missed() {
        let mut pod = Pod::new();
        assert!(!pod.run(5_000, Missing).0);
        pod.receive(OTHER, ROUTER, UNSPECIFIED);
        pod.run(31_000, Reachable);
        assert!(!pod.run(40_000, Missing).0);
    }

    #[test]
    fn reachable_peer_ends_isolation() {
        let mut pod = Pod::new();
        pod.receive(OTHER, ROUTER, UNSPECIFIED);
        assert!(pod.run(1000, Missing).0);
        assert!(!pod.run(1050, Reachable).0);
    }

    #[test]
    fn client_ends_isolation_until_the_router_answers_again() {
        let mut pod = Pod::new();
        pod.receive(OTHER, ROUTER, UNSPECIFIED);
        assert!(pod.run(1000, Missing).0);
        // Another member's probe and announcement, and what is others' matter.
        pod.receive(OTHER, UNSPECIFIED, VIP);
        pod.receive(OTHER, VIP, VIP);
        pod.receive(OTHER, CLIENT, ROUTER);
        assert!(pod.run(1050, Missing).0);
        pod.receive(OTHER, CLIENT, VIP);
        assert!(!pod.run(3000, Missing).0);
        pod.receive(OTHER, ROUTER, UNSPECIFIED);
        assert!(pod.run(4000, Missing).0);

        let packet =
            |from: Mac, to: Ipv4Addr| [&[0; 6][..], &from, &[8, 0], &[0; 16], &to.octets(), &[0; 8]].concat();
        let deliver = |pod: &mut Pod, frame: &[u8]| pod.detector.receive(pod.start, &hosts(), frame);
        deliver(&mut pod, &packet(OTHER, CLIENT));
        deliver(&mut pod, &packet(OURS, VIP));
        deliver(&mut pod, &packet(OTHER, VIP)[..33]);
        assert!(pod.run(4050, Missing).0);
        deliver(&mut pod, &packet(OTHER, VIP));
        assert!(!pod.run(7000, Missing).0);
    }

    #[test]
    fn sleep_restarts_the_answer_timeout() {
        let mut pod = Pod::new();
        pod.receive(OTHER, ROUTER, UNSPECIFIED);
        pod.run(100, Missing);
        pod.now = 5_000;
        assert!(!pod.run(5_150, Missing).0);
        assert!(pod.run(5_200, Missing).0);
    }
}
