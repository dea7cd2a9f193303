//! The proxy's thread: it accepts connections, connects each to its target, and cuts
//! those that contradict the forwarding table.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_svc_crds::gateway::Transport;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, LocalSet};
use tracing::{debug, info, warn};

use super::header;
use super::load::Load;
use super::pipe::Pipes;
use super::relay::{End, relay, set_up};
use super::spread::Spread;
use crate::config::{Forward, Forwards, Frontend, Target};
use crate::podnet::{self, Outgoing};

/// For how long a target may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After what the system refuses to accept, for want of files or memory.
const PAUSE: Duration = Duration::from_millis(20);

/// What is proxied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// The proxied frontends.
    pub forwards: Forwards,
    /// The interface that targets are connected by.
    pub outgoing: Outgoing,
}

/// Runs the proxy on the calling thread, until the sender of `serving` is dropped.
pub fn run(listener: std::net::TcpListener, serving: watch::Receiver<Arc<Serving>>, load: Arc<Load>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return warn!(%error, "no runtime for the proxy"),
    };
    LocalSet::new().block_on(&runtime, async {
        match TcpListener::from_std(listener) {
            Ok(listener) => Server::new(load).serve(&listener, serving).await,
            Err(error) => warn!(%error, "the proxy cannot listen"),
        }
    });
}

/// A connection that is relayed, or about to be.
struct Open {
    frontend: Frontend,
    client: SocketAddrV4,
    target: SocketAddrV4,
    task: AbortHandle,
}

type OpenConnections = Rc<RefCell<HashMap<u64, Open>>>;

struct Server {
    load: Arc<Load>,
    pipes: Rc<Pipes>,
    spread: Spread,
    open: OpenConnections,
    /// The number of connections so far.
    count: u64,
}

impl Server {
    fn new(load: Arc<Load>) -> Self {
        Self { load, pipes: Rc::default(), spread: Spread::default(), open: Rc::default(), count: 0 }
    }

    async fn serve(mut self, listener: &TcpListener, mut serving: watch::Receiver<Arc<Serving>>) {
        let mut now = Arc::clone(&serving.borrow_and_update());
        loop {
            tokio::select! {
                biased;
                changed = serving.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    now = Arc::clone(&serving.borrow_and_update());
                    self.cut(|open| !now.forwards.get(&open.frontend).is_some_and(|now| keeps(now, open)));
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, client)) => self.take(stream, client, &now),
                    // The client was faster to leave.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        debug!(%error, "no connection accepted");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    /// Resets the connections that may not go on.
    fn cut(&self, is_stale: impl Fn(&Open) -> bool) {
        let open = self.open.borrow();
        let stale = open.values().filter(|open| is_stale(open));
        let count = stale.inspect(|open| open.task.abort()).count();
        if count > 0 {
            info!(count, "proxied connections cut");
        }
    }

    /// Relays a connection, or refuses it: dropped before that, it is reset.
    fn take(&mut self, stream: TcpStream, client: SocketAddr, serving: &Serving) {
        let (SocketAddr::V4(client), Ok(SocketAddr::V4(local))) = (client, stream.local_addr()) else {
            return;
        };
        let frontend = Frontend { address: *local.ip(), transport: Transport::Tcp, port: local.port() };
        let Some(forward) = serving.forwards.get(&frontend) else { return };
        if !forward.allows(*client.ip()) {
            return;
        }
        if self.open.borrow().len() >= self.load.capacity() {
            return self.load.refuse_full();
        }
        let Some(target) = self.spread.choose(frontend, &forward.target, *client.ip(), Instant::now()) else {
            return self.load.refuse_unreachable();
        };
        self.count += 1;
        let id = self.count;
        let entry = Entry { id, open: Rc::clone(&self.open), load: Arc::clone(&self.load) };
        let (pipes, outgoing) = (Rc::clone(&self.pipes), serving.outgoing.clone());
        let task = tokio::task::spawn_local(async move {
            let entry = entry;
            match connect(stream, client, local, target, &outgoing).await {
                Ok((client, target)) => {
                    // What ends it by an error, its two ends hear as well.
                    let _ = relay(&client, &target, &pipes).await;
                }
                Err(error) => {
                    debug!(%target, %error, "target not connected");
                    entry.load.refuse_unreachable();
                }
            }
        });
        self.load.opened();
        self.open.borrow_mut().insert(id, Open { frontend, client, target, task: task.abort_handle() });
    }
}

/// Whether a connection may go on, of a frontend that is forwarded so.
fn keeps(forward: &Forward, open: &Open) -> bool {
    let leads_there = match &forward.target {
        Target::ClusterIp(address) => open.target == SocketAddrV4::new(*address, open.frontend.port),
        Target::Endpoints(endpoints) => {
            endpoints.live.contains(&open.target) || endpoints.draining.contains(&open.target)
        }
    };
    leads_there && forward.allows(*open.client.ip())
}

/// The entry of a connection among the open ones, for as long as its task lives.
struct Entry {
    id: u64,
    open: OpenConnections,
    load: Arc<Load>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.open.borrow_mut().remove(&self.id);
        self.load.closed();
    }
}

