//! Address conflict detection (RFC 5227, with shorter times): before an address
//! is served, ARP probes are sent for it. A host that answers, or probes for the
//! same address, owns it.
//!
//! An address is **tentative** until three probes stayed unanswered, then it is
//! **verified** for as long as it is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use lb_svc_election::STRANGER_WAIT;

use super::garp_schedule::AnnouncingInterface;
use crate::l2::arp::{Frame, Mac};

/// When to send the probes, counted from the first one.
const PROBES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(30), Duration::from_millis(60)];
/// When the address is verified if no host answered, counted from the first
/// probe.
const VERIFIED_AFTER: Duration = Duration::from_millis(100);
/// How long a probe that was sent late may still be answered.
const ANSWER_TIME: Duration = Duration::from_millis(40);
/// Delay before the next attempt after a probe that could not be sent.
const SEND_RETRY: Duration = Duration::from_secs(1);
/// Delay before probing again after a conflict.
const CONFLICT_RETRY: Duration = Duration::from_secs(10);

/// The result of probing for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No host answered.
    Free,
    /// The host with this hardware address has the address, or is about to
    /// assign it.
    Conflict(Mac),
}

/// An address that is not verified yet.
#[derive(Clone, Copy, Debug)]
struct Tentative {
    /// The host that owned it when it was last probed for.
    conflict: Option<Mac>,
    /// When a host was first found to own it.
    since: Option<Instant>,
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Start probing at this time.
    Wait(Instant),
    /// Probed since the first time, last at the second, so many times.
    Listen(Instant, Instant, usize),
}

impl Step {
    fn due(self) -> Instant {
        match self {
            Self::Wait(at) => at,
            Self::Listen(first, last, count) => match PROBES.get(count) {
                Some(offset) => first + *offset,
                None => (first + VERIFIED_AFTER).max(last + ANSWER_TIME),
            },
        }
    }
}

/// The state of all addresses to verify. Pure: time and received frames are
/// inputs; probes to send and verdicts are outputs.
#[derive(Debug, Default)]
pub struct ConflictDetection {
    interface: Option<AnnouncingInterface>,
    tentative: BTreeMap<Ipv4Addr, Tentative>,
    verified: BTreeSet<Ipv4Addr>,
}

impl ConflictDetection {
    /// Sets the addresses to verify, and the interface to probe on; without an
    /// interface, probing waits for one. A new address that is `held` by this
    /// pod is in service already and counts as verified.
    pub fn set(
        &mut self,
        now: Instant,
        interface: Option<AnnouncingInterface>,
        addresses: &[Ipv4Addr],
        held: &BTreeSet<Ipv4Addr>,
    ) {
        if interface != self.interface {
            self.interface = interface;
            for tentative in self.tentative.values_mut() {
                tentative.step = Step::Wait(now);
            }
        }
        self.tentative.retain(|address, _| addresses.contains(address));
        self.verified.retain(|address| addresses.contains(address));
        for address in addresses {
            if self.verified.contains(address) || self.tentative.contains_key(address) {
                continue;
            }
            if held.contains(address) {
                self.verified.insert(*address);
            } else {
                self.tentative
                    .insert(*address, Tentative { conflict: None, since: None, step: Step::Wait(now) });
            }
        }
    }

    /// Ends the wait for the other host of an address that was in service, if it has
    /// lasted [`STRANGER_WAIT`]: both answer until an operator ends that.
    pub fn insist(&mut self, now: Instant, address: Ipv4Addr) {
        let since = self.tentative.get(&address).and_then(|tentative| tentative.since);
        if since.is_some_and(|since| since + STRANGER_WAIT <= now) {
            self.tentative.remove(&address);
            self.verified.insert(address);
        }
    }

    /// The interface to probe on.
    pub fn interface(&self) -> Option<AnnouncingInterface> {
        self.interface
    }

    /// Whether no other host owns the address.
    pub fn is_verified(&self, address: Ipv4Addr) -> bool {
        self.verified.contains(&address)
    }

