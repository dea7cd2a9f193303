//! Whether the pod network's next hop is alive: it is sent ARP requests again and
//! again. A link that stays up says little, and a link that goes down is reported up
//! to a second late.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::l2::arp::{self, Frame, Mac};
use crate::l2::socket::{ArpFilter, FrameSender, PolledReceiver};
use crate::route::model::{Hop, Link, NetworkState};
use crate::route::policy::MAIN;

/// Interval of the requests. Replies are read before the next request, because waking
/// up costs more than everything else here.
const INTERVAL: Duration = Duration::from_millis(100);
/// The next hop is dead after this time without a reply: two requests were not
/// answered, and the third had its time.
const DEAD_AFTER: Duration = Duration::from_millis(250);
/// It is alive again after replies without a gap for this time.
const ALIVE_AFTER: Duration = Duration::from_secs(1);

/// The next hop, and the interface towards it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface's name.
    pub interface: String,
    /// Its hardware address.
    pub mac: Mac,
    /// The pod's address on it.
    pub own: Ipv4Addr,
    /// The next hop's address.
    pub address: Ipv4Addr,
}

impl NextHop {
    /// The next hop of the pod's default route, if that is by the primary interface.
    pub fn of(state: &NetworkState, primary: &Link) -> Option<Self> {
        let default = state.routes.iter().find(|r| r.table == MAIN && r.destination.prefix_len() == 0)?;
        let Hop::Via { gateway, oif, .. } = default.hop else { return None };
        let mut own = state.addresses.iter().filter(|a| a.interface == primary.index && a.global);
        (oif == primary.index).then_some(())?;
        let (own, mac) = (own.next()?.address, primary.mac?);
        Some(Self { interface: primary.name.clone(), mac, own, address: gateway })
    }
}

/// What the replies mean. Pure: the time is an argument.
#[derive(Clone, Copy, Debug, Default)]
struct Liveness {
    /// The last reply. A next hop that never replied may not speak ARP.
    last: Option<Instant>,
    /// Since when replies come without a gap.
    steady_since: Option<Instant>,
    dead: bool,
}

impl Liveness {
    fn replied(&mut self, now: Instant) {
        let gap = self.last.is_some_and(|last| last + DEAD_AFTER < now);
        if gap || self.steady_since.is_none() {
            self.steady_since = Some(now);
        }
        self.last = Some(now);
    }

    /// Whether the next hop is alive at that time. `requesting` is false if the
    /// process slept: then missing replies mean nothing.
    fn is_alive(&mut self, now: Instant, requesting: bool) -> bool {
        let Some(last) = self.last else { return true };
        if last + DEAD_AFTER < now {
            self.dead |= requesting;
        } else if self.steady_since.is_some_and(|since| since + ALIVE_AFTER <= now) {
            self.dead = false;
        }
        !self.dead
    }
}

/// Monitors one next hop for as long as it lives.
struct Monitor {
    next_hop: NextHop,
    alive: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Monitor {
    /// Starts to send requests. Needs NET_RAW.
    ///
    /// # Errors
    /// If the kernel refuses a socket.
    fn start(next_hop: NextHop) -> io::Result<Self> {
        let filter = ArpFilter { senders: vec![next_hop.address], targets: Vec::new() };
        let receiver = PolledReceiver::arp(&next_hop.interface, &filter)?;
        let (publish, alive) = watch::channel(true);
        let task = tokio::spawn(run(next_hop.clone(), receiver, publish));
        Ok(Self { next_hop, alive, task })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Monitors the next hop while there is one to monitor.
#[derive(Default)]
pub struct NextHopMonitor {
    monitor: Option<Monitor>,
    /// The next hop was last reported to be dead.
    dead: bool,
}

impl NextHopMonitor {
    /// Sets the next hop to monitor, and returns whether it is alive, as far as
    /// known.
    pub fn set(&mut self, next_hop: Option<NextHop>) -> bool {
        self.monitor.take_if(|monitor| Some(&monitor.next_hop) != next_hop.as_ref());
        if let (None, Some(next_hop)) = (&self.monitor, next_hop) {
            self.monitor = Monitor::start(next_hop)
                .inspect_err(|error| warn!(%error, "pod network's next hop not monitored"))
                .ok();
        }
        self.dead = self.monitor.as_ref().is_some_and(|monitor| !*monitor.alive.borrow());
        !self.dead
    }

    /// Resolves when the result of [`Self::set`] has become another.
    pub async fn changed(&mut self) {
        let Some(monitor) = &mut self.monitor else { return std::future::pending().await };
        let known = !self.dead;
        if monitor.alive.wait_for(|alive| *alive != known).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn run(next_hop: NextHop, receiver: PolledReceiver, publish: watch::Sender<bool>) {
    let request = arp::request(next_hop.mac, next_hop.own, next_hop.address);
    let mut sender = FrameSender::default();
    let mut liveness = Liveness::default();
    // The hardware address of the last reply, for a unicast. A request without a
    // reply is followed by a broadcast: the next hop may have moved.
    let mut at: Option<Mac> = None;
    let mut last = Instant::now();
    loop {
        let now = Instant::now();
        for frame in receiver.receive() {
            let reply =
                Frame::parse(&frame).filter(|arp| arp.sender == next_hop.address && arp.mac != next_hop.mac);
            if let Some(reply) = reply {
                liveness.replied(now);
                at = Some(reply.mac);
            }
        }
        let alive = liveness.is_alive(now, last + 2 * INTERVAL > now);
        if publish.send_if_modified(|was| std::mem::replace(was, alive) != alive) {
            if alive {
                info!(address = %next_hop.address, "pod network's next hop answers again");
            } else {
                warn!(address = %next_hop.address, "pod network's next hop does not answer");
            }
        }
        last = now;
        // A request that is not sent is not answered either.
        let _ = sender.send(&next_hop.interface, &arp::unicast_to(at.take(), request));
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hop_is_dead_after_silence_and_alive_when_steady() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut liveness = Liveness::default();
        assert!(liveness.is_alive(at(10_000), true), "never replied, nothing known");
        liveness.replied(at(10_000));
        assert!(liveness.is_alive(at(10_250), true));
        assert!(liveness.is_alive(at(10_300), false), "asleep, nothing known");
        assert!(!liveness.is_alive(at(10_300), true));
        for ms in (11_000..12_000).step_by(50) {
            liveness.replied(at(ms));
            assert!(!liveness.is_alive(at(ms), true), "{ms}");
        }
        liveness.replied(at(12_000));
        assert!(liveness.is_alive(at(12_000), true));
    }
}
