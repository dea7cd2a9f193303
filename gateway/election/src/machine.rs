//! The state machine of one member. States and section numbers are those of RFC
//! 9568, 6.4.

mod snapshot;

use std::num::NonZeroU8;
use std::time::Duration;

use crate::config::MemberConfig;
use crate::events::{Counters, Output, Reason, Role};
use crate::frame::{Frame, Instance, Kind, Rejected, Seal};
use crate::hold::{Hold, Release};
use crate::peers::{PeerRole, Peers, Receipt, Report};
use crate::{Mac, STRANGER_WAIT, Time, active_down_interval, extended, lease_time, skew_time};

/// For how many intervals after a missed deadline a member requests the
/// extended timers.
const OVERLOAD_INTERVALS: u32 = 200;

/// One member of the election among a gateway's pods.
///
/// Each input carries the time and returns the outputs to carry out, in order.
/// An input with an earlier time than a previous one counts as of the latest.
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
    own_term: u64,
    now: Time,
    /// When the last frame was sent; while active, it renewed the lease.
    last_sent: Option<Time>,
    /// The interval until the next frame, on which the lease depends as well:
    /// the extended one only if all reachable peers know.
    send_interval: Duration,
    /// Until then this member requests to be timed by the extended interval.
    overloaded_until: Time,
    /// The first of the last consecutive frames that requested it.
    requested_in: Option<u64>,
    role: Role,
    since: Time,
    reason: Reason,
    /// As standby.
    hold: Hold,
    release: Option<Release>,
    /// When a host that is not a member was first received to answer for the
    /// addresses.
    in_use_since: Option<Time>,
    /// The last split brain that we stayed active in: the other's instance and
    /// term.
    split: Option<(Instance, u64)>,
    counters: Counters,
    outputs: Vec<Output>,
}

impl Election {
    /// A standby that has received nothing yet (6.4.1). The first `tick` is due.
    pub fn new(config: MemberConfig, now: Time) -> Self {
        let longest = u128::from(u16::MAX) / extended(Duration::from_millis(1)).as_millis();
        let interval = Duration::from_millis(config.interval.as_millis().clamp(1, longest) as u64);
        Self {
            seal: Seal::new(config.uid, &config.key),
            instance: config.instance,
            name: config.name,
            interval,
            priority: config.priority,
            peers: Peers::new(config.instance, interval),
            term: 0,
            own_term: 0,
            now,
            last_sent: None,
            send_interval: interval,
            overloaded_until: now,
            requested_in: None,
            role: Role::Standby,
            since: now,
            reason: Reason::Started,
            hold: Hold::from(now, interval),
            release: None,
            in_use_since: None,
            split: None,
            counters: Counters::default(),
            outputs: Vec::new(),
        }
    }

    /// When to call [`tick`](Self::tick) next.
    pub fn deadline(&self) -> Time {
        let send_due = self.last_sent.map_or(self.now, |sent| sent + self.send_interval);
        match self.role {
            Role::Active | Role::Left => send_due,
            Role::Standby => send_due.min(self.take_over_due()),
        }
    }

    /// Whether the lease may still be held. To be called with the current time
    /// before an address is added or announced: the process may have slept
    /// since it became active.
    pub fn holds_lease(&self, now: Time) -> bool {
        self.lease_until().is_some_and(|until| now <= until)
    }

    /// Until when the lease is held if it is not renewed; `None` on a standby.
    pub fn lease_until(&self) -> Option<Time> {
        let active = self.role == Role::Active;
        active.then(|| self.last_sent.unwrap_or_default() + lease_time(self.send_interval))
    }

    /// Time has passed, and every frame received before has been processed.
    #[must_use]
    pub fn tick(&mut self, now: Time) -> Vec<Output> {
        self.advance(now);
        let send_due = self.last_sent.is_none_or(|sent| self.now >= sent + self.send_interval);
        match self.role {
            Role::Active if send_due => self.send(Kind::Advertisement, None),
            Role::Standby if self.now >= self.take_over_due() => self.take_over(),
            Role::Standby if send_due => self.send(Kind::Keepalive, None),
            // The others go on to know of it, and that it is no successor.
            Role::Left if send_due => self.send(Kind::Resign, None),
            _ => {}
        }
        std::mem::take(&mut self.outputs)
    }

