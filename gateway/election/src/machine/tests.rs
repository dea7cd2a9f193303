//! RFC 9568, section 6.4, state by state, and what this election adds to it.

use super::*;
use crate::events::{PeerSnapshot, Snapshot};
use crate::frame::{Key, Uid};

const A: Duration = Duration::from_millis(50);
const UID: Uid = [7; 16];
const KEY: Key = [9; 32];
const MAC: Mac = [2, 0, 0, 0, 0, 1];
const US: Instance = Instance([5; 16]);
const LOW: Instance = Instance([1; 16]);
const HIGH: Instance = Instance([9; 16]);
const DOWN_INTERVAL: Duration = Duration::from_micros(162_500);
/// How long the hold lasts.
const HOLD: Duration = Duration::from_micros(487_500);

fn ms(ms: u64) -> Time {
    Duration::from_millis(ms)
}

fn priority(priority: u8) -> NonZeroU8 {
    NonZeroU8::new(priority).unwrap()
}

/// Skew_Time at 50 ms.
fn skewed(by: u8) -> Duration {
    skew_time(A, priority(by))
}

fn read(payload: &[u8]) -> Frame {
    Seal::new(UID, &KEY).open(payload).unwrap()
}

/// The kinds of the frames sent, and the other outputs.
fn sent(outputs: &[Output]) -> (Vec<Kind>, Vec<Output>) {
    let peers = outputs.iter().filter(|output| !matches!(output, Output::Send(_))).cloned().collect();
    (frames(outputs).iter().map(|frame| frame.kind).collect(), peers)
}

fn frames(outputs: &[Output]) -> Vec<Frame> {
    let payloads = outputs.iter().filter_map(|output| match output {
        Output::Send(payload) => Some(read(payload)),
        _ => None,
    });
    payloads.collect()
}

fn role_changed(role: Role, reason: Reason) -> Vec<Output> {
    vec![Output::RoleChanged(role, reason)]
}

/// Another member, whose frames the test chooses.
struct Peer {
    frame: Frame,
}

impl Peer {
    fn new(instance: Instance, by: u8) -> Self {
        Self {
            frame: Frame {
                kind: Kind::Keepalive,
                instance,
                sequence: 0,
                term: 0,
                successor: None,
                interval: A,
                priority: priority(by),
                name: format!("pod-{}", instance.0[0]),
                acks: Vec::new(),
            },
        }
    }

    fn receives(&mut self, outputs: &[Output]) {
        if let Some(frame) = frames(outputs).last() {
            self.frame.acks = vec![(frame.instance, frame.sequence)];
        }
    }

    fn sends(&mut self, kind: Kind) -> Vec<u8> {
        self.frame.kind = kind;
        self.frame.sequence += 1;
        Seal::new(UID, &KEY).seal(&self.frame)
    }

    fn resigns(&mut self, successor: Instance) -> Vec<u8> {
        self.frame.successor = Some(successor);
        self.sends(Kind::Resign)
    }
}

/// A member under test, and its peers.
struct Fixture {
    us: Election,
    peers: Vec<Peer>,
}

impl Fixture {
    /// A standby that has sent a Keepalive at 0.
    fn standby(by: u8, peers: &[(Instance, u8)]) -> Self {
        let us = Election::new(
            MemberConfig {
                uid: UID,
                key: KEY,
                instance: US,
                name: "pod-5".to_owned(),
                interval: A,
                priority: priority(by),
            },
            ms(0),
        );
        let peers = peers.iter().map(|(instance, by)| Peer::new(*instance, *by)).collect();
        let mut fixture = Self { us, peers };
        assert_eq!(sent(&fixture.tick(ms(0))), (vec![Kind::Keepalive], vec![]));
        fixture
    }

    /// An active member, whose standby peers have just sent a Keepalive.
    fn active(by: u8, peers: &[(Instance, u8)]) -> (Self, Time) {
        let mut fixture = Self::standby(by, peers);
        let (at, _) = fixture.next_role();
        assert_eq!(fixture.us.snapshot().role, Role::Active);
        for peer in 0..fixture.peers.len() {
            fixture.deliver(at, peer, Kind::Keepalive);
        }
        (fixture, at)
    }

    /// Lets time pass.
    fn tick(&mut self, now: Time) -> Vec<Output> {
        let outputs = self.us.tick(now);
        self.peers.iter_mut().for_each(|peer| peer.receives(&outputs));
        outputs
    }

    /// Delivers a frame of a peer.
    fn deliver(&mut self, now: Time, peer: usize, kind: Kind) -> Vec<Output> {
        let payload = self.peers[peer].sends(kind);
        self.receive(now, &payload)
    }

