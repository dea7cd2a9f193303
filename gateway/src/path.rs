//! Whether ClusterIPs work for forwarded packets.
//!
//! Some networks serve ClusterIPs where a socket connects, and nowhere else:
//! the pod itself reaches them, and what it forwards goes astray. A connection
//! request sent past the sockets (a raw one) goes the way of forwarded packets.
//! One answer to it proves the path; if there is none, though a socket got
//! through before, the path is known to be missing. While neither does, for want of
//! backends say, nothing is known.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, SockaddrIn, sendto};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpStream, UdpSocket, unix::pipe::Receiver};

use crate::config::{Forwards, cluster_ips};
use lb_svc_crds::gateway::Transport;

/// How long an answer may take; and so often is asked.
const ANSWER: Duration = Duration::from_millis(300);
const REQUESTS: usize = 3;
/// Between two looks at a path that is not proven.
const AGAIN: Duration = Duration::from_secs(5);

/// What is known of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Packets that are forwarded arrive, and answers come back.
    Proven,
    /// Sockets get through, forwarded packets do not.
    SocketsOnly,
    /// Nothing answers.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Path {
    port: u16,
    verdict: Verdict,
    /// When to look, unless it is proven or being looked at.
    next: Option<Instant>,
}

/// The paths to the ClusterIPs. Pure: time and verdicts come in from outside.
#[derive(Debug, Default)]
pub struct Paths(BTreeMap<Ipv4Addr, Path>);

impl Paths {
    /// These are the ClusterIPs to know about. Only those that serve TCP can be
    /// asked.
    pub fn set(&mut self, now: Instant, forwards: &Forwards) {
        let tcp = cluster_ips(forwards).filter(|(served, _)| served.transport == Transport::Tcp);
        let wanted: BTreeMap<Ipv4Addr, u16> = tcp.map(|(served, target)| (target, served.port)).collect();
        self.0
            .retain(|target, path| wanted.get(target) == Some(&path.port) || path.verdict == Verdict::Proven);
        self.0.retain(|target, _| wanted.contains_key(target));
        for (target, port) in wanted {
            self.0.entry(target).or_insert(Path { port, verdict: Verdict::Unknown, next: Some(now) });
        }
    }

    /// When to look next.
    pub fn due(&self) -> Option<Instant> {
        self.0.values().filter_map(|path| path.next).min()
    }

    /// What to look at now.
    pub fn take(&mut self, now: Instant) -> Vec<SocketAddrV4> {
        let due = self.0.iter_mut().filter(|(_, path)| path.next.is_some_and(|next| next <= now));
        due.map(|(target, path)| {
            path.next = None;
            SocketAddrV4::new(*target, path.port)
        })
        .collect()
    }

    /// What came of looking. Returns whether that is news.
    pub fn found(&mut self, now: Instant, at: SocketAddrV4, verdict: Verdict) -> bool {
        let path = self.0.get_mut(at.ip()).filter(|path| path.port == at.port());
        let Some(path) = path else {
            return false;
        };
        path.next = (verdict != Verdict::Proven).then_some(now + AGAIN);
        // Backends that went away do not make a missing path whole.
        let learned = verdict != Verdict::Unknown && verdict != path.verdict;
        if learned {
            path.verdict = verdict;
        }
        learned
    }

    /// The ClusterIPs that only sockets reach.
    pub fn missing(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.0.iter().filter(|(_, path)| path.verdict == Verdict::SocketsOnly).map(|(target, _)| *target)
    }
}

/// Looks at one path, for three seconds at most. Needs NET_RAW.
///
/// # Errors
/// When there is no socket to be had, or no route.
pub async fn look(at: SocketAddrV4) -> io::Result<Verdict> {
    if asked_past_sockets(at).await? {
        return Ok(Verdict::Proven);
    }
    let connected = tokio::time::timeout(ANSWER * 3, TcpStream::connect(at)).await;
    if !matches!(connected, Ok(Ok(_))) {
        return Ok(Verdict::Unknown);
    }
    // The Service may have become one only while that was asked.
    Ok(if asked_past_sockets(at).await? { Verdict::Proven } else { Verdict::SocketsOnly })
}

/// Whether a connection request that no socket made is answered. The kernel,
/// which knows of no connection, resets what it began.
async fn asked_past_sockets(at: SocketAddrV4) -> io::Result<bool> {
    // Bound for as long as this takes, so that the port is nobody else's.
    let own = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).await?;
    own.connect(at).await?;
    let std::net::SocketAddr::V4(from) = own.local_addr()? else {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    };
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
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

/// A TCP segment (RFC 9293) that asks for a connection.
fn request(from: SocketAddrV4, to: SocketAddrV4) -> [u8; 20] {
    const SYN: u8 = 0x02;
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    // 20 bytes of header.
    segment[12] = 5 << 4;
    segment[13] = SYN;
    // A window that nobody will use.
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

/// Whether the IPv4 packet accepts or refuses that connection.
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
    use crate::config::{Served, Target};

    fn forwards(ports: &[(Transport, u16, &str)]) -> Forwards {
        let served = |transport, port| Served { address: Ipv4Addr::new(172, 18, 0, 18), transport, port };
        ports
            .iter()
            .map(|(transport, port, to)| (served(*transport, *port), Target::ClusterIp(to.parse().unwrap())))
            .collect()
    }

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    #[test]
    fn a_path_is_looked_at_until_it_is_proven() {
        let start = Instant::now();
        let mut paths = Paths::default();
        let wanted = forwards(&[(Transport::Tcp, 80, "10.96.0.1"), (Transport::Udp, 53, "10.96.0.2")]);
        paths.set(start, &wanted);
        assert_eq!(paths.take(start), [at("10.96.0.1:80")]);
        assert_eq!(paths.due(), None);
        assert!(!paths.found(start, at("10.96.0.1:80"), Verdict::Unknown));
        assert_eq!(paths.due(), Some(start + AGAIN));

        assert_eq!(paths.take(start + AGAIN).len(), 1);
        assert!(paths.found(start + AGAIN, at("10.96.0.1:80"), Verdict::SocketsOnly));
        assert_eq!(paths.missing().count(), 1);
        // While nothing answers, it is still missing.
        assert!(!paths.found(start + AGAIN, at("10.96.0.1:80"), Verdict::Unknown));
        assert_eq!(paths.missing().count(), 1);
        assert!(paths.found(start + AGAIN, at("10.96.0.1:80"), Verdict::Proven));
        assert_eq!((paths.missing().count(), paths.due()), (0, None));

        // Another port of a proven ClusterIP is no other path.
        paths.set(start, &forwards(&[(Transport::Tcp, 81, "10.96.0.1")]));
        assert_eq!(paths.due(), None);
        paths.set(start, &Forwards::new());
        paths.set(start, &wanted);
        assert_eq!(paths.due(), Some(start));
    }

    #[test]
    fn the_request_is_one_and_answers_are_known() {
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
