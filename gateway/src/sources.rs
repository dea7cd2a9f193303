//! The masquerade's source ports: how many of them are taken.
//!
//! Whatever a gateway passes on has its pod's one address as its source. So
//! there can be no more connections to a target at a time than there are ports,
//! and one that ended holds its port for as long as the kernel remembers it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddrV4;

use lb_svc_crds::gateway::Transport;
use tokio::sync::watch as cell;

use crate::aside::Wanted;
use crate::config::Served;
use crate::conntrack::{self, Entry};
use crate::metrics::{Metrics, ServedPort};

/// What the kernel chooses from for a client whose own port is not one of the
/// lowest: 1024 to 65535.
pub const LIMIT: u32 = 64_512;

/// How many are taken, by the port that clients ask for and where that leads.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Usage(BTreeMap<(Served, SocketAddrV4), u32>);

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

    fn count(&mut self, entry: &Entry) {
        // Not those that lead nowhere else.
        if *entry.answers.ip() != entry.to.address {
            *self.0.entry((entry.to, entry.answers)).or_default() += 1;
        }
    }

    /// Of each port, at the fullest of its targets. Ports that lead to the same
    /// target share what it has.
    pub fn fullest(&self) -> BTreeMap<Served, u32> {
        let mut targets: BTreeMap<(Transport, SocketAddrV4), u32> = BTreeMap::new();
        for ((served, target), taken) in &self.0 {
            *targets.entry((served.transport, *target)).or_default() += taken;
        }
        let mut fullest = BTreeMap::new();
        for (served, target) in self.0.keys() {
            let most: &mut u32 = fullest.entry(*served).or_default();
            *most = targets[&(served.transport, *target)].max(*most);
        }
        fullest
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(port: u16, transport: Transport, answers: &str) -> Entry {
        let to = Served { address: [172, 18, 0, 18].into(), transport, port };
        Entry { from: [192, 0, 2, 7].into(), to, answers: answers.parse().unwrap(), name: Vec::new() }
    }

    #[test]
    fn ports_that_lead_to_one_target_share_its_source_ports() {
        use Transport::{Tcp, Udp};
        let mut usage = Usage::default();
        for (count, entry) in [
            (3, entry(80, Tcp, "10.16.0.1:8080")),
            (5, entry(80, Tcp, "10.16.0.2:8080")),
            (4, entry(81, Tcp, "10.16.0.1:8080")),
            (9, entry(80, Udp, "10.16.0.1:8080")),
            (2, entry(82, Tcp, "10.16.0.2:8081")),
            (7, entry(83, Tcp, "172.18.0.18:83")),
        ] {
            (0..count).for_each(|_| usage.count(&entry));
        }
        let fullest: Vec<_> =
            usage.fullest().into_iter().map(|(of, most)| (of.transport.name(), of.port, most)).collect();
        assert_eq!(fullest, [("tcp", 80, 7), ("tcp", 81, 7), ("tcp", 82, 2), ("udp", 80, 9)]);
    }
}