    fn receive(&mut self, now: Time, payload: &[u8]) -> Vec<Output> {
        let outputs = self.us.receive(now, MAC, payload);
        self.peers.iter_mut().for_each(|peer| peer.receives(&outputs));
        outputs
    }

    /// Lets time pass until then, with no deadline missed, and returns the kinds of frames sent.
    fn pass(&mut self, until: Time) -> Vec<Kind> {
        let mut kinds = Vec::new();
        while self.us.deadline() <= until {
            let due = self.us.deadline();
            let (sent, changes) = sent(&self.tick(due));
            assert_eq!(changes, [], "at {due:?}");
            kinds.extend(sent);
        }
        kinds
    }

    /// Lets time pass until the role changes.
    fn next_role(&mut self) -> (Time, Vec<Output>) {
        for _ in 0..100 {
            let due = self.us.deadline();
            let outputs = self.tick(due);
            if !sent(&outputs).1.is_empty() {
                return (due, outputs);
            }
        }
        panic!("the role stays");
    }
}

#[test]
fn initialize_holds_at_any_priority() {
    for by in [1, 100, 255] {
        let mut fixture = Fixture::standby(by, &[]);
        let mut sent_before = 1;
        let (at, outputs) = loop {
            let due = fixture.us.deadline();
            let outputs = fixture.tick(due);
            if sent(&outputs) != (vec![Kind::Keepalive], vec![]) {
                break (due, outputs);
            }
            assert_eq!(due, A * sent_before, "a Keepalive each interval");
            sent_before += 1;
        };
        assert_eq!(at, HOLD + skewed(by));
        let kinds = vec![Kind::TakeOver, Kind::Advertisement];
        assert_eq!(sent(&outputs), (kinds, role_changed(Role::Active, Reason::Alone)));
        assert_eq!(frames(&outputs)[0].term, 1);
    }
}

#[test]
fn skew_time_decreases_with_priority() {
    for (by, micros) in [(255, 195), (200, 10_937), (100, 30_468), (1, 49_804)] {
        assert_eq!(skewed(by).as_micros(), micros);
    }
}

#[test]
fn backup_active_silent_takes_over() {
    let mut fixture = Fixture::standby(100, &[(LOW, 100)]);
    fixture.peers[0].frame.term = 6;
    let mut last = ms(0);
    for at in [10, 60, 110, 250, 400].map(ms) {
        assert!(fixture.pass(at).iter().all(|kind| *kind == Kind::Keepalive));
        assert_eq!(fixture.deliver(at, 0, Kind::Advertisement), []);
        assert_eq!(fixture.us.snapshot().active, Some((LOW, "pod-1".to_owned())));
        last = at;
    }
    let (at, outputs) = fixture.next_role();
    assert_eq!(at, last + DOWN_INTERVAL + skewed(100));
    assert_eq!(sent(&outputs).1, role_changed(Role::Active, Reason::FellSilent("pod-1".to_owned())));
    assert_eq!(frames(&outputs)[0].term, 7, "one higher than any received");
}

#[test]
fn backup_timer_uses_the_actives_interval() {
    let mut fixture = Fixture::standby(100, &[(LOW, 100)]);
    fixture.peers[0].frame.interval = 2 * A;
    fixture.pass(ms(400));
    fixture.deliver(ms(410), 0, Kind::Advertisement);
    assert_eq!(fixture.next_role().0, ms(410) + 2 * (DOWN_INTERVAL + skewed(100)));
}

#[test]
fn backup_timer_reset_by_equal_or_higher_priority_only() {
    for (theirs, reset) in [(200, true), (100, true), (99, false)] {
        let mut fixture = Fixture::standby(100, &[(LOW, theirs)]);
        let mut outputs = Vec::new();
        for at in (1..20).map(|round| A * round) {
            outputs.extend(fixture.tick(at));
            outputs.extend(fixture.deliver(at, 0, Kind::Advertisement));
        }
        let expected = Output::RoleChanged(Role::Active, Reason::LowerPriority("pod-1".to_owned()));
        assert_eq!(outputs.contains(&expected), !reset, "{theirs}");
    }
}

#[test]
fn backup_lower_priority_active_silent_waits_for_its_lease() {
    let mut fixture = Fixture::standby(100, &[(LOW, 99)]);
    for at in [410, 460, 510, 560].map(ms) {
        fixture.pass(at);
        fixture.deliver(at, 0, Kind::Advertisement);
    }
    let (at, outputs) = fixture.next_role();
    assert_eq!(at, ms(560) + DOWN_INTERVAL + skewed(100));
    assert_eq!(sent(&outputs).1, role_changed(Role::Active, Reason::FellSilent("pod-1".to_owned())));
}

