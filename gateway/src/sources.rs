//! The masquerade's source ports: how many of them are taken, and what helps
//! where they run out.
//!
//! Whatever a gateway passes on has its pod's one address as its source. So
//! there can be no more connections to a target at a time than there are ports,
//! and one that ended holds its port for as long as the kernel remembers it.
//!
//! A port that is taken by what ended is given to a new connection when no
//! other is left, if that begins beyond where the old one ended (Linux 6.5). If
//! the client closed first, that is well. If the target did, it remembers the
//! connection too, for a minute, and where there are timestamps it takes a new
//! one only if they go on: those of another client do not, every second time,
//! and its SYN is passed over (PAWS, RFC 7323). Without timestamps the target
//! asks for nothing but what the gateway's kernel has seen to. So clients of a
//! target that is crowded by connections that it closed are not let offer any.
//!
//! Not all clients, nor always: whoever closes first himself needs timestamps to
//! have his own port again soon (`net.ipv4.tcp_tw_reuse`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use lb_svc_crds::gateway::Transport;
use tokio::sync::watch as cell;
use tracing::{debug, info};

use crate::aside::Wanted;
use crate::config::Served;
use crate::conntrack::{self, Entry};
use crate::metrics::{Metrics, ServedPort};
use crate::nft::{Before, Table, Told};

/// What the kernel chooses from for a client whose own port is not one of the
/// lowest: 1024 to 65535.
pub const LIMIT: u32 = 64_512;

const TABLE: &str = "ip lb-svc-crowded";
/// So many connections that it closed make a target crowded. With fewer the
/// kernel nearly always finds a port that is free.
const CROWDED: u32 = LIMIT / 4 * 3;
/// It is until there are no more than so many.
const RELIEVED: u32 = LIMIT / 2;
/// Between looks.
const EVERY: Duration = Duration::from_secs(2);
/// A look takes the longer the more connections there are: at most one part in
/// so many of the time.
const SHARE: u32 = 10;

/// How many source ports towards a target are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    all: u32,
    /// By connections that the target was the first to close.
    closed_there: u32,
}

/// How many are taken, by the port that clients ask for and where that leads.
#[derive(Debug, Default)]
pub struct Usage(BTreeMap<(Served, SocketAddrV4), Taken>);

impl Usage {
    /// As it is now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn read() -> io::Result<Self> {
        let mut usage = Self::default();
        conntrack::list(|entry| usage.count(&entry)).await?;
        Ok(usage)
    }

    fn count(&mut self, entry: &Entry<'_>) {
        // Not those that lead nowhere else.
        if *entry.answers.ip() != entry.to.address {
            let taken = self.0.entry((entry.to, entry.answers)).or_default();
            taken.all += 1;
            taken.closed_there += u32::from(entry.closed_there);
        }
    }

    /// Ports that lead to the same target share what it has.
    fn targets(&self) -> BTreeMap<(Transport, SocketAddrV4), Taken> {
        let mut targets: BTreeMap<_, Taken> = BTreeMap::new();
        for ((served, target), taken) in &self.0 {
            let sum = targets.entry((served.transport, *target)).or_default();
            sum.all += taken.all;
            sum.closed_there += taken.closed_there;
        }
        targets
    }

    /// Of each port, at the fullest of its targets.
    pub fn fullest(&self) -> BTreeMap<Served, u32> {
        let targets = self.targets();
        let mut fullest = BTreeMap::new();
        for (served, target) in self.0.keys() {
            let most: &mut u32 = fullest.entry(*served).or_default();
            *most = targets[&(served.transport, *target)].all.max(*most);
        }
        fullest
    }

    /// The targets that are crowded by connections that they closed, where
    /// those of `before` were.
    fn crowded(&self, before: &Crowded) -> Crowded {
        let most = |target: &SocketAddrV4| if before.contains(target) { RELIEVED } else { CROWDED };
        let targets = self.targets().into_iter();
        let crowded = targets.filter(|((_, target), taken)| taken.closed_there > most(target));
        crowded.map(|((_, target), _)| target).collect()
    }
}

type Crowded = BTreeSet<SocketAddrV4>;

/// Brings the metrics of what is served up to date.
///
/// # Errors
/// When the kernel does not tell; they stay as they are then.
pub async fn show(metrics: &Metrics, wanted: &cell::Receiver<Wanted>) -> io::Result<()> {
    let fullest = Usage::read().await?.fullest();
    let size = conntrack::size().await?;
    metrics.source_ports.clear();
    metrics.source_ports_limit.clear();
    for (served, service) in &wanted.borrow().services {
        let port = ServedPort::new(service, served);
        let taken = fullest.get(served).copied().unwrap_or_default();
        metrics.source_ports.get_or_create(&port).set(taken.into());
        metrics.source_ports_limit.get_or_create(&port).set(LIMIT.into());
    }
    metrics.conntrack_entries.set(size.entries.into());
    metrics.conntrack_limit.set(size.limit.into());
    Ok(())
}

