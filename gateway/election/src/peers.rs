//! Who else is there, and whether what they say is fresh.
//!
//! A frame is fresh if it answers us: it echoes a sequence of ours that we
//! sent no longer ago than a lease lasts (the longer of the sender's and ours),
//! and its own sequence is higher than
//! any heard of its sender. What was recorded answers old sequences or other
//! instances, and sequences never return: they are the nonces. What does not
//! answer us yet only has its sender echoed, so that its next frame can.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::num::NonZeroU8;
use std::time::Duration;

use super::frame::{Frame, Instance, Kind, MAX_ECHOES};
use super::{Time, lease};

/// How many own frames are remembered: more than leave within a lease, also of
/// a member whose interval is ten times ours while a new one is rolled out.
const SENT: usize = 64;
/// How many intervals after its last frame an instance is forgotten. By then
/// nothing that it ever said answers us any more, whatever the clocks do.
const FORGOTTEN: u32 = 16;

/// What a peer said that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Standby,
    Active,
    /// It resigned, and may be leaving.
    Resigned,
}

/// The last fresh words of a peer.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub at: Time,
    pub state: State,
    pub term: u64,
    pub priority: NonZeroU8,
    /// What it is to be counted by.
    pub interval: Duration,
    pub name: String,
    /// The last sequence of ours that it had heard.
    pub echoed: u64,
    /// The first of ours that it was to count: those before did not answer it.
    pub since: u64,
    /// While active: when it last said so in a way that we respect, which is
    /// at first, and then whenever it is no less sound than we are.
    pub respected: Time,
}

#[derive(Debug)]
struct Peer {
    sequence: u64,
    heard: Time,
    said: Option<Said>,
}

/// What a frame of a member is worth.
#[derive(Debug)]
pub(super) enum Heard {
    /// Not higher than the last sequence of its sender.
    Replayed,
    /// It does not answer us: of a newcomer, of one who does not hear us, or
    /// recorded.
    Unanswering,
    /// It counts; and what its sender said before.
    Fresh(Option<Said>),
}

#[derive(Debug)]
pub(super) struct Peers {
    me: Instance,
    interval: Duration,
    sent: VecDeque<(u64, Time)>,
    known: BTreeMap<Instance, Peer>,
}

impl Peers {
    pub fn new(me: Instance, interval: Duration) -> Self {
        Self { me, interval, sent: VecDeque::new(), known: BTreeMap::new() }
    }

    /// The sequence of the frame that is sent now.
    pub fn next_sequence(&mut self, now: Time) -> u64 {
        let sequence = self.sent.back().map_or(0, |(last, _)| *last) + 1;
        if self.sent.len() == SENT {
            self.sent.pop_front();
        }
        self.sent.push_back((sequence, now));
        sequence
    }

    /// What to echo: first those that answer us.
    pub fn echoes(&self) -> Vec<(Instance, u64)> {
        let mut peers: Vec<_> = self.known.iter().collect();
        peers.sort_by_key(|(_, peer)| (peer.said.is_none(), Reverse(peer.heard)));
        peers.into_iter().map(|(instance, peer)| (*instance, peer.sequence)).take(MAX_ECHOES).collect()
    }

    /// Forgets what was said long ago, and whom nothing was heard of for long.
    /// The first apart from the second: what does not answer us must not keep
    /// alive what did.
    pub fn forget(&mut self, now: Time) {
        self.known.retain(|_, peer| {
            let interval = peer.said.as_ref().map_or(self.interval, |said| said.interval.max(self.interval));
            let old = |at: Time| now > at + FORGOTTEN * interval;
            peer.said.take_if(|said| old(said.at));
            !old(peer.heard)
        });
    }

