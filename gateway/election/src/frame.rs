//! What the members say to one another. A frame's payload, big endian:
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 1 | [`Kind`]; the kernel's lease depends on it |
//! | 1 | 1 | version, 1 |
//! | 2 | 16 | the gateway's uid |
//! | 18 | 16 | the sender's [`Instance`] |
//! | 34 | 8 | sequence, from 1 on, higher with each frame of the instance |
//! | 42 | 8 | term |
//! | 50 | 16 | successor (an instance, or zero) |
//! | 66 | 2 | the interval that the sender is to be counted by, ms, not 0 |
//! | 68 | 1 | priority, not 0 |
//! | 69 | 1 | number of echoes *n*, at most [`MAX_ECHOES`] |
//! | 70 | 1 | length of the name *l*, at most [`MAX_NAME`] |
//! | 71 | *l* | the sender's name, UTF-8 |
//! | 71+*l* | 24 *n* | echoes: an instance, and the last sequence heard of it |
//! | 71+*l*+24 *n* | 16 | tag: HMAC-SHA256 of all before it, its first half |
//!
//! What follows the tag (Ethernet pads short frames) has no meaning. A member
//! does not understand another version: a change of this table that raises it
//! needs an update at which two may be active.

use std::fmt;
use std::num::NonZeroU8;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::{Digest, Sha256};

use crate::Mac;

/// The frames' EtherType: IEEE 802 local experimental 1.
pub const ETHERTYPE: u16 = 0x88b5;
/// How many bytes of a name are sent.
pub const MAX_NAME: usize = 63;
/// How many instances a frame echoes: seven others, and as many again and more
/// that are new or recorded.
pub const MAX_ECHOES: usize = 16;

const VERSION: u8 = 1;
const TAG: usize = 16;

/// A gateway's uid.
pub type Uid = [u8; 16];
/// What only a gateway's own pods know.
pub type Key = [u8; 32];

/// Where the members of a gateway send to: a locally administered group
/// address.
pub fn group(uid: &Uid) -> Mac {
    let hash = Sha256::new().chain_update("lb-svc election").chain_update(uid).finalize();
    [0x03, hash[0], hash[1], hash[2], hash[3], hash[4]]
}

/// One run of one member's process: random bytes, drawn when it starts.
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

/// What a frame is for, and what the kernel makes of it as it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A standby is there. Leaves the lease alone.
    Hello = 0,
    /// Not active, and not to be counted on until it says Hello. Ends the lease.
    Resign = 1,
    /// Is active. Renews the lease; without one it does not leave.
    Advertisement = 2,
    /// Has become active. Gives the lease.
    Take = 3,
    /// An advertisement of one that comes late at times, as all know. Renews the
    /// lease for longer; without one it does not leave.
    Prolong = 4,
}

/// A frame of a member of our gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub kind: Kind,
    /// Who says so.
    pub instance: Instance,
    /// Higher with each frame of the instance.
    pub sequence: u64,
    /// Of a standby the highest term it knows of, else its own.
    pub term: u64,
    /// Who is to be active now.
    pub successor: Option<Instance>,
    /// The interval that the sender is to be counted by, in whole milliseconds:
    /// its advertisement interval, or the stretched one.
    pub interval: Duration,
    /// How sound the sender is.
    pub priority: NonZeroU8,
    /// What people call the sender. Cut to [`MAX_NAME`] bytes.
    pub name: String,
    /// Whom the sender heard, and their last sequence. The first
    /// [`MAX_ECHOES`] are sent.
    pub echoes: Vec<(Instance, u64)>,
}

/// Why a frame is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// It does not have the form above.
    Malformed,
    /// It is another gateway's.
    Foreign,
    /// Its sender does not have our key.
    BadTag,
}

/// Makes and checks the frames of one gateway.
#[derive(Clone)]
pub struct Seal {
    uid: Uid,
    mac: Hmac<Sha256>,
}

impl Seal {
    /// For the gateway of this uid, whose members have this key.
    pub fn new(uid: Uid, key: &Key) -> Self {
        Self { uid, mac: Hmac::new_from_slice(key).expect("HMAC takes keys of any length") }
    }

    /// The payload that says this.
    pub fn seal(&self, frame: &Frame) -> Vec<u8> {
        let name = &frame.name[..frame.name.floor_char_boundary(MAX_NAME)];
        let echoes = &frame.echoes[..frame.echoes.len().min(MAX_ECHOES)];
        let mut payload = vec![frame.kind as u8, VERSION];
        payload.extend(self.uid);
        payload.extend(frame.instance.0);
        payload.extend(frame.sequence.to_be_bytes());
        payload.extend(frame.term.to_be_bytes());
        payload.extend(frame.successor.map_or([0; 16], |successor| successor.0));
        payload.extend((frame.interval.as_millis() as u16).to_be_bytes());
        payload.extend([frame.priority.get(), echoes.len() as u8, name.len() as u8]);
        payload.extend(name.as_bytes());
        for (instance, sequence) in echoes {
            payload.extend(instance.0);
            payload.extend(sequence.to_be_bytes());
        }
        let tag = self.mac.clone().chain_update(&payload).finalize().into_bytes();
        payload.extend(&tag[..TAG]);
        payload
    }

