//! Asking the LAN for an address before it is taken into service (RFC 5227,
//! shortened): who answers, or asks the same, has it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use nix::sys::socket::bind;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use tokio::net::unix::pipe::Receiver;

use crate::arp::{self, Frame, Mac, Port};

/// When to ask, from the first time on.
const ASK: [Duration; 3] = [Duration::ZERO, Duration::from_millis(30), Duration::from_millis(60)];
/// When silence means that nobody has the address.
const SILENCE: Duration = Duration::from_millis(100);
/// How long a probe that went out late may still be answered.
const ANSWER: Duration = Duration::from_millis(40);
/// After a probe that could not be sent, before trying again.
const UNSENT: Duration = Duration::from_secs(1);
/// After a conflict, before asking again.
const AGAIN: Duration = Duration::from_secs(10);

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody answered.
    Free,
    /// The host with this hardware address has it, or is about to take it.
    Conflict(Mac),
}

/// An address that is asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Who had it when it was last asked for.
    conflict: Option<Mac>,
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Ask from then on.
    Wait(Instant),
    /// Asked since the first instant, last at the second, so many times.
    Listen(Instant, Instant, usize),
}

impl Step {
    fn due(self) -> Instant {
        match self {
            Self::Wait(at) => at,
            Self::Listen(first, last, count) => match ASK.get(count) {
                Some(offset) => first + *offset,
                None => (first + SILENCE).max(last + ANSWER),
            },
        }
    }
}

/// Which addresses to ask for, and what came of it. Pure: time and frames come
/// in from outside, probes and verdicts go out.
#[derive(Debug, Default)]
pub struct Probes {
    port: Option<Port>,
    asked: BTreeMap<Ipv4Addr, Asked>,
    free: BTreeSet<Ipv4Addr>,
}

impl Probes {
    /// Ask for these addresses by this interface; without one, later. What is
    /// `held` when it is first heard of is in service already, and not asked
    /// for.
    pub fn set(
        &mut self,
        now: Instant,
        port: Option<Port>,
        addresses: &[Ipv4Addr],
        held: &BTreeSet<Ipv4Addr>,
    ) {
        if port != self.port {
            self.port = port;
            for asked in self.asked.values_mut() {
                asked.step = Step::Wait(now);
            }
        }
        self.asked.retain(|address, _| addresses.contains(address));
        self.free.retain(|address| addresses.contains(address));
        for address in addresses {
            if self.free.contains(address) || self.asked.contains_key(address) {
                continue;
            }
            if held.contains(address) {
                self.free.insert(*address);
            } else {
                self.asked.insert(*address, Asked { conflict: None, step: Step::Wait(now) });
            }
        }
    }

    /// By which interface to ask.
    pub fn port(&self) -> Option<Port> {
        self.port
    }

    /// Whether nobody else has the address.
    pub fn is_free(&self, address: Ipv4Addr) -> bool {
        self.free.contains(&address)
    }

    /// The addresses that may not be taken into service.
    pub fn withheld(&self) -> BTreeSet<Ipv4Addr> {
        self.asked.keys().copied().collect()
    }

    /// Those of them that another host has.
    pub fn conflicts(&self) -> impl Iterator<Item = (Ipv4Addr, Mac)> {
        self.asked.iter().filter_map(|(address, asked)| Some((*address, asked.conflict?)))
    }

    /// Whether an answer may come.
    pub fn is_listening(&self) -> bool {
        self.port.is_some() && self.asked.values().any(|asked| matches!(asked.step, Step::Listen(..)))
    }

    /// When there is something to do without an answer.
    pub fn due(&self) -> Option<Instant> {
        self.port?;
        self.asked.values().map(|asked| asked.step.due()).min()
    }