#[test]
fn backup_resign_received_waits_for_skew_time_only() {
    let name = || "pod-1".to_owned();
    for (successor, wait, reason) in [
        (None, skewed(100), Reason::Released(name())),
        (Some(US), Duration::ZERO, Reason::HandedOver(name())),
        (Some(HIGH), HOLD + skewed(100), Reason::Released(name())),
    ] {
        let mut fixture = Fixture::standby(100, &[(LOW, 100)]);
        fixture.pass(ms(500));
        fixture.deliver(ms(510), 0, Kind::Advertisement);
        fixture.peers[0].frame.successor = successor;
        assert_eq!(fixture.deliver(ms(520), 0, Kind::Resign), [], "tick decides");
        let (at, outputs) = fixture.next_role();
        assert_eq!((at, sent(&outputs).1), (ms(520) + wait, role_changed(Role::Active, reason)));
    }
}

#[test]
fn backup_resign_during_hold_keeps_the_hold() {
    let mut fixture = Fixture::standby(100, &[(LOW, 100)]);
    fixture.deliver(ms(10), 0, Kind::Advertisement);
    fixture.deliver(ms(20), 0, Kind::Resign);
    assert_eq!(fixture.next_role().0, HOLD + skewed(100));
}

#[test]
fn backup_keepalive_of_the_active_counts_as_lost_resign() {
    let mut fixture = Fixture::standby(100, &[(LOW, 100)]);
    fixture.pass(ms(500));
    fixture.deliver(ms(510), 0, Kind::Advertisement);
    fixture.deliver(ms(520), 0, Kind::Keepalive);
    assert_eq!(fixture.next_role().0, ms(520) + skewed(100));
}

#[test]
fn backup_resign_of_outranked_active_is_ignored() {
    let mut fixture = Fixture::standby(100, &[(LOW, 100), (HIGH, 100)]);
    (fixture.peers[0].frame.term, fixture.peers[1].frame.term) = (3, 4);
    fixture.pass(ms(400));
    fixture.deliver(ms(410), 0, Kind::Advertisement);
    fixture.deliver(ms(420), 1, Kind::Advertisement);
    // Whomever it names: it may name us, if it has not received from the other.
    let resign = fixture.peers[0].resigns(US);
    fixture.receive(ms(425), &resign);
    assert_eq!(fixture.next_role().0, ms(420) + DOWN_INTERVAL + skewed(100));
}

#[test]
fn backup_named_successor_defers_to_a_take_over() {
    let mut fixture = Fixture::standby(100, &[(LOW, 100), (HIGH, 100)]);
    fixture.deliver(ms(10), 0, Kind::Advertisement);
    let resign = fixture.peers[0].resigns(US);
    fixture.receive(ms(20), &resign);
    fixture.peers[1].frame.term = 1;
    fixture.deliver(ms(20), 1, Kind::TakeOver);
    assert_eq!(fixture.next_role().0, ms(20) + DOWN_INTERVAL + skewed(100));
}

#[test]
fn backup_waits_for_reachable_preceding_standbys() {
    let mut fixture = Fixture::standby(100, &[(LOW, 100), (HIGH, 100), (Instance([3; 16]), 200)]);
    fixture.deliver(ms(0), 1, Kind::Keepalive);
    fixture.deliver(ms(0), 2, Kind::Keepalive);
    for round in 1..=12 {
        fixture.pass(A * round);
        fixture.deliver(A * round, 1, Kind::Keepalive);
        // Of the two that precede us, one is not received from again.
        if round <= 10 {
            fixture.deliver(A * round, 0, Kind::Advertisement);
            fixture.deliver(A * round, 2, Kind::Keepalive);
        }
    }
    let turn = A * 10 + DOWN_INTERVAL + skewed(100) + A / 2;
    assert!(A * 12 + lease_time(A) > turn, "it is still present then");
    assert_eq!(fixture.next_role().0, turn);
}

#[test]
fn backup_new_preceding_standby_restarts_the_hold() {
    let mut fixture = Fixture::standby(100, &[(HIGH, 100), (LOW, 100)]);
    fixture.tick(A);
    fixture.deliver(ms(60), 0, Kind::Keepalive);
    fixture.deliver(ms(60), 1, Kind::Keepalive);
    fixture.tick(2 * A);
    fixture.deliver(ms(110), 0, Kind::Keepalive);
    assert_eq!(fixture.next_role().0, ms(60) + HOLD + skewed(100));
}

