//! The open connections of the HTTP server, of which a client can hold a few only.
//!
//! A connection is silent until its request has arrived. When there are too many, the
//! oldest silent one gives way: whoever opens connections and says nothing does not
//! keep others out.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// Most connections at a time: more than the kubelet, the controller and a monitoring
/// system open.
const ALL: usize = 64;
/// Most connections of one address.
const OF_ONE_ADDRESS: usize = 8;

/// The open connections.
#[derive(Default)]
pub struct Connections(Mutex<Open>);

#[derive(Default)]
struct Open {
    /// The oldest first.
    connections: Vec<Connection>,
    last_id: u64,
}

struct Connection {
    id: u64,
    source: IpAddr,
    silent: bool,
    /// Of its task; `None` until that is started.
    task: Option<AbortHandle>,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection, at the cost of a silent one if there are too many, and
    /// returns its ID; `None` if none is silent. An admitted connection counts until
    /// [`Self::close`].
    pub fn admit(&self, source: IpAddr) -> Option<u64> {
        let mut open = self.open();
        let connections = &mut open.connections;
        let of_source = |connection: &Connection| connection.source == source;
        let too_many_of_source = connections.iter().filter(|c| of_source(c)).count() >= OF_ONE_ADDRESS;
        if too_many_of_source || connections.len() >= ALL {
            let gives_way = |c: &Connection| c.silent && (!too_many_of_source || of_source(c));
            let oldest = connections.iter().position(gives_way)?;
            if let Some(task) = connections.remove(oldest).task {
                task.abort();
            }
        }
        open.last_id += 1;
        let id = open.last_id;
        open.connections.push(Connection { id, source, silent: true, task: None });
        Some(id)
    }

    /// Notes the task that serves a connection.
    pub fn started(&self, id: u64, task: AbortHandle) {
        if let Some(connection) = self.open().connections.iter_mut().find(|c| c.id == id) {
            connection.task = Some(task);
        }
    }

    /// Notes that a connection's request has arrived.
    pub fn requested(&self, id: u64) {
        if let Some(connection) = self.open().connections.iter_mut().find(|c| c.id == id) {
            connection.silent = false;
        }
    }

    /// Forgets a connection.
    pub fn close(&self, id: u64) {
        self.open().connections.retain(|connection| connection.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(connections: &Connections) -> Vec<u64> {
        connections.open().connections.iter().map(|c| c.id).collect()
    }

    #[test]
    fn r08_oldest_silent_connection_gives_way() {
        let connections = Connections::default();
        let address = |last| IpAddr::from([10, 0, 0, last]);
        for id in 1..=8 {
            assert_eq!(connections.admit(address(1)), Some(id));
        }
        connections.requested(1);
        assert_eq!(connections.admit(address(1)), Some(9));
        assert_eq!(ids(&connections), [1, 3, 4, 5, 6, 7, 8, 9], "of the same address");
        for last in 2..=8 {
            (0..8).for_each(|_| assert!(connections.admit(address(last)).is_some()));
        }
        assert_eq!(ids(&connections).len(), ALL);
        assert!(connections.admit(address(99)).is_some());
        assert_eq!(ids(&connections)[..2], [1, 4], "of all");
        ids(&connections).into_iter().for_each(|id| connections.requested(id));
        assert_eq!(connections.admit(address(100)), None);
        connections.close(4);
        assert!(connections.admit(address(100)).is_some());
    }
}
