//! The other members, and whether their frames are fresh.
//!
//! A frame is fresh if it acknowledges a sequence number that this member sent
//! no longer ago than a lease lasts (the longer of the sender's and ours), and
//! its own sequence number is higher than any received from its sender. A
//! recorded frame acknowledges old sequence numbers or other instances, and
//! sequence numbers never repeat: they serve as nonces. A frame that does not
//! acknowledge us yet only has its sender acknowledged, so that its next frame
//! can.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::num::NonZeroU8;
use std::time::Duration;

use crate::frame::{Frame, Instance, Kind, MAX_ACKS};
use crate::{Mac, Time, lease_time};

/// How many own frames are remembered: more than are sent within a lease, even
/// one of a member whose interval is ten times ours while a new interval is
/// rolled out.
const SENT_HISTORY: usize = 64;
/// How many intervals after its last frame an instance is forgotten. By then
/// nothing that it ever sent acknowledges us any more, whatever the clocks do.
const EXPIRY_INTERVALS: u32 = 16;

/// The role of a peer, by its last fresh frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerRole {
    Standby,
    Active,
    /// It resigned, and may be leaving.
    Resigned,
}

/// The content of a peer's last fresh frame.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// When the frame was received.
    pub at: Time,
    /// The hardware address that it came from.
    pub mac: Mac,
    pub role: PeerRole,
    pub term: u64,
    pub priority: NonZeroU8,
    /// The interval that the peer requests to be timed by.
    pub interval: Duration,
    pub name: String,
    /// The last sequence number of ours that it acknowledged.
    pub acked: u64,
    /// The first sequence number of ours that counts as acknowledged by it: the
    /// peer was not fresh before.
    pub since: u64,
    /// While active: when its advertisement last reset the Active_Down_Timer,
    /// which it does at first, and then whenever its priority is not lower than
    /// ours (RFC 9568, 6.4.2).
    pub timer_reset: Time,
}

#[derive(Debug)]
struct Peer {
    /// The highest sequence number received.
    sequence: u64,
    /// When a frame was last received, fresh or not.
    received: Time,
    /// From its last fresh frame.
    report: Option<Report>,
}

/// How a received frame is classified.
#[derive(Debug)]
pub(crate) enum Receipt {
    /// Its sequence number is not higher than the sender's last one.
    Replayed,
    /// It does not acknowledge us: of a newcomer, of a member that does not
    /// receive from us, or recorded.
    Unacknowledging,
    /// It counts; with the sender's previous report.
    Fresh(Option<Report>),
}

#[derive(Debug)]
pub(crate) struct Peers {
    own: Instance,
    interval: Duration,
    /// The sequence numbers sent last, and when.
    sent: VecDeque<(u64, Time)>,
    known: BTreeMap<Instance, Peer>,
}

impl Peers {
    pub fn new(own: Instance, interval: Duration) -> Self {
        Self { own, interval, sent: VecDeque::new(), known: BTreeMap::new() }
    }

    /// Returns the sequence number of the frame that is sent now.
    pub fn next_sequence(&mut self, now: Time) -> u64 {
        let sequence = self.sent.back().map_or(0, |(last, _)| *last) + 1;
        if self.sent.len() == SENT_HISTORY {
            self.sent.pop_front();
        }
        self.sent.push_back((sequence, now));
        sequence
    }

    /// The acknowledgements to send: first of the peers that are fresh.
    pub fn acks(&self) -> Vec<(Instance, u64)> {
        let mut peers: Vec<_> = self.known.iter().collect();
        peers.sort_by_key(|(_, peer)| (peer.report.is_none(), Reverse(peer.received)));
        peers.into_iter().map(|(instance, peer)| (*instance, peer.sequence)).take(MAX_ACKS).collect()
    }

    /// Forgets old reports, and instances that nothing was received from for
    /// long. The two are apart: frames that do not acknowledge us must not keep
    /// alive a report of one that did.
    pub fn expire(&mut self, now: Time) {
        self.known.retain(|_, peer| {
            let interval =
                peer.report.as_ref().map_or(self.interval, |report| report.interval.max(self.interval));
            let old = |at: Time| now > at + EXPIRY_INTERVALS * interval;
            peer.report.take_if(|report| old(report.at));
            !old(peer.received)
        });
    }