    /// Weighs a frame whose tag is right. Of the interval that we are counted by
    /// depends what answers us, of the priority what is respected.
    pub fn hear(&mut self, now: Time, frame: &Frame, interval: Duration, priority: NonZeroU8) -> Heard {
        let answers = self.answered(now, frame, interval);
        let new = Peer { sequence: 0, heard: now, said: None };
        let peer = self.known.entry(frame.instance).or_insert(new);
        if frame.sequence <= peer.sequence {
            return Heard::Replayed;
        }
        peer.sequence = frame.sequence;
        peer.heard = now;
        let Some(echoed) = answers else {
            // We echo it all the same, and its sender takes that for consent.
            if let Some(said) = &mut peer.said {
                said.interval = said.interval.max(frame.interval);
            }
            self.bound();
            return Heard::Unanswering;
        };
        let next = self.sent.back().map_or(0, |(last, _)| *last) + 1;
        let state = match frame.kind {
            Kind::Hello => State::Standby,
            Kind::Resign => State::Resigned,
            Kind::Advertisement | Kind::Prolong | Kind::Take => State::Active,
        };
        let respected = match &peer.said {
            Some(before)
                if (before.state, before.term) == (State::Active, frame.term)
                    && frame.priority < priority =>
            {
                before.respected
            }
            _ => now,
        };
        Heard::Fresh(peer.said.replace(Said {
            at: now,
            state,
            term: frame.term,
            priority: frame.priority,
            interval: frame.interval,
            name: frame.name.clone(),
            echoed,
            since: peer.said.as_ref().map_or(next, |before| before.since),
            respected,
        }))
    }

    /// Which sequence of ours a frame answers, if it does.
    fn answered(&self, now: Time, frame: &Frame, interval: Duration) -> Option<u64> {
        let lease = lease(interval.max(frame.interval));
        let (_, echoed) = frame.echoes.iter().find(|(instance, _)| *instance == self.me)?;
        let recent = |(sent, at): &(u64, Time)| sent == echoed && now.saturating_sub(*at) <= lease;
        self.sent.iter().any(recent).then_some(*echoed)
    }

    /// Holds down how many are known without answering us. Who has to go is
    /// drawn anew with each frame of ours and does not depend on how often one
    /// is heard: who replays many dead instances can make a newcomer wait for
    /// a lucky draw, and cannot shut it out.
    fn bound(&mut self) {
        if self.known.len() > MAX_ECHOES {
            let draw = self.sent.back().map(|(sequence, _)| *sequence);
            let lots = BuildHasherDefault::<DefaultHasher>::default();
            let unanswering = self.known.iter().filter(|(_, peer)| peer.said.is_none());
            if let Some(instance) = unanswering
                .map(|(instance, _)| *instance)
                .max_by_key(|instance| lots.hash_one((draw, instance)))
            {
                self.known.remove(&instance);
            }
        }
    }

    /// All that were fresh lately.
    pub fn all(&self) -> impl Iterator<Item = (Instance, &Said)> {
        self.known.iter().filter_map(|(instance, peer)| Some((*instance, peer.said.as_ref()?)))
    }

    /// Those that said last that they are active.
    pub fn actives(&self) -> impl Iterator<Item = (Instance, &Said)> {
        self.all().filter(|(_, said)| said.state == State::Active)
    }

    /// Those that said last that they are standby.
    pub fn standbys(&self) -> impl Iterator<Item = (Instance, &Said)> {
        self.all().filter(|(_, said)| said.state == State::Standby)
    }

    /// Until when to count on a peer that is not heard again.
    pub fn present_until(&self, said: &Said) -> Time {
        said.at + lease(self.interval.max(said.interval))
    }

    /// Whether to count on a peer.
    pub fn is_present(&self, now: Time, said: &Said) -> bool {
        now < self.present_until(said)
    }

