//! The forwarding check: whether ClusterIPs work for forwarded packets.
//!
//! Some cluster networks translate ClusterIPs only where a socket connects: the pod
//! itself reaches them, but packets that it forwards are lost. A SYN sent by a raw
//! socket takes the way of forwarded packets. An answer to it proves that forwarding
//! works; if there is none, although a socket could connect, it does not. If neither
//! is answered, for example without backends, the result is unknown; and when that has
//! lasted for a minute, on each of its TCP ports, the ClusterIP is silent.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use lb_svc_crds::gateway::Transport;
use nix::sys::socket::{MsgFlags, SockaddrIn, sendto};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{UdpSocket, unix::pipe::Receiver};
use tokio::task::JoinSet;
use tracing::debug;

use super::{Outgoing, SILENT_AFTER, connect};
use crate::config::{Targets, cluster_ips};

/// How long to wait for an answer to a SYN.
const ANSWER: Duration = Duration::from_millis(300);
/// How many SYNs to send.
const REQUESTS: usize = 3;
/// Interval of checks while forwarding is not proven, or nothing answers.
const INTERVAL: Duration = Duration::from_secs(5);
/// Interval of checks once it is: a NetworkPolicy may come later.
const PROVEN_INTERVAL: Duration = Duration::from_secs(60);

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Forwarded packets arrive, and are answered.
    Proven,
    /// Sockets connect, forwarded packets are lost.
    SocketsOnly,
    /// Neither is answered.
    Unknown,
}

#[derive(Clone, Debug)]
struct Check {
    /// Its TCP ports, of which one is checked at a time.
    ports: Vec<u16>,
    /// How many checks in a row nothing has answered: the next one is of the next port.
    unanswered: usize,
    /// Since when.
    unanswered_since: Option<Instant>,
    silent: bool,
    verdict: Verdict,
    /// When to check next; `None` while being checked.
    next: Option<Instant>,
}

impl Check {
    fn new(now: Instant, ports: Vec<u16>) -> Self {
        let verdict = Verdict::Unknown;
        Self { ports, unanswered: 0, unanswered_since: None, silent: false, verdict, next: Some(now) }
    }

    /// The port to check.
    fn port(&self) -> Option<u16> {
        self.ports.get(self.unanswered % self.ports.len().max(1)).copied()
    }
}

/// The checks of all ClusterIPs. Pure: time and results are inputs.
#[derive(Debug, Default)]
struct Checks(BTreeMap<Ipv4Addr, Check>);

impl Checks {
    /// Sets the ClusterIPs to check. Only those with a TCP port can be.
    fn set(&mut self, now: Instant, targets: &Targets) {
        let tcp = cluster_ips(targets).filter(|(frontend, _)| frontend.transport == Transport::Tcp);
        let mut wanted: BTreeMap<Ipv4Addr, BTreeSet<u16>> = BTreeMap::new();
        for (frontend, ip) in tcp {
            wanted.entry(ip).or_default().insert(frontend.port);
        }
        self.0.retain(|ip, _| wanted.contains_key(ip));
        for (ip, ports) in wanted {
            let ports: Vec<u16> = ports.into_iter().collect();
            let check = self.0.entry(ip).or_insert_with(|| Check::new(now, ports.clone()));
            if check.ports != ports {
                // What is known is so for every port.
                let next = if check.verdict == Verdict::Proven { now + PROVEN_INTERVAL } else { now };
                *check = Check { verdict: check.verdict, next: Some(next), ..Check::new(now, ports) };
            }
        }
    }

    /// When the next check is due.
    fn due(&self) -> Option<Instant> {
        self.0.values().filter_map(|check| check.next).min()
    }

    /// Returns the checks that are due, and marks them as running.
    fn take(&mut self, now: Instant) -> Vec<SocketAddrV4> {
        let due = self.0.iter_mut().filter(|(_, check)| check.next.is_some_and(|next| next <= now));
        due.filter_map(|(ip, check)| {
            check.next = None;
            Some(SocketAddrV4::new(*ip, check.port()?))
        })
        .collect()
    }