    /// A frame was received.
    pub fn hear(&mut self, now: Instant, frame: &[u8]) -> Option<(Ipv4Addr, Verdict)> {
        let ours = self.port?.mac;
        let (address, mac) = claimed(frame)?;
        let asked = self.asked.get_mut(&address)?;
        if mac == ours || matches!(asked.step, Step::Wait(_)) {
            return None;
        }
        *asked = Asked { conflict: Some(mac), step: Step::Wait(now + AGAIN) };
        Some((address, Verdict::Conflict(mac)))
    }

    /// The addresses to ask for now, and those for which nobody answered.
    pub fn take(&mut self, now: Instant) -> (Vec<Ipv4Addr>, Vec<(Ipv4Addr, Verdict)>) {
        let (mut send, mut verdicts) = (Vec::new(), Vec::new());
        if self.port.is_none() {
            return (send, verdicts);
        }
        for (address, asked) in self.asked.iter_mut().filter(|(_, asked)| asked.step.due() <= now) {
            let (first, count) = match asked.step {
                Step::Wait(_) => (now, 0),
                Step::Listen(first, _, count) => (first, count),
            };
            if count == ASK.len() {
                verdicts.push((*address, Verdict::Free));
                continue;
            }
            // Who comes late asks once for all the times that are past.
            let past = ASK.iter().filter(|offset| first + **offset <= now).count();
            asked.step = Step::Listen(first, now, past);
            send.push(*address);
        }
        for (address, _) in &verdicts {
            self.asked.remove(address);
            self.free.insert(*address);
        }
        (send, verdicts)
    }

    /// The probe for this address did not go out: silence says nothing.
    pub fn unsent(&mut self, now: Instant, address: Ipv4Addr) {
        if let Some(asked) = self.asked.get_mut(&address) {
            asked.step = Step::Wait(now + UNSENT);
        }
    }
}

/// The address that an ARP frame's sender has, or asks for to take it, and the
/// sender.
fn claimed(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let arp = Frame::parse(frame)?;
    let probe = arp.request && arp.sender == Ipv4Addr::UNSPECIFIED;
    Some((if probe { arp.target } else { arp.sender }, arp.mac))
}

/// `ETH_P_ARP` (`linux/if_ether.h`).
const ETH_P_ARP: u16 = 0x0806;

/// `ETH_P_ALL` (`linux/if_ether.h`).
const ETH_P_ALL: u16 = 0x0003;

/// Where the sender's and the target's address are in an ARP frame.
const SENDER: u32 = 28;
const TARGET: u32 = 38;

/// Whose ARP is worth waking up for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Concern {
    /// Addresses of senders.
    pub senders: Vec<Ipv4Addr>,
    /// Addresses that are asked for.
    pub targets: Vec<Ipv4Addr>,
}

impl Concern {
    /// As a program of the kernel's packet filter (`linux/filter.h`), which lets
    /// what is of concern through.
    fn filter(&self) -> Vec<SockFilter> {
        const LOAD: u16 = (BPF_LD | BPF_W | BPF_ABS) as u16;
        const IF_EQUAL: u16 = (BPF_JMP | BPF_JEQ | BPF_K) as u16;
        const RETURN: u16 = (BPF_RET | BPF_K) as u16;
        let accept = SockFilter::new(RETURN, 0, 0, u32::MAX);
        // A jump leads over 255 instructions at most.
        let Ok(mut left) = u8::try_from(self.senders.len() + self.targets.len() + 2) else {
            return vec![accept];
        };
        let mut program = Vec::new();
        for (offset, addresses) in [(SENDER, &self.senders), (TARGET, &self.targets)] {
            program.push(SockFilter::new(LOAD, 0, 0, offset));
            left -= 1;
            for address in addresses {
                // Over all that is left, to the last.
                program.push(SockFilter::new(IF_EQUAL, left, 0, (*address).into()));
                left -= 1;
            }
        }
        program.extend([SockFilter::new(RETURN, 0, 0, 0), accept]);
        program
    }
}

