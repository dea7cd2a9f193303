//! The wire format of the members' frames. A frame's payload, big endian:
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 1 | [`Kind`]; the kernel changes the lease by it |
//! | 1 | 1 | version, 1 |
//! | 2 | 16 | the gateway's UID |
//! | 18 | 16 | the sender's [`Instance`] |
//! | 34 | 8 | sequence number, from 1 on, increasing with each frame of the instance |
//! | 42 | 8 | term |
//! | 50 | 16 | successor (an instance, or zero) |
//! | 66 | 2 | the interval that the sender requests to be timed by, ms, not 0 |
//! | 68 | 1 | priority, not 0 |
//! | 69 | 1 | number of acknowledgements *n*, at most [`MAX_ACKS`] |
//! | 70 | 1 | length of the name *l*, at most [`MAX_NAME`] |
//! | 71 | *l* | the sender's name, UTF-8 |
//! | 71+*l* | 24 *n* | acknowledgements: an instance, and the last sequence number received from it |
//! | 71+*l*+24 *n* | 16 | tag: the first half of the HMAC-SHA256 of everything before it |
//!
//! Bytes after the tag (Ethernet pads short frames) are ignored. A member rejects
//! other versions: a change of this table that raises the version needs an
//! update during which two members may be active.

use std::fmt;
use std::num::NonZeroU8;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::{Digest, Sha256};

use crate::Mac;

/// The frames' EtherType: IEEE 802 local experimental 1.
pub const ETHERTYPE: u16 = 0x88b5;
/// Longest name in a frame, in bytes.
pub const MAX_NAME: usize = 63;
/// Most acknowledgements in a frame: for seven other members, and for as many and
/// more newcomers or replayed instances.
pub const MAX_ACKS: usize = 16;

const VERSION: u8 = 1;
const TAG: usize = 16;

/// A gateway's UID.
pub type Uid = [u8; 16];
/// The key that only a gateway's own pods have.
pub type Key = [u8; 32];

/// The group address that a gateway's members send to, locally administered and
/// derived from the gateway's UID.
pub fn group(uid: &Uid) -> Mac {
    let hash = Sha256::new().chain_update("lb-svc election").chain_update(uid).finalize();
    [0x03, hash[0], hash[1], hash[2], hash[3], hash[4]]
}

/// Where in a payload [`marker`] is.
pub const MARKER_AT: usize = 1;

/// The bytes that every payload of a gateway's members has in common: version and UID.
pub fn marker(uid: &Uid) -> [u8; 17] {
    let mut marker = [VERSION; 17];
    marker[1..].copy_from_slice(uid);
    marker
}

/// Identity of one run of a member's process: random bytes, drawn at its start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(pub [u8; 16]);

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The type of a frame. The kernel changes the lease by it as the frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sender is standby. The lease stays as it is.
    Keepalive = 0,
    /// Sender is not active, and excluded from succession until its next
    /// Keepalive. Ends the lease (VRRP's priority 0).
    Resign = 1,
    /// Sender is active. Renews the lease; without one, the kernel drops the
    /// frame.
    Advertisement = 2,
    /// Sender has become active. Starts the lease.
    TakeOver = 3,
    /// An advertisement of an overloaded sender, whose peers have all
    /// acknowledged that. Renews the lease for longer; without one, the kernel
    /// drops the frame.
    ExtendedAdvertisement = 4,
}

/// A frame of a member of our gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: Kind,
    /// The sender.
    pub instance: Instance,
    /// Sequence number, increasing with each frame of the instance.
    pub sequence: u64,
    /// The sender's own term; of a standby, the highest term it knows.
    pub term: u64,
    /// The member to become active now.
    pub successor: Option<Instance>,
    /// The interval that the sender requests to be timed by, in whole
    /// milliseconds: its advertisement interval, or the extended one.
    pub interval: Duration,
    /// The sender's priority.
    pub priority: NonZeroU8,
    /// The sender's name. Cut to [`MAX_NAME`] bytes when sent.
    pub name: String,
    /// The instances that the sender received from, and the last sequence number
    /// of each. The first [`MAX_ACKS`] are sent.
    pub acks: Vec<(Instance, u64)>,
}

/// Why a payload is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// It does not have the wire format.
    Malformed,
    /// It is of another gateway.
    Foreign,
    /// Its sender has another key.
    BadTag,
}

