//! Whether anything of the LAN is within reach. A member that hears no other
//! goes by this: with the router in reach the others are gone, and it serves;
//! with nothing in reach there is nobody to serve, and to go on being active
//! would only be heard when it comes back, beside whoever took over.
//!
//! Pure: time and frames come in from outside.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::arp::{Frame, Mac};

/// Between two questions to a router, while nothing is amiss.
const CALM: Duration = Duration::from_secs(10);
/// While the other members are missing.
const URGENT: Duration = Duration::from_millis(50);
/// While nothing is in reach.
const LOST: Duration = Duration::from_secs(1);
/// So long without any answer, and nothing is in reach.
const SILENCE: Duration = Duration::from_millis(200);
/// A router that has not answered for so long says nothing by its silence.
const MEMORY: Duration = Duration::from_secs(25);
/// Who did not look for so long was asleep, and has missed what was said.
const NAP: Duration = Duration::from_millis(150);

/// What is heard of the other members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// One at least is present.
    Present,
    /// Those that were there lately are not heard.
    Missing,
    /// There are none.
    Absent,
}

/// Who is to be heard on the LAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    /// The interface's own hardware address.
    pub mac: Mac,
    /// The gateway's addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// The LAN's routers.
    pub routers: Vec<Ipv4Addr>,
}

/// What has been heard of the LAN.
#[derive(Clone, Debug)]
pub struct Reach {
    /// When a router last answered, if its silence would say something.
    answered: Option<Instant>,
    /// Where routers answered from since they were last asked.
    at: BTreeMap<Ipv4Addr, Mac>,
    missing_since: Option<Instant>,
    looked: Instant,
    asks: Instant,
    lost: bool,
}

impl Reach {
    /// Nothing is known yet; the first question is due.
    pub fn new(now: Instant) -> Self {
        Self { answered: None, at: BTreeMap::new(), missing_since: None, looked: now, asks: now, lost: false }
    }

    /// An ARP frame was received.
    pub fn hear(&mut self, now: Instant, hosts: &Hosts, said: &Frame) {
        let ours = |address| hosts.addresses.contains(address);
        if said.mac == hosts.mac {
            return;
        }
        if hosts.routers.contains(&said.sender) {
            self.answered = Some(now);
            self.at.insert(said.sender, said.mac);
            self.lost = false;
        } else if ours(&said.target) && !ours(&said.sender) && !said.sender.is_unspecified() {
            self.wanted();
        }
    }

    /// A frame of whatever kind was received.
    pub fn hear_any(&mut self, now: Instant, hosts: &Hosts, frame: &[u8]) {
        let destination = || <[u8; 4]>::try_from(frame.get(30..34)?).ok().map(Ipv4Addr::from);
        if let Some(said) = Frame::parse(frame) {
            self.hear(now, hosts, &said);
        } else if frame.get(12..14) == Some(&[0x08, 0])
            && frame.get(6..12) != Some(&hosts.mac)
            && destination().is_some_and(|address| hosts.addresses.contains(&address))
        {
            self.wanted();
        }
    }

    /// There is a client: somebody to serve, and it is the router that is gone.
    fn wanted(&mut self) {
        if self.lost {
            self.answered = None;
            self.lost = false;
        }
    }

    /// Whether nothing is in reach.
    pub fn is_lost(&mut self, now: Instant, company: Company) -> bool {
        let slept = self.looked + NAP < now;
        self.looked = now;
        match company {
            Company::Present => {
                self.lost = false;
                self.missing_since = None;
            }
            Company::Absent => self.missing_since = None,
            Company::Missing => {
                if self.missing_since.is_none() || slept {
                    self.missing_since = Some(now);
                    self.asks = now;
                }
                let since = self.missing_since.unwrap_or(now);
                self.lost |= self.answered.is_some_and(|answered| {
                    answered + MEMORY >= since && answered.max(since) + SILENCE <= now
                });
            }
        }
        self.lost
    }

    /// The routers to ask now, each with where it answered from: it alone is to be
    /// asked. After a question without an answer there is none, and the LAN's
    /// hosts are to be asked, for it may be elsewhere now.
    pub fn take(&mut self, now: Instant, hosts: &Hosts) -> Vec<(Ipv4Addr, Option<Mac>)> {
        if now < self.asks {
            return Vec::new();
        }
        self.asks = now
            + match self.missing_since {
                _ if self.lost => LOST,
                Some(_) => URGENT,
                None => CALM,
            };
        let ask = |router: &Ipv4Addr| (*router, self.at.remove(router));
        hosts.routers.iter().map(ask).collect()
    }

