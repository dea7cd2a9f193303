//! Connections as clients hold them while something happens: what becomes of those that
//! are open, and of those that are opened meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client;

/// How many are open at any time.
const OPEN: usize = 60;
/// How long each of them lives: less than a gateway's pod that ends goes on for.
const LIFE: Duration = Duration::from_secs(3);
/// Between two requests on one.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two that are opened for one request.
const OPENED: Duration = Duration::from_millis(10);
/// How long a client waits for a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that takes longer lost its first segment: it is sent again after 1 s.
const RETRANSMITTED: Duration = Duration::from_millis(900);

/// What became of the connections.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    /// Connections that were opened.
    pub opened: usize,
    /// Of them those that could not be opened, or lost their first segment.
    pub not_opened: usize,
    /// Connections that were open and then failed.
    pub broken: usize,
    /// The longest wait for an answer on one that went on.
    pub pause: Duration,
    /// The first failures, for people.
    pub failures: Vec<String>,
}

impl Flows {
    /// Whether none was lost.
    pub fn is_whole(&self) -> bool {
        self.not_opened == 0 && self.broken == 0
    }

    fn add(&mut self, other: Self) {
        self.opened += other.opened;
        self.not_opened += other.not_opened;
        self.broken += other.broken;
        self.pause = self.pause.max(other.pause);
        self.failures.extend(other.failures);
        self.failures.truncate(10);
    }
}

/// Connections under way.
pub struct Clients {
    stop: watch::Sender<bool>,
    tasks: JoinSet<Flows>,
}

impl Clients {
    /// Has clients connect to a port of `ip` that serves HTTP.
    pub fn begin(ip: IpAddr, port: u16) -> Self {
        let to = SocketAddr::new(ip, port);
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for number in 0..OPEN {
            // Not all in step.
            let first = LIFE * u32::try_from(number % 10 + 1).unwrap_or(1) / 10;
            tasks.spawn(hold(to, first, stopped.clone()));
        }
        tasks.spawn(open(to, stopped));
        Self { stop, tasks }
    }

    /// Ends them.
    ///
    /// # Panics
    /// If one of them did.
    pub async fn end(self) -> Flows {
        self.stop.send_replace(true);
        let mut all = Flows::default();
        for flows in self.tasks.join_all().await {
            all.add(flows);
        }
        all
    }
}

/// Holds one connection after the other, the first for a time of its own.
async fn hold(to: SocketAddr, first: Duration, stopped: watch::Receiver<bool>) -> Flows {
    let begun = Instant::now();
    let mut flows = Flows::default();
    let mut life = first;
    while !*stopped.borrow() {
        let Some(mut stream) = connect(to, &mut flows).await else { continue };
        let opened = Instant::now();
        while opened.elapsed() < life && !*stopped.borrow() {
            let asked = Instant::now();
            if let Err(error) = client::ask(&mut stream).await {
                flows.broken += 1;
                flows.failures.push(format!(
                    "{:?}: open for {:?}: {error}",
                    begun.elapsed(),
                    opened.elapsed()
                ));
                break;
            }
            flows.pause = flows.pause.max(asked.elapsed());
            tokio::time::sleep(PAUSE).await;
        }
        life = LIFE;
    }
    flows
}

/// Opens one connection after the other, each for one request.
async fn open(to: SocketAddr, stopped: watch::Receiver<bool>) -> Flows {
    let mut flows = Flows::default();
    while !*stopped.borrow() {
        if let Some(mut stream) = connect(to, &mut flows).await
            && let Err(error) = client::ask(&mut stream).await
        {
            flows.broken += 1;
            flows.failures.push(format!("its first request: {error}"));
        }
        tokio::time::sleep(OPENED).await;
    }
    flows
}

async fn connect(to: SocketAddr, flows: &mut Flows) -> Option<TcpStream> {
    let begun = Instant::now();
    flows.opened += 1;
    let stream = timeout(PATIENCE, TcpStream::connect(to)).await;
    let took = begun.elapsed();
    if matches!(stream, Ok(Ok(_))) && took < RETRANSMITTED {
        return stream.ok()?.ok();
    }
    flows.not_opened += 1;
    flows.failures.push(format!("{stream:?} after {took:?}"));
    // One that is refused at once is not asked without end.
    tokio::time::sleep(PAUSE).await;
    stream.ok()?.ok()
}
