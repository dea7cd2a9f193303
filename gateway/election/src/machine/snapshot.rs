//! What a member shows of the election: it changes nothing.

use super::Election;
use crate::Time;
use crate::events::{Counters, PeerSnapshot, Role, Snapshot};
use crate::peers::{PeerRole, Report};

impl Election {
    /// Whether another member is reachable at that time; `None` if none has been
    /// received from lately.
    pub fn is_peer_reachable(&self, now: Time) -> Option<bool> {
        let until = self.peers.all().map(|(_, report)| self.peers.reachable_until(report)).max();
        until.map(|until| now < until)
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The election as this member sees it.
    pub fn snapshot(&self) -> Snapshot {
        let reachable = |report: &Report| self.peers.is_reachable(self.now, report);
        let other = self.peers.actives().filter(|(_, report)| reachable(report));
        let other = other.max_by_key(|(instance, report)| (report.term, report.priority, *instance));
        Snapshot {
            role: self.role,
            since: self.since,
            reason: self.reason.clone(),
            term: self.term,
            active: match self.role {
                Role::Active => Some((self.instance, self.name.clone())),
                _ => other.map(|(instance, report)| (instance, report.name.clone())),
            },
            peers: self
                .peers
                .all()
                .map(|(instance, report)| PeerSnapshot {
                    instance,
                    mac: report.mac,
                    name: report.name.clone(),
                    priority: report.priority,
                    role: match report.role {
                        PeerRole::Standby => Role::Standby,
                        PeerRole::Active => Role::Active,
                        PeerRole::Resigned => Role::Left,
                    },
                    at: report.at,
                    is_reachable: reachable(report),
                })
                .collect(),
        }
    }
}
