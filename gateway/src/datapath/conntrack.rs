//! The kernel's connection table: listing it, and deleting the entries that
//! contradict the current forwarding.
//!
//! NAT is decided once per connection, at its first packet. The entry of a UDP client
//! that keeps its source port lives as long as the client sends: beyond the removal of
//! the port, beyond a change of the ClusterIP, and without NAT if its first packet
//! arrived before the rule.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use lb_svc_crds::gateway::Transport;
use nix::libc;
use rtnetlink::packet_core::NLA_F_NESTED;

use super::nfnetlink::{IPV4, Request, Socket, attributes, push};
use crate::config::{Forwards, Frontend, Target};
use crate::off_loop::off_loop;

/// The used part of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The client.
    pub from: Ipv4Addr,
    /// The frontend that the client connected to.
    pub to: Frontend,
    /// The source of replies: where the connection was forwarded to.
    pub answers: SocketAddrV4,
    /// Whether the server was the first to close it (TCP).
    pub closed_by_server: bool,
    /// Whether neither end has closed it for good (TCP).
    pub is_open: bool,
    /// The kernel's message.
    pub message: &'a [u8],
}

impl Entry<'_> {
    /// The attributes that identify the entry in a request.
    fn key(&self) -> Vec<u8> {
        let mut key = Vec::new();
        for (kind, value) in attributes(self.message) {
            match kind {
                CTA_TUPLE_ORIG => push(&mut key, kind | NLA_F_NESTED, value),
                CTA_ID | CTA_ZONE => push(&mut key, kind, value),
                _ => {}
            }
        }
        key
    }
}

/// Whether the entry contradicts the current forwarding, or its client may not
/// connect any more. Only entries to the addresses in `owned` are considered:
/// those that the gateway has or had.
///
/// A TCP connection stays with a draining endpoint until that is gone; a UDP flow
/// has no end, and moves to another endpoint.
fn is_stale(entry: &Entry<'_>, forwards: &Forwards, owned: &BTreeSet<Ipv4Addr>) -> bool {
    let Entry { to, answers, .. } = entry;
    let refused = SocketAddrV4::new(to.address, to.port);
    let forward = forwards.get(to);
    let is_forwarded_so = match forward.map(|forward| &forward.target) {
        None => *answers == refused,
        // The pod itself answers, and the proxy cuts what contradicts the forwarding.
        Some(_) if forward.is_some_and(|forward| forward.proxied) => *answers == refused,
        Some(Target::ClusterIp(address)) => *answers == SocketAddrV4::new(*address, to.port),
        Some(Target::Endpoints(endpoints)) => {
            endpoints.live.contains(answers)
                || endpoints.live.is_empty() && *answers == refused
                || to.transport == Transport::Tcp && endpoints.draining.contains(answers)
        }
    };
    let is_allowed = forward.is_none_or(|forward| forward.allows(entry.from));
    owned.contains(&to.address) && !(is_forwarded_so && is_allowed)
}

/// Deletes every stale entry, and returns their number. Off the agent's loop.
///
/// # Errors
/// If the kernel refuses to list or delete entries.
pub async fn delete_stale(forwards: Forwards, owned: BTreeSet<Ipv4Addr>) -> io::Result<u64> {
    off_loop(async move || delete_if_stale(&forwards, &owned).await).await
}