#[test]
fn backup_leave_resigns_for_good() {
    let mut fixture = Fixture::standby(100, &[(LOW, 100), (HIGH, 100)]);
    fixture.deliver(ms(10), 0, Kind::Advertisement);
    fixture.deliver(ms(10), 1, Kind::Keepalive);
    let outputs = fixture.us.leave(ms(20));
    assert_eq!(sent(&outputs), (vec![Kind::Resign], role_changed(Role::Left, Reason::Leaving)));
    assert_eq!(frames(&outputs)[0].successor, None, "it has nothing to hand over");
    let resign = fixture.peers[0].resigns(US);
    assert_eq!(fixture.us.receive(ms(30), MAC, &resign), []);
    assert_eq!(fixture.us.deadline(), ms(20) + A);
    // It stays known, and names nobody.
    for round in 1..50 {
        let outputs = fixture.us.tick(ms(20) + A * round);
        assert_eq!(sent(&outputs), (vec![Kind::Resign], vec![]));
        assert_eq!(frames(&outputs)[0].successor, None);
    }
    let later = ms(20) + A * 49;
    assert_eq!(fixture.us.set_priority(later, priority(255)), []);
    assert_eq!(fixture.us.leave(later), []);
}

#[test]
fn member_that_left_changes_nothing_for_the_others() {
    let (mut fixture, at) = Fixture::active(100, &[(LOW, 80), (HIGH, 90)]);
    fixture.peers[0].frame.priority = priority(200);
    for round in 0..50 {
        let now = at + A * round;
        assert_eq!(fixture.deliver(now, 0, Kind::Resign), [], "of higher priority, and no successor");
        fixture.deliver(now, 1, Kind::Keepalive);
        assert!(sent(&fixture.tick(now)).1.is_empty());
    }
    let outputs = fixture.us.leave(at + A * 49);
    assert_eq!(frames(&outputs)[0].successor, Some(HIGH));

    let mut fixture = Fixture::standby(100, &[(LOW, 200), (HIGH, 120)]);
    for round in 0..50 {
        let now = A * round + ms(1);
        fixture.deliver(now, 0, Kind::Resign);
        fixture.deliver(now, 1, Kind::Advertisement);
        assert!(sent(&fixture.tick(now)).1.is_empty());
    }
    let (took, _) = fixture.next_role();
    assert!(took < A * 49 + ms(1) + active_down_interval(A) + skewed(100) + ms(1), "{took:?}");
}

#[test]
fn backup_slept_longer_than_a_lease_restarts_the_hold() {
    let due = HOLD + skewed(100);
    for (woke, takes) in [(due + lease_time(A), true), (due + lease_time(A) + ms(1), false)] {
        let mut fixture = Fixture::standby(100, &[]);
        fixture.pass(A * 10);
        assert_eq!(fixture.us.deadline(), due);
        let (kinds, changes) = sent(&fixture.tick(woke));
        if takes {
            assert_eq!(changes, role_changed(Role::Active, Reason::Alone));
        } else {
            assert_eq!((kinds, changes), (vec![Kind::Keepalive], vec![]));
            assert_eq!(fixture.next_role().0, woke + due);
        }
    }
}

#[test]
fn active_advertises_each_interval() {
    let (mut fixture, start) = Fixture::active(100, &[]);
    for round in 1..5 {
        assert_eq!(fixture.us.deadline(), start + A * round);
        assert_eq!(fixture.tick(start + A * round - ms(1)), []);
        let outputs = fixture.tick(start + A * round);
        assert_eq!(sent(&outputs), (vec![Kind::Advertisement], vec![]));
    }
}

#[test]
fn active_split_brain_higher_term_priority_instance_stays() {
    for (instance, by, term, yields) in [
        (LOW, 50, 2, true),
        (HIGH, 200, 0, false),
        (LOW, 101, 1, true),
        (HIGH, 99, 1, false),
        (HIGH, 100, 1, true),
        (LOW, 100, 1, false),
    ] {
        let (mut fixture, at) = Fixture::active(100, &[(instance, 100)]);
        fixture.peers[0].frame.priority = priority(by);
        fixture.peers[0].frame.term = term;
        let outputs = fixture.deliver(at, 0, Kind::Advertisement);
        let with = fixture.peers[0].frame.name.clone();
        let split = Output::SplitBrain { with: with.clone(), stays: !yields };
        assert_eq!(fixture.us.counters().splits, 1);
        if yields {
            let role = Output::RoleChanged(Role::Standby, Reason::SteppedDown(with));
            assert_eq!(sent(&outputs), (vec![Kind::Resign], vec![split, role]));
            let resign = &frames(&outputs)[0];
            assert_eq!((resign.term, resign.successor), (1, Some(instance)));
        } else {
            assert_eq!(sent(&outputs), (vec![Kind::Advertisement], vec![split]), "at once");
            let again = fixture.deliver(at, 0, Kind::Advertisement);
            assert_eq!(sent(&again), (vec![Kind::Advertisement], vec![]), "told once");
        }
    }
}