    /// Classifies and records a frame whose tag is right. `interval` is the one
    /// that this member is timed by, on which freshness depends; `priority` is
    /// this member's, on which depends whether the Active_Down_Timer is reset.
    pub fn receive(
        &mut self,
        now: Time,
        mac: Mac,
        frame: &Frame,
        interval: Duration,
        priority: NonZeroU8,
    ) -> Receipt {
        let acked = self.acknowledged(now, frame, interval);
        let new = Peer { sequence: 0, received: now, report: None };
        let peer = self.known.entry(frame.instance).or_insert(new);
        if frame.sequence <= peer.sequence {
            return Receipt::Replayed;
        }
        peer.sequence = frame.sequence;
        peer.received = now;
        let Some(acked) = acked else {
            // It is acknowledged all the same, and its sender takes that for the
            // acknowledgement of its requested interval.
            if let Some(report) = &mut peer.report {
                report.interval = report.interval.max(frame.interval);
            }
            self.evict();
            return Receipt::Unacknowledging;
        };
        let next = self.sent.back().map_or(0, |(last, _)| *last) + 1;
        let role = match frame.kind {
            Kind::Keepalive => PeerRole::Standby,
            Kind::Resign => PeerRole::Resigned,
            Kind::Advertisement | Kind::ExtendedAdvertisement | Kind::TakeOver => PeerRole::Active,
        };
        let timer_reset = match &peer.report {
            Some(before)
                if (before.role, before.term) == (PeerRole::Active, frame.term)
                    && frame.priority < priority =>
            {
                before.timer_reset
            }
            _ => now,
        };
        Receipt::Fresh(peer.report.replace(Report {
            at: now,
            mac,
            role,
            term: frame.term,
            priority: frame.priority,
            interval: frame.interval,
            name: frame.name.clone(),
            acked,
            since: peer.report.as_ref().map_or(next, |before| before.since),
            timer_reset,
        }))
    }

    /// The sequence number of ours that the frame acknowledges, if that was sent
    /// lately enough.
    fn acknowledged(&self, now: Time, frame: &Frame, interval: Duration) -> Option<u64> {
        let lease = lease_time(interval.max(frame.interval));
        let (_, acked) = frame.acks.iter().find(|(instance, _)| *instance == self.own)?;
        let recent = |(sent, at): &(u64, Time)| sent == acked && now.saturating_sub(*at) <= lease;
        self.sent.iter().any(recent).then_some(*acked)
    }

    /// Limits the number of known instances that do not acknowledge us. The
    /// victim is drawn anew with each frame that we send, independent of how
    /// often an instance is received from: an attacker that replays many dead
    /// instances can make a newcomer wait for a lucky draw, but cannot shut it
    /// out.
    fn evict(&mut self) {
        if self.known.len() > MAX_ACKS {
            let draw = self.sent.back().map(|(sequence, _)| *sequence);
            let hasher = BuildHasherDefault::<DefaultHasher>::default();
            let candidates = self.known.iter().filter(|(_, peer)| peer.report.is_none());
            if let Some(instance) = candidates
                .map(|(instance, _)| *instance)
                .max_by_key(|instance| hasher.hash_one((draw, instance)))
            {
                self.known.remove(&instance);
            }
        }
    }

    /// All peers with a report.
    pub fn all(&self) -> impl Iterator<Item = (Instance, &Report)> {
        self.known.iter().filter_map(|(instance, peer)| Some((*instance, peer.report.as_ref()?)))
    }

    /// The peers that last reported to be active.
    pub fn actives(&self) -> impl Iterator<Item = (Instance, &Report)> {
        self.all().filter(|(_, report)| report.role == PeerRole::Active)
    }

    /// The peers that last reported to be standby.
    pub fn standbys(&self) -> impl Iterator<Item = (Instance, &Report)> {
        self.all().filter(|(_, report)| report.role == PeerRole::Standby)
    }

    /// Until when a peer counts as reachable if nothing more is received from it.
    pub fn reachable_until(&self, report: &Report) -> Time {
        report.at + lease_time(self.interval.max(report.interval))
    }

    /// Whether a peer counts as reachable.
    pub fn is_reachable(&self, now: Time, report: &Report) -> bool {
        now < self.reachable_until(report)
    }

