//! The kernel's connection table: finding and cutting the entries that would
//! keep serving what is served no more, or keep from being served what is.
//!
//! NAT decides once a connection, at its first packet. A UDP client that keeps
//! its port keeps its entry alive for as long as it sends: past the removal of
//! the port, past a change of the ClusterIP, and un-NATed if its first packet
//! came before the rule.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use lb_svc_crds::gateway::Transport;
use rtnetlink::packet_core::{NLA_F_NESTED, NlaBuffer, NlasIterator};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols};

use crate::config::{Forwards, Served};
use crate::ranges::{self, Ranges};

/// A connection as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// The client.
    from: Ipv4Addr,
    /// Where the client connected to.
    to: Served,
    /// Who answers: address and port.
    answers: (Ipv4Addr, u16),
    /// The attributes that name the entry to the kernel, as they came.
    name: Vec<u8>,
}

/// Whether the entry does other than the NAT would do today, or is of a client
/// that may not connect any more. `ours` are the addresses the gateway has or
/// had; nobody else's connections are judged.
fn stale(entry: &Entry, forwards: &Forwards, ranges: &Ranges, ours: &BTreeSet<Ipv4Addr>) -> bool {
    let today = forwards.get(&entry.to).copied();
    let leads_elsewhere = entry.answers != (today.unwrap_or(entry.to.address), entry.to.port);
    ours.contains(&entry.to.address) && (leads_elsewhere || !ranges::admit(ranges, &entry.to, entry.from))
}

/// Cuts every stale entry, and returns how many there were.
pub async fn cut(forwards: &Forwards, ranges: &Ranges, ours: &BTreeSet<Ipv4Addr>) -> io::Result<u64> {
    let mut stale_entries = Vec::new();
    let mut socket = Socket::open()?;
    socket
        .request(IPCTNL_MSG_CT_GET, NLM_F_DUMP, &[], |payload| {
            if let Some(entry) = parse(payload)
                && stale(&entry, forwards, ranges, ours)
            {
                stale_entries.push(entry.name);
            }
        })
        .await?;
    let mut cut = 0;
    for name in stale_entries {
        match socket.request(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, &name, |_| {}).await {
            Ok(()) => cut += 1,
            // Gone by itself, or replaced by a newer one of the same tuple.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(cut)
}

// linux/netlink.h, linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const AF_INET: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// One direction of a connection.
#[derive(Default)]
struct Tuple {
    source: Option<(Ipv4Addr, u16)>,
    destination: Option<(Ipv4Addr, u16)>,
    protocol: u8,
}

/// Reads one conntrack message, `None` for what is neither TCP nor UDP.
fn parse(attributes: &[u8]) -> Option<Entry> {
    let (mut original, mut reply) = (Tuple::default(), Tuple::default());
    let mut name = Vec::new();
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            CTA_TUPLE_ORIG => {
                original = tuple(attribute.value())?;
                push(&mut name, CTA_TUPLE_ORIG | NLA_F_NESTED, attribute.value());
            }
            CTA_TUPLE_REPLY => reply = tuple(attribute.value())?,
            kind @ (CTA_ID | CTA_ZONE) => push(&mut name, kind, attribute.value()),
            _ => {}
        }
    }
    let transport = [Transport::Tcp, Transport::Udp]
        .into_iter()
        .find(|transport| transport.number() == original.protocol)?;
    let ((from, _), (address, port)) = (original.source?, original.destination?);
    Some(Entry { from, to: Served { address, transport, port }, answers: reply.source?, name })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let mut tuple = Tuple::default();
    let (mut addresses, mut ports) = ([None; 2], [None; 2]);
    for part in NlasIterator::new(bytes) {
        let part = part.ok()?;
        for field in NlasIterator::new(part.value()) {
            let field: NlaBuffer<&[u8]> = field.ok()?;
            let address = || <[u8; 4]>::try_from(field.value()).ok().map(Ipv4Addr::from);
            let port = || <[u8; 2]>::try_from(field.value()).ok().map(u16::from_be_bytes);
            match (part.kind(), field.kind()) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC) => addresses[0] = address(),
                (CTA_TUPLE_IP, CTA_IP_V4_DST) => addresses[1] = address(),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => tuple.protocol = *field.value().first()?,
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => ports[0] = port(),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => ports[1] = port(),
                _ => {}
            }
        }
    }
    tuple.source = addresses[0].zip(ports[0]);
    tuple.destination = addresses[1].zip(ports[1]);
    Some(tuple)
}