#[test]
fn active_resign_of_unknown_active_counts_as_split() {
    let (mut fixture, at) = Fixture::active(100, &[(LOW, 100)]);
    let resign = fixture.peers[0].resigns(US);
    let outputs = fixture.receive(at, &resign);
    assert_eq!(outputs, [Output::SplitBrain { with: "pod-1".to_owned(), stays: true }]);
}

#[test]
fn active_hands_over_to_the_highest_higher_priority() {
    let third = Instance([3; 16]);
    let (mut fixture, at) = Fixture::active(100, &[(HIGH, 100), (LOW, 90), (third, 80)]);
    assert_eq!(sent(&fixture.us.set_priority(at, priority(99))).0, [Kind::Resign], "as one is sounder now");

    let (mut fixture, at) = Fixture::active(100, &[(HIGH, 100), (LOW, 90), (third, 80)]);
    fixture.peers[2].frame.priority = priority(101);
    let outputs = fixture.deliver(at, 2, Kind::Keepalive);
    let reason = Reason::HandedOverTo("pod-3".to_owned());
    assert_eq!(sent(&outputs), (vec![Kind::Resign], role_changed(Role::Standby, reason)));
    assert_eq!(frames(&outputs)[0].successor, Some(third));
}

#[test]
fn active_priority_change_without_higher_peer_advertises() {
    let (mut fixture, at) = Fixture::active(100, &[(HIGH, 20), (LOW, 10)]);
    let outputs = fixture.us.set_priority(at, priority(20));
    assert_eq!(sent(&outputs), (vec![Kind::Advertisement], vec![]));
    assert_eq!(frames(&outputs)[0].priority, priority(20));
    assert_eq!(fixture.us.set_priority(at, priority(20)), [], "nothing new");

    let mut fixture = Fixture::standby(100, &[]);
    assert_eq!(sent(&fixture.us.set_priority(ms(10), priority(20))).0, [Kind::Keepalive]);
}

#[test]
fn active_leave_names_the_best_reachable_standby() {
    let third = Instance([3; 16]);
    let (mut fixture, at) = Fixture::active(100, &[(HIGH, 50), (LOW, 60), (third, 90)]);
    // The one of highest priority leaves, another is not received from again.
    fixture.deliver(at, 2, Kind::Resign);
    let later = at + 2 * A;
    fixture.tick(at + A);
    fixture.tick(later);
    fixture.deliver(later, 0, Kind::Keepalive);
    fixture.tick(at + 3 * A);
    let outputs = fixture.us.leave(at + 3 * A);
    assert_eq!(sent(&outputs), (vec![Kind::Resign], role_changed(Role::Left, Reason::Leaving)));
    assert_eq!(frames(&outputs)[0].successor, Some(HIGH));
}

#[test]
fn active_slept_longer_than_its_lease_steps_down_first() {
    let (mut fixture, at) = Fixture::active(100, &[]);
    assert!(fixture.us.holds_lease(at + lease_time(A)));
    assert_eq!(fixture.pass(at + A), [Kind::Advertisement]);
    let woke = at + A + lease_time(A) + ms(1);
    assert!(!fixture.us.holds_lease(woke));
    let expected = role_changed(Role::Standby, Reason::LeaseExpired(lease_time(A) + ms(1)));
    let outputs = fixture.tick(woke);
    assert_eq!(sent(&outputs), (vec![Kind::Resign], expected.clone()));
    assert_eq!(fixture.next_role().0, woke + HOLD + skewed(100));

    // The same with every other input.
    for input in 0..3 {
        let (mut fixture, at) = Fixture::active(100, &[(LOW, 100)]);
        let outputs = match input {
            0 => fixture.deliver(ms(1000), 0, Kind::Advertisement),
            1 => fixture.us.send_failed(ms(1000)),
            _ => fixture.us.leave(ms(1000)),
        };
        let lapsed = Output::RoleChanged(Role::Standby, Reason::LeaseExpired(ms(1000) - at));
        assert_eq!(sent(&outputs[..2]), (vec![Kind::Resign], vec![lapsed]));
    }
}