    /// Who takes over best: of the standbys that are present the soundest, and
    /// among equals the one with the highest instance.
    pub fn best_standby(&self, now: Time) -> Option<(Instance, &Said)> {
        self.standbys()
            .filter(|(_, said)| self.is_present(now, said))
            .max_by_key(|(instance, said)| (said.priority, *instance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Duration = Duration::from_millis(50);
    const ME: Instance = Instance([5; 16]);
    const PRIORITY: NonZeroU8 = NonZeroU8::MAX;

    fn frame(instance: u128, sequence: u64, echo: Option<u64>) -> Frame {
        Frame {
            kind: Kind::Hello,
            instance: Instance(instance.to_be_bytes()),
            sequence,
            term: 0,
            successor: None,
            interval: A,
            priority: PRIORITY,
            name: String::new(),
            echoes: echo.map(|sequence| (ME, sequence)).into_iter().collect(),
        }
    }

    #[test]
    fn who_is_forgotten_cannot_be_replayed() {
        let mut peers = Peers::new(ME, A);
        let sequence = peers.next_sequence(Time::ZERO);
        let recorded = frame(1, 1, Some(sequence));
        assert!(matches!(peers.hear(Time::ZERO, &recorded, A, PRIORITY), Heard::Fresh(None)));
        for round in 1..=FORGOTTEN {
            peers.next_sequence(A * round);
            peers.forget(A * round);
            assert!(matches!(peers.hear(A * round, &recorded, A, PRIORITY), Heard::Replayed));
        }
        let later = A * FORGOTTEN + Duration::from_millis(1);
        peers.forget(later);
        assert_eq!(peers.all().count(), 0);
        assert!(matches!(peers.hear(later, &recorded, A, PRIORITY), Heard::Unanswering));
    }

    #[test]
    fn what_does_not_answer_keeps_nothing_alive() {
        let mut peers = Peers::new(ME, A);
        let sequence = peers.next_sequence(Time::ZERO);
        peers.hear(Time::ZERO, &frame(1, 1, Some(sequence)), A, PRIORITY);
        for round in 1..=20 {
            peers.forget(A * round);
            assert!(matches!(
                peers.hear(A * round, &frame(1, u64::from(round) + 1, None), A, PRIORITY),
                Heard::Unanswering
            ));
            assert_eq!(peers.all().count(), usize::from(round <= FORGOTTEN), "{round}");
        }
        assert_eq!(peers.echoes().len(), 1, "so that it may answer again");
    }

    #[test]
    fn what_does_not_answer_is_echoed_and_so_its_wish_counts() {
        let mut peers = Peers::new(ME, A);
        let sequence = peers.next_sequence(Time::ZERO);
        peers.hear(Time::ZERO, &frame(1, 1, Some(sequence)), A, PRIORITY);
        let late = Frame { interval: 3 * A, ..frame(1, 2, None) };
        assert!(matches!(peers.hear(A, &late, A, PRIORITY), Heard::Unanswering));
        assert_eq!(peers.echoes()[0].1, 2);
        let (_, said) = peers.all().next().unwrap();
        assert_eq!((said.at, said.interval), (Time::ZERO, 3 * A));
    }

    #[test]
    fn who_floods_shuts_nobody_out() {
        let mut peers = Peers::new(ME, A);
        let (mut lucky, mut known) = (0, 0);
        for round in 1..=200 {
            let now = A * round;
            let sequence = peers.next_sequence(now);
            peers.forget(now);
            // A member, a newcomer, and then a hundred dead ones many times.
            peers.hear(now, &frame(1, u64::from(round), Some(sequence)), A, PRIORITY);
            peers.hear(now, &frame(2, u64::from(round), None), A, PRIORITY);
            for dead in (0..1000).map(|index| 100 + index % 100) {
                peers.hear(now, &frame(dead, 1, None), A, PRIORITY);
            }
            let echoes = peers.echoes();
            assert_eq!(echoes.len(), MAX_ECHOES);
            known += usize::from(echoes[0] == (Instance(1u128.to_be_bytes()), round.into()));
            lucky += usize::from(echoes.contains(&(Instance(2u128.to_be_bytes()), round.into())));
        }
        assert_eq!(known, 200, "who answers is always echoed");
        assert!((10..100).contains(&lucky), "{lucky}");
    }
}