/// Encodes, signs, verifies and decodes the frames of one gateway.
#[derive(Clone)]
pub struct Seal {
    uid: Uid,
    mac: Hmac<Sha256>,
}

impl Seal {
    /// A seal for the gateway with this UID and key.
    pub fn new(uid: Uid, key: &Key) -> Self {
        Self { uid, mac: Hmac::new_from_slice(key).expect("HMAC takes keys of any length") }
    }

    /// Encodes and signs a frame.
    pub fn seal(&self, frame: &Frame) -> Vec<u8> {
        let name = &frame.name[..frame.name.floor_char_boundary(MAX_NAME)];
        let acks = &frame.acks[..frame.acks.len().min(MAX_ACKS)];
        let mut payload = vec![frame.kind as u8, VERSION];
        payload.extend(self.uid);
        payload.extend(frame.instance.0);
        payload.extend(frame.sequence.to_be_bytes());
        payload.extend(frame.term.to_be_bytes());
        payload.extend(frame.successor.map_or([0; 16], |successor| successor.0));
        payload.extend((frame.interval.as_millis() as u16).to_be_bytes());
        payload.extend([frame.priority.get(), acks.len() as u8, name.len() as u8]);
        payload.extend(name.as_bytes());
        for (instance, sequence) in acks {
            payload.extend(instance.0);
            payload.extend(sequence.to_be_bytes());
        }
        let tag = self.mac.clone().chain_update(&payload).finalize().into_bytes();
        payload.extend(&tag[..TAG]);
        payload
    }

    /// Decodes and verifies a payload.
    ///
    /// # Errors
    /// If it is not a frame of this gateway.
    pub fn open(&self, payload: &[u8]) -> Result<Frame, Rejected> {
        let mut rest = Reader(payload);
        let (uid, frame) = parse(&mut rest).ok_or(Rejected::Malformed)?;
        let signed = &payload[..payload.len() - rest.0.len()];
        let tag: [u8; TAG] = rest.array().ok_or(Rejected::Malformed)?;
        if uid != self.uid {
            return Err(Rejected::Foreign);
        }
        // In constant time.
        let mac = self.mac.clone().chain_update(signed);
        mac.verify_truncated_left(&tag).map_err(|_| Rejected::BadTag)?;
        Ok(frame)
    }
}

/// Parses everything before the tag.
fn parse(rest: &mut Reader) -> Option<(Uid, Frame)> {
    let kind = match rest.array()? {
        [0, VERSION] => Kind::Keepalive,
        [1, VERSION] => Kind::Resign,
        [2, VERSION] => Kind::Advertisement,
        [3, VERSION] => Kind::TakeOver,
        [4, VERSION] => Kind::ExtendedAdvertisement,
        _ => return None,
    };
    let uid = rest.array()?;
    let instance = Instance(rest.array()?);
    let sequence = u64::from_be_bytes(rest.array()?);
    let term = u64::from_be_bytes(rest.array()?);
    let successor = Some(rest.array()?).filter(|bytes| *bytes != [0; 16]).map(Instance);
    let interval = Some(u16::from_be_bytes(rest.array()?)).filter(|ms| *ms > 0)?;
    let [priority, acks, name] = rest.array()?;
    if usize::from(acks) > MAX_ACKS || usize::from(name) > MAX_NAME {
        return None;
    }
    let name = str::from_utf8(rest.take(name.into())?).ok()?.to_owned();
    let ack = |_| Some((Instance(rest.array()?), u64::from_be_bytes(rest.array()?)));
    let acks = (0..acks).map(ack).collect::<Option<_>>()?;
    let frame = Frame {
        kind,
        instance,
        sequence,
        term,
        successor,
        interval: Duration::from_millis(interval.into()),
        priority: NonZeroU8::new(priority)?,
        name,
        acks,
    };
    Some((uid, frame))
}

