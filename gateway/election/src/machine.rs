//! The state machine of one member. The terms are those of RFC 9568, 6.4.

use std::fmt;
use std::num::NonZeroU8;
use std::time::Duration;

use super::frame::{Frame, Instance, Key, Kind, Rejected, Seal, Uid};
use super::peers::{Heard, Peers, Said, State};
use super::{Time, lease, silence, skew, stretched};

/// For how many intervals a member that was late asks for patience.
const PATIENCE: u32 = 200;

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
    /// Between two frames; from 1 ms to 21 s, in whole milliseconds.
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
    /// Standby: the kernel did not let an advertisement out.
    Refused,
    /// Standby: nothing of the LAN is in reach.
    Isolated,
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
            Self::Isolated => write!(f, "isolated: neither another pod nor the router is heard"),
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
    /// Times that the member came late by an interval or more.
    pub late: u64,
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

/// How long a standby listens.
#[derive(Clone, Copy, Debug)]
struct Listening {
    /// Nobody takes over before that.
    until: Time,
    /// The interval by which that was counted.
    interval: Duration,
}

impl Listening {
    /// Until whoever is active has been heard, or their lease has run out,
    /// however long that is.
    fn from(now: Time, interval: Duration) -> Self {
        Self { until: now + silence(stretched(interval)), interval: stretched(interval) }
    }
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
    /// The interval until the next one, by which the lease counts as well: the
    /// stretched one only when all that are present know.
    pace: Duration,
    /// Until then we ask to be counted by the stretched interval.
    late_until: Time,
    /// The first frame that asked for that, of those in a row that did.
    asked: Option<u64>,
    role: Role,
    since: Time,
    reason: Reason,
    /// As standby.
    listens: Listening,
    vacancy: Option<Vacancy>,
    /// The last split that we stayed in, by the other's instance and term.
    split: Option<(Instance, u64)>,
    counters: Counters,
    outputs: Vec<Output>,
}