    /// The check of this port, unless another is checked by now.
    fn of(&mut self, at: SocketAddrV4) -> Option<&mut Check> {
        self.0.get_mut(at.ip()).filter(|check| check.port() == Some(at.port()))
    }

    /// Has a check done later that could not be done.
    fn postpone(&mut self, now: Instant, at: SocketAddrV4) {
        if let Some(check) = self.of(at) {
            check.next = Some(now + INTERVAL);
        }
    }

    /// Records a result. Returns whether the state changed.
    fn record(&mut self, now: Instant, at: SocketAddrV4, verdict: Verdict) -> bool {
        let Some(check) = self.of(at) else { return false };
        check.next = Some(now + if verdict == Verdict::Proven { PROVEN_INTERVAL } else { INTERVAL });
        if verdict == Verdict::Unknown {
            check.unanswered += 1;
            check.unanswered_since.get_or_insert(now);
        } else {
            (check.unanswered, check.unanswered_since) = (0, None);
        }
        let lasts = check.unanswered_since.is_some_and(|since| since + SILENT_AFTER <= now);
        let silent = lasts && check.unanswered >= check.ports.len();
        let silence_changed = std::mem::replace(&mut check.silent, silent) != silent;
        // An unknown result, as without backends, does not change a known one.
        let changed = verdict != Verdict::Unknown && verdict != check.verdict;
        if changed {
            check.verdict = verdict;
        }
        changed || silence_changed
    }

    /// The ClusterIPs that have not answered for a minute.
    fn silent(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.0.iter().filter(|(_, check)| check.silent).map(|(ip, _)| *ip)
    }

    /// The ClusterIPs that work for sockets only.
    fn sockets_only(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.0.iter().filter(|(_, check)| check.verdict == Verdict::SocketsOnly).map(|(ip, _)| *ip)
    }
}

/// The forwarding checks with their running tasks.
#[derive(Default)]
pub struct ForwardingChecks {
    checks: Checks,
    outgoing: Outgoing,
    running: JoinSet<(SocketAddrV4, io::Result<Verdict>)>,
}

impl ForwardingChecks {
    /// Sets the targets whose ClusterIPs to check, and which way; proxied ones may be
    /// silent as well.
    pub fn set(&mut self, now: Instant, targets: &Targets, outgoing: Outgoing) {
        self.outgoing = outgoing;
        self.checks.set(now, targets);
    }

    /// When [`Self::start`] is to be called next.
    pub fn due(&self) -> Option<Instant> {
        self.checks.due()
    }

    /// Starts the checks that are due.
    pub fn start(&mut self, now: Instant) {
        for at in self.checks.take(now) {
            let outgoing = self.outgoing.clone();
            self.running.spawn(async move { (at, check(at, &outgoing).await) });
        }
    }

    /// Waits for a check to end, and returns whether its ClusterIP's state changed;
    /// never resolves while none is running.
    pub async fn next(&mut self) -> bool {
        let Some(Ok((at, result))) = self.running.join_next().await else {
            return std::future::pending().await;
        };
        match result {
            Ok(verdict) => self.checks.record(Instant::now(), at, verdict),
            // It was not asked, which is no silence.
            Err(error) => {
                debug!(%at, %error, "forwarding not checked");
                self.checks.postpone(Instant::now(), at);
                false
            }
        }
    }

    /// The ClusterIPs that have not answered for a minute, on any TCP port.
    pub fn silent(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.checks.silent()
    }

    /// The ClusterIPs that work for sockets only.
    pub fn sockets_only(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.checks.sockets_only()
    }
}

/// Checks one ClusterIP, for three seconds at most. Needs NET_RAW.
///
/// # Errors
/// If there is no route, or the kernel refuses a socket.
async fn check(at: SocketAddrV4, outgoing: &Outgoing) -> io::Result<Verdict> {
    if is_raw_syn_answered(at, outgoing).await? {
        return Ok(Verdict::Proven);
    }
    let connected = tokio::time::timeout(ANSWER * 3, connect(outgoing, at)).await;
    if !matches!(connected, Ok(Ok(_))) {
        return Ok(Verdict::Unknown);
    }
    // The Service may have got its first backend only meanwhile.
    Ok(if is_raw_syn_answered(at, outgoing).await? { Verdict::Proven } else { Verdict::SocketsOnly })
}