/// Connects to the target and tells it who the client is.
async fn connect(
    stream: TcpStream,
    client: SocketAddrV4,
    frontend: SocketAddrV4,
    to: SocketAddrV4,
    outgoing: &Outgoing,
) -> io::Result<(End, End)> {
    let from = End(stream);
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, podnet::connect(outgoing, to)).await;
    let target = End(connected.unwrap_or_else(|elapsed| Err(elapsed.into()))?);
    set_up(&SockRef::from(&target.0))?;
    target.greet(&header::proxy(client, frontend))?;
    Ok((from, target))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::{Endpoints, SourceRanges};

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    async fn open(target: &str) -> Open {
        let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
        let frontend = Frontend { address: [172, 18, 0, 18].into(), transport: Transport::Tcp, port: 80 };
        Open { frontend, client: at("192.0.2.7:40000"), target: at(target), task }
    }

    #[tokio::test]
    async fn connection_goes_on_while_it_leads_where_it_did() {
        let forward =
            |target, clients| Forward { service: "default/web".into(), target, clients, proxied: true };
        let cluster_ip = |ip: &str| forward(Target::ClusterIp(ip.parse().unwrap()), None);
        let of_cluster_ip = open("10.96.0.1:80").await;
        assert!(keeps(&cluster_ip("10.96.0.1"), &of_cluster_ip));
        assert!(!keeps(&cluster_ip("10.96.0.2"), &of_cluster_ip));
        let direct = |live: &[&str], draining: &[&str]| {
            let all = |texts: &[&str]| texts.iter().map(|text| at(text)).collect();
            let endpoints = Endpoints { live: all(live), draining: all(draining), ..Endpoints::default() };
            forward(Target::Endpoints(Arc::new(endpoints)), None)
        };
        let of_endpoint = open("10.16.0.2:8080").await;
        assert!(keeps(&direct(&["10.16.0.2:8080"], &[]), &of_endpoint));
        assert!(keeps(&direct(&[], &["10.16.0.2:8080"]), &of_endpoint), "it drains");
        assert!(!keeps(&direct(&["10.16.0.3:8080"], &[]), &of_endpoint), "it is gone");
        assert!(!keeps(&cluster_ip("10.96.0.1"), &of_endpoint));
        for (network, expected) in [("192.0.2.0/24", true), ("198.51.100.0/24", false)] {
            let ranges: SourceRanges = Arc::new(BTreeSet::from([network.parse().unwrap()]));
            let limited = Forward { clients: Some(ranges), ..cluster_ip("10.96.0.1") };
            assert_eq!(keeps(&limited, &of_cluster_ip), expected, "{network}");
        }
    }
}
