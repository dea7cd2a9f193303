//! Whether the pod's way into the cluster is alive: its next hop is asked for
//! by ARP, again and again. A link that stays up says little, and one that goes
//! down is told of up to a second late.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::sync::watch as cell;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::arp::{self, Frame, Mac};
use crate::probe::{Concern, Inbox};

/// Between two questions; the answer is read before the next one, for to wake up
/// costs more than all else here.
const ASK: Duration = Duration::from_millis(100);
/// So long without an answer, and the way is lost: two were not answered, and the
/// third had its time.
const SILENCE: Duration = Duration::from_millis(250);
/// So long answered without a gap, and it is back.
const STEADY: Duration = Duration::from_secs(1);

/// The next hop, and by which interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The interface's name.
    pub interface: String,
    /// Its hardware address.
    pub mac: Mac,
    /// The pod's address on it.
    pub own: Ipv4Addr,
    /// Who is asked.
    pub next_hop: Ipv4Addr,
}

/// What the answers say. Pure: time comes in from outside.
#[derive(Clone, Copy, Debug, Default)]
struct Beats {
    /// The last answer. A next hop that never answered tells nothing.
    last: Option<Instant>,
    /// Since when answers come without a gap, after the way was lost.
    back_since: Option<Instant>,
    lost: bool,
}

impl Beats {
    fn answered(&mut self, now: Instant) {
        let gap = self.last.is_some_and(|last| last + SILENCE < now);
        if gap || self.back_since.is_none() {
            self.back_since = Some(now);
        }
        self.last = Some(now);
    }

    /// Whether the way is alive at that time. `asked` says that questions went
    /// out all the while: who slept has heard nothing of what was answered.
    fn alive(&mut self, now: Instant, asked: bool) -> bool {
        let Some(last) = self.last else { return true };
        if last + SILENCE < now {
            self.lost |= asked;
        } else if self.back_since.is_some_and(|since| since + STEADY <= now) {
            self.lost = false;
        }
        !self.lost
    }
}

/// Asks for as long as it lives.
pub struct Pulse {
    way: Way,
    alive: cell::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Pulse {
    /// Begins to ask. Needs NET_RAW.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn begin(way: Way) -> io::Result<Self> {
        let concern = Concern { senders: vec![way.next_hop], targets: Vec::new() };
        let inbox = Inbox::open(&way.interface, &concern)?;
        let (publish, alive) = cell::channel(true);
        let task = tokio::spawn(ask(way.clone(), inbox, publish));
        Ok(Self { way, alive, task })
    }

    /// Who is asked.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// Whether there are answers.
    pub fn is_alive(&self) -> bool {
        *self.alive.borrow()
    }

    /// Resolves when that is no longer what was `known`; never without a pulse.
    pub async fn turned(pulse: Option<&mut Self>, known: bool) {
        let Some(pulse) = pulse else { return std::future::pending().await };
        if pulse.alive.wait_for(|alive| *alive != known).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask(way: Way, inbox: Inbox, publish: cell::Sender<bool>) {
    let question = arp::question(way.mac, way.own, way.next_hop);
    let mut sender = arp::Sender::default();
    let mut beats = Beats::default();
    // Where the last question was answered from. The next goes there alone; one
    // without an answer is followed by one to all, for it may be elsewhere now.
    let mut at: Option<Mac> = None;
    let mut last = Instant::now();
    loop {
        let now = Instant::now();
        while let Some(frame) = inbox.take() {
            let answer =
                Frame::parse(&frame).filter(|said| said.sender == way.next_hop && said.mac != way.mac);
            if let Some(answer) = answer {
                beats.answered(now);
                at = Some(answer.mac);
            }
        }
        let alive = beats.alive(now, last + 2 * ASK > now);
        if publish.send_if_modified(|was| std::mem::replace(was, alive) != alive) {
            if alive {
                info!("the pod network's next hop {} answers again", way.next_hop);
            } else {
                warn!("the pod network's next hop {} does not answer any more", way.next_hop);
            }
        }
        last = now;
        // What cannot be sent is not answered either.
        let _ = sender.send(&way.interface, &arp::to(at.take(), question));
        tokio::time::sleep(ASK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_after_a_silence_and_back_when_steady() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut beats = Beats::default();
        assert!(beats.alive(at(10_000), true), "never answered, nothing known");
        beats.answered(at(10_000));
        assert!(beats.alive(at(10_250), true));
        assert!(beats.alive(at(10_300), false), "asleep, nothing known");
        assert!(!beats.alive(at(10_300), true));
        for ms in (11_000..12_000).step_by(50) {
            beats.answered(at(ms));
            assert!(!beats.alive(at(ms), true), "{ms}");
        }
        beats.answered(at(12_000));
        assert!(beats.alive(at(12_000), true));
    }
}
