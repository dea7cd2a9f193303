//! The state machine of one member. The terms are those of RFC 9568, 6.4.

use std::fmt;
use std::num::NonZeroU8;
use std::time::Duration;

use super::frame::{Frame, Instance, Key, Kind, Rejected, Seal, Uid};
use super::peers::{Heard, Peers, Said, State};
use super::{Time, lease, silence, skew};

/// Who takes part.
#[derive(Clone)]
pub struct Member {
    /// The gateway's uid: its other members have the same.
    pub uid: Uid,
    /// What only the gateway's pods know.
    pub key: Key,
    /// Random bytes, drawn for this process.
    pub instance: Instance,
    /// The pod's name, for people.
    pub name: String,
    /// Between two frames; from 1 ms to 65 s, in whole milliseconds.
    pub interval: Duration,
    /// How sound it is.
    pub priority: NonZeroU8,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Ready to take over.
    Standby,
    /// Owns the addresses.
    Active,
    /// Has left for good.
    Left,
}

/// Why a role changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Standby: the process has started.
    Started,
    /// Active: nobody else was there.
    Alone,
    /// Active: the one that was is not heard any more, or does not hear us.
    FellSilent(String),
    /// Active: the one that was named us.
    HandedOver(String),
    /// Active: the one that was let go without naming us.
    LetGo(String),
    /// Active: the one that was is less sound, and did not hand over.
    LessSound(String),
    /// Standby: two were active, the other stays.
    YieldedTo(String),
    /// Standby: the other is sounder.
    HandedOverTo(String),
    /// Standby: the lease had run out while the process slept.
    Lapsed(Duration),
    /// Standby: the kernel let an advertisement not out.
    Refused,
    /// Left: it was told to.
    Leaving,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => write!(f, "started"),
            Self::Alone => write!(f, "nobody else was there"),
            Self::FellSilent(name) => write!(f, "{name} fell silent"),
            Self::HandedOver(name) => write!(f, "{name} handed over"),
            Self::LetGo(name) => write!(f, "{name} let go"),
            Self::LessSound(name) => write!(f, "{name} is less sound"),
            Self::YieldedTo(name) => write!(f, "yielded to {name}"),
            Self::HandedOverTo(name) => write!(f, "handed over to {name}, which is sounder"),
            Self::Lapsed(slept) => write!(f, "lapsed: slept {} ms", slept.as_millis()),
            Self::Refused => write!(f, "lapsed: refused by the kernel"),
            Self::Leaving => write!(f, "leaving"),
        }
    }
}

/// What the IO side has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this payload to the group.
    Send(Vec<u8>),
    /// The role is another one.
    Became(Role, Reason),
    /// Two were active at once.
    Split {
        /// The other one.
        with: String,
        /// We stay. The LAN may have learnt the other's hardware address:
        /// announce the addresses again.
        stays: bool,
    },
}

/// What was not as it should be, so many times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that are no frames.
    pub malformed: u64,
    /// Frames of other gateways.
    pub foreign: u64,
    /// Frames of who has another key.
    pub bad_tag: u64,
    /// Frames that had been heard before, or were overtaken.
    pub replayed: u64,
    /// Right frames that answer nothing we said lately. A newcomer's first are
    /// such.
    pub unanswering: u64,
    /// Times that two were active at once.
    pub splits: u64,
}

/// A member as another sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which process.
    pub instance: Instance,
    /// Its name.
    pub name: String,
    /// How sound it is.
    pub priority: NonZeroU8,
    /// What it was when it was last heard; `Left` also of one that may return.
    pub role: Role,
    /// When that was.
    pub at: Time,
}

/// The election as one member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What this member is.
    pub role: Role,
    /// Since when.
    pub since: Time,
    /// Why.
    pub reason: Reason,
    /// The highest term known.
    pub term: u64,
    /// Who is active.
    pub active: Option<(Instance, String)>,
    /// The others.
    pub others: Vec<Seen>,
}

/// Who was active and is not any more.
#[derive(Clone, Debug)]
struct Vacancy {
    name: String,
    /// It named us.
    ours: bool,
}