/// The bytes that are not parsed yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: Uid = [7; 16];
    const KEY: Key = [9; 32];

    fn seal() -> Seal {
        Seal::new(UID, &KEY)
    }

    fn frames() -> impl Strategy<Value = Frame> {
        let kinds = vec![Kind::Keepalive, Kind::Resign, Kind::Advertisement, Kind::TakeOver];
        let numbers = (any::<u64>(), any::<u64>(), 1..=u16::MAX, 1..=u8::MAX);
        let successor = prop::option::of((1..=u128::MAX).prop_map(|id| Instance(id.to_be_bytes())));
        let ack = (any::<[u8; 16]>().prop_map(Instance), any::<u64>());
        let acks = prop::collection::vec(ack, 0..=MAX_ACKS);
        (prop::sample::select(kinds), any::<[u8; 16]>(), numbers, successor, "\\PC{0,15}", acks).prop_map(
            |(kind, instance, (sequence, term, interval, priority), successor, name, acks)| Frame {
                kind,
                instance: Instance(instance),
                sequence,
                term,
                successor,
                interval: Duration::from_millis(interval.into()),
                priority: NonZeroU8::new(priority).unwrap(),
                name,
                acks,
            },
        )
    }

    fn frame() -> Frame {
        Frame {
            kind: Kind::Advertisement,
            instance: Instance([1; 16]),
            sequence: 0x0203,
            term: 4,
            successor: Some(Instance([5; 16])),
            interval: Duration::from_millis(50),
            priority: NonZeroU8::new(200).unwrap(),
            name: "lb-svc-web-x".to_owned(),
            acks: vec![(Instance([6; 16]), 8)],
        }
    }

    proptest! {
        #[test]
        fn sealed_frame_opens_with_any_padding(frame in frames(), padding in any::<[u8; 20]>()) {
            let mut payload = seal().seal(&frame);
            prop_assert_eq!(payload.len(), 71 + frame.name.len() + 24 * frame.acks.len() + TAG);
            prop_assert_eq!(seal().open(&payload), Ok(frame.clone()));
            payload.extend(padding);
            prop_assert_eq!(seal().open(&payload), Ok(frame));
        }

        #[test]
        fn arbitrary_bytes_are_rejected(payload in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(seal().open(&payload).is_err());
        }

        #[test]
        fn changed_or_truncated_payload_is_rejected(frame in frames(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let payload = seal().seal(&frame);
            let mut changed = payload.clone();
            changed[at.index(payload.len())] ^= 1u8 << bit;
            prop_assert!(seal().open(&changed).is_err());
            prop_assert_eq!(seal().open(&payload[..at.index(payload.len())]), Err(Rejected::Malformed));
        }
    }

    #[test]
    fn sealed_frame_matches_the_wire_format() {
        let payload = seal().seal(&frame());
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        let body = [
            "0201",
            &"07".repeat(16),
            &"01".repeat(16),
            "0000000000000203",
            "0000000000000004",
            &"05".repeat(16),
            "0032c8010c",
            "6c622d7376632d7765622d78",
            &"06".repeat(16),
            "0000000000000008",
        ]
        .concat();
        // python3: hmac.new(bytes([9] * 32), bytes.fromhex(body), "sha256").hexdigest()[:32]
        assert_eq!(hex, body + "5d4b8468c9cc62a3771bcd14f1201868");
    }

    #[test]
    fn rejected_payload_names_the_cause() {
        let payload = seal().seal(&frame());
        assert_eq!(Seal::new([8; 16], &KEY).open(&payload), Err(Rejected::Foreign));
        assert_eq!(Seal::new(UID, &[1; 32]).open(&payload), Err(Rejected::BadTag));
        let with = |at: usize, to: u8| {
            let mut payload = payload.clone();
            payload[at] = to;
            seal().open(&payload)
        };
        // Kind, version, interval, priority, numbers of acks and of the name's
        // bytes, the name.
        for (at, to) in [(0, 5), (1, 2), (67, 0), (68, 0), (69, 17), (69, 2), (70, 64), (71, 0xff)] {
            assert_eq!(with(at, to), Err(Rejected::Malformed), "{to} at {at}");
        }
        assert_eq!(with(0, 3), Err(Rejected::BadTag), "an advertisement is no take-over");
    }

    #[test]
    fn long_name_and_acks_are_cut() {
        let long =
            Frame {
                name: format!("{}ö", "x".repeat(62)), acks: vec![(Instance([6; 16]), 8); 20], ..frame()
            };
        let read = seal().open(&seal().seal(&long)).unwrap();
        assert_eq!(read.name, "x".repeat(62), "not in the middle of a character");
        assert_eq!(read.acks.len(), MAX_ACKS);
    }

    #[test]
    fn group_address_differs_by_gateway() {
        let mac = group(&UID);
        assert_eq!(mac[0], 0x03, "a group, locally administered");
        assert_eq!(mac, group(&UID));
        assert_ne!(mac, group(&[8; 16]));
    }
}