#[test]
fn active_send_failed_steps_down_and_names_a_reachable_standby() {
    let (mut fixture, at) = Fixture::active(100, &[(LOW, 100)]);
    let outputs = fixture.us.send_failed(at);
    assert_eq!(sent(&outputs), (vec![Kind::Resign], role_changed(Role::Standby, Reason::SendFailed)));
    assert_eq!(frames(&outputs)[0].successor, Some(LOW));
    assert_eq!(fixture.us.send_failed(at), [], "a standby has nothing to lose");
}

#[test]
fn isolated_active_steps_down_and_holds_meanwhile() {
    let (mut fixture, at) = Fixture::active(100, &[(LOW, 100)]);
    let outputs = fixture.us.isolated(at);
    assert_eq!(sent(&outputs), (vec![Kind::Resign], role_changed(Role::Standby, Reason::Isolated)));
    assert_eq!(frames(&outputs)[0].successor, None, "nobody is heard");
    for round in 1..20 {
        assert_eq!(fixture.us.isolated(at + A * round), []);
        assert!(sent(&fixture.tick(at + A * round)).1.is_empty());
    }
    let (back, _) = fixture.next_role();
    assert_eq!(back, at + A * 19 + HOLD + skewed(100));
}

#[test]
fn b17_lone_member_waits_ten_seconds_for_a_stranger_and_on_for_its_own_gateway() {
    for same_gateway in [false, true] {
        let mut fixture = Fixture::standby(100, &[]);
        let mut taken = None;
        for round in 0..500 {
            let at = A * round;
            fixture.us.address_in_use(at, same_gateway);
            if fixture.us.snapshot().role == Role::Active {
                taken.get_or_insert(at);
            }
            let _ = fixture.tick(at);
        }
        let taken = taken.map(|at| at.as_secs_f64());
        match same_gateway {
            true => assert_eq!(taken, None),
            false => assert!(taken.is_some_and(|at| (10.4..10.8).contains(&at)), "{taken:?}"),
        }
        assert_eq!(fixture.us.holds_lease(A * 499), !same_gateway);
    }
}

#[test]
fn r16_stalled_active_hands_over_to_the_best_standby() {
    let (mut fixture, at) = Fixture::active(100, &[(LOW, 100)]);
    assert_eq!(fixture.us.lease_until(), Some(at + 3 * A));
    let outputs = fixture.us.stalled(at);
    assert_eq!(sent(&outputs), (vec![Kind::Resign], role_changed(Role::Standby, Reason::Stalled)));
    assert_eq!(frames(&outputs)[0].successor, Some(LOW));
    assert_eq!((fixture.us.lease_until(), fixture.us.stalled(at)), (None, vec![]));
}

#[test]
fn unacknowledging_frame_changes_only_the_acks() {
    for kind in [Kind::Keepalive, Kind::Resign, Kind::Advertisement, Kind::TakeOver] {
        let mut fixture = Fixture::standby(100, &[(HIGH, 200)]);
        let echo = fixture.peers[0].frame.acks.clone();
        fixture.peers[0].frame.term = 9;
        for (round, acks) in [
            // Of nobody; of another; of a frame that was not sent yet.
            vec![],
            vec![(LOW, 1)],
            vec![(US, 2)],
        ]
        .into_iter()
        .enumerate()
        {
            fixture.peers[0].frame.acks = acks;
            fixture.peers[0].frame.successor = Some(US);
            assert_eq!(fixture.deliver(ms(10), 0, kind), []);
            assert_eq!(fixture.us.counters().unacknowledging, round as u64 + 1);
        }
        let hello = &frames(&fixture.tick(A))[0];
        assert_eq!((hello.term, &hello.acks), (0, &vec![(HIGH, 3)]));
        assert_eq!(fixture.us.snapshot().peers, []);
        // A frame that acknowledges an old one does not count either.
        fixture.pass(3 * A);
        fixture.peers[0].frame.acks = echo;
        assert_eq!(fixture.deliver(ms(151), 0, kind), []);
        assert_eq!(fixture.us.counters().unacknowledging, 4);
        let (at, outputs) = fixture.next_role();
        assert_eq!(at, HOLD + skewed(100));
        assert_eq!(sent(&outputs).1, role_changed(Role::Active, Reason::Alone));
    }
}

/// The kinds of the frames sent, and the intervals they request.
fn requests(outputs: &[Output]) -> Vec<(Kind, Duration)> {
    frames(outputs).iter().map(|frame| (frame.kind, frame.interval)).collect()
}