/// One member of the election among a gateway's pods.
///
/// Each input carries the time and returns what to do, in order. An input that
/// comes back in time is taken as coming at the latest time known.
pub struct Election {
    seal: Seal,
    instance: Instance,
    name: String,
    interval: Duration,
    priority: NonZeroU8,
    peers: Peers,
    /// The highest term known.
    term: u64,
    /// The term of our last take-over.
    claim: u64,
    now: Time,
    /// When we last sent a frame: while active, one that renewed the lease.
    spoke: Option<Time>,
    role: Role,
    since: Time,
    reason: Reason,
    /// As standby: nobody takes over before that.
    listens_until: Time,
    vacancy: Option<Vacancy>,
    /// The last split that we stayed in, by the other's instance and term.
    split: Option<(Instance, u64)>,
    counters: Counters,
    outputs: Vec<Output>,
}

impl Election {
    /// A standby that has heard nothing yet (6.4.1). The first `tick` is due.
    pub fn new(member: Member, now: Time) -> Self {
        let interval = Duration::from_millis(member.interval.as_millis().clamp(1, u16::MAX.into()) as u64);
        Self {
            seal: Seal::new(member.uid, &member.key),
            instance: member.instance,
            name: member.name,
            interval,
            priority: member.priority,
            peers: Peers::new(member.instance, interval),
            term: 0,
            claim: 0,
            now,
            spoke: None,
            role: Role::Standby,
            since: now,
            reason: Reason::Started,
            listens_until: now + silence(interval),
            vacancy: None,
            split: None,
            counters: Counters::default(),
            outputs: Vec::new(),
        }
    }

    /// When to call [`tick`](Self::tick) next; never again after leaving.
    pub fn deadline(&self) -> Option<Time> {
        let speaks = self.spoke.map_or(self.now, |spoke| spoke + self.interval);
        match self.role {
            Role::Active => Some(speaks),
            Role::Standby => Some(speaks.min(self.takes_at())),
            Role::Left => None,
        }
    }

    /// Whether the lease may still be held. To be asked, with the time of that
    /// moment, before an address is added or announced: the process may have
    /// slept since it became active.
    pub fn holds(&self, now: Time) -> bool {
        let spoke = self.spoke.unwrap_or_default();
        self.role == Role::Active && now.saturating_sub(spoke) <= lease(self.interval)
    }

    /// Time has passed, and everything that was received before is read.
    #[must_use]
    pub fn tick(&mut self, now: Time) -> Vec<Output> {
        self.wake(now);
        let speaks = self.spoke.is_none_or(|spoke| self.now >= spoke + self.interval);
        match self.role {
            Role::Active if speaks => self.say(Kind::Advertisement, None),
            Role::Standby if self.now >= self.takes_at() => self.take_over(),
            Role::Standby if speaks => self.say(Kind::Hello, None),
            _ => {}
        }
        std::mem::take(&mut self.outputs)
    }

    /// A frame has been received: its payload.
    #[must_use]
    pub fn receive(&mut self, now: Time, payload: &[u8]) -> Vec<Output> {
        self.wake(now);
        if let Some((frame, before)) = self.admit(payload) {
            self.term = self.term.max(frame.term);
            match self.role {
                Role::Active => self.hear_as_active(&frame),
                Role::Standby => self.hear_as_standby(&frame, before.as_ref()),
                Role::Left => {}
            }
        }
        std::mem::take(&mut self.outputs)
    }

    /// How sound this member is has changed. Said at once, as others may be
    /// sounder now, or less.
    #[must_use]
    pub fn set_priority(&mut self, now: Time, priority: NonZeroU8) -> Vec<Output> {
        self.wake(now);
        if priority != self.priority {
            self.priority = priority;
            match self.role {
                Role::Active => {
                    if !self.hand_over() {
                        self.say(Kind::Advertisement, None);
                    }
                }
                Role::Standby => self.say(Kind::Hello, None),
                Role::Left => {}
            }
        }
        std::mem::take(&mut self.outputs)
    }

    /// A frame could not be sent: the kernel refused it, the lease having run
    /// out, or the LAN is away.
    #[must_use]
    pub fn refused(&mut self, now: Time) -> Vec<Output> {
        self.wake(now);
        if self.role == Role::Active {
            let successor = self.peers.best_standby(self.now).map(|(instance, _)| instance);
            self.stand_by(successor, Reason::Refused);
        }
        std::mem::take(&mut self.outputs)
    }

    /// Somebody who takes no part answers for the addresses: as long as this is
    /// said again and again, a standby does not take over.
    pub fn occupied(&mut self, now: Time) {
        self.wake(now);
        if self.role == Role::Standby {
            self.listen();
        }
    }

