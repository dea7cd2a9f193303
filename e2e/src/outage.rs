//! How long an address goes unanswered: many independent probes, each with a
//! short deadline of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Between two probes of a kind.
pub const EVERY: Duration = Duration::from_millis(5);
/// How long a probe may take.
pub const DEADLINE: Duration = Duration::from_millis(50);

/// A kind of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A datagram and its answer, from a source port of its own.
    Udp,
    /// A connection that is opened, and aborted once it is.
    Tcp,
}

/// One probe: when it was sent, and whether it was answered in time.
#[derive(Clone, Copy, Debug)]
struct Probe {
    kind: Kind,
    sent: Instant,
    answered: bool,
}

/// What the probes of a while showed.
#[derive(Clone, Debug, Default)]
pub struct Outage {
    /// From the first probe that was lost to the next that was answered, of
    /// either kind: the longest of all.
    pub longest: Duration,
    /// The second longest of its kind: what came after, or before.
    pub again: Duration,
    /// Probes lost.
    pub lost: usize,
    /// Probes sent.
    pub sent: usize,
}

/// Probes under way.
#[derive(Debug)]
pub struct Watch {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Vec<Probe>>,
}

impl Watch {
    /// Begins to probe `ip`, by TCP and UDP on the ports given.
    pub fn begin(ip: IpAddr, tcp: u16, udp: u16) -> Self {
        Self::every(EVERY, ip, tcp, udp)
    }

    /// The same, with another time between two probes of a kind.
    pub fn every(pause: Duration, ip: IpAddr, tcp: u16, udp: u16) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(probe(pause, SocketAddr::new(ip, tcp), SocketAddr::new(ip, udp), stopped));
        Self { stop, task }
    }

    /// Ends it.
    ///
    /// # Panics
    /// If the prober did.
    pub async fn end(self) -> Outage {
        let _ = self.stop.send(());
        let probes = self.task.await.unwrap_or_else(|error| panic!("the prober: {error}"));
        summary(probes)
    }
}

async fn probe(
    pause: Duration,
    tcp: SocketAddr,
    udp: SocketAddr,
    mut stopped: oneshot::Receiver<()>,
) -> Vec<Probe> {
    let (done, mut probes) = mpsc::unbounded_channel();
    let mut tick = interval(pause);
    // One that comes late is sent late: a burst would measure itself.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = &mut stopped => break,
        }
        for kind in [Kind::Udp, Kind::Tcp] {
            let done = done.clone();
            tokio::spawn(async move {
                let sent = Instant::now();
                let answered = match kind {
                    Kind::Udp => timeout(DEADLINE, ask(udp)).await,
                    Kind::Tcp => timeout(DEADLINE, connect(tcp)).await,
                };
                let _ = done.send(Probe { kind, sent, answered: matches!(answered, Ok(Ok(()))) });
            });
        }
    }
    drop(done);
    let mut all = Vec::new();
    while let Some(probe) = probes.recv().await {
        all.push(probe);
    }
    all
}

async fn ask(to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(to).await?;
    socket.send(b"probe").await?;
    socket.recv(&mut [0; 512]).await?;
    Ok(())
}

async fn connect(to: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect(to).await?;
    // Nothing is to stay of it, here or there.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

fn summary(mut probes: Vec<Probe>) -> Outage {
    probes.sort_by_key(|probe| probe.sent);
    let mut outage = Outage { sent: probes.len(), ..Outage::default() };
    for kind in [Kind::Udp, Kind::Tcp] {
        let mut since: Option<Instant> = None;
        let mut stretches = Vec::new();
        for probe in probes.iter().filter(|probe| probe.kind == kind) {
            if probe.answered {
                stretches.extend(since.take().map(|since| probe.sent - since));
            } else {
                outage.lost += 1;
                since.get_or_insert(probe.sent);
            }
        }
        if let (Some(since), Some(last)) = (since, probes.last()) {
            stretches.push(last.sent - since + DEADLINE);
        }
        stretches.sort_unstable_by(|a, b| b.cmp(a));
        outage.longest = outage.longest.max(stretches.first().copied().unwrap_or_default());
        outage.again = outage.again.max(stretches.get(1).copied().unwrap_or_default());
    }
    outage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_stretch_counts() {
        let start = Instant::now();
        let probe = |kind, ms, answered| Probe { kind, sent: start + Duration::from_millis(ms), answered };
        let outage = summary(vec![
            probe(Kind::Udp, 0, true),
            probe(Kind::Udp, 5, false),
            probe(Kind::Udp, 10, false),
            probe(Kind::Udp, 15, true),
            probe(Kind::Tcp, 0, true),
            probe(Kind::Tcp, 5, false),
            probe(Kind::Tcp, 10, true),
            probe(Kind::Tcp, 15, true),
            probe(Kind::Udp, 20, false),
            probe(Kind::Udp, 25, true),
        ]);
        assert_eq!(outage.longest, Duration::from_millis(10));
        assert_eq!(outage.again, Duration::from_millis(5));
        assert_eq!((outage.lost, outage.sent), (4, 10));
        let never = summary(vec![probe(Kind::Udp, 0, true), probe(Kind::Udp, 5, false)]);
        assert_eq!(never.longest, DEADLINE, "what did not end by then lasts until then");
    }
}