    /// Processes the payload of a frame that was received from this hardware address.
    #[must_use]
    pub fn receive(&mut self, now: Time, from: Mac, payload: &[u8]) -> Vec<Output> {
        self.advance(now);
        if let Some((frame, before)) = self.accept(from, payload) {
            self.term = self.term.max(frame.term);
            match self.role {
                Role::Active => self.receive_as_active(&frame),
                Role::Standby => self.receive_as_standby(&frame, before.as_ref()),
                Role::Left => {}
            }
        }
        std::mem::take(&mut self.outputs)
    }

    /// Changes this member's priority, and sends it at once: another member may
    /// have the highest one now.
    #[must_use]
    pub fn set_priority(&mut self, now: Time, priority: NonZeroU8) -> Vec<Output> {
        self.advance(now);
        if priority != self.priority {
            self.priority = priority;
            match self.role {
                Role::Active => {
                    if !self.hand_over() {
                        self.send(Kind::Advertisement, None);
                    }
                }
                Role::Standby => self.send(Kind::Keepalive, None),
                Role::Left => {}
            }
        }
        std::mem::take(&mut self.outputs)
    }

    /// A frame could not be sent: the kernel dropped it because the lease has
    /// expired, or the LAN's link is down.
    #[must_use]
    pub fn send_failed(&mut self, now: Time) -> Vec<Output> {
        self.resign(now, Reason::SendFailed)
    }

    /// The gateway does not do its other work: it could neither add an address nor
    /// follow its configuration.
    #[must_use]
    pub fn stalled(&mut self, now: Time) -> Vec<Output> {
        self.resign(now, Reason::Stalled)
    }

    fn resign(&mut self, now: Time, reason: Reason) -> Vec<Output> {
        self.advance(now);
        if self.role == Role::Active {
            let successor = self.peers.best_standby(self.now).map(|(instance, _)| instance);
            self.become_standby(successor, reason);
        }
        std::mem::take(&mut self.outputs)
    }

    /// Nothing on the LAN is reachable. While this is called repeatedly, the
    /// member does not become active.
    #[must_use]
    pub fn isolated(&mut self, now: Time) -> Vec<Output> {
        self.advance(now);
        match self.role {
            Role::Active => self.become_standby(None, Reason::Isolated),
            Role::Standby => self.restart_hold(),
            Role::Left => {}
        }
        std::mem::take(&mut self.outputs)
    }

    /// A host that is not a member answers for the addresses. While this is
    /// called repeatedly, a standby does not take over: for as long as that lasts
    /// if the host is of the same gateway, else for [`STRANGER_WAIT`] from the
    /// first call.
    pub fn address_in_use(&mut self, now: Time, same_gateway: bool) {
        self.advance(now);
        let since = *self.in_use_since.get_or_insert(self.now);
        if self.role == Role::Standby && (same_gateway || self.now < since + STRANGER_WAIT) {
            self.restart_hold();
        }
    }

    /// Leaves for good: the member is never active again. For as long as the driver
    /// keeps it, the other members receive from it.
    #[must_use]
    pub fn leave(&mut self, now: Time) -> Vec<Output> {
        self.advance(now);
        if self.role != Role::Left {
            let best = self.peers.best_standby(self.now).filter(|_| self.role == Role::Active);
            let successor = best.map(|(instance, _)| instance);
            self.send(Kind::Resign, successor);
            self.set_role(Role::Left, Reason::Leaving);
        }
        std::mem::take(&mut self.outputs)
    }

    /// Sets the time, before any input is processed, and handles what the
    /// process may have slept through.
    fn advance(&mut self, now: Time) {
        let due = self.deadline();
        self.now = self.now.max(now);
        self.peers.expire(self.now);
        if self.now >= due + self.interval {
            self.counters.overloaded += 1;
            self.overloaded_until = self.now + OVERLOAD_INTERVALS * self.interval;
        }
        match self.role {
            Role::Active if !self.holds_lease(self.now) => {
                let slept = self.now - self.last_sent.unwrap_or_default();
                // Which peers are reachable is unknown after that: no successor.
                self.become_standby(None, Reason::LeaseExpired(slept));
            }
            // Frames sent meanwhile may be lost, or not processed yet.
            Role::Standby if self.now > due + lease_time(self.interval) => {
                self.restart_hold();
            }
            _ => {}
        }
    }