    /// The member is to go, and never to be active again.
    #[must_use]
    pub fn leave(&mut self, now: Time) -> Vec<Output> {
        self.wake(now);
        if self.role != Role::Left {
            let best = self.peers.best_standby(self.now).filter(|_| self.role == Role::Active);
            let successor = best.map(|(instance, _)| instance);
            self.say(Kind::Resign, successor);
            self.turn(Role::Left, Reason::Leaving);
        }
        std::mem::take(&mut self.outputs)
    }

    /// What was not as it should be.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What there is to know.
    pub fn snapshot(&self) -> Snapshot {
        let present = |said: &Said| self.now < self.peers.present_until(said);
        let other = self.peers.actives().filter(|(_, said)| present(said));
        let other = other.max_by_key(|(instance, said)| (said.term, said.priority, *instance));
        Snapshot {
            role: self.role,
            since: self.since,
            reason: self.reason.clone(),
            term: self.term,
            active: match self.role {
                Role::Active => Some((self.instance, self.name.clone())),
                _ => other.map(|(instance, said)| (instance, said.name.clone())),
            },
            others: self
                .peers
                .all()
                .map(|(instance, said)| Seen {
                    instance,
                    name: said.name.clone(),
                    priority: said.priority,
                    role: match said.state {
                        State::Standby => Role::Standby,
                        State::Active => Role::Active,
                        State::Resigned => Role::Left,
                    },
                    at: said.at,
                })
                .collect(),
        }
    }

    /// Before anything else: what the process may have slept through.
    fn wake(&mut self, now: Time) {
        let due = self.deadline();
        self.now = self.now.max(now);
        self.peers.forget(self.now);
        match self.role {
            Role::Active if !self.holds(self.now) => {
                let slept = self.now - self.spoke.unwrap_or_default();
                // Who has been present meanwhile is not known: nobody is named.
                self.stand_by(None, Reason::Lapsed(slept));
            }
            // What others said meanwhile may be lost, or still be unread.
            Role::Standby if due.is_some_and(|due| self.now > due + lease(self.interval)) => self.listen(),
            _ => {}
        }
    }

    /// A frame that counts, and what its sender said before.
    fn admit(&mut self, payload: &[u8]) -> Option<(Frame, Option<Said>)> {
        let frame = match self.seal.open(payload) {
            // Our own words, come back.
            Ok(frame) if frame.instance == self.instance => return None,
            Ok(frame) => frame,
            Err(rejected) => {
                *match rejected {
                    Rejected::Malformed => &mut self.counters.malformed,
                    Rejected::Foreign => &mut self.counters.foreign,
                    Rejected::BadTag => &mut self.counters.bad_tag,
                } += 1;
                return None;
            }
        };
        match self.peers.hear(self.now, &frame, self.priority) {
            Heard::Fresh(before) => return Some((frame, before)),
            Heard::Replayed => self.counters.replayed += 1,
            Heard::Unanswering => self.counters.unanswering += 1,
        }
        None
    }

    fn hear_as_active(&mut self, frame: &Frame) {
        let theirs = (frame.term, frame.priority, frame.instance);
        let ours = (self.claim, self.priority, self.instance);
        match frame.kind {
            Kind::Advertisement | Kind::Take if theirs > ours => {
                self.report_split(frame, false);
                // Named, so that who listened to us waits for it to be heard.
                self.stand_by(Some(frame.instance), Reason::YieldedTo(frame.name.clone()));
            }
            Kind::Advertisement | Kind::Take => {
                self.report_split(frame, true);
                self.say(Kind::Advertisement, None);
            }
            // It yielded before we heard that it was active.
            Kind::Resign if frame.successor == Some(self.instance) => self.report_split(frame, true),
            Kind::Hello if frame.priority > self.priority => {
                self.hand_over();
            }
            Kind::Hello | Kind::Resign => {}
        }
    }