#[test]
fn overloaded_active_extends_its_lease_once_all_acknowledged() {
    let (mut fixture, at) = Fixture::active(100, &[(LOW, 90), (HIGH, 80), (Instance([4; 16]), 70)]);
    let on_time = at + A * 2 - ms(1);
    assert_eq!(requests(&fixture.tick(on_time)), [(Kind::Advertisement, A)]);
    fixture.deliver(on_time, 0, Kind::Keepalive);
    fixture.deliver(on_time, 1, Kind::Keepalive);
    let late = on_time + A * 2;
    assert_eq!(requests(&fixture.tick(late)), [(Kind::Advertisement, 3 * A)], "nobody knows yet");
    assert_eq!(fixture.us.counters().overloaded, 1);
    assert!(!fixture.us.holds_lease(late + lease_time(A) + ms(1)));

    // One has acknowledged it, one has not; a third is not reachable any more.
    let acks = fixture.peers[1].frame.acks.clone();
    fixture.deliver(late, 0, Kind::Keepalive);
    fixture.peers[1].frame.acks = vec![(US, acks[0].1 - 1)];
    fixture.deliver(late, 1, Kind::Keepalive);
    assert_eq!(requests(&fixture.tick(late + A)), [(Kind::Advertisement, 3 * A)]);
    fixture.deliver(late + A, 1, Kind::Keepalive);
    assert_eq!(requests(&fixture.tick(late + A * 2)), [(Kind::ExtendedAdvertisement, 3 * A)]);
    assert!(fixture.us.holds_lease(late + A * 2 + lease_time(3 * A)));
    assert!(!fixture.us.holds_lease(late + A * 2 + lease_time(3 * A) + ms(1)));

    // A newcomer has not acknowledged it.
    let mut new = Peer::new(Instance([3; 16]), 70);
    new.frame.acks = vec![(US, acks[0].1 - 1)];
    fixture.peers.push(new);
    fixture.deliver(late + A * 2, 3, Kind::Keepalive);
    assert_eq!(fixture.us.deadline(), late + A * 5, "it speaks less as well");
    fixture.deliver(late + A * 3, 3, Kind::Keepalive);
    assert_eq!(requests(&fixture.tick(late + A * 5)), [(Kind::Advertisement, 3 * A)]);
    assert!(!fixture.us.holds_lease(late + A * 5 + lease_time(A) + ms(1)));
    // That acknowledgement was of a frame from before it was fresh.
    fixture.peers[3].frame.acks[0].1 -= 1;
    fixture.deliver(late + A * 5, 3, Kind::Keepalive);
    assert_eq!(requests(&fixture.tick(late + A * 6)), [(Kind::Advertisement, 3 * A)]);
    fixture.deliver(late + A * 6, 3, Kind::Keepalive);
    assert_eq!(requests(&fixture.tick(late + A * 7)), [(Kind::ExtendedAdvertisement, 3 * A)]);
    let last = late + A * OVERLOAD_INTERVALS;
    assert_eq!(fixture.pass(last - ms(1)).last(), Some(&Kind::ExtendedAdvertisement));
    let due = fixture.us.deadline();
    assert_eq!(requests(&fixture.tick(due)), [(Kind::Advertisement, A)], "it was late long ago");
    assert!(!fixture.us.holds_lease(due + lease_time(A) + ms(1)));
}

#[test]
fn overloaded_standby_taking_over_requests_extended_timers_anew() {
    let mut fixture = Fixture::standby(100, &[(LOW, 90)]);
    fixture.deliver(ms(0), 0, Kind::Keepalive);
    let outputs = loop {
        let due = fixture.us.deadline() + A;
        fixture.deliver(due, 0, Kind::Keepalive);
        let outputs = fixture.tick(due);
        if !sent(&outputs).1.is_empty() {
            break outputs;
        }
    };
    assert_eq!(requests(&outputs), [(Kind::TakeOver, 3 * A), (Kind::Advertisement, 3 * A)]);
}

#[test]
fn overloaded_active_keeps_short_freshness_until_acknowledged() {
    // A member that receives nothing takes over after the Active_Down_Interval:
    // an overloaded active must not take its older acknowledgement as fresh.
    let (mut fixture, at) = Fixture::active(100, &[(HIGH, 100)]);
    fixture.peers[0].frame.term = 2;
    let acks = fixture.peers[0].frame.acks.clone();
    fixture.tick(at + A * 2);
    fixture.peers[0].frame.acks = acks;
    assert_eq!(fixture.deliver(at + lease_time(A) + ms(1), 0, Kind::TakeOver), []);
    assert_eq!(fixture.us.counters().unacknowledging, 1);
}