    /// Returns the frame if it is fresh, and its sender's previous report.
    fn accept(&mut self, from: Mac, payload: &[u8]) -> Option<(Frame, Option<Report>)> {
        let frame = match self.seal.open(payload) {
            // Our own frame, reflected by the network.
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
        // An active member counts on extended timers only once all peers know of
        // the request.
        let requested = if self.role == Role::Active { self.interval } else { self.requested_interval() };
        let interval = self.send_interval.max(requested);
        match self.peers.receive(self.now, from, &frame, interval, self.priority) {
            Receipt::Fresh(before) => return Some((frame, before)),
            Receipt::Replayed => self.counters.replayed += 1,
            Receipt::Unacknowledging => self.counters.unacknowledging += 1,
        }
        None
    }

    fn receive_as_active(&mut self, frame: &Frame) {
        let theirs = (frame.term, frame.priority, frame.instance);
        let ours = (self.own_term, self.priority, self.instance);
        match frame.kind {
            Kind::Advertisement | Kind::ExtendedAdvertisement | Kind::TakeOver if theirs > ours => {
                self.report_split(frame, false);
                // Names a successor, so that standbys that follow us do not take
                // this for a release.
                self.become_standby(Some(frame.instance), Reason::SteppedDown(frame.name.clone()));
            }
            Kind::Advertisement | Kind::ExtendedAdvertisement | Kind::TakeOver => {
                self.report_split(frame, true);
                self.send(Kind::Advertisement, None);
            }
            // It stepped down before we received that it was active.
            Kind::Resign if frame.successor == Some(self.instance) => self.report_split(frame, true),
            Kind::Keepalive if frame.priority > self.priority => {
                self.hand_over();
            }
            Kind::Keepalive | Kind::Resign => {}
        }
    }

    /// `before` is the sender's previous report.
    fn receive_as_standby(&mut self, frame: &Frame, before: Option<&Report>) {
        if matches!(frame.kind, Kind::Advertisement | Kind::ExtendedAdvertisement | Kind::TakeOver) {
            self.release = None;
            return;
        }
        // A Keepalive of the active member stands for the Resign that was lost.
        let was_active = before.is_some_and(|before| before.role == PeerRole::Active);
        let names_us = frame.kind == Kind::Resign && frame.successor == Some(self.instance);
        let outranked = self
            .peers
            .actives()
            .any(|(_, other)| other.term > frame.term && self.peers.is_reachable(self.now, other));
        if (was_active || names_us) && !outranked {
            if frame.successor.is_some() && !names_us {
                // The successor may hold the lease from now on, received from or
                // not.
                self.hold = Hold::from(self.now, self.interval);
            } else if names_us || self.hold.until < self.now {
                // A hold that has not ended goes on, as with the other standbys.
                self.hold = Hold { until: self.now, interval: self.interval };
            }
            self.release = Some(Release { name: frame.name.clone(), names_us });
        } else if frame.kind == Kind::Keepalive
            && self.release.is_none()
            && self.precedes_us(frame.priority, frame.instance)
        {
            // A standby that is new and precedes us starts with a hold. So do
            // we, else both holds could end at the same time.
            let reachable = |report: &&Report| self.peers.is_reachable(self.now, report);
            if before.filter(reachable).is_none_or(|before| before.role != PeerRole::Standby) {
                self.hold = Hold::from(self.now, self.interval);
            }
        }
    }

    /// When this standby takes over if it receives nothing more: when the last
    /// active member has been silent for the Active_Down_Interval, or has had a
    /// lower priority for that long without handing over; and half an interval
    /// later for each reachable standby that precedes us. A named successor does
    /// not wait.
    fn take_over_due(&self) -> Time {
        let Hold { until, interval } = self.hold;
        if self.release.as_ref().is_some_and(|release| release.names_us) {
            return until;
        }
        let hold_end = (until + skew_time(self.interval, self.priority), interval);
        let (start, interval) = self
            .peers
            .actives()
            .map(|(_, report)| {
                let interval = report.interval.max(self.requested_interval());
                let timer = active_down_interval(interval) + skew_time(interval, self.priority);
                // Upon its next advertisement, not before: a silent one may
                // still hold the lease.
                let overdue = report.at >= report.timer_reset + timer;
                (if overdue { report.at } else { report.at + timer }, interval)
            })
            .fold(hold_end, Ord::max);
        let mut preceding: Vec<Time> = self
            .peers
            .standbys()
            .filter(|(instance, report)| self.precedes_us(report.priority, *instance))
            .map(|(_, report)| self.peers.reachable_until(report))
            .collect();
        preceding.sort_by(|a, b| b.cmp(a));
        // The precedence delay with so many standbys before us ends then, and no
        // sooner than the others are unreachable. The longer the wait, the
        // further are clocks apart.
        let delays = (0..=preceding.len()).map(|count| {
            let end = start + interval / 2 * count as u32;
            preceding.get(count).map_or(end, |gone| end.max(*gone))
        });
        delays.min().unwrap_or(start)
    }

    /// Whether a standby with this priority and instance takes over before us.
    fn precedes_us(&self, priority: NonZeroU8, instance: Instance) -> bool {
        (priority, instance) > (self.priority, self.instance)
    }

    fn take_over(&mut self) {
        let last = self.peers.actives().max_by_key(|(_, report)| report.at).map(|(_, report)| report);
        let reason = match (&self.release, last) {
            (Some(release), _) if release.names_us => Reason::HandedOver(release.name.clone()),
            (Some(release), _) => Reason::Released(release.name.clone()),
            (None, None) => Reason::Alone,
            (None, Some(report)) if self.peers.is_reachable(self.now, report) => {
                Reason::LowerPriority(report.name.clone())
            }
            (None, Some(report)) => Reason::FellSilent(report.name.clone()),
        };
        self.term += 1;
        self.own_term = self.term;
        // As the active member it has to be acknowledged anew by all peers.
        self.requested_in = None;
        self.send(Kind::TakeOver, None);
        // Two frames, as one may be lost and the next standby waits only half an
        // interval.
        self.send(Kind::Advertisement, None);
        self.set_role(Role::Active, reason);
    }

    /// Hands over to the standby with the highest priority, if that is higher
    /// than ours.
    fn hand_over(&mut self) -> bool {
        let best = self.peers.best_standby(self.now).filter(|(_, report)| report.priority > self.priority);
        let Some((successor, name)) = best.map(|(instance, report)| (instance, report.name.clone())) else {
            return false;
        };
        self.become_standby(Some(successor), Reason::HandedOverTo(name));
        true
    }

    fn become_standby(&mut self, successor: Option<Instance>, reason: Reason) {
        self.send(Kind::Resign, successor);
        self.set_role(Role::Standby, reason);
        self.restart_hold();
    }

    /// As after the start of the process.
    fn restart_hold(&mut self) {
        self.hold = Hold::from(self.now, self.interval);
        self.release = None;
        self.overloaded_until = self.now;
    }

    /// The interval that this member requests to be timed by.
    fn requested_interval(&self) -> Duration {
        if self.now < self.overloaded_until { extended(self.interval) } else { self.interval }
    }

    /// Whether all reachable peers have acknowledged the request for extended
    /// timers.
    fn is_request_acknowledged(&self) -> bool {
        let Some(requested) = self.requested_in else { return false };
        let mut reachable = self.peers.all().filter(|(_, report)| self.peers.is_reachable(self.now, report));
        reachable.all(|(_, report)| report.acked >= requested.max(report.since))
    }

    fn set_role(&mut self, role: Role, reason: Reason) {
        self.role = role;
        self.since = self.now;
        self.reason = reason.clone();
        self.outputs.push(Output::RoleChanged(role, reason));
    }

    fn report_split(&mut self, frame: &Frame, stays: bool) {
        let split = Some((frame.instance, frame.term));
        if !stays || self.split != split {
            self.split = split;
            self.counters.splits += 1;
            self.outputs.push(Output::SplitBrain { with: frame.name.clone(), stays });
        }
    }

    fn send(&mut self, kind: Kind, successor: Option<Instance>) {
        let sequence = self.peers.next_sequence(self.now);
        let interval = self.requested_interval();
        self.requested_in = (interval > self.interval).then(|| self.requested_in.unwrap_or(sequence));
        let extends = matches!(kind, Kind::Keepalive | Kind::Advertisement) && self.is_request_acknowledged();
        self.send_interval = if extends { interval } else { self.interval };
        let frame = Frame {
            kind: if extends && kind == Kind::Advertisement { Kind::ExtendedAdvertisement } else { kind },
            instance: self.instance,
            sequence,
            term: if kind == Kind::Keepalive { self.term } else { self.own_term },
            successor,
            interval,
            priority: self.priority,
            name: self.name.clone(),
            acks: self.peers.acks(),
        };
        self.last_sent = Some(self.now);
        self.outputs.push(Output::Send(self.seal.seal(&frame)));
    }
}

#[cfg(test)]
mod tests;
