//! Keeps a member without reachable peers from taking addresses that a foreign
//! host answers for: for as long as that lasts if it is a pod of the same gateway, else for [`STRANGER_WAIT`](lb_svc_election::STRANGER_WAIT). Once
//! peers are known, or the member is active, the guard is over.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use lb_svc_election::lease_time;

use super::isolation::Hosts;
use crate::l2::arp::{Frame, Mac};

/// Interval of the ARP probes for the addresses.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// A host that answers for this long, and is not received from in the election,
/// is foreign.
const FOREIGN_AFTER: Duration = Duration::from_secs(1);

/// The guard of one member. Pure: time and received frames are inputs.
pub(super) struct StartupGuard {
    passed: bool,
    next_probe: Instant,
    /// Since when an address is answered for, and whether that was reported.
    in_use: Option<(Instant, bool)>,
}

/// What received frames mean to the guard.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// An address is answered for, and whether by a host of the same gateway.
    pub in_use: Option<bool>,
    /// The foreign owner of an address; returned once.
    pub foreign: Option<(Ipv4Addr, Mac)>,
}

impl StartupGuard {
    /// The first probe is sent when other members would have been received from,
    /// overloaded ones too: a host that probes for the same address takes our
    /// probe for a conflict (RFC 5227, 2.1.1).
    pub fn new(now: Instant, interval: Duration) -> Self {
        Self { passed: false, next_probe: now + 2 * lease_time(interval), in_use: None }
    }

    /// When the next probe is due.
    pub fn due(&self) -> Option<Instant> {
        (!self.passed).then_some(self.next_probe)
    }

    /// Ends the guard.
    pub fn pass(&mut self) {
        self.passed = true;
    }

    /// Whether the guard is over.
    pub fn is_passed(&self) -> bool {
        self.passed
    }

    /// Processes received ARP frames, of hosts that are of the same gateway or not.
    pub fn receive(
        &mut self,
        now: Instant,
        hosts: &Hosts,
        is_same_gateway: impl Fn(&Mac) -> bool,
        frames: &[Frame],
    ) -> Answers {
        let mut answers = Answers::default();
        for arp in frames {
            if arp.mac == hosts.mac || !hosts.addresses.contains(&arp.sender) {
                continue;
            }
            answers.in_use = Some(answers.in_use.unwrap_or_default() || is_same_gateway(&arp.mac));
            let (since, reported) = self.in_use.get_or_insert((now, false));
            if *since + FOREIGN_AFTER <= now && !std::mem::replace(reported, true) {
                answers.foreign = Some((arp.sender, arp.mac));
            }
        }
        answers
    }

    /// Whether probes for the addresses are to be sent now.
    pub fn poll(&mut self, now: Instant) -> bool {
        let due = !self.passed && self.next_probe <= now;
        if due {
            self.next_probe = now + PROBE_INTERVAL;
        }
        due
    }

    /// Whether a foreign host owns an address, so that there is something to
    /// wait for.
    pub fn has_foreign_owner(&self) -> bool {
        self.in_use.is_some_and(|(_, reported)| reported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 9];
    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);

    fn hosts() -> Hosts {
        Hosts { mac: OWN, addresses: vec![VIP], routers: Vec::new() }
    }

    fn answer(mac: Mac, sender: Ipv4Addr) -> Frame {
        Frame { request: false, mac, sender, target: Ipv4Addr::UNSPECIFIED }
    }

    #[test]
    fn probes_start_after_two_leases_and_stop_when_passed() {
        let start = Instant::now();
        let mut guard = StartupGuard::new(start, Duration::from_millis(50));
        let first = start + Duration::from_millis(300);
        assert_eq!(guard.due(), Some(first));
        assert!(!guard.poll(start));
        assert!(guard.poll(first));
        assert_eq!(guard.due(), Some(first + PROBE_INTERVAL));
        guard.pass();
        assert_eq!(guard.due(), None);
        assert!(!guard.poll(first + PROBE_INTERVAL));
    }

    #[test]
    fn answering_host_is_foreign_after_a_second_and_reported_once() {
        let start = Instant::now();
        let mut guard = StartupGuard::new(start, Duration::from_millis(50));
        let none = |_: &Mac| false;
        let others = [answer(OWN, VIP), answer(OTHER, Ipv4Addr::new(172, 18, 0, 1))];
        assert_eq!(guard.receive(start, &hosts(), none, &others), Answers::default());
        let frames = [answer(OTHER, VIP)];
        let in_use = Answers { in_use: Some(false), foreign: None };
        assert_eq!(guard.receive(start, &hosts(), none, &frames), in_use);
        assert!(!guard.has_foreign_owner());
        let later = start + FOREIGN_AFTER;
        let foreign = Answers { in_use: Some(false), foreign: Some((VIP, OTHER)) };
        assert_eq!(guard.receive(later, &hosts(), none, &frames), foreign);
        assert_eq!(guard.receive(later, &hosts(), none, &frames), in_use);
        assert!(guard.has_foreign_owner());
        let of_ours = guard.receive(later, &hosts(), |mac| *mac == OTHER, &frames);
        assert_eq!(of_ours.in_use, Some(true));
    }
}