/// Whether a SYN sent by a raw socket is answered. The kernel, which has no such
/// connection, resets it.
async fn is_raw_syn_answered(at: SocketAddrV4, outgoing: &Outgoing) -> io::Result<bool> {
    let device = outgoing.as_deref().map(str::as_bytes);
    // Bound meanwhile, so that no other socket gets the port.
    let own = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).await?;
    SockRef::from(&own).bind_device(device)?;
    own.connect(at).await?;
    let std::net::SocketAddr::V4(from) = own.local_addr()? else {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    };
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(device)?;
    let answers = Receiver::from_owned_fd_unchecked(socket.as_fd().try_clone_to_owned()?)?;
    let to = SockaddrIn::from(SocketAddrV4::new(*at.ip(), 0));
    for _ in 0..REQUESTS {
        sendto(socket.as_raw_fd(), &request(from, at), &to, MsgFlags::empty())?;
        let answered = async {
            let mut packet = [0; 128];
            loop {
                answers.readable().await?;
                while let Ok(length) = answers.try_read(&mut packet) {
                    if is_answer(packet.get(..length).unwrap_or_default(), from, at) {
                        return io::Result::Ok(());
                    }
                }
            }
        };
        if let Ok(answered) = tokio::time::timeout(ANSWER, answered).await {
            return answered.map(|()| true);
        }
    }
    Ok(false)
}