#[test]
fn overloaded_backup_uses_extended_timers() {
    let mut fixture = Fixture::standby(100, &[(LOW, 100)]);
    fixture.pass(ms(400));
    fixture.deliver(ms(410), 0, Kind::Advertisement);
    let hello = fixture.tick(ms(500));
    assert_eq!(requests(&hello), [(Kind::Keepalive, 3 * A)]);
    // It acknowledges a frame from before the overload.
    let echo = frames(&hello)[0].sequence - 1;
    fixture.peers[0].frame.acks = vec![(US, echo)];
    fixture.deliver(ms(560), 0, Kind::Advertisement);
    assert_eq!(fixture.us.counters().unacknowledging, 0);
    assert_eq!(fixture.next_role().0, ms(560) + 3 * (DOWN_INTERVAL + skewed(100)));
}

#[test]
fn replayed_forged_and_foreign_frames_are_counted_and_ignored() {
    let mut fixture = Fixture::standby(100, &[(LOW, 100)]);
    fixture.pass(ms(500));
    let first = fixture.peers[0].sends(Kind::Advertisement);
    let resign = fixture.peers[0].sends(Kind::Resign);
    fixture.receive(ms(510), &first);
    fixture.receive(ms(520), &resign);
    fixture.receive(ms(530), &first);
    fixture.receive(ms(530), &resign);
    assert_eq!(fixture.next_role().0, ms(520) + skewed(100));

    let mut forged = first.clone();
    forged[0] = Kind::TakeOver as u8;
    let foreign = Seal::new([8; 16], &KEY).seal(&read(&first));
    for payload in [&forged, &foreign, &vec![0; 9]] {
        assert_eq!(fixture.receive(ms(580), payload), []);
    }
    let ours = fixture.us.tick(ms(650));
    let Output::Send(payload) = &ours[0] else { panic!() };
    assert_eq!(fixture.us.receive(ms(650), MAC, payload), [], "a network that returns our words");
    let expected = Counters {
        malformed: 1,
        foreign: 1,
        bad_tag: 1,
        replayed: 2,
        unacknowledging: 0,
        splits: 0,
        overloaded: 0,
    };
    assert_eq!(fixture.us.counters(), expected);
}

#[test]
fn snapshot_lists_peers_and_the_active() {
    let mut fixture = Fixture::standby(100, &[(LOW, 90), (HIGH, 80), (Instance([3; 16]), 70)]);
    fixture.peers[0].frame.term = 4;
    fixture.deliver(ms(10), 0, Kind::Advertisement);
    fixture.deliver(ms(20), 1, Kind::Keepalive);
    fixture.deliver(ms(30), 2, Kind::Resign);
    let seen = |instance: Instance, by, role, at| PeerSnapshot {
        instance,
        mac: MAC,
        name: format!("pod-{}", instance.0[0]),
        priority: priority(by),
        role,
        at: ms(at),
        is_reachable: true,
    };
    let expected = Snapshot {
        role: Role::Standby,
        since: ms(0),
        reason: Reason::Started,
        term: 4,
        active: Some((LOW, "pod-1".to_owned())),
        peers: vec![
            seen(LOW, 90, Role::Active, 10),
            seen(Instance([3; 16]), 70, Role::Left, 30),
            seen(HIGH, 80, Role::Standby, 20),
        ],
    };
    assert_eq!(fixture.us.snapshot(), expected);
    let (at, _) = fixture.next_role();
    let snapshot = fixture.us.snapshot();
    assert_eq!((snapshot.role, snapshot.since, snapshot.term), (Role::Active, at, 5));
    assert_eq!(snapshot.active, Some((US, "pod-5".to_owned())));
    // Old reports are forgotten.
    fixture.tick(ms(1000));
    assert_eq!(fixture.us.snapshot().peers, []);
}

#[test]
fn reason_display_is_stable() {
    let name = || "pod-1".to_owned();
    for (reason, words) in [
        (Reason::Started, "started"),
        (Reason::Alone, "nobody else was there"),
        (Reason::FellSilent(name()), "pod-1 fell silent"),
        (Reason::HandedOver(name()), "pod-1 handed over"),
        (Reason::Released(name()), "pod-1 let go"),
        (Reason::LowerPriority(name()), "pod-1 is less sound"),
        (Reason::SteppedDown(name()), "yielded to pod-1"),
        (Reason::HandedOverTo(name()), "handed over to pod-1, which is sounder"),
        (Reason::LeaseExpired(ms(5000)), "lapsed: slept 5000 ms"),
        (Reason::SendFailed, "lapsed: refused by the kernel"),
        (Reason::Isolated, "isolated: neither another pod nor the router is heard"),
        (Reason::Stalled, "stalled: the gateway's loop stands still"),
        (Reason::Leaving, "leaving"),
    ] {
        assert_eq!(reason.to_string(), words);
    }
}