    /// The addresses that must not be assigned yet.
    pub fn tentative(&self) -> BTreeSet<Ipv4Addr> {
        self.tentative.keys().copied().collect()
    }

    /// The tentative addresses that another host owns, with its hardware
    /// address.
    pub fn conflicts(&self) -> impl Iterator<Item = (Ipv4Addr, Mac)> {
        self.tentative.iter().filter_map(|(address, tentative)| Some((*address, tentative.conflict?)))
    }

    /// Whether a probe may still be answered.
    pub fn is_awaiting_answer(&self) -> bool {
        self.interface.is_some()
            && self.tentative.values().any(|tentative| matches!(tentative.step, Step::Listen(..)))
    }

    /// When to call [`Self::poll`] next, if no frame is received before.
    pub fn due(&self) -> Option<Instant> {
        self.interface?;
        self.tentative.values().map(|tentative| tentative.step.due()).min()
    }

    /// Processes a received frame. Returns a verdict if it is a conflict.
    pub fn receive(&mut self, now: Instant, frame: &[u8]) -> Option<(Ipv4Addr, Verdict)> {
        let own = self.interface?.mac;
        let (address, mac) = claimed(frame)?;
        let tentative = self.tentative.get_mut(&address)?;
        if mac == own || matches!(tentative.step, Step::Wait(_)) {
            return None;
        }
        *tentative = Tentative {
            conflict: Some(mac),
            since: tentative.since.or(Some(now)),
            step: Step::Wait(now + CONFLICT_RETRY),
        };
        Some((address, Verdict::Conflict(mac)))
    }

    /// Returns the addresses to probe for now, and those that are verified now.
    pub fn poll(&mut self, now: Instant) -> (Vec<Ipv4Addr>, Vec<(Ipv4Addr, Verdict)>) {
        let (mut probes, mut verdicts) = (Vec::new(), Vec::new());
        if self.interface.is_none() {
            return (probes, verdicts);
        }
        for (address, tentative) in self.tentative.iter_mut().filter(|(_, it)| it.step.due() <= now) {
            let (first, count) = match tentative.step {
                Step::Wait(_) => (now, 0),
                Step::Listen(first, _, count) => (first, count),
            };
            if count == PROBES.len() {
                verdicts.push((*address, Verdict::Free));
                continue;
            }
            // If several probes are overdue, one is sent for all of them.
            let overdue = PROBES.iter().filter(|offset| first + **offset <= now).count();
            tentative.step = Step::Listen(first, now, overdue);
            probes.push(*address);
        }
        for (address, _) in &verdicts {
            self.tentative.remove(address);
            self.verified.insert(*address);
        }
        (probes, verdicts)
    }

    /// Notes that the probe for this address was not sent, so that the missing
    /// answer does not count.
    pub fn send_failed(&mut self, now: Instant, address: Ipv4Addr) {
        if let Some(tentative) = self.tentative.get_mut(&address) {
            tentative.step = Step::Wait(now + SEND_RETRY);
        }
    }
}