impl Election {
    /// A standby that has heard nothing yet (6.4.1). The first `tick` is due.
    pub fn new(member: Member, now: Time) -> Self {
        let longest = u128::from(u16::MAX) / stretched(Duration::from_millis(1)).as_millis();
        let interval = Duration::from_millis(member.interval.as_millis().clamp(1, longest) as u64);
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
            pace: interval,
            late_until: now,
            asked: None,
            role: Role::Standby,
            since: now,
            reason: Reason::Started,
            listens: Listening::from(now, interval),
            vacancy: None,
            split: None,
            counters: Counters::default(),
            outputs: Vec::new(),
        }
    }

    /// When to call [`tick`](Self::tick) next; never again after leaving.
    pub fn deadline(&self) -> Option<Time> {
        let speaks = self.spoke.map_or(self.now, |spoke| spoke + self.pace);
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
        self.role == Role::Active && now.saturating_sub(spoke) <= lease(self.pace)
    }

    /// Time has passed, and everything that was received before is read.
    #[must_use]
    pub fn tick(&mut self, now: Time) -> Vec<Output> {
        self.wake(now);
        let speaks = self.spoke.is_none_or(|spoke| self.now >= spoke + self.pace);
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

    /// Nothing of the LAN is in reach: as long as this is said again and again,
    /// the member is not active.
    #[must_use]
    pub fn isolated(&mut self, now: Time) -> Vec<Output> {
        self.wake(now);
        match self.role {
            Role::Active => self.stand_by(None, Reason::Isolated),
            Role::Standby => self.listen(),
            Role::Left => {}
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

    /// Whether another member is present at that time; `None` if none has been
    /// heard lately.
    pub fn is_accompanied(&self, now: Time) -> Option<bool> {
        let until = self.peers.all().map(|(_, said)| self.peers.present_until(said)).max();
        until.map(|until| now < until)
    }

    /// What was not as it should be.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What there is to know.
    pub fn snapshot(&self) -> Snapshot {
        let present = |said: &Said| self.peers.is_present(self.now, said);
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
        if due.is_some_and(|due| self.now >= due + self.interval) {
            self.counters.late += 1;
            self.late_until = self.now + PATIENCE * self.interval;
        }
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
        // All have to know of it before an active one counts on their patience.
        let asked = if self.role == Role::Active { self.interval } else { self.counted() };
        let interval = self.pace.max(asked);
        match self.peers.hear(self.now, &frame, interval, self.priority) {
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
            Kind::Advertisement | Kind::Prolong | Kind::Take if theirs > ours => {
                self.report_split(frame, false);
                // Named, so that who listened to us does not take that for a vacancy.
                self.stand_by(Some(frame.instance), Reason::YieldedTo(frame.name.clone()));
            }
            Kind::Advertisement | Kind::Prolong | Kind::Take => {
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
        if matches!(frame.kind, Kind::Advertisement | Kind::Prolong | Kind::Take) {
            self.vacancy = None;
            return;
        }
        // A Hello of who was active is as good as the Resign that was lost.
        let was_active = before.is_some_and(|before| before.state == State::Active);
        let ours = frame.kind == Kind::Resign && frame.successor == Some(self.instance);
        let outranked = self
            .peers
            .actives()
            .any(|(_, other)| other.term > frame.term && self.peers.is_present(self.now, other));
        if (was_active || ours) && !outranked {
            if frame.successor.is_some() && !ours {
                // Who was named may hold the lease from now on, heard or not.
                self.listens = Listening::from(self.now, self.interval);
            } else if ours || self.listens.until < self.now {
                // Who listens goes on with that, as others do.
                self.listens = Listening { until: self.now, interval: self.interval };
            }
            self.vacancy = Some(Vacancy { name: frame.name.clone(), ours });
        } else if frame.kind == Kind::Hello
            && self.vacancy.is_none()
            && self.is_before_us(frame.priority, frame.instance)
        {
            // A better standby that is new has to listen first. Then so do we,
            // else our turn could come just when its does.
            let present = |said: &&Said| self.peers.is_present(self.now, said);
            if before.filter(present).is_none_or(|before| before.state != State::Standby) {
                self.listens = Listening::from(self.now, self.interval);
            }
        }
    }

    /// When this standby takes over, if it hears nothing more: when the last
    /// active one has been silent for the Active_Down_Interval, or has been less
    /// sound for as long without handing over; and half an interval later for
    /// each better standby that is present then. Who was named does not wait.
    fn takes_at(&self) -> Time {
        let Listening { until, interval } = self.listens;
        if self.vacancy.as_ref().is_some_and(|vacancy| vacancy.ours) {
            return until;
        }
        let listened = (until + skew(self.interval, self.priority), interval);
        let (start, interval) = self
            .peers
            .actives()
            .map(|(_, said)| {
                let interval = said.interval.max(self.counted());
                let patience = silence(interval) + skew(interval, self.priority);
                // At its next advertisement, not before: a silent one may still
                // hold the lease.
                let heedless = said.at >= said.respected + patience;
                (if heedless { said.at } else { said.at + patience }, interval)
            })
            .fold(listened, Ord::max);
        let mut better: Vec<Time> = self
            .peers
            .standbys()
            .filter(|(instance, said)| self.is_before_us(said.priority, *instance))
            .map(|(_, said)| self.peers.present_until(said))
            .collect();
        better.sort_by(|a, b| b.cmp(a));
        // With so many before us it is our turn then, and no sooner than the
        // others are gone. The longer the wait, the further are clocks apart.
        let turns = (0..=better.len()).map(|count| {
            let turn = start + interval / 2 * count as u32;
            better.get(count).map_or(turn, |gone| turn.max(*gone))
        });
        turns.min().unwrap_or(start)
    }

    /// Whether a standby like this has its turn before us.
    fn is_before_us(&self, priority: NonZeroU8, instance: Instance) -> bool {
        (priority, instance) > (self.priority, self.instance)
    }

    fn take_over(&mut self) {
        let last = self.peers.actives().max_by_key(|(_, said)| said.at).map(|(_, said)| said);
        let reason = match (&self.vacancy, last) {
            (Some(vacancy), _) if vacancy.ours => Reason::HandedOver(vacancy.name.clone()),
            (Some(vacancy), _) => Reason::LetGo(vacancy.name.clone()),
            (None, None) => Reason::Alone,
            (None, Some(said)) if self.peers.is_present(self.now, said) => {
                Reason::LessSound(said.name.clone())
            }
            (None, Some(said)) => Reason::FellSilent(said.name.clone()),
        };
        self.term += 1;
        self.claim = self.term;
        // As one that is active all are to hear it, before they are counted on.
        self.asked = None;
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
        self.listens = Listening::from(self.now, self.interval);
        self.vacancy = None;
        self.late_until = self.now;
    }

    /// The interval that we ask to be counted by.
    fn counted(&self) -> Duration {
        if self.now < self.late_until { stretched(self.interval) } else { self.interval }
    }

    /// Whether all that are present have heard that we ask for patience.
    fn is_granted(&self) -> bool {
        let Some(asked) = self.asked else { return false };
        let mut present = self.peers.all().filter(|(_, said)| self.peers.is_present(self.now, said));
        present.all(|(_, said)| said.echoed >= asked.max(said.since))
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
        let sequence = self.peers.next_sequence(self.now);
        let interval = self.counted();
        self.asked = (interval > self.interval).then(|| self.asked.unwrap_or(sequence));
        let granted = matches!(kind, Kind::Hello | Kind::Advertisement) && self.is_granted();
        self.pace = if granted { interval } else { self.interval };
        let frame = Frame {
            kind: if granted && kind == Kind::Advertisement { Kind::Prolong } else { kind },
            instance: self.instance,
            sequence,
            term: if kind == Kind::Hello { self.term } else { self.claim },
            successor,
            interval,
            priority: self.priority,
            name: self.name.clone(),
            echoes: self.peers.echoes(),
        };
        self.spoke = Some(self.now);
        self.outputs.push(Output::Send(self.seal.seal(&frame)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Duration = Duration::from_millis(50);
    const UID: Uid = [7; 16];
    const KEY: Key = [9; 32];
    const US: Instance = Instance([5; 16]);
    const LOW: Instance = Instance([1; 16]);
    const HIGH: Instance = Instance([9; 16]);
    const SILENCE: Duration = Duration::from_micros(162_500);
    /// How long one listens.
    const LISTENS: Duration = Duration::from_micros(487_500);

    fn ms(ms: u64) -> Time {
        Duration::from_millis(ms)
    }

    fn priority(priority: u8) -> NonZeroU8 {
        NonZeroU8::new(priority).unwrap()
    }

    /// Skew_Time at 50 ms.
    fn skewed(by: u8) -> Duration {
        skew(A, priority(by))
    }

    fn read(payload: &[u8]) -> Frame {
        Seal::new(UID, &KEY).open(payload).unwrap()
    }

    /// The kinds of what is sent, and everything else as it is.
    fn sent(outputs: &[Output]) -> (Vec<Kind>, Vec<Output>) {
        let others = outputs.iter().filter(|output| !matches!(output, Output::Send(_))).cloned().collect();
        (frames(outputs).iter().map(|frame| frame.kind).collect(), others)
    }

    fn frames(outputs: &[Output]) -> Vec<Frame> {
        let payloads = outputs.iter().filter_map(|output| match output {
            Output::Send(payload) => Some(read(payload)),
            _ => None,
        });
        payloads.collect()
    }

    fn became(role: Role, reason: Reason) -> Vec<Output> {
        vec![Output::Became(role, reason)]
    }

    /// Another member, which says what a test wants it to.
    struct Other {
        frame: Frame,
    }

    impl Other {
        fn new(instance: Instance, by: u8) -> Self {
            Self {
                frame: Frame {
                    kind: Kind::Hello,
                    instance,
                    sequence: 0,
                    term: 0,
                    successor: None,
                    interval: A,
                    priority: priority(by),
                    name: format!("pod-{}", instance.0[0]),
                    echoes: Vec::new(),
                },
            }
        }

        fn hears(&mut self, outputs: &[Output]) {
            if let Some(frame) = frames(outputs).last() {
                self.frame.echoes = vec![(frame.instance, frame.sequence)];
            }
        }

        fn says(&mut self, kind: Kind) -> Vec<u8> {
            self.frame.kind = kind;
            self.frame.sequence += 1;
            Seal::new(UID, &KEY).seal(&self.frame)
        }

        fn resigns(&mut self, successor: Instance) -> Vec<u8> {
            self.frame.successor = Some(successor);
            self.says(Kind::Resign)
        }
    }

    /// A member, and whom it hears.
    struct Scene {
        us: Election,
        others: Vec<Other>,
    }

    impl Scene {
        /// A standby that has said Hello at 0.
        fn standby(by: u8, others: &[(Instance, u8)]) -> Self {
            let us = Election::new(
                Member {
                    uid: UID,
                    key: KEY,
                    instance: US,
                    name: "pod-5".to_owned(),
                    interval: A,
                    priority: priority(by),
                },
                ms(0),
            );
            let others = others.iter().map(|(instance, by)| Other::new(*instance, *by)).collect();
            let mut scene = Self { us, others };
            assert_eq!(sent(&scene.tick(ms(0))), (vec![Kind::Hello], vec![]));
            scene
        }

        /// An active one: the others, standby, have just said Hello.
        fn active(by: u8, others: &[(Instance, u8)]) -> (Self, Time) {
            let mut scene = Self::standby(by, others);
            let (at, _) = scene.next_role();
            assert_eq!(scene.us.snapshot().role, Role::Active);
            for other in 0..scene.others.len() {
                scene.hear(at, other, Kind::Hello);
            }
            (scene, at)
        }

        /// Lets time pass.
        fn tick(&mut self, now: Time) -> Vec<Output> {
            let outputs = self.us.tick(now);
            self.others.iter_mut().for_each(|other| other.hears(&outputs));
            outputs
        }

        /// Has an other say something.
        fn hear(&mut self, now: Time, other: usize, kind: Kind) -> Vec<Output> {
            let payload = self.others[other].says(kind);
            self.receive(now, &payload)
        }

        fn receive(&mut self, now: Time, payload: &[u8]) -> Vec<Output> {
            let outputs = self.us.receive(now, payload);
            self.others.iter_mut().for_each(|other| other.hears(&outputs));
            outputs
        }

        /// Lets time pass until then, with nothing late, and returns what is sent.
        fn pass(&mut self, until: Time) -> Vec<Kind> {
            let mut kinds = Vec::new();
            while let Some(due) = self.us.deadline().filter(|due| *due <= until) {
                let (sent, changes) = sent(&self.tick(due));
                assert_eq!(changes, [], "at {due:?}");
                kinds.extend(sent);
            }
            kinds
        }

        /// Lets time pass until the role changes.
        fn next_role(&mut self) -> (Time, Vec<Output>) {
            for _ in 0..100 {
                let due = self.us.deadline().unwrap();
                let outputs = self.tick(due);
                if !sent(&outputs).1.is_empty() {
                    return (due, outputs);
                }
            }
            panic!("the role stays");
        }
    }

    #[test]
    fn initialize_even_the_soundest_listens_first() {
        for by in [1, 100, 255] {
            let mut scene = Scene::standby(by, &[]);
            let mut said = 1;
            let (at, outputs) = loop {
                let due = scene.us.deadline().unwrap();
                let outputs = scene.tick(due);
                if sent(&outputs) != (vec![Kind::Hello], vec![]) {
                    break (due, outputs);
                }
                assert_eq!(due, A * said, "a Hello each interval");
                said += 1;
            };
            assert_eq!(at, LISTENS + skewed(by));
            let kinds = vec![Kind::Take, Kind::Advertisement];
            assert_eq!(sent(&outputs), (kinds, became(Role::Active, Reason::Alone)));
            assert_eq!(frames(&outputs)[0].term, 1);
        }
    }

    #[test]
    fn skew_is_less_the_higher_the_priority() {
        for (by, micros) in [(255, 195), (200, 10_937), (100, 30_468), (1, 49_804)] {
            assert_eq!(skewed(by).as_micros(), micros);
        }
    }

    #[test]
    fn backup_takes_over_from_who_fell_silent() {
        let mut scene = Scene::standby(100, &[(LOW, 100)]);
        scene.others[0].frame.term = 6;
        let mut last = ms(0);
        for at in [10, 60, 110, 250, 400].map(ms) {
            assert!(scene.pass(at).iter().all(|kind| *kind == Kind::Hello));
            assert_eq!(scene.hear(at, 0, Kind::Advertisement), []);
            assert_eq!(scene.us.snapshot().active, Some((LOW, "pod-1".to_owned())));
            last = at;
        }
        let (at, outputs) = scene.next_role();
        assert_eq!(at, last + SILENCE + skewed(100));
        assert_eq!(sent(&outputs).1, became(Role::Active, Reason::FellSilent("pod-1".to_owned())));
        assert_eq!(frames(&outputs)[0].term, 7, "one higher than any heard");
    }

    #[test]
    fn backup_counts_in_the_actives_interval() {
        let mut scene = Scene::standby(100, &[(LOW, 100)]);
        scene.others[0].frame.interval = 2 * A;
        scene.pass(ms(400));
        scene.hear(ms(410), 0, Kind::Advertisement);
        assert_eq!(scene.next_role().0, ms(410) + 2 * (SILENCE + skewed(100)));
    }

    #[test]
    fn backup_lets_a_higher_or_equal_advertisement_reset_its_timer_and_no_lower_one() {
        for (theirs, reset) in [(200, true), (100, true), (99, false)] {
            let mut scene = Scene::standby(100, &[(LOW, theirs)]);
            let mut outputs = Vec::new();
            for at in (1..20).map(|round| A * round) {
                outputs.extend(scene.tick(at));
                outputs.extend(scene.hear(at, 0, Kind::Advertisement));
            }
            let expected = Output::Became(Role::Active, Reason::LessSound("pod-1".to_owned()));
            assert_eq!(outputs.contains(&expected), !reset, "{theirs}");
        }
    }

    #[test]
    fn backup_waits_for_the_lease_of_a_less_sound_one_that_fell_silent() {
        let mut scene = Scene::standby(100, &[(LOW, 99)]);
        for at in [410, 460, 510, 560].map(ms) {
            scene.pass(at);
            scene.hear(at, 0, Kind::Advertisement);
        }
        let (at, outputs) = scene.next_role();
        assert_eq!(at, ms(560) + SILENCE + skewed(100));
        assert_eq!(sent(&outputs).1, became(Role::Active, Reason::FellSilent("pod-1".to_owned())));
    }

    #[test]
    fn backup_of_priority_0_is_a_resign_and_leaves_the_skew() {
        let name = || "pod-1".to_owned();
        for (successor, wait, reason) in [
            (None, skewed(100), Reason::LetGo(name())),
            (Some(US), Duration::ZERO, Reason::HandedOver(name())),
            (Some(HIGH), LISTENS + skewed(100), Reason::LetGo(name())),
        ] {
            let mut scene = Scene::standby(100, &[(LOW, 100)]);
            scene.pass(ms(500));
            scene.hear(ms(510), 0, Kind::Advertisement);
            scene.others[0].frame.successor = successor;
            assert_eq!(scene.hear(ms(520), 0, Kind::Resign), [], "tick decides");
            let (at, outputs) = scene.next_role();
            assert_eq!((at, sent(&outputs).1), (ms(520) + wait, became(Role::Active, reason)));
        }
    }

    #[test]
    fn backup_that_listens_goes_on_with_it_when_one_lets_go() {
        let mut scene = Scene::standby(100, &[(LOW, 100)]);
        scene.hear(ms(10), 0, Kind::Advertisement);
        scene.hear(ms(20), 0, Kind::Resign);
        assert_eq!(scene.next_role().0, LISTENS + skewed(100));
    }

    #[test]
    fn backup_takes_a_hello_of_who_was_active_for_the_resign_that_was_lost() {
        let mut scene = Scene::standby(100, &[(LOW, 100)]);
        scene.pass(ms(500));
        scene.hear(ms(510), 0, Kind::Advertisement);
        scene.hear(ms(520), 0, Kind::Hello);
        assert_eq!(scene.next_role().0, ms(520) + skewed(100));
    }

    #[test]
    fn backup_does_not_take_one_that_yields_for_the_active_one() {
        let mut scene = Scene::standby(100, &[(LOW, 100), (HIGH, 100)]);
        (scene.others[0].frame.term, scene.others[1].frame.term) = (3, 4);
        scene.pass(ms(400));
        scene.hear(ms(410), 0, Kind::Advertisement);
        scene.hear(ms(420), 1, Kind::Advertisement);
        // Whomever it names: us it could, if it has not heard of the other.
        let resign = scene.others[0].resigns(US);
        scene.receive(ms(425), &resign);
        assert_eq!(scene.next_role().0, ms(420) + SILENCE + skewed(100));
    }

    #[test]
    fn backup_that_is_named_and_then_hears_an_active_one_lets_it_be() {
        let mut scene = Scene::standby(100, &[(LOW, 100), (HIGH, 100)]);
        scene.hear(ms(10), 0, Kind::Advertisement);
        let resign = scene.others[0].resigns(US);
        scene.receive(ms(20), &resign);
        scene.others[1].frame.term = 1;
        scene.hear(ms(20), 1, Kind::Take);
        assert_eq!(scene.next_role().0, ms(20) + SILENCE + skewed(100));
    }

    #[test]
    fn backup_has_its_turn_after_better_ones_that_are_present() {
        let mut scene = Scene::standby(100, &[(LOW, 100), (HIGH, 100), (Instance([3; 16]), 200)]);
        scene.hear(ms(0), 1, Kind::Hello);
        scene.hear(ms(0), 2, Kind::Hello);
        for round in 1..=12 {
            scene.pass(A * round);
            scene.hear(A * round, 1, Kind::Hello);
            // Of the two that are better, one is not heard again.
            if round <= 10 {
                scene.hear(A * round, 0, Kind::Advertisement);
                scene.hear(A * round, 2, Kind::Hello);
            }
        }
        let turn = A * 10 + SILENCE + skewed(100) + A / 2;
        assert!(A * 12 + lease(A) > turn, "it is still present then");
        assert_eq!(scene.next_role().0, turn);
    }

    #[test]
    fn backup_listens_anew_when_a_better_one_comes() {
        let mut scene = Scene::standby(100, &[(HIGH, 100), (LOW, 100)]);
        scene.tick(A);
        scene.hear(ms(60), 0, Kind::Hello);
        scene.hear(ms(60), 1, Kind::Hello);
        scene.tick(2 * A);
        scene.hear(ms(110), 0, Kind::Hello);
        assert_eq!(scene.next_role().0, ms(60) + LISTENS + skewed(100));
    }

    #[test]
    fn backup_that_leaves_resigns_and_is_never_active_again() {
        let mut scene = Scene::standby(100, &[(LOW, 100), (HIGH, 100)]);
        scene.hear(ms(10), 0, Kind::Advertisement);
        scene.hear(ms(10), 1, Kind::Hello);
        let outputs = scene.us.leave(ms(20));
        assert_eq!(sent(&outputs), (vec![Kind::Resign], became(Role::Left, Reason::Leaving)));
        assert_eq!(frames(&outputs)[0].successor, None, "it has nothing to hand over");
        assert_eq!(scene.us.deadline(), None);
        let resign = scene.others[0].resigns(US);
        assert_eq!(scene.us.receive(ms(30), &resign), []);
        assert_eq!(scene.us.tick(ms(1000)), []);
        assert_eq!(scene.us.set_priority(ms(1000), priority(255)), []);
        assert_eq!(scene.us.leave(ms(1000)), []);
    }

    #[test]
    fn backup_that_slept_longer_than_a_lease_listens_anew() {
        let due = LISTENS + skewed(100);
        for (woke, takes) in [(due + lease(A), true), (due + lease(A) + ms(1), false)] {
            let mut scene = Scene::standby(100, &[]);
            scene.pass(A * 10);
            assert_eq!(scene.us.deadline(), Some(due));
            let (kinds, changes) = sent(&scene.tick(woke));
            if takes {
                assert_eq!(changes, became(Role::Active, Reason::Alone));
            } else {
                assert_eq!((kinds, changes), (vec![Kind::Hello], vec![]));
                assert_eq!(scene.next_role().0, woke + due);
            }
        }
    }

    #[test]
    fn active_advertises_each_interval() {
        let (mut scene, start) = Scene::active(100, &[]);
        for round in 1..5 {
            assert_eq!(scene.us.deadline(), Some(start + A * round));
            assert_eq!(scene.tick(start + A * round - ms(1)), []);
            let outputs = scene.tick(start + A * round);
            assert_eq!(sent(&outputs), (vec![Kind::Advertisement], vec![]));
        }
    }

    #[test]
    fn active_yields_to_the_higher_of_term_priority_and_instance() {
        for (instance, by, term, yields) in [
            (LOW, 50, 2, true),
            (HIGH, 200, 0, false),
            (LOW, 101, 1, true),
            (HIGH, 99, 1, false),
            (HIGH, 100, 1, true),
            (LOW, 100, 1, false),
        ] {
            let (mut scene, at) = Scene::active(100, &[(instance, 100)]);
            scene.others[0].frame.priority = priority(by);
            scene.others[0].frame.term = term;
            let outputs = scene.hear(at, 0, Kind::Advertisement);
            let with = scene.others[0].frame.name.clone();
            let split = Output::Split { with: with.clone(), stays: !yields };
            assert_eq!(scene.us.counters().splits, 1);
            if yields {
                let role = Output::Became(Role::Standby, Reason::YieldedTo(with));
                assert_eq!(sent(&outputs), (vec![Kind::Resign], vec![split, role]));
                let resign = &frames(&outputs)[0];
                assert_eq!((resign.term, resign.successor), (1, Some(instance)));
            } else {
                assert_eq!(sent(&outputs), (vec![Kind::Advertisement], vec![split]), "at once");
                let again = scene.hear(at, 0, Kind::Advertisement);
                assert_eq!(sent(&again), (vec![Kind::Advertisement], vec![]), "told once");
            }
        }
    }

    #[test]
    fn active_counts_one_that_yields_before_it_was_heard() {
        let (mut scene, at) = Scene::active(100, &[(LOW, 100)]);
        let resign = scene.others[0].resigns(US);
        let outputs = scene.receive(at, &resign);
        assert_eq!(outputs, [Output::Split { with: "pod-1".to_owned(), stays: true }]);
    }

    #[test]
    fn active_hands_over_to_the_soundest_that_is_sounder_and_to_no_equal() {
        let third = Instance([3; 16]);
        let (mut scene, at) = Scene::active(100, &[(HIGH, 100), (LOW, 90), (third, 80)]);
        assert_eq!(sent(&scene.us.set_priority(at, priority(99))).0, [Kind::Resign], "as one is sounder now");

        let (mut scene, at) = Scene::active(100, &[(HIGH, 100), (LOW, 90), (third, 80)]);
        scene.others[2].frame.priority = priority(101);
        let outputs = scene.hear(at, 2, Kind::Hello);
        let reason = Reason::HandedOverTo("pod-3".to_owned());
        assert_eq!(sent(&outputs), (vec![Kind::Resign], became(Role::Standby, reason)));
        assert_eq!(frames(&outputs)[0].successor, Some(third));
    }

    #[test]
    fn active_keeps_the_addresses_when_nobody_is_sounder_and_says_how_it_is() {
        let (mut scene, at) = Scene::active(100, &[(HIGH, 20), (LOW, 10)]);
        let outputs = scene.us.set_priority(at, priority(20));
        assert_eq!(sent(&outputs), (vec![Kind::Advertisement], vec![]));
        assert_eq!(frames(&outputs)[0].priority, priority(20));
        assert_eq!(scene.us.set_priority(at, priority(20)), [], "nothing new");

        let mut scene = Scene::standby(100, &[]);
        assert_eq!(sent(&scene.us.set_priority(ms(10), priority(20))).0, [Kind::Hello]);
    }

    #[test]
    fn active_that_leaves_names_the_best_standby_that_is_present() {
        let third = Instance([3; 16]);
        let (mut scene, at) = Scene::active(100, &[(HIGH, 50), (LOW, 60), (third, 90)]);
        // The soundest leaves, and one is not heard again.
        scene.hear(at, 2, Kind::Resign);
        let later = at + 2 * A;
        scene.tick(at + A);
        scene.tick(later);
        scene.hear(later, 0, Kind::Hello);
        scene.tick(at + 3 * A);
        let outputs = scene.us.leave(at + 3 * A);
        assert_eq!(sent(&outputs), (vec![Kind::Resign], became(Role::Left, Reason::Leaving)));
        assert_eq!(frames(&outputs)[0].successor, Some(HIGH));
    }

    #[test]
    fn active_that_slept_longer_than_its_lease_does_nothing_before_it_is_standby() {
        let (mut scene, at) = Scene::active(100, &[]);
        assert!(scene.us.holds(at + lease(A)));
        assert_eq!(scene.pass(at + A), [Kind::Advertisement]);
        let woke = at + A + lease(A) + ms(1);
        assert!(!scene.us.holds(woke));
        let expected = became(Role::Standby, Reason::Lapsed(lease(A) + ms(1)));
        let outputs = scene.tick(woke);
        assert_eq!(sent(&outputs), (vec![Kind::Resign], expected.clone()));
        assert_eq!(scene.next_role().0, woke + LISTENS + skewed(100));

        // So with every other input.
        for input in 0..3 {
            let (mut scene, at) = Scene::active(100, &[(LOW, 100)]);
            let outputs = match input {
                0 => scene.hear(ms(1000), 0, Kind::Advertisement),
                1 => scene.us.refused(ms(1000)),
                _ => scene.us.leave(ms(1000)),
            };
            let lapsed = Output::Became(Role::Standby, Reason::Lapsed(ms(1000) - at));
            assert_eq!(sent(&outputs[..2]), (vec![Kind::Resign], vec![lapsed]));
        }
    }

    #[test]
    fn active_that_the_kernel_refuses_is_standby_and_names_who_is_present() {
        let (mut scene, at) = Scene::active(100, &[(LOW, 100)]);
        let outputs = scene.us.refused(at);
        assert_eq!(sent(&outputs), (vec![Kind::Resign], became(Role::Standby, Reason::Refused)));
        assert_eq!(frames(&outputs)[0].successor, Some(LOW));
        assert_eq!(scene.us.refused(at), [], "a standby has nothing to lose");
    }

    #[test]
    fn who_is_isolated_lets_go_and_listens_for_as_long_and_a_while_more() {
        let (mut scene, at) = Scene::active(100, &[(LOW, 100)]);
        let outputs = scene.us.isolated(at);
        assert_eq!(sent(&outputs), (vec![Kind::Resign], became(Role::Standby, Reason::Isolated)));
        assert_eq!(frames(&outputs)[0].successor, None, "nobody is heard");
        for round in 1..20 {
            assert_eq!(scene.us.isolated(at + A * round), []);
            assert!(sent(&scene.tick(at + A * round)).1.is_empty());
        }
        let (back, _) = scene.next_role();
        assert_eq!(back, at + A * 19 + LISTENS + skewed(100));
    }

    #[test]
    fn what_does_not_answer_changes_nothing_but_the_echoes() {
        for kind in [Kind::Hello, Kind::Resign, Kind::Advertisement, Kind::Take] {
            let mut scene = Scene::standby(100, &[(HIGH, 200)]);
            let echo = scene.others[0].frame.echoes.clone();
            scene.others[0].frame.term = 9;
            for (round, echoes) in [
                // To nobody; to another; to what we have not said yet.
                vec![],
                vec![(LOW, 1)],
                vec![(US, 2)],
            ]
            .into_iter()
            .enumerate()
            {
                scene.others[0].frame.echoes = echoes;
                scene.others[0].frame.successor = Some(US);
                assert_eq!(scene.hear(ms(10), 0, kind), []);
                assert_eq!(scene.us.counters().unanswering, round as u64 + 1);
            }
            let hello = &frames(&scene.tick(A))[0];
            assert_eq!((hello.term, &hello.echoes), (0, &vec![(HIGH, 3)]));
            assert_eq!(scene.us.snapshot().others, []);
            // Nor what answers what is long said.
            scene.pass(3 * A);
            scene.others[0].frame.echoes = echo;
            assert_eq!(scene.hear(ms(151), 0, kind), []);
            assert_eq!(scene.us.counters().unanswering, 4);
            let (at, outputs) = scene.next_role();
            assert_eq!(at, LISTENS + skewed(100));
            assert_eq!(sent(&outputs).1, became(Role::Active, Reason::Alone));
        }
    }

    /// What we ask to be counted by, with the kind.
    fn asks(outputs: &[Output]) -> Vec<(Kind, Duration)> {
        frames(outputs).iter().map(|frame| (frame.kind, frame.interval)).collect()
    }

    #[test]
    fn active_that_comes_late_has_a_longer_lease_once_all_know() {
        let (mut scene, at) = Scene::active(100, &[(LOW, 90), (HIGH, 80), (Instance([4; 16]), 70)]);
        let on_time = at + A * 2 - ms(1);
        assert_eq!(asks(&scene.tick(on_time)), [(Kind::Advertisement, A)]);
        scene.hear(on_time, 0, Kind::Hello);
        scene.hear(on_time, 1, Kind::Hello);
        let late = on_time + A * 2;
        assert_eq!(asks(&scene.tick(late)), [(Kind::Advertisement, 3 * A)], "nobody knows yet");
        assert_eq!(scene.us.counters().late, 1);
        assert!(!scene.us.holds(late + lease(A) + ms(1)));

        // One has heard it, and the other not; a third is not there any more.
        let echoes = scene.others[1].frame.echoes.clone();
        scene.hear(late, 0, Kind::Hello);
        scene.others[1].frame.echoes = vec![(US, echoes[0].1 - 1)];
        scene.hear(late, 1, Kind::Hello);
        assert_eq!(asks(&scene.tick(late + A)), [(Kind::Advertisement, 3 * A)]);
        scene.hear(late + A, 1, Kind::Hello);
        assert_eq!(asks(&scene.tick(late + A * 2)), [(Kind::Prolong, 3 * A)]);
        assert!(scene.us.holds(late + A * 2 + lease(3 * A)));
        assert!(!scene.us.holds(late + A * 2 + lease(3 * A) + ms(1)));

        // Who comes anew knows nothing of it.
        let mut new = Other::new(Instance([3; 16]), 70);
        new.frame.echoes = vec![(US, echoes[0].1 - 1)];
        scene.others.push(new);
        scene.hear(late + A * 2, 3, Kind::Hello);
        assert_eq!(scene.us.deadline(), Some(late + A * 5), "it speaks less as well");
        scene.hear(late + A * 3, 3, Kind::Hello);
        assert_eq!(asks(&scene.tick(late + A * 5)), [(Kind::Advertisement, 3 * A)]);
        assert!(!scene.us.holds(late + A * 5 + lease(A) + ms(1)));
        // What it echoes did not answer it.
        scene.others[3].frame.echoes[0].1 -= 1;
        scene.hear(late + A * 5, 3, Kind::Hello);
        assert_eq!(asks(&scene.tick(late + A * 6)), [(Kind::Advertisement, 3 * A)]);
        scene.hear(late + A * 6, 3, Kind::Hello);
        assert_eq!(asks(&scene.tick(late + A * 7)), [(Kind::Prolong, 3 * A)]);
        let last = late + A * PATIENCE;
        assert_eq!(scene.pass(last - ms(1)).last(), Some(&Kind::Prolong));
        let due = scene.us.deadline().unwrap();
        assert_eq!(asks(&scene.tick(due)), [(Kind::Advertisement, A)], "it was late long ago");
        assert!(!scene.us.holds(due + lease(A) + ms(1)));
    }

    #[test]
    fn active_has_to_be_known_as_such_before_its_lease_is_longer() {
        let mut scene = Scene::standby(100, &[(LOW, 90)]);
        scene.hear(ms(0), 0, Kind::Hello);
        let outputs = loop {
            let due = scene.us.deadline().unwrap() + A;
            scene.hear(due, 0, Kind::Hello);
            let outputs = scene.tick(due);
            if !sent(&outputs).1.is_empty() {
                break outputs;
            }
        };
        assert_eq!(asks(&outputs), [(Kind::Take, 3 * A), (Kind::Advertisement, 3 * A)]);
    }

    #[test]
    fn active_does_not_count_on_patience_that_it_only_asked_for() {
        // A deaf one takes over after the Active_Down_Interval: whoever is late
        // is not to take what it heard before for an answer.
        let (mut scene, at) = Scene::active(100, &[(HIGH, 100)]);
        scene.others[0].frame.term = 2;
        let echoes = scene.others[0].frame.echoes.clone();
        scene.tick(at + A * 2);
        scene.others[0].frame.echoes = echoes;
        assert_eq!(scene.hear(at + lease(A) + ms(1), 0, Kind::Take), []);
        assert_eq!(scene.us.counters().unanswering, 1);
    }

    #[test]
    fn backup_that_comes_late_has_more_patience() {
        let mut scene = Scene::standby(100, &[(LOW, 100)]);
        scene.pass(ms(400));
        scene.hear(ms(410), 0, Kind::Advertisement);
        let hello = scene.tick(ms(500));
        assert_eq!(asks(&hello), [(Kind::Hello, 3 * A)]);
        // It answers what was said before one was late.
        let echo = frames(&hello)[0].sequence - 1;
        scene.others[0].frame.echoes = vec![(US, echo)];
        scene.hear(ms(560), 0, Kind::Advertisement);
        assert_eq!(scene.us.counters().unanswering, 0);
        assert_eq!(scene.next_role().0, ms(560) + 3 * (SILENCE + skewed(100)));
    }

    #[test]
    fn each_frame_counts_once_and_those_of_others_never() {
        let mut scene = Scene::standby(100, &[(LOW, 100)]);
        scene.pass(ms(500));
        let first = scene.others[0].says(Kind::Advertisement);
        let resign = scene.others[0].says(Kind::Resign);
        scene.receive(ms(510), &first);
        scene.receive(ms(520), &resign);
        scene.receive(ms(530), &first);
        scene.receive(ms(530), &resign);
        assert_eq!(scene.next_role().0, ms(520) + skewed(100));

        let mut forged = first.clone();
        forged[0] = Kind::Take as u8;
        let foreign = Seal::new([8; 16], &KEY).seal(&read(&first));
        for payload in [&forged, &foreign, &vec![0; 9]] {
            assert_eq!(scene.receive(ms(580), payload), []);
        }
        let ours = scene.us.tick(ms(650));
        let Output::Send(payload) = &ours[0] else { panic!() };
        assert_eq!(scene.us.receive(ms(650), payload), [], "a network that returns our words");
        let expected = Counters {
            malformed: 1,
            foreign: 1,
            bad_tag: 1,
            replayed: 2,
            unanswering: 0,
            splits: 0,
            late: 0,
        };
        assert_eq!(scene.us.counters(), expected);
    }

    #[test]
    fn everything_is_to_be_seen() {
        let mut scene = Scene::standby(100, &[(LOW, 90), (HIGH, 80), (Instance([3; 16]), 70)]);
        scene.others[0].frame.term = 4;
        scene.hear(ms(10), 0, Kind::Advertisement);
        scene.hear(ms(20), 1, Kind::Hello);
        scene.hear(ms(30), 2, Kind::Resign);
        let seen = |instance: Instance, by, role, at| Seen {
            instance,
            name: format!("pod-{}", instance.0[0]),
            priority: priority(by),
            role,
            at: ms(at),
        };
        let expected = Snapshot {
            role: Role::Standby,
            since: ms(0),
            reason: Reason::Started,
            term: 4,
            active: Some((LOW, "pod-1".to_owned())),
            others: vec![
                seen(LOW, 90, Role::Active, 10),
                seen(Instance([3; 16]), 70, Role::Left, 30),
                seen(HIGH, 80, Role::Standby, 20),
            ],
        };
        assert_eq!(scene.us.snapshot(), expected);
        let (at, _) = scene.next_role();
        let snapshot = scene.us.snapshot();
        assert_eq!((snapshot.role, snapshot.since, snapshot.term), (Role::Active, at, 5));
        assert_eq!(snapshot.active, Some((US, "pod-5".to_owned())));
        // They are forgotten.
        scene.tick(ms(1000));
        assert_eq!(scene.us.snapshot().others, []);
    }

    #[test]
    fn reasons_are_said_in_words() {
        let name = || "pod-1".to_owned();
        for (reason, words) in [
            (Reason::Started, "started"),
            (Reason::Alone, "nobody else was there"),
            (Reason::FellSilent(name()), "pod-1 fell silent"),
            (Reason::HandedOver(name()), "pod-1 handed over"),
            (Reason::LetGo(name()), "pod-1 let go"),
            (Reason::LessSound(name()), "pod-1 is less sound"),
            (Reason::YieldedTo(name()), "yielded to pod-1"),
            (Reason::HandedOverTo(name()), "handed over to pod-1, which is sounder"),
            (Reason::Lapsed(ms(5000)), "lapsed: slept 5000 ms"),
            (Reason::Refused, "lapsed: refused by the kernel"),
            (Reason::Isolated, "isolated: neither another pod nor the router is heard"),
            (Reason::Leaving, "leaving"),
        ] {
            assert_eq!(reason.to_string(), words);
        }
    }
}