async fn delete_if_stale(forwards: &Forwards, owned: &BTreeSet<Ipv4Addr>) -> io::Result<u64> {
    let mut stale = Vec::new();
    list(|entry| {
        if is_stale(&entry, forwards, owned) {
            stale.push(entry.key());
        }
    })
    .await?;
    let mut socket = Socket::open()?;
    let mut deleted = 0;
    for key in stale {
        match socket.request(Request { attributes: &key, ..request(IPCTNL_MSG_CT_DELETE) }, |_| {}).await {
            Ok(()) => deleted += 1,
            // Expired, or replaced by a newer entry of the same tuple.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

/// Passes each TCP and UDP entry to `each`. The kernel walks the entries of the whole
/// node for it, on the calling thread.
///
/// # Errors
/// If the kernel does not answer.
pub async fn list(mut each: impl FnMut(Entry<'_>)) -> io::Result<()> {
    let parse_each = |message: &[u8]| parse(message).into_iter().for_each(&mut each);
    match Socket::open()?.dump(request(IPCTNL_MSG_CT_GET), parse_each).await {
        // Entries come and go all the time: an inconsistent dump will do.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        listed => listed,
    }
}

/// The size of the connection table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// The entries in this network namespace.
    pub entries: u32,
    /// The most entries in each network namespace of the node.
    pub limit: u32,
}

/// Reads the size of the connection table.
///
/// # Errors
/// If the kernel does not answer.
pub async fn size() -> io::Result<Size> {
    let mut size = Size::default();
    let read = |message: &[u8]| {
        for (kind, value) in attributes(message) {
            let number = value.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
            match kind {
                CTA_STATS_GLOBAL_ENTRIES => size.entries = number,
                CTA_STATS_GLOBAL_MAX_ENTRIES => size.limit = number,
                _ => {}
            }
        }
    };
    Socket::open()?.request(request(IPCTNL_MSG_CT_GET_STATS), read).await?;
    Ok(size)
}

/// The number of open TCP connections to addresses in `owned`. Off the agent's loop.
///
/// # Errors
/// If the kernel does not answer.
pub async fn count_open(owned: BTreeSet<Ipv4Addr>) -> io::Result<u64> {
    off_loop(async move || {
        let mut open = 0;
        list(|entry| {
            open += u64::from(entry.is_open && owned.contains(&entry.to.address));
        })
        .await?;
        Ok(open)
    })
    .await
}

fn request<'a>(kind: u16) -> Request<'a> {
    Request { subsystem: CTNETLINK, kind, family: IPV4, attributes: &[] }
}

// linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
const CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const IPCTNL_MSG_CT_GET_STATS: u16 = 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const CTA_STATS_GLOBAL_MAX_ENTRIES: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;
// linux/netfilter/nf_conntrack_tcp.h
const IP_CT_TCP_FLAG_CLOSE_INIT: u8 = 4;
/// The states from SYN_SENT to LAST_ACK; after them come TIME_WAIT and CLOSE.
const TCP_CONNTRACK_OPEN: std::ops::RangeInclusive<u8> = 1..=6;
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
    source: Option<SocketAddrV4>,
    destination: Option<SocketAddrV4>,
    protocol: u8,
}

/// Parses a conntrack message; `None` if it is neither TCP nor UDP.
fn parse(message: &[u8]) -> Option<Entry<'_>> {
    let (mut original, mut reply) = (Tuple::default(), Tuple::default());
    let (mut closed_by_server, mut is_open) = (false, false);
    for (kind, value) in attributes(message) {
        match kind {
            CTA_TUPLE_ORIG => original = tuple(value),
            CTA_TUPLE_REPLY => reply = tuple(value),
            CTA_PROTOINFO => (closed_by_server, is_open) = (closed_by_reply(value), open(value)),
            _ => {}
        }
    }
    let transport = [Transport::Tcp, Transport::Udp]
        .into_iter()
        .find(|transport| transport.number() == original.protocol)?;
    let (from, to) = (original.source?, original.destination?);
    let to = Frontend { address: *to.ip(), transport, port: to.port() };
    Some(Entry { from: *from.ip(), to, answers: reply.source?, closed_by_server, is_open, message })
}

/// A byte of what the entry holds of TCP.
fn tcp_byte(protocol: &[u8], wanted: u16) -> Option<u8> {
    let tcp = attributes(protocol).filter(|(kind, _)| *kind == CTA_PROTOINFO_TCP);
    let mut parts = tcp.flat_map(|(_, tcp)| attributes(tcp));
    parts.find(|(kind, _)| *kind == wanted)?.1.first().copied()
}

fn closed_by_reply(protocol: &[u8]) -> bool {
    let flags = tcp_byte(protocol, CTA_PROTOINFO_TCP_FLAGS_REPLY);
    flags.is_some_and(|flags| flags & IP_CT_TCP_FLAG_CLOSE_INIT != 0)
}

fn open(protocol: &[u8]) -> bool {
    tcp_byte(protocol, CTA_PROTOINFO_TCP_STATE).is_some_and(|state| TCP_CONNTRACK_OPEN.contains(&state))
}

fn tuple(bytes: &[u8]) -> Tuple {
    let mut protocol = 0;
    let (mut addresses, mut ports) = ([None; 2], [None; 2]);
    for (part, fields) in attributes(bytes) {
        for (field, value) in attributes(fields) {
            let address = || value.first_chunk().copied().map(<[u8; 4]>::into);
            let port = || value.first_chunk().copied().map(u16::from_be_bytes);
            match (part, field) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC) => addresses[0] = address(),
                (CTA_TUPLE_IP, CTA_IP_V4_DST) => addresses[1] = address(),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => protocol = value.first().copied().unwrap_or_default(),
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => ports[0] = port(),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => ports[1] = port(),
                _ => {}
            }
        }
    }
    let end = |at: usize| Some(SocketAddrV4::new(addresses[at]?, ports[at]?));
    Tuple { source: end(0), destination: end(1), protocol }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    use crate::config::{Endpoints, Forward, SourceRanges};

    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);
    const OLD: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 17);
    const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 109, 201, 193);

    fn forwards(frontend: Frontend, target: Target, clients: Option<SourceRanges>) -> Forwards {
        [(frontend, Forward { service: "default/web".into(), target, clients, proxied: false })].into()
    }

    fn entry(address: Ipv4Addr, transport: Transport, port: u16, answers: (Ipv4Addr, u16)) -> Entry<'static> {
        let from = Ipv4Addr::new(192, 0, 2, 7);
        let answers = SocketAddrV4::new(answers.0, answers.1);
        let to = Frontend { address, transport, port };
        Entry { from, to, answers, closed_by_server: false, is_open: true, message: &[] }
    }

    #[test]
    fn entry_that_contradicts_the_forwarding_is_stale() {
        use Transport::{Tcp, Udp};
        let frontend = Frontend { address: VIP, transport: Udp, port: 53 };
        let target = Target::ClusterIp(CLUSTER_IP);
        let open = forwards(frontend, target.clone(), None);
        let owned = BTreeSet::from([VIP, OLD]);
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
            assert_eq!(is_stale(&entry, &open, &owned), expected, "{name}");
        }
        let entry = entry(VIP, Udp, 53, (CLUSTER_IP, 53));
        for (network, expected) in [("192.0.2.0/24", false), ("198.51.100.0/24", true)] {
            let networks = Arc::new(BTreeSet::from([network.parse().unwrap()]));
            let limited = forwards(frontend, target.clone(), Some(networks));
            assert_eq!(is_stale(&entry, &limited, &owned), expected, "limited to {network}");
        }
    }

    #[test]
    fn proxied_connection_is_the_pods_own() {
        let frontend = Frontend { address: VIP, transport: Transport::Tcp, port: 80 };
        let mut forwards = forwards(frontend, Target::ClusterIp(CLUSTER_IP), None);
        let owned = BTreeSet::from([VIP]);
        let (own, forwarded) =
            (entry(VIP, Transport::Tcp, 80, (VIP, 80)), entry(VIP, Transport::Tcp, 80, (CLUSTER_IP, 80)));
        assert!(is_stale(&own, &forwards, &owned) && !is_stale(&forwarded, &forwards, &owned));
        forwards.get_mut(&frontend).unwrap().proxied = true;
        assert!(!is_stale(&own, &forwards, &owned) && is_stale(&forwarded, &forwards, &owned));
    }

    #[test]
    fn draining_endpoint_keeps_tcp_and_loses_udp() {
        use Transport::{Tcp, Udp};
        let pod = |last| Ipv4Addr::new(10, 16, 0, last);
        let endpoints = |live: &[u8], draining: &[u8]| {
            let at = |last: &u8| SocketAddrV4::new(pod(*last), 8080);
            let (live, draining) = (live.iter().map(at).collect(), draining.iter().map(at).collect());
            Target::Endpoints(Arc::new(Endpoints { live, draining, ..Endpoints::default() }))
        };
        let frontend = |transport| Frontend { address: VIP, transport, port: 80 };
        let owned = BTreeSet::from([VIP]);
        let stale = |target: &Target, transport, answers| {
            let forwards = forwards(frontend(transport), target.clone(), None);
            is_stale(&entry(VIP, transport, 80, answers), &forwards, &owned)
        };
        let some = endpoints(&[1], &[2]);
        for (transport, expected) in [(Tcp, false), (Udp, true)] {
            assert!(!stale(&some, transport, (pod(1), 8080)));
            assert_eq!(stale(&some, transport, (pod(2), 8080)), expected);
            assert!(stale(&some, transport, (pod(3), 8080)), "it is gone");
            assert!(stale(&some, transport, (pod(1), 80)), "another port of it");
            assert!(stale(&some, transport, (VIP, 80)), "refused, and served now");
            assert!(!stale(&endpoints(&[], &[]), transport, (VIP, 80)), "refused still");
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
    fn dumped_entry_is_parsed_and_keyed_for_deletion() {
        let client = (Ipv4Addr::new(172, 18, 0, 50), 40000);
        let original = direction(CTA_TUPLE_ORIG, client, (VIP, 53), 17);
        let reply = direction(CTA_TUPLE_REPLY, (CLUSTER_IP, 53), (Ipv4Addr::new(10, 16, 0, 5), 40000), 17);
        let mut bytes = Vec::new();
        push(&mut bytes, original.0, &original.1);
        push(&mut bytes, reply.0, &reply.1);
        push(&mut bytes, CTA_ID, &[1, 2, 3, 4]);
        let parsed = parse(&bytes).unwrap();
        assert_eq!(parsed.to, Frontend { address: VIP, transport: Transport::Udp, port: 53 });
        assert_eq!(parsed.answers, SocketAddrV4::new(CLUSTER_IP, 53));
        let mut key = Vec::new();
        push(&mut key, original.0, &original.1);
        push(&mut key, CTA_ID, &[1, 2, 3, 4]);
        assert_eq!(parsed.key(), key);
        assert!(!parsed.closed_by_server);
        for (flags, closed_by_server) in [([0x21, 0], false), ([0x25, 0], true)] {
            let state = [if closed_by_server { 7 } else { 3 }];
            let parts: [(u16, &[u8]); 2] =
                [(CTA_PROTOINFO_TCP_STATE, &state), (CTA_PROTOINFO_TCP_FLAGS_REPLY, &flags)];
            let tcp = nested(CTA_PROTOINFO_TCP, &parts);
            let info = nested(CTA_PROTOINFO, &[(tcp.0, &tcp.1)]);
            let mut bytes = bytes.clone();
            push(&mut bytes, info.0, &info.1);
            let parsed = parse(&bytes).unwrap();
            assert_eq!((parsed.closed_by_server, parsed.is_open), (closed_by_server, !closed_by_server));
        }

        let icmp = direction(CTA_TUPLE_ORIG, client, (VIP, 0), 1);
        let mut bytes = Vec::new();
        push(&mut bytes, icmp.0, &icmp.1);
        assert_eq!(parse(&bytes), None);
        // Truncated anywhere, it is no entry, and no panic.
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), None);
        }
    }
}