/// A packet socket that hears frames of a protocol (`linux/if_ether.h`) on the
/// interface of this name. Needs NET_RAW.
pub(crate) fn socket(interface: &str, protocol: u16) -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(protocol.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // The protocol stays as the socket has it.
    bind(socket.as_raw_fd(), &arp::link_address(interface)?)?;
    Ok(socket)
}

/// A frame, if there is one to read.
fn frame(read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> Option<Vec<u8>> {
    let mut frame = vec![0; 128];
    let length = read(&mut frame).ok()?;
    frame.truncate(length);
    Some(frame)
}

/// A packet socket that hears an interface, as something that
/// tokio waits for and reads.
pub struct Ear(Receiver);

impl Ear {
    /// Hears the ARP of the interface of this name that is of concern. Needs
    /// NET_RAW.
    pub fn open(interface: &str, concern: &Concern) -> io::Result<Self> {
        let ear = Self::of(interface, ETH_P_ARP)?;
        ear.tune(concern)?;
        Ok(ear)
    }

    /// Hears what is of concern now, and may still have heard what was before.
    pub fn tune(&self, concern: &Concern) -> io::Result<()> {
        SockRef::from(&self.0).attach_filter(&concern.filter())
    }

    /// Hears everything on it, also what filters drop and what leaves by it.
    /// Needs NET_RAW.
    pub fn for_all(interface: &str) -> io::Result<Self> {
        Self::of(interface, ETH_P_ALL)
    }

    fn of(interface: &str, protocol: u16) -> io::Result<Self> {
        Ok(Self(Receiver::from_owned_fd_unchecked(socket(interface, protocol)?.into())?))
    }

    /// Resolves when there is something to hear; never without an ear.
    pub async fn heard(ear: Option<&Self>) {
        match ear {
            Some(Self(frames)) => {
                let _ = frames.readable().await;
            }
            None => std::future::pending().await,
        }
    }

    /// The next frame there is.
    pub fn take(&self) -> Option<Vec<u8>> {
        frame(|buffer| self.0.try_read(buffer))
    }
}

/// A packet socket that keeps the ARP of concern for who looks now and then. An
/// [`Ear`] would wake up the process with each frame, awaited or not.
pub struct Inbox(Socket);

impl Inbox {
    /// Keeps what comes by the interface of this name. Needs NET_RAW.
    pub fn open(interface: &str, concern: &Concern) -> io::Result<Self> {
        let socket = socket(interface, ETH_P_ARP)?;
        socket.attach_filter(&concern.filter())?;
        Ok(Self(socket))
    }

    /// The next frame there is.
    pub fn take(&self) -> Option<Vec<u8>> {
        frame(|buffer| (&self.0).read(buffer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x02, 0, 0, 0, 0, 0x18];
    const FOREIGN: Mac = [0x02, 0, 0, 0, 0, 0x99];
    const PORT: Port = Port { index: 3, mac: MAC, carrier_changes: 1 };
    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);
    const OTHER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 50);

    fn asking(start: Instant) -> Probes {
        let mut probes = Probes::default();
        probes.set(start, Some(PORT), &[VIP], &BTreeSet::new());
        probes
    }

    /// What a host with `mac` that has `address` says to who asks for it.
    fn answer(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
        let mut frame = arp::announcement(mac, address).to_vec();
        frame[21] = 2;
        frame[32..38].copy_from_slice(&MAC);
        frame[38..42].fill(0);
        frame
    }

    /// Follows the clock until there is a verdict or nothing to wait for.
    fn follow(probes: &mut Probes, start: Instant) -> (Vec<u128>, Vec<(Ipv4Addr, Verdict)>, u128) {
        let mut sent = Vec::new();
        loop {
            let due = probes.due().unwrap();
            let at = (due - start).as_millis();
            let (send, verdicts) = probes.take(due);
            sent.extend(send.iter().map(|_| at));
            if !verdicts.is_empty() {
                return (sent, verdicts, at);
            }
        }
    }

    /// Which of the frames the kernel lets through, by their places.
    fn let_through(concern: &Concern, frames: &[[u8; 42]]) -> Vec<usize> {
        // A socket of another kind, for which no capability is needed.
        let (mouth, ear) = std::os::unix::net::UnixDatagram::pair().unwrap();
        ear.set_nonblocking(true).unwrap();
        SockRef::from(&ear).attach_filter(&concern.filter()).unwrap();
        let heard = |frame: &[u8; 42]| mouth.send(frame).is_ok() && ear.recv(&mut [0; 64]).is_ok();
        (0..frames.len()).filter(|at| heard(&frames[*at])).collect()
    }

    #[test]
    fn what_is_of_no_concern_wakes_nobody() {
        let router = Ipv4Addr::new(172, 18, 0, 1);
        let frames = [
            arp::question(FOREIGN, OTHER, router),
            arp::question(FOREIGN, router, OTHER),
            arp::question(FOREIGN, OTHER, VIP),
            arp::announcement(FOREIGN, VIP),
            arp::probe(FOREIGN, OTHER),
        ];
        let concern = |senders: &[Ipv4Addr], targets: &[Ipv4Addr]| Concern {
            senders: senders.to_vec(),
            targets: targets.to_vec(),
        };
        let heard = |senders: &[_], targets: &[_]| let_through(&concern(senders, targets), &frames);
        assert_eq!(heard(&[VIP, router], &[VIP]), [1, 2, 3]);
        assert_eq!(heard(&[router], &[]), [1]);
        assert_eq!(heard(&[], &[router, OTHER]), [0, 1, 4]);
        assert!(heard(&[], &[]).is_empty());
        let many: Vec<Ipv4Addr> = (0..126).map(|last| Ipv4Addr::new(10, 0, 0, last)).chain([VIP]).collect();
        assert_eq!(heard(&many[..126], &many[..127]), [2, 3]);
        assert_eq!(heard(&many, &many), [0, 1, 2, 3, 4], "more than a filter can tell");
    }

    #[test]
    fn three_times_asked_and_silence_is_consent() {
        let start = Instant::now();
        let mut probes = asking(start);
        assert_eq!(probes.withheld(), [VIP].into());
        assert!(!probes.is_listening());
        let (sent, verdicts, at) = follow(&mut probes, start);
        assert_eq!((sent, at), (vec![0, 30, 60], 100));
        assert_eq!(verdicts, [(VIP, Verdict::Free)]);
        assert!(probes.is_free(VIP) && probes.withheld().is_empty());
        assert_eq!(probes.due(), None);
        // Once for as long as it is wanted, wherever the link goes.
        probes.set(start, None, &[VIP], &BTreeSet::new());
        probes.set(start, Some(Port { carrier_changes: 3, ..PORT }), &[VIP], &BTreeSet::new());
        assert_eq!(probes.due(), None);
        probes.set(start, Some(PORT), &[], &BTreeSet::new());
        probes.set(start, Some(PORT), &[VIP], &BTreeSet::new());
        assert_eq!(probes.withheld(), [VIP].into(), "it was let go meanwhile");
    }

    #[test]
    fn who_is_kept_busy_still_waits_for_the_answer() {
        let start = Instant::now();
        let mut probes = asking(start);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(probes.take(at(0)).0, [VIP]);
        assert_eq!(probes.take(at(300)), (vec![VIP], vec![]));
        assert_eq!(probes.due(), Some(at(340)));
        assert_eq!(probes.take(at(340)).1, [(VIP, Verdict::Free)]);
    }

    #[test]
    fn an_answer_is_a_conflict_until_it_stays_away() {
        let start = Instant::now();
        let mut probes = asking(start);
        probes.take(start);
        let heard = start + Duration::from_millis(3);
        let conflict = Some((VIP, Verdict::Conflict(FOREIGN)));
        assert_eq!(probes.hear(heard, &answer(FOREIGN, VIP)), conflict);
        assert_eq!(probes.hear(heard, &answer(FOREIGN, VIP)), None, "said once");
        assert_eq!(probes.conflicts().collect::<Vec<_>>(), [(VIP, FOREIGN)]);
        assert!(!probes.is_listening());
        assert_eq!(probes.due(), Some(heard + AGAIN));
        assert_eq!(probes.take(heard), (vec![], vec![]));

        // Asked again it is a conflict still, and withheld meanwhile.
        assert_eq!(probes.take(heard + AGAIN).0, [VIP]);
        assert_eq!(probes.conflicts().count(), 1);
        assert_eq!(probes.hear(heard + AGAIN, &answer(FOREIGN, VIP)), conflict);
        let (sent, verdicts, _) = follow(&mut probes, start);
        assert_eq!((sent.len(), verdicts), (3, vec![(VIP, Verdict::Free)]));
        assert_eq!(probes.conflicts().count(), 0);
    }

    #[test]
    fn an_announcement_and_a_foreign_probe_are_conflicts_as_well() {
        let start = Instant::now();
        for frame in [arp::announcement(FOREIGN, VIP), arp::probe(FOREIGN, VIP)] {
            let mut probes = asking(start);
            probes.take(start);
            // Minimum length of an Ethernet frame: something follows.
            let frame = [&frame[..], &[0; 18]].concat();
            assert_eq!(probes.hear(start, &frame), Some((VIP, Verdict::Conflict(FOREIGN))));
        }
    }

    #[test]
    fn what_concerns_others_is_not_heard() {
        let start = Instant::now();
        let mut probes = asking(start);
        assert_eq!(probes.hear(start, &answer(FOREIGN, VIP)), None, "before the question");
        probes.take(start);
        let whole = answer(FOREIGN, VIP);
        let changed = |at: usize, to: u8| {
            let mut frame = whole.clone();
            frame[at] = to;
            frame
        };
        // Another host asks who has it.
        let mut question = arp::probe(FOREIGN, VIP).to_vec();
        question[28..32].copy_from_slice(&OTHER.octets());
        for frame in [
            arp::probe(MAC, VIP).to_vec(),
            answer(MAC, VIP),
            answer(FOREIGN, OTHER),
            arp::probe(FOREIGN, OTHER).to_vec(),
            question,
            Vec::new(),
            whole[..41].to_vec(),
            changed(12, 0x81),
            changed(14, 1),
            changed(16, 0x86),
            changed(18, 8),
            changed(19, 16),
            changed(21, 9),
        ] {
            assert_eq!(probes.hear(start, &frame), None, "{frame:02x?}");
        }
        assert_eq!(probes.conflicts().count(), 0);
    }

    #[test]
    fn what_is_in_service_is_not_asked_for() {
        let start = Instant::now();
        let mut probes = Probes::default();
        probes.set(start, Some(PORT), &[VIP, OTHER], &[VIP].into());
        assert_eq!(probes.withheld(), [OTHER].into());
        assert!(probes.is_free(VIP));
        // What someone sets while it is withheld is not in service.
        probes.set(start, Some(PORT), &[VIP, OTHER], &[OTHER].into());
        assert_eq!(probes.withheld(), [OTHER].into());
    }

    #[test]
    fn what_was_not_sent_is_not_consented_to() {
        let start = Instant::now();
        let mut probes = asking(start);
        probes.take(start);
        probes.unsent(start, VIP);
        assert_eq!(follow(&mut probes, start), (vec![1000, 1030, 1060], vec![(VIP, Verdict::Free)], 1100));
    }

    #[test]
    fn another_link_is_asked_anew() {
        let start = Instant::now();
        let mut probes = asking(start);
        probes.take(start);
        let later = start + Duration::from_millis(120);
        probes.set(later, None, &[VIP], &BTreeSet::new());
        assert_eq!((probes.due(), probes.take(later)), (None, (vec![], vec![])));
        probes.set(later, Some(Port { carrier_changes: 3, ..PORT }), &[VIP], &BTreeSet::new());
        assert_eq!(follow(&mut probes, later).2, 100);
    }
}