/// A TCP SYN (RFC 9293).
fn request(from: SocketAddrV4, to: SocketAddrV4) -> [u8; 20] {
    const SYN: u8 = 0x02;
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    // 20 bytes of header.
    segment[12] = 5 << 4;
    segment[13] = SYN;
    // Any window: no data follows.
    segment[14..16].copy_from_slice(&1024u16.to_be_bytes());
    let mut sum = (from.ip().to_bits() >> 16) + (from.ip().to_bits() & 0xffff);
    sum += (to.ip().to_bits() >> 16) + (to.ip().to_bits() & 0xffff);
    // TCP's number, and the segment's length.
    sum += 6 + 20;
    sum += segment.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap_or_default();
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// Whether the IPv4 packet accepts or refuses the connection.
fn is_answer(packet: &[u8], from: SocketAddrV4, to: SocketAddrV4) -> bool {
    const ACK: u8 = 0x10;
    let header = usize::from(packet.first().copied().unwrap_or_default() & 0x0f) * 4;
    let (Some(source), Some(segment)) = (packet.get(12..16), packet.get(header..)) else {
        return false;
    };
    source == to.ip().octets()
        && segment.get(..2) == Some(&to.port().to_be_bytes())
        && segment.get(2..4) == Some(&from.port().to_be_bytes())
        && segment.get(13).is_some_and(|flags| flags & ACK != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Frontend, Target};

    fn targets(ports: &[(Transport, u16, &str)]) -> Targets {
        let frontend = |transport, port| Frontend { address: Ipv4Addr::new(172, 18, 0, 18), transport, port };
        ports
            .iter()
            .map(|(transport, port, to)| {
                (frontend(*transport, *port), Target::ClusterIp(to.parse().unwrap()))
            })
            .collect()
    }

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    #[test]
    fn cluster_ip_is_checked_until_proven() {
        let start = Instant::now();
        let mut checks = Checks::default();
        let wanted = targets(&[(Transport::Tcp, 80, "10.96.0.1"), (Transport::Udp, 53, "10.96.0.2")]);
        checks.set(start, &wanted);
        assert_eq!(checks.take(start), [at("10.96.0.1:80")]);
        assert_eq!(checks.due(), None);
        assert!(!checks.record(start, at("10.96.0.1:80"), Verdict::Unknown));
        assert_eq!(checks.due(), Some(start + INTERVAL));

        assert_eq!(checks.take(start + INTERVAL).len(), 1);
        assert!(checks.record(start + INTERVAL, at("10.96.0.1:80"), Verdict::SocketsOnly));
        assert_eq!(checks.sockets_only().count(), 1);
        // An unknown result does not change it.
        assert!(!checks.record(start + INTERVAL, at("10.96.0.1:80"), Verdict::Unknown));
        assert_eq!(checks.sockets_only().count(), 1);
        assert!(checks.record(start + INTERVAL, at("10.96.0.1:80"), Verdict::Proven));
        let next = Some(start + INTERVAL + PROVEN_INTERVAL);
        assert_eq!((checks.sockets_only().count(), checks.due()), (0, next));

        // A proven ClusterIP stays so with another port.
        checks.set(start, &targets(&[(Transport::Tcp, 81, "10.96.0.1")]));
        assert_eq!(checks.due(), Some(start + PROVEN_INTERVAL));
        checks.set(start, &Targets::new());
        checks.set(start, &wanted);
        assert_eq!(checks.due(), Some(start));
    }

    #[test]
    fn r27_cluster_ip_is_silent_when_no_port_answers_for_a_minute() {
        let start = Instant::now();
        let mut checks = Checks::default();
        let ports = [(Transport::Tcp, 80, "10.96.0.1"), (Transport::Tcp, 443, "10.96.0.1")];
        checks.set(start, &targets(&ports));
        let mut now = start;
        // Checks until then, and answers on one port, or none. Returns the ports asked.
        let mut until = |checks: &mut Checks, seconds: u64, answers: Option<u16>| {
            let mut asked = Vec::new();
            while now <= start + Duration::from_secs(seconds) {
                for at in checks.take(now) {
                    let answered = answers == Some(at.port());
                    checks.record(now, at, if answered { Verdict::Proven } else { Verdict::Unknown });
                    asked.push(at.port());
                }
                now += Duration::from_secs(1);
            }
            asked
        };
        assert_eq!(until(&mut checks, 59, None)[..4], [80, 443, 80, 443]);
        assert_eq!(checks.silent().count(), 0);
        until(&mut checks, 65, None);
        assert_eq!(checks.silent().collect::<Vec<_>>(), [Ipv4Addr::new(10, 96, 0, 1)]);
        // One port is enough, whichever.
        until(&mut checks, 80, Some(443));
        assert_eq!(checks.silent().count(), 0);
        // A policy comes later.
        until(&mut checks, 260, None);
        assert_eq!(checks.silent().count(), 1);
        checks.set(start, &targets(&ports[..1]));
        assert_eq!(checks.silent().count(), 0, "the other port may answer");
    }

    #[test]
    fn syn_is_valid_and_answers_are_recognised() {
        let (from, to) = (at("10.16.0.5:40000"), at("10.96.0.1:80"));
        let segment = request(from, to);
        let tcp = etherparse::TcpHeaderSlice::from_slice(&segment).unwrap();
        assert!(tcp.syn() && !tcp.ack());
        let ip = etherparse::Ipv4Header::new(
            20,
            64,
            etherparse::IpNumber::TCP,
            from.ip().octets(),
            to.ip().octets(),
        );
        let sum = tcp.to_header().calc_checksum_ipv4(&ip.unwrap(), &[]).unwrap();
        assert_eq!(tcp.checksum(), sum);

        let packet = |from: SocketAddrV4, to: SocketAddrV4, flags: u8| {
            let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
            packet.extend(from.ip().octets());
            packet.extend(to.ip().octets());
            let mut segment = request(from, to);
            segment[13] = flags;
            packet.extend(segment);
            packet
        };
        assert!(is_answer(&packet(to, from, 0x12), from, to), "accepted");
        assert!(is_answer(&packet(to, from, 0x14), from, to), "refused");
        assert!(!is_answer(&packet(to, from, 0x02), from, to), "no answer");
        assert!(!is_answer(&packet(at("10.96.0.9:80"), from, 0x12), from, to), "another host's");
        assert!(!is_answer(&packet(to, at("10.16.0.5:1"), 0x12), from, to), "to another port");
        assert!(!is_answer(&[0x4f; 3], from, to));
    }
}