/// Appends an attribute, padded.
fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn message(kind: u16, flags: u16, sequence: u32, attributes: &[u8]) -> Vec<u8> {
    let length = NLMSG_HEADER + NFGEN_HEADER + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend((NFNL_SUBSYS_CTNETLINK << 8 | kind).to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([AF_INET, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

struct Socket {
    socket: TokioSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// The kernel answers at once; a request that takes longer is lost.
    const TIMEOUT: Duration = Duration::from_secs(5);

    fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocols::NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_ref().connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Sends a request and hands the attributes of every answer to `each`,
    /// until the kernel says that this was all.
    async fn request(
        &mut self,
        kind: u16,
        flags: u16,
        attributes: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        self.socket.send(&message(kind, flags, self.sequence, attributes)).await?;
        loop {
            self.buffer.clear();
            tokio::time::timeout(Self::TIMEOUT, self.socket.recv(&mut self.buffer)).await??;
            let mut rest = self.buffer.as_slice();
            while let Some((kind, sequence, payload, next)) = split(rest) {
                rest = next;
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => each(payload.get(NFGEN_HEADER..).unwrap_or_default()),
                }
            }
        }
    }
}

/// The first message of a datagram: kind, sequence number, payload; and the
/// rest.
fn split(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let payload = bytes.get(NLMSG_HEADER..length)?;
    let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
    let sequence = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, sequence, payload, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);
    const OLD: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 17);
    const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 109, 201, 193);

    fn entry(address: Ipv4Addr, transport: Transport, port: u16, answers: (Ipv4Addr, u16)) -> Entry {
        let from = Ipv4Addr::new(192, 0, 2, 7);
        Entry { from, to: Served { address, transport, port }, answers, name: Vec::new() }
    }

    #[test]
    fn an_entry_is_stale_when_todays_nat_would_do_otherwise() {
        use Transport::{Tcp, Udp};
        let served = Served { address: VIP, transport: Udp, port: 53 };
        let forwards: Forwards = [(served, CLUSTER_IP)].into();
        let ours = BTreeSet::from([VIP, OLD]);
        let other = Ipv4Addr::new(10, 0, 0, 1);
        let cases = [
            ("as it is", entry(VIP, Udp, 53, (CLUSTER_IP, 53)), false),
            ("ClusterIP changed", entry(VIP, Udp, 53, (other, 53)), true),
            ("port translated", entry(VIP, Udp, 53, (CLUSTER_IP, 5353)), true),
            ("pinned before the rule", entry(VIP, Udp, 53, (VIP, 53)), true),
            ("port removed", entry(VIP, Udp, 54, (CLUSTER_IP, 54)), true),
            ("other protocol", entry(VIP, Tcp, 53, (CLUSTER_IP, 53)), true),
            ("never served, the pod's own", entry(VIP, Tcp, 22, (VIP, 22)), false),
            ("address removed", entry(OLD, Udp, 53, (CLUSTER_IP, 53)), true),
            ("somebody else's", entry(other, Udp, 53, (CLUSTER_IP, 53)), false),
        ];
        for (name, entry, expected) in cases {
            assert_eq!(stale(&entry, &forwards, &Ranges::new(), &ours), expected, "{name}");
        }
        let entry = entry(VIP, Udp, 53, (CLUSTER_IP, 53));
        for (network, expected) in [("192.0.2.0/24", false), ("198.51.100.0/24", true)] {
            let networks = Arc::new(BTreeSet::from([network.parse().unwrap()]));
            let ranges = Ranges::from([(served, networks)]);
            assert_eq!(stale(&entry, &forwards, &ranges, &ours), expected, "limited to {network}");
        }
    }

    fn nested(kind: u16, parts: &[(u16, &[u8])]) -> (u16, Vec<u8>) {
        let mut bytes = Vec::new();
        for (kind, value) in parts {
            push(&mut bytes, *kind, value);
        }
        (kind | NLA_F_NESTED, bytes)
    }

    fn direction(kind: u16, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), protocol: u8) -> (u16, Vec<u8>) {
        let ip = nested(CTA_TUPLE_IP, &[(CTA_IP_V4_SRC, &from.0.octets()), (CTA_IP_V4_DST, &to.0.octets())]);
        let proto = nested(
            CTA_TUPLE_PROTO,
            &[
                (CTA_PROTO_NUM, &[protocol]),
                (CTA_PROTO_SRC_PORT, &from.1.to_be_bytes()),
                (CTA_PROTO_DST_PORT, &to.1.to_be_bytes()),
            ],
        );
        nested(kind, &[(ip.0, &ip.1), (proto.0, &proto.1)])
    }

    #[test]
    fn a_dumped_entry_is_read_and_named_for_its_deletion() {
        let client = (Ipv4Addr::new(172, 18, 0, 50), 40000);
        let original = direction(CTA_TUPLE_ORIG, client, (VIP, 53), 17);
        let reply = direction(CTA_TUPLE_REPLY, (CLUSTER_IP, 53), (Ipv4Addr::new(10, 16, 0, 5), 40000), 17);
        let mut bytes = Vec::new();
        push(&mut bytes, original.0, &original.1);
        push(&mut bytes, reply.0, &reply.1);
        push(&mut bytes, CTA_ID, &[1, 2, 3, 4]);
        let parsed = parse(&bytes).unwrap();
        assert_eq!(parsed.to, Served { address: VIP, transport: Transport::Udp, port: 53 });
        assert_eq!(parsed.answers, (CLUSTER_IP, 53));
        let mut name = Vec::new();
        push(&mut name, original.0, &original.1);
        push(&mut name, CTA_ID, &[1, 2, 3, 4]);
        assert_eq!(parsed.name, name);

        let icmp = direction(CTA_TUPLE_ORIG, client, (VIP, 0), 1);
        let mut bytes = Vec::new();
        push(&mut bytes, icmp.0, &icmp.1);
        assert_eq!(parse(&bytes), None);
        // Cut short anywhere, it is no entry and no panic.
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), None);
        }
    }
}
