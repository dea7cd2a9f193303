//! Whether other hosts answer for the addresses that this pod has: every node does in
//! kube-proxy's IPVS mode without strictARP, and so does a host that was given the
//! address later. Conflict detection ends with the first use of an address; this goes on
//! for as long as the address is in use, and only reports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::garp_schedule::AnnouncingInterface;
use crate::l2::arp::{Frame, Mac};

/// When the first probe for an address is sent: another pod of the gateway may have just
/// handed it over.
const FIRST: Duration = Duration::from_secs(5);
/// How long to wait before looking for answers to a probe.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// When the next probe is sent after one that was answered for the first time.
const CONFIRM: Duration = Duration::from_secs(10);
/// Interval of the probes otherwise.
const INTERVAL: Duration = Duration::from_secs(60);
/// Answers to so many probes in a row are reported.
const ROUNDS: u32 = 2;
/// The most hosts that are remembered for an address.
const HOSTS_MAX: usize = 4;

#[derive(Clone, Debug)]
struct Owned {
    /// When to send the next probe.
    next: Instant,
    /// When to look for answers to the last one.
    look: Option<Instant>,
    /// The hosts that answered since then.
    answers: BTreeSet<Mac>,
    /// The number of probes in a row that were answered.
    rounds: u32,
    /// The hosts to report.
    strangers: BTreeSet<Mac>,
}

/// The state of all addresses. Pure: time and received frames are inputs.
#[derive(Debug, Default)]
pub struct StrangerWatch {
    interface: Option<AnnouncingInterface>,
    owned: BTreeMap<Ipv4Addr, Owned>,
}

impl StrangerWatch {
    /// Sets the addresses that this pod has, and their interface; without one, nothing is
    /// asked. On another interface nothing is known of any.
    pub fn set(&mut self, now: Instant, interface: Option<AnnouncingInterface>, addresses: &[Ipv4Addr]) {
        if std::mem::replace(&mut self.interface, interface) != interface || interface.is_none() {
            self.owned.clear();
        }
        self.owned.retain(|address, _| addresses.contains(address));
        for address in addresses.iter().filter(|_| interface.is_some()) {
            self.owned.entry(*address).or_insert_with(|| Owned {
                next: now + FIRST,
                look: None,
                answers: BTreeSet::new(),
                rounds: 0,
                strangers: BTreeSet::new(),
            });
        }
    }

    /// The interface to ask on.
    pub fn interface(&self) -> Option<AnnouncingInterface> {
        self.interface
    }

    /// Takes the frames that were received. Returns whether what is to be reported has
    /// changed.
    pub fn receive(&mut self, now: Instant, frames: &[Frame]) -> bool {
        let own = self.interface.map(|interface| interface.mac);
        for frame in frames.iter().filter(|frame| Some(frame.mac) != own) {
            let owned = self.owned.get_mut(&frame.sender);
            if let Some(owned) = owned.filter(|owned| owned.look.is_some() && owned.answers.len() < HOSTS_MAX)
            {
                owned.answers.insert(frame.mac);
            }
        }
        let mut changed = false;
        for owned in self.owned.values_mut() {
            if owned.look.take_if(|look| *look <= now).is_none() {
                continue;
            }
            let answers = std::mem::take(&mut owned.answers);
            owned.rounds = if answers.is_empty() { 0 } else { owned.rounds.saturating_add(1) };
            owned.next = now + if owned.rounds == 1 { CONFIRM } else { INTERVAL };
            // Of many hosts others answer first each time, which is no news.
            let begins = owned.rounds >= ROUNDS && owned.strangers.is_empty();
            let ends = owned.rounds == 0 && !owned.strangers.is_empty();
            if begins || ends {
                owned.strangers = answers;
                changed = true;
            }
        }
        changed
    }

    /// The addresses to probe for now.
    pub fn poll(&mut self, now: Instant) -> Vec<Ipv4Addr> {
        let due = self.owned.iter_mut().filter(|(_, owned)| owned.look.is_none() && owned.next <= now);
        let ask = |(address, owned): (&Ipv4Addr, &mut Owned)| {
            owned.look = Some(now + ANSWER_TIME);
            *address
        };
        due.map(ask).collect()
    }

    /// When to call [`Self::receive`] and [`Self::poll`] next.
    pub fn due(&self) -> Option<Instant> {
        self.owned.values().map(|owned| owned.look.unwrap_or(owned.next)).min()
    }

    /// The addresses that other hosts answer for, with those hosts.
    pub fn strangers(&self) -> impl Iterator<Item = (Ipv4Addr, &BTreeSet<Mac>)> {
        let found = self.owned.iter().filter(|(_, owned)| !owned.strangers.is_empty());
        found.map(|(address, owned)| (*address, &owned.strangers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const NODE: Mac = [2, 0, 0, 0, 0, 9];
    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);

    /// Asks until then as the agent does, with `mac` answering, and returns when it asked.
    fn run(watch: &mut StrangerWatch, start: Instant, seconds: std::ops::Range<u64>, mac: Mac) -> Vec<u64> {
        let mut asked = Vec::new();
        let mut frames = Vec::new();
        for second in seconds {
            let now = start + Duration::from_secs(second);
            if watch.due().is_some_and(|due| due <= now) {
                watch.receive(now, &std::mem::take(&mut frames));
                for address in watch.poll(now) {
                    asked.push(second);
                    frames.push(Frame {
                        request: false,
                        mac,
                        sender: address,
                        target: Ipv4Addr::UNSPECIFIED,
                    });
                }
            }
        }
        asked
    }

    #[test]
    fn b17_host_that_answers_twice_for_an_address_in_use_is_reported_until_it_stops() {
        let start = Instant::now();
        let interface = |carrier_changes| Some(AnnouncingInterface { index: 3, mac: OWN, carrier_changes });
        let mut watch = StrangerWatch::default();
        watch.set(start, None, &[VIP]);
        assert_eq!(watch.due(), None);
        watch.set(start, interface(1), &[VIP]);
        // Our own frames are no answers.
        assert_eq!(run(&mut watch, start, 0..70, OWN), [5, 66]);
        assert_eq!(watch.strangers().count(), 0);
        assert_eq!(run(&mut watch, start, 70..130, NODE), [127]);
        assert_eq!(watch.strangers().count(), 0, "it may have handed over just then");
        assert_eq!(run(&mut watch, start, 130..140, NODE), [138], "confirmed soon");
        assert_eq!(watch.strangers().collect::<Vec<_>>(), [(VIP, &BTreeSet::from([NODE]))]);
        run(&mut watch, start, 140..260, OWN);
        assert_eq!(watch.strangers().count(), 0);
        watch.set(start, interface(1), &[]);
        assert_eq!(watch.due(), None);
    }

    #[test]
    fn hosts_that_answer_are_bounded() {
        let start = Instant::now();
        let mut watch = StrangerWatch::default();
        watch.set(start, Some(AnnouncingInterface { index: 3, mac: OWN, carrier_changes: 1 }), &[VIP]);
        let frame = |n: u8| Frame {
            request: false,
            mac: [2, 0, 0, 0, 1, n],
            sender: VIP,
            target: Ipv4Addr::UNSPECIFIED,
        };
        let flood: Vec<Frame> = (0..=255).map(frame).collect();
        for second in [5, 6, 16, 17] {
            let now = start + Duration::from_secs(second);
            watch.poll(now);
            watch.receive(now, &flood);
        }
        assert_eq!(watch.strangers().map(|(_, hosts)| hosts.len()).collect::<Vec<_>>(), [HOSTS_MAX]);
    }
}