    /// What a payload says, if it is of this gateway. Takes any bytes.
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

/// Everything before the tag.
fn parse(rest: &mut Reader) -> Option<(Uid, Frame)> {
    let kind = match rest.array()? {
        [0, VERSION] => Kind::Hello,
        [1, VERSION] => Kind::Resign,
        [2, VERSION] => Kind::Advertisement,
        [3, VERSION] => Kind::Take,
        [4, VERSION] => Kind::Prolong,
        _ => return None,
    };
    let uid = rest.array()?;
    let instance = Instance(rest.array()?);
    let sequence = u64::from_be_bytes(rest.array()?);
    let term = u64::from_be_bytes(rest.array()?);
    let successor = Some(rest.array()?).filter(|bytes| *bytes != [0; 16]).map(Instance);
    let interval = Some(u16::from_be_bytes(rest.array()?)).filter(|ms| *ms > 0)?;
    let [priority, echoes, name] = rest.array()?;
    if usize::from(echoes) > MAX_ECHOES || usize::from(name) > MAX_NAME {
        return None;
    }
    let name = str::from_utf8(rest.take(name.into())?).ok()?.to_owned();
    let echo = |_| Some((Instance(rest.array()?), u64::from_be_bytes(rest.array()?)));
    let echoes = (0..echoes).map(echo).collect::<Option<_>>()?;
    let frame = Frame {
        kind,
        instance,
        sequence,
        term,
        successor,
        interval: Duration::from_millis(interval.into()),
        priority: NonZeroU8::new(priority)?,
        name,
        echoes,
    };
    Some((uid, frame))
}

/// What is left to read.
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
        let kinds = vec![Kind::Hello, Kind::Resign, Kind::Advertisement, Kind::Take];
        let numbers = (any::<u64>(), any::<u64>(), 1..=u16::MAX, 1..=u8::MAX);
        let successor = prop::option::of((1..=u128::MAX).prop_map(|id| Instance(id.to_be_bytes())));
        let echo = (any::<[u8; 16]>().prop_map(Instance), any::<u64>());
        let echoes = prop::collection::vec(echo, 0..=MAX_ECHOES);
        (prop::sample::select(kinds), any::<[u8; 16]>(), numbers, successor, "\\PC{0,15}", echoes).prop_map(
            |(kind, instance, (sequence, term, interval, priority), successor, name, echoes)| Frame {
                kind,
                instance: Instance(instance),
                sequence,
                term,
                successor,
                interval: Duration::from_millis(interval.into()),
                priority: NonZeroU8::new(priority).unwrap(),
                name,
                echoes,
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
            echoes: vec![(Instance([6; 16]), 8)],
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_read_whatever_is_padded(frame in frames(), padding in any::<[u8; 20]>()) {
            let mut payload = seal().seal(&frame);
            prop_assert_eq!(payload.len(), 71 + frame.name.len() + 24 * frame.echoes.len() + TAG);
            prop_assert_eq!(seal().open(&payload), Ok(frame.clone()));
            payload.extend(padding);
            prop_assert_eq!(seal().open(&payload), Ok(frame));
        }

        #[test]
        fn no_bytes_are_too_odd_to_read(payload in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(seal().open(&payload).is_err());
        }

        #[test]
        fn what_was_changed_or_cut_is_not_ours(frame in frames(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let payload = seal().seal(&frame);
            let mut changed = payload.clone();
            changed[at.index(payload.len())] ^= 1u8 << bit;
            prop_assert!(seal().open(&changed).is_err());
            prop_assert_eq!(seal().open(&payload[..at.index(payload.len())]), Err(Rejected::Malformed));
        }
    }

    #[test]
    fn the_bytes_lie_where_the_table_says() {
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
    fn each_reason_to_reject_is_told_apart() {
        let payload = seal().seal(&frame());
        assert_eq!(Seal::new([8; 16], &KEY).open(&payload), Err(Rejected::Foreign));
        assert_eq!(Seal::new(UID, &[1; 32]).open(&payload), Err(Rejected::BadTag));
        let with = |at: usize, to: u8| {
            let mut payload = payload.clone();
            payload[at] = to;
            seal().open(&payload)
        };
        // Kind, version, interval, priority, numbers of echoes and of the name's
        // bytes, the name.
        for (at, to) in [(0, 5), (1, 2), (67, 0), (68, 0), (69, 17), (69, 2), (70, 64), (71, 0xff)] {
            assert_eq!(with(at, to), Err(Rejected::Malformed), "{to} at {at}");
        }
        assert_eq!(with(0, 3), Err(Rejected::BadTag), "an advertisement is no take-over");
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let long = Frame {
            name: format!("{}ö", "x".repeat(62)),
            echoes: vec![(Instance([6; 16]), 8); 20],
            ..frame()
        };
        let read = seal().open(&seal().seal(&long)).unwrap();
        assert_eq!(read.name, "x".repeat(62), "not in the middle of a character");
        assert_eq!(read.echoes.len(), MAX_ECHOES);
    }

    #[test]
    fn a_gateway_has_a_group_address_of_its_own() {
        let mac = group(&UID);
        assert_eq!(mac[0], 0x03, "a group, locally administered");
        assert_eq!(mac, group(&UID));
        assert_ne!(mac, group(&[8; 16]));
    }
}