/// The address that the frame's sender owns, or probes for; and the sender's
/// hardware address.
fn claimed(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let arp = Frame::parse(frame)?;
    let probe = arp.request && arp.sender == Ipv4Addr::UNSPECIFIED;
    Some((if probe { arp.target } else { arp.sender }, arp.mac))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l2::arp;

    const MAC: Mac = [0x02, 0, 0, 0, 0, 0x18];
    const FOREIGN: Mac = [0x02, 0, 0, 0, 0, 0x99];
    const LAN: AnnouncingInterface = AnnouncingInterface { index: 3, mac: MAC, carrier_changes: 1 };
    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);
    const OTHER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 50);

    fn probing(start: Instant) -> ConflictDetection {
        let mut detection = ConflictDetection::default();
        detection.set(start, Some(LAN), &[VIP], &BTreeSet::new());
        detection
    }

    /// The reply of the host with `mac` to a probe for `address`.
    fn answer(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
        let mut frame = arp::announcement(mac, address).to_vec();
        frame[21] = 2;
        frame[32..38].copy_from_slice(&MAC);
        frame[38..42].fill(0);
        frame
    }

    /// Lets time pass until there is a verdict.
    fn follow(
        detection: &mut ConflictDetection,
        start: Instant,
    ) -> (Vec<u128>, Vec<(Ipv4Addr, Verdict)>, u128) {
        let mut sent = Vec::new();
        loop {
            let due = detection.due().unwrap();
            let at = (due - start).as_millis();
            let (send, verdicts) = detection.poll(due);
            sent.extend(send.iter().map(|_| at));
            if !verdicts.is_empty() {
                return (sent, verdicts, at);
            }
        }
    }

    #[test]
    fn unanswered_probes_verify_the_address_while_it_is_wanted() {
        let start = Instant::now();
        let mut detection = probing(start);
        assert_eq!(detection.tentative(), [VIP].into());
        assert!(!detection.is_awaiting_answer());
        let (sent, verdicts, at) = follow(&mut detection, start);
        assert_eq!((sent, at), (vec![0, 30, 60], 100));
        assert_eq!(verdicts, [(VIP, Verdict::Free)]);
        assert!(detection.is_verified(VIP) && detection.tentative().is_empty());
        assert_eq!(detection.due(), None);
        // Once verified it stays so while it is wanted, whatever the link does.
        detection.set(start, None, &[VIP], &BTreeSet::new());
        detection.set(
            start,
            Some(AnnouncingInterface { carrier_changes: 3, ..LAN }),
            &[VIP],
            &BTreeSet::new(),
        );
        assert_eq!(detection.due(), None);
        detection.set(start, Some(LAN), &[], &BTreeSet::new());
        detection.set(start, Some(LAN), &[VIP], &BTreeSet::new());
        assert_eq!(detection.tentative(), [VIP].into(), "it was released meanwhile");
    }

    #[test]
    fn late_probes_are_sent_once_and_still_awaited() {
        let start = Instant::now();
        let mut detection = probing(start);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(detection.poll(at(0)).0, [VIP]);
        assert_eq!(detection.poll(at(300)), (vec![VIP], vec![]));
        assert_eq!(detection.due(), Some(at(340)));
        assert_eq!(detection.poll(at(340)).1, [(VIP, Verdict::Free)]);
    }

    #[test]
    fn answer_is_a_conflict_until_a_later_round_stays_unanswered() {
        let start = Instant::now();
        let mut detection = probing(start);
        detection.poll(start);
        let received = start + Duration::from_millis(3);
        let conflict = Some((VIP, Verdict::Conflict(FOREIGN)));
        assert_eq!(detection.receive(received, &answer(FOREIGN, VIP)), conflict);
        assert_eq!(detection.receive(received, &answer(FOREIGN, VIP)), None, "reported once");
        assert_eq!(detection.conflicts().collect::<Vec<_>>(), [(VIP, FOREIGN)]);
        assert!(!detection.is_awaiting_answer());
        assert_eq!(detection.due(), Some(received + CONFLICT_RETRY));
        assert_eq!(detection.poll(received), (vec![], vec![]));

        // While it is probed for again it remains a conflict, and tentative.
        assert_eq!(detection.poll(received + CONFLICT_RETRY).0, [VIP]);
        assert_eq!(detection.conflicts().count(), 1);
        assert_eq!(detection.receive(received + CONFLICT_RETRY, &answer(FOREIGN, VIP)), conflict);
        let (sent, verdicts, _) = follow(&mut detection, start);
        assert_eq!((sent.len(), verdicts), (3, vec![(VIP, Verdict::Free)]));
        assert_eq!(detection.conflicts().count(), 0);
    }

    #[test]
    fn announcement_and_foreign_probe_are_conflicts() {
        let start = Instant::now();
        for frame in [arp::announcement(FOREIGN, VIP), arp::probe(FOREIGN, VIP)] {
            let mut detection = probing(start);
            detection.poll(start);
            // Minimum length of an Ethernet frame: something follows.
            let frame = [&frame[..], &[0; 18]].concat();
            assert_eq!(detection.receive(start, &frame), Some((VIP, Verdict::Conflict(FOREIGN))));
        }
    }

    #[test]
    fn unrelated_frames_are_ignored() {
        let start = Instant::now();
        let mut detection = probing(start);
        assert_eq!(detection.receive(start, &answer(FOREIGN, VIP)), None, "before the first probe");
        detection.poll(start);
        let whole = answer(FOREIGN, VIP);
        let changed = |at: usize, to: u8| {
            let mut frame = whole.clone();
            frame[at] = to;
            frame
        };
        // Another host asks for its hardware address.
        let mut question = arp::probe(FOREIGN, VIP).to_vec();
        question[28..32].copy_from_slice(&OTHER.octets());
        for frame in [
            arp::probe(MAC, VIP).to_vec(),
            answer(MAC, VIP),
            answer(FOREIGN, OTHER),
            arp::probe(FOREIGN, OTHER).to_vec(),
            question,
            Vec::new(),
            whole[..41].to_vec(),
            changed(12, 0x81),
            changed(14, 1),
            changed(16, 0x86),
            changed(18, 8),
            changed(19, 16),
            changed(21, 9),
        ] {
            assert_eq!(detection.receive(start, &frame), None, "{frame:02x?}");
        }
        assert_eq!(detection.conflicts().count(), 0);
    }

    #[test]
    fn held_address_is_not_probed_for() {
        let start = Instant::now();
        let mut detection = ConflictDetection::default();
        detection.set(start, Some(LAN), &[VIP, OTHER], &[VIP].into());
        assert_eq!(detection.tentative(), [OTHER].into());
        assert!(detection.is_verified(VIP));
        // An address that is assigned while it is tentative does not count as held.
        detection.set(start, Some(LAN), &[VIP, OTHER], &[OTHER].into());
        assert_eq!(detection.tentative(), [OTHER].into());
    }

    #[test]
    fn r10_wait_for_another_host_ends_after_ten_seconds_if_insisted() {
        let start = Instant::now();
        let mut detection = probing(start);
        detection.poll(start);
        detection.insist(start + STRANGER_WAIT, VIP);
        assert!(!detection.is_verified(VIP), "there is none yet");
        assert!(detection.receive(start, &answer(FOREIGN, VIP)).is_some());
        let again = detection.due().unwrap();
        detection.poll(again);
        assert!(detection.receive(again, &answer(FOREIGN, VIP)).is_some());
        detection.insist(start + STRANGER_WAIT - Duration::from_millis(1), VIP);
        assert!(!detection.is_verified(VIP));
        detection.insist(start + STRANGER_WAIT, VIP);
        assert!(detection.is_verified(VIP) && detection.conflicts().count() == 0, "since the first time");
    }

    #[test]
    fn failed_send_restarts_the_probes() {
        let start = Instant::now();
        let mut detection = probing(start);
        detection.poll(start);
        detection.send_failed(start, VIP);
        assert_eq!(follow(&mut detection, start), (vec![1000, 1030, 1060], vec![(VIP, Verdict::Free)], 1100));
    }

    #[test]
    fn changed_interface_restarts_the_probes() {
        let start = Instant::now();
        let mut detection = probing(start);
        detection.poll(start);
        let later = start + Duration::from_millis(120);
        detection.set(later, None, &[VIP], &BTreeSet::new());
        assert_eq!((detection.due(), detection.poll(later)), (None, (vec![], vec![])));
        detection.set(
            later,
            Some(AnnouncingInterface { carrier_changes: 3, ..LAN }),
            &[VIP],
            &BTreeSet::new(),
        );
        assert_eq!(follow(&mut detection, later).2, 100);
    }
}
