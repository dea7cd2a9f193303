//! The proxy of frontends with the PROXY protocol: it accepts the client's connection in
//! this process, connects to the target, sends it a header that names the client, and
//! relays both ways.
//!
//! ```text
//!   client ──▶ redirect ──▶ listener ─▶ accept ─▶ choose ─▶ connect ─▶ header ─┐
//!              (datapath)   127.0.0.1                                          ▼
//!   client ◀─────────────────────────────── relay: splice by pipes ────────▶ target
//! ```
//!
//! | File | Holds |
//! |---|---|
//! | [`header`] | the header's bytes |
//! | [`capacity`] | how many connections there may be |
//! | [`load`] | how many there are, and what was refused |
//! | [`spread`] | which target a connection gets |
//! | [`relay`], [`pipe`] | the bytes of a connection, both ways |
//! | [`server`] | the thread: accepting, connecting, cutting |
//!
//! It has a thread of its own, and neither the election nor the agent waits for it. Its
//! connections end with the process, which those that the kernel forwards outlive. A pod
//! that has given its addresses away goes on with the connections that it has, for half a
//! minute.

pub mod capacity;
pub mod header;
pub mod load;
pub mod pipe;
pub mod relay;
pub mod server;
pub mod spread;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Instant;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::watch;
use tracing::info;

use self::load::Load;
use self::server::Serving;
use crate::config::Forwards;
use crate::fault::Fault;
use crate::limit::Limit;
use crate::podnet::Outgoing;
use crate::telemetry::metrics::Metrics;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// The proxy, which runs from when the first frontend is proxied.
pub struct Proxy {
    metrics: Metrics,
    running: Option<Running>,
}

struct Running {
    listener: SocketAddrV4,
    serving: watch::Sender<Arc<Serving>>,
    load: Arc<Load>,
}

impl Proxy {
    /// A proxy that does not run yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, running: None }
    }

    /// Sets what is proxied of these forwards, and by which interface targets are
    /// connected. Connections that contradict the forwards are cut. Returns where the
    /// proxy listens; `None` if it does not run.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn set(&mut self, forwards: &Forwards, outgoing: Outgoing) -> Result<Option<SocketAddrV4>, Fault> {
        let proxied = forwards.iter().filter(|(_, forward)| forward.proxied);
        let forwards: Forwards = proxied.map(|(frontend, forward)| (*frontend, forward.clone())).collect();
        if forwards.is_empty() && self.running.is_none() {
            return Ok(None);
        }
        let serving = Serving { forwards, outgoing };
        // Its thread has ended if nobody receives.
        let running = match self.running.take().filter(|running| !running.serving.is_closed()) {
            Some(running) => running,
            None => start(&self.metrics).map_err(|error| Fault::ProxyFailed(error.to_string()))?,
        };
        running.serving.send_if_modified(|now| {
            let changed = **now != serving;
            if changed {
                *now = Arc::new(serving);
            }
            changed
        });
        Ok(Some(self.running.insert(running).listener))
    }

    /// What it does less well than it should.
    pub fn limit(&self) -> Option<Limit> {
        let load = &self.running.as_ref()?.load;
        load.is_full(Instant::now()).then(|| Limit::ProxyFull(load.capacity()))
    }
}

fn start(metrics: &Metrics) -> io::Result<Running> {
    let (socket, listener) = listen()?;
    let load = Arc::new(Load::new(metrics.clone(), capacity::of_process()));
    let (serving, receiver) = watch::channel(Arc::default());
    let of_thread = Arc::clone(&load);
    let run = move || server::run(socket, receiver, of_thread);
    std::thread::Builder::new().name("proxy".to_owned()).spawn(run)?;
    info!(%listener, capacity = load.capacity(), "proxy started");
    Ok(Running { listener, serving, load })
}

/// Listens where no packet leads but those that the kernel is told to hand over.
fn listen() -> io::Result<(std::net::TcpListener, SocketAddrV4)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_ip_transparent_v4(true)?;
    // Sockets that it accepts are set up alike.
    relay::set_up(&SockRef::from(&socket))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into())?;
    socket.listen(BACKLOG)?;
    let address = socket.local_addr()?.as_socket_ipv4();
    let address = address.ok_or_else(|| io::Error::other("the listener has no IPv4 address"))?;
    Ok((socket.into(), address))
}