    /// The best successor: of the reachable standbys the one with the highest
    /// priority, and among equals with the highest instance.
    pub fn best_standby(&self, now: Time) -> Option<(Instance, &Report)> {
        self.standbys()
            .filter(|(_, report)| self.is_reachable(now, report))
            .max_by_key(|(instance, report)| (report.priority, *instance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Duration = Duration::from_millis(50);
    const MAC: Mac = [2, 0, 0, 0, 0, 1];
    const OWN: Instance = Instance([5; 16]);
    const PRIORITY: NonZeroU8 = NonZeroU8::MAX;

    fn frame(instance: u128, sequence: u64, ack: Option<u64>) -> Frame {
        Frame {
            kind: Kind::Keepalive,
            instance: Instance(instance.to_be_bytes()),
            sequence,
            term: 0,
            successor: None,
            interval: A,
            priority: PRIORITY,
            name: String::new(),
            acks: ack.map(|sequence| (OWN, sequence)).into_iter().collect(),
        }
    }

    #[test]
    fn expired_instance_replayed_stays_unacknowledging() {
        let mut peers = Peers::new(OWN, A);
        let sequence = peers.next_sequence(Time::ZERO);
        let recorded = frame(1, 1, Some(sequence));
        assert!(matches!(peers.receive(Time::ZERO, MAC, &recorded, A, PRIORITY), Receipt::Fresh(None)));
        for round in 1..=EXPIRY_INTERVALS {
            peers.next_sequence(A * round);
            peers.expire(A * round);
            assert!(matches!(peers.receive(A * round, MAC, &recorded, A, PRIORITY), Receipt::Replayed));
        }
        let later = A * EXPIRY_INTERVALS + Duration::from_millis(1);
        peers.expire(later);
        assert_eq!(peers.all().count(), 0);
        assert!(matches!(peers.receive(later, MAC, &recorded, A, PRIORITY), Receipt::Unacknowledging));
    }

    #[test]
    fn unacknowledging_frame_does_not_refresh_the_report() {
        let mut peers = Peers::new(OWN, A);
        let sequence = peers.next_sequence(Time::ZERO);
        peers.receive(Time::ZERO, MAC, &frame(1, 1, Some(sequence)), A, PRIORITY);
        for round in 1..=20 {
            peers.expire(A * round);
            assert!(matches!(
                peers.receive(A * round, MAC, &frame(1, u64::from(round) + 1, None), A, PRIORITY),
                Receipt::Unacknowledging
            ));
            assert_eq!(peers.all().count(), usize::from(round <= EXPIRY_INTERVALS), "{round}");
        }
        assert_eq!(peers.acks().len(), 1, "so that it may acknowledge again");
    }

    #[test]
    fn unacknowledging_frame_is_acked_and_its_interval_counts() {
        let mut peers = Peers::new(OWN, A);
        let sequence = peers.next_sequence(Time::ZERO);
        peers.receive(Time::ZERO, MAC, &frame(1, 1, Some(sequence)), A, PRIORITY);
        let late = Frame { interval: 3 * A, ..frame(1, 2, None) };
        assert!(matches!(peers.receive(A, MAC, &late, A, PRIORITY), Receipt::Unacknowledging));
        assert_eq!(peers.acks()[0].1, 2);
        let (_, report) = peers.all().next().unwrap();
        assert_eq!((report.at, report.interval), (Time::ZERO, 3 * A));
    }

    #[test]
    fn flood_of_dead_instances_shuts_no_member_out() {
        let mut peers = Peers::new(OWN, A);
        let (mut lucky, mut known) = (0, 0);
        for round in 1..=200 {
            let now = A * round;
            let sequence = peers.next_sequence(now);
            peers.expire(now);
            // A member, a newcomer, and then a hundred dead ones many times.
            peers.receive(now, MAC, &frame(1, u64::from(round), Some(sequence)), A, PRIORITY);
            peers.receive(now, MAC, &frame(2, u64::from(round), None), A, PRIORITY);
            for dead in (0..1000).map(|index| 100 + index % 100) {
                peers.receive(now, MAC, &frame(dead, 1, None), A, PRIORITY);
            }
            let acks = peers.acks();
            assert_eq!(acks.len(), MAX_ACKS);
            known += usize::from(acks[0] == (Instance(1u128.to_be_bytes()), round.into()));
            lucky += usize::from(acks.contains(&(Instance(2u128.to_be_bytes()), round.into())));
        }
        assert_eq!(known, 200, "a fresh peer is always acknowledged");
        assert!((10..100).contains(&lucky), "{lucky}");
    }
}