    /// When they are to be asked next.
    pub fn due(&self) -> Instant {
        self.asks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Company::{Absent, Missing, Present};

    const ROUTER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 50);
    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);
    const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 9];

    fn hosts() -> Hosts {
        Hosts { mac: OURS, addresses: vec![VIP], routers: vec![ROUTER] }
    }

    /// A pod that looks every 50 ms, as a member does.
    struct Pod {
        reach: Reach,
        start: Instant,
        now: u64,
    }

    impl Pod {
        fn new() -> Self {
            let start = Instant::now();
            Self { reach: Reach::new(start), start, now: 0 }
        }

        fn hear(&mut self, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) {
            let now = self.start + Duration::from_millis(self.now);
            self.reach.hear(now, &hosts(), &Frame { request: true, mac, sender, target });
        }

        /// Until that time, in ms. Returns whether nothing is in reach then, and
        /// how often the router was asked.
        fn run(&mut self, until: u64, company: Company) -> (bool, usize) {
            let (mut lost, mut asked) = (false, 0);
            while self.now <= until {
                let now = self.start + Duration::from_millis(self.now);
                lost = self.reach.is_lost(now, company);
                asked += self.reach.take(now, &hosts()).len();
                self.now += 50;
            }
            (lost, asked)
        }
    }

    #[test]
    fn with_neither_members_nor_router_nothing_is_in_reach() {
        let mut pod = Pod::new();
        assert_eq!(pod.run(50, Present), (false, 1));
        pod.hear(OTHER, ROUTER, NOBODY);
        assert_eq!(pod.run(10_100, Present), (false, 1), "asked now and then");
        pod.hear(OTHER, ROUTER, NOBODY);
        assert_eq!(pod.run(10_300, Missing), (false, 4), "asked at once, and often");
        assert!(pod.run(10_350, Missing).0);
        assert_eq!(pod.run(20_350, Absent), (true, 10), "and it stays so");
        pod.hear(OURS, ROUTER, NOBODY);
        assert!(pod.run(20_400, Absent).0, "our own words, come back");
        pod.hear(OTHER, ROUTER, NOBODY);
        assert!(!pod.run(20_450, Absent).0);
    }

    #[test]
    fn a_router_is_asked_where_it_answered_and_everywhere_if_it_does_not() {
        let mut reach = Reach::new(Instant::now());
        let ask = |reach: &mut Reach| {
            let now = reach.due();
            reach.take(now, &hosts())
        };
        assert_eq!(ask(&mut reach), [(ROUTER, None)]);
        reach.hear(
            reach.due(),
            &hosts(),
            &Frame { request: false, mac: OTHER, sender: ROUTER, target: NOBODY },
        );
        assert_eq!(ask(&mut reach), [(ROUTER, Some(OTHER))]);
        assert_eq!(ask(&mut reach), [(ROUTER, None)]);
    }

    #[test]
    fn a_router_in_reach_says_that_the_others_are_gone() {
        let mut pod = Pod::new();
        for round in 1..40 {
            pod.hear(OTHER, ROUTER, NOBODY);
            assert!(!pod.run(round * 100, Missing).0);
        }
    }

    #[test]
    fn a_router_that_never_answered_says_nothing_nor_one_that_did_long_ago() {
        let mut pod = Pod::new();
        assert!(!pod.run(5_000, Missing).0);
        pod.hear(OTHER, ROUTER, NOBODY);
        pod.run(31_000, Present);
        assert!(!pod.run(40_000, Missing).0);
    }

    #[test]
    fn a_member_that_is_heard_is_something_in_reach() {
        let mut pod = Pod::new();
        pod.hear(OTHER, ROUTER, NOBODY);
        assert!(pod.run(1000, Missing).0);
        assert!(!pod.run(1050, Present).0);
    }

    #[test]
    fn a_client_that_asks_is_served_and_the_router_not_minded_until_it_answers() {
        let mut pod = Pod::new();
        pod.hear(OTHER, ROUTER, NOBODY);
        assert!(pod.run(1000, Missing).0);
        // Another member's probe and announcement, and what is others' matter.
        pod.hear(OTHER, NOBODY, VIP);
        pod.hear(OTHER, VIP, VIP);
        pod.hear(OTHER, CLIENT, ROUTER);
        assert!(pod.run(1050, Missing).0);
        pod.hear(OTHER, CLIENT, VIP);
        assert!(!pod.run(3000, Missing).0);
        pod.hear(OTHER, ROUTER, NOBODY);
        assert!(pod.run(4000, Missing).0);

        let packet =
            |from: Mac, to: Ipv4Addr| [&[0; 6][..], &from, &[8, 0], &[0; 16], &to.octets(), &[0; 8]].concat();
        let hear = |pod: &mut Pod, frame: &[u8]| pod.reach.hear_any(pod.start, &hosts(), frame);
        hear(&mut pod, &packet(OTHER, CLIENT));
        hear(&mut pod, &packet(OURS, VIP));
        hear(&mut pod, &packet(OTHER, VIP)[..33]);
        assert!(pod.run(4050, Missing).0);
        hear(&mut pod, &packet(OTHER, VIP));
        assert!(!pod.run(7000, Missing).0);
    }

    #[test]
    fn who_slept_gives_the_answers_time_to_come() {
        let mut pod = Pod::new();
        pod.hear(OTHER, ROUTER, NOBODY);
        pod.run(100, Missing);
        pod.now = 5_000;
        assert!(!pod.run(5_150, Missing).0);
        assert!(pod.run(5_200, Missing).0);
    }
}