    /// `before` is what the sender said before.
    fn hear_as_standby(&mut self, frame: &Frame, before: Option<&Said>) {
        if matches!(frame.kind, Kind::Advertisement | Kind::Take) {
            self.vacancy = None;
            return;
        }
        // A Hello of who was active is as good as the Resign that was lost.
        let was_active = before.is_some_and(|before| before.state == State::Active);
        let ours = frame.kind == Kind::Resign && frame.successor == Some(self.instance);
        let outranked = self
            .peers
            .actives()
            .any(|(_, other)| other.term > frame.term && self.now < self.peers.present_until(other));
        if (was_active || ours) && !outranked {
            let grace = if frame.successor.is_none() || ours { Duration::ZERO } else { self.interval };
            self.listens_until = self.now + grace;
            self.vacancy = Some(Vacancy { name: frame.name.clone(), ours });
        }
    }

    /// When this standby takes over, if it hears nothing more: when the last
    /// active one that it respects has been silent for the
    /// Active_Down_Interval, and half an interval later for each better
    /// standby that is present then. Who was named does not wait.
    fn takes_at(&self) -> Time {
        if self.vacancy.as_ref().is_some_and(|vacancy| vacancy.ours) {
            return self.listens_until;
        }
        let start = self
            .peers
            .actives()
            .map(|(_, said)| said.respected + silence(said.interval) + skew(said.interval, self.priority))
            .fold(self.listens_until + skew(self.interval, self.priority), Time::max);
        let mut better: Vec<Time> = self
            .peers
            .standbys()
            .filter(|(instance, said)| (said.priority, *instance) > (self.priority, self.instance))
            .map(|(_, said)| self.peers.present_until(said))
            .collect();
        better.sort_by(|a, b| b.cmp(a));
        // With so many before us it is our turn then, and no sooner than the
        // others are gone.
        let turns = (0..=better.len()).map(|count| {
            let turn = start + self.interval / 2 * count as u32;
            better.get(count).map_or(turn, |gone| turn.max(*gone))
        });
        turns.min().unwrap_or(start)
    }

    fn take_over(&mut self) {
        let last = self.peers.actives().max_by_key(|(_, said)| said.at).map(|(_, said)| said);
        let reason = match (&self.vacancy, last) {
            (Some(vacancy), _) if vacancy.ours => Reason::HandedOver(vacancy.name.clone()),
            (Some(vacancy), _) => Reason::LetGo(vacancy.name.clone()),
            (None, None) => Reason::Alone,
            (None, Some(said)) if self.now < self.peers.present_until(said) => {
                Reason::LessSound(said.name.clone())
            }
            (None, Some(said)) => Reason::FellSilent(said.name.clone()),
        };
        self.term += 1;
        self.claim = self.term;
        self.say(Kind::Take, None);
        // Twice, as one may be lost and the next standby waits half an interval.
        self.say(Kind::Advertisement, None);
        self.turn(Role::Active, reason);
    }

    /// Gives the addresses to the soundest standby, if that is sounder.
    fn hand_over(&mut self) -> bool {
        let best = self.peers.best_standby(self.now).filter(|(_, said)| said.priority > self.priority);
        let Some((successor, name)) = best.map(|(instance, said)| (instance, said.name.clone())) else {
            return false;
        };
        self.stand_by(Some(successor), Reason::HandedOverTo(name));
        true
    }

    fn stand_by(&mut self, successor: Option<Instance>, reason: Reason) {
        self.say(Kind::Resign, successor);
        self.turn(Role::Standby, reason);
        self.listen();
    }

    /// As if just started.
    fn listen(&mut self) {
        self.listens_until = self.now + silence(self.interval);
        self.vacancy = None;
    }

    fn turn(&mut self, role: Role, reason: Reason) {
        self.role = role;
        self.since = self.now;
        self.reason = reason.clone();
        self.outputs.push(Output::Became(role, reason));
    }

    fn report_split(&mut self, frame: &Frame, stays: bool) {
        let split = Some((frame.instance, frame.term));
        if !stays || self.split != split {
            self.split = split;
            self.counters.splits += 1;
            self.outputs.push(Output::Split { with: frame.name.clone(), stays });
        }
    }

    fn say(&mut self, kind: Kind, successor: Option<Instance>) {
        let frame = Frame {
            kind,
            instance: self.instance,
            sequence: self.peers.next_sequence(self.now),
            term: if kind == Kind::Hello { self.term } else { self.claim },
            successor,
            interval: self.interval,
            priority: self.priority,
            name: self.name.clone(),
            echoes: self.peers.echoes(),
        };
        self.spoke = Some(self.now);
        self.outputs.push(Output::Send(self.seal.seal(&frame)));
    }
}