/// Looks for crowded targets and relieves them, for ever.
pub async fn relieve() {
    let mut table = Table::new(TABLE);
    // What another process has left is not known.
    let mut crowded = None;
    let mut told = Told::default();
    loop {
        let began = Instant::now();
        let failed = match look(crowded.as_ref()).await {
            Ok(now) if now.is_empty() && crowded.as_ref() == Some(&now) => None,
            Ok(now) => {
                if now != *crowded.get_or_insert_default() {
                    info!("crowded targets, whose new clients do without TCP timestamps: {now:?}");
                }
                let made = table.ensure(now.clone(), true, |before| script(&now, &before)).await;
                crowded = Some(now);
                made.err()
            }
            Err(error) => {
                debug!("the connection table is not read: {error}");
                None
            }
        };
        told.tell("crowded targets are not relieved", failed);
        tokio::time::sleep(EVERY.max(began.elapsed() * SHARE)).await;
    }
}

async fn look(before: Option<&Crowded>) -> io::Result<Crowded> {
    let none = Crowded::new();
    let before = before.unwrap_or(&none);
    // Most gateways never come near.
    if before.is_empty() && conntrack::size().await?.entries <= CROWDED {
        return Ok(none);
    }
    Ok(Usage::read().await?.crowded(before))
}

fn script(crowded: &Crowded, before: &Before<'_, Crowded>) -> String {
    match before {
        Before::Found(held) if crowded.is_empty() && held.is_empty() => return String::new(),
        Before::Left(before) if crowded == *before => return String::new(),
        _ if crowded.is_empty() => return format!("delete table {TABLE}\n"),
        _ => {}
    }
    let mut text = format!(
        "add table {TABLE}
add set {TABLE} targets {{ type ipv4_addr . inet_service; }}
add chain {TABLE} forwarded {{ type filter hook forward priority 0; policy accept; }}
flush table {TABLE}
flush set {TABLE} targets
add rule {TABLE} forwarded tcp flags & (syn | ack) == syn ip daddr . tcp dport @targets reset tcp option timestamp
"
    );
    for target in crowded {
        let _ = writeln!(text, "add element {TABLE} targets {{ {} . {} }}", target.ip(), target.port());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use Transport::{Tcp, Udp};

    fn entry(port: u16, transport: Transport, answers: &str, closed_there: bool) -> Entry<'static> {
        let to = Served { address: [172, 18, 0, 18].into(), transport, port };
        let answers = answers.parse().unwrap();
        Entry { from: [192, 0, 2, 7].into(), to, answers, closed_there, message: &[] }
    }

    fn usage(entries: &[(u32, Entry<'_>)]) -> Usage {
        let mut usage = Usage::default();
        for (count, entry) in entries {
            (0..*count).for_each(|_| usage.count(entry));
        }
        usage
    }

    #[test]
    fn ports_that_lead_to_one_target_share_its_source_ports() {
        let usage = usage(&[
            (3, entry(80, Tcp, "10.16.0.1:8080", false)),
            (5, entry(80, Tcp, "10.16.0.2:8080", true)),
            (4, entry(81, Tcp, "10.16.0.1:8080", false)),
            (9, entry(80, Udp, "10.16.0.1:8080", false)),
            (2, entry(82, Tcp, "10.16.0.2:8081", false)),
            (7, entry(83, Tcp, "172.18.0.18:83", false)),
        ]);
        let fullest: Vec<_> =
            usage.fullest().into_iter().map(|(of, most)| (of.transport.name(), of.port, most)).collect();
        assert_eq!(fullest, [("tcp", 80, 7), ("tcp", 81, 7), ("tcp", 82, 2), ("udp", 80, 9)]);
    }

    #[test]
    fn a_target_is_crowded_by_what_it_closed() {
        let (one, other) = ("10.16.0.1:8080", "10.16.0.2:8080");
        let crowd = |count, closed_there| usage(&[(count, entry(80, Tcp, one, closed_there))]);
        let is: Crowded = [one.parse().unwrap()].into();
        let was_none = Crowded::new();
        assert_eq!(crowd(CROWDED + 1, true).crowded(&was_none), is);
        assert_eq!(crowd(CROWDED, true).crowded(&was_none), was_none);
        assert_eq!(crowd(LIMIT, false).crowded(&was_none), was_none, "clients closed them");
        assert_eq!(crowd(RELIEVED + 1, true).crowded(&is), is, "it is not over yet");
        assert_eq!(crowd(RELIEVED, true).crowded(&is), was_none);
        let spread = usage(&[(RELIEVED, entry(80, Tcp, one, true)), (RELIEVED, entry(80, Tcp, other, true))]);
        assert_eq!(spread.crowded(&was_none), was_none);
    }

    #[test]
    fn there_is_a_table_while_a_target_is_crowded() {
        let (none, crowded) = (Crowded::new(), Crowded::from(["10.16.0.1:8080".parse().unwrap()]));
        let nothing = crate::nft::Held::default();
        assert_eq!(script(&none, &Before::Found(&nothing)), "");
        let made = script(&crowded, &Before::Found(&nothing));
        assert!(made.ends_with("add element ip lb-svc-crowded targets { 10.16.0.1 . 8080 }\n"), "{made}");
        assert_eq!(script(&crowded, &Before::Left(&crowded)), "");
        assert_eq!(script(&none, &Before::Left(&crowded)), "delete table ip lb-svc-crowded\n");
    }
}
