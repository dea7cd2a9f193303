//! Each reader takes its seeds, and any change of them without a panic: what
//! `make fuzz` does for longer and with an eye on the code that is reached.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use lb_svc_fuzz::{TARGETS, Target};
use proptest::prelude::*;

/// Text that is odd somewhere.
const ODD: &[&str] = &[
    "\0",
    "\u{202e}",
    "ä",
    "😀",
    "\"",
    "\\u0000",
    "-1",
    "0",
    "4294967296",
    "1e400",
    "null",
    "[]",
    "{}",
    "[[[[",
    "::",
    "0.0.0.0/0",
    "255.255.255.255",
    "&a [*a]",
    "\r\n",
    "2026-13-99T99:99:99Z",
];

/// A change of an input: bytes of it are replaced.
#[derive(Clone, Debug)]
struct Change {
    at: prop::sample::Index,
    length: usize,
    by: Vec<u8>,
}

fn change() -> impl Strategy<Value = Change> {
    let by = prop_oneof![
        4 => prop::sample::select(ODD).prop_map(|text| text.as_bytes().to_vec()),
        4 => prop::collection::vec(any::<u8>(), 0..4),
        1 => Just(b"x".repeat(20_000)),
        1 => Just(b"[".repeat(2_000)),
    ];
    (any::<prop::sample::Index>(), 0..12_usize, by).prop_map(|(at, length, by)| Change { at, length, by })
}

fn changed(mut input: Vec<u8>, changes: Vec<Change>) -> Vec<u8> {
    for Change { at, length, by } in changes {
        let from = at.index(input.len() + 1);
        let to = (from + length).min(input.len());
        input.splice(from..to, by);
    }
    input
}

fn input() -> impl Strategy<Value = (&'static Target, Vec<u8>)> {
    let seeded = prop::sample::select(TARGETS).prop_flat_map(|target| {
        (Just(target), prop::sample::select((target.seeds)()), prop::collection::vec(change(), 0..6))
    });
    seeded.prop_map(|(target, seed, changes)| {
        let target = TARGETS.iter().find(|it| it.name == target.name).unwrap();
        (target, changed(seed, changes))
    })
}

#[test]
fn seed_is_taken() {
    for target in TARGETS {
        for seed in (target.seeds)() {
            (target.read)(&seed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn r1_no_reader_is_ended_by_what_it_reads((target, input) in input()) {
        (target.read)(&input);
    }
}
