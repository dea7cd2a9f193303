//! Whether the LAN's routers answer ARP. One that does not may not exist: the Subnet's
//! `cidrBlock` is a slice of the LAN, and its `gateway` a guess. Then the gateway is
//! ready, and whoever is outside of that slice gets no answer.
//!
//! Not to be confused with [isolation](super::isolation), which is decided within a
//! fraction of a second, by members of an election only.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::garp_schedule::AnnouncingInterface;
use crate::l2::arp::{Frame, Mac};

/// Interval of requests to a router that does not answer.
const INTERVAL: Duration = Duration::from_secs(10);
/// Interval of requests to one that does.
const ANSWERED_INTERVAL: Duration = Duration::from_secs(60);
/// How long to wait before looking for an answer.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// A router is silent if it has not answered for this time since a first request.
const SILENT_AFTER: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Router {
    /// When to send the next request.
    next: Instant,
    /// When to look for an answer to the last one.
    look: Option<Instant>,
    /// When the first request was sent that has had no answer.
    unanswered_since: Option<Instant>,
    /// The hardware address of the last answer, for a unicast. A request without an answer
    /// is followed by a broadcast: the router may have moved.
    at: Option<Mac>,
    silent: bool,
}

/// The state of all routers. Pure: time and received frames are inputs.
#[derive(Debug, Default)]
pub struct RouterWatch {
    interface: Option<AnnouncingInterface>,
    routers: BTreeMap<Ipv4Addr, Router>,
}

impl RouterWatch {
    /// Sets the routers to ask, and the interface; without one, nobody is asked. On another
    /// interface nothing is known of any.
    pub fn set(&mut self, now: Instant, interface: Option<AnnouncingInterface>, routers: &[Ipv4Addr]) {
        if std::mem::replace(&mut self.interface, interface) != interface || interface.is_none() {
            self.routers.clear();
        }
        self.routers.retain(|router, _| routers.contains(router));
        let new = Router { next: now, look: None, unanswered_since: None, at: None, silent: false };
        for router in routers.iter().filter(|_| interface.is_some()) {
            self.routers.entry(*router).or_insert(new);
        }
    }

    /// The interface to ask on.
    pub fn interface(&self) -> Option<AnnouncingInterface> {
        self.interface
    }

    /// Takes the frames that were received. Returns whether another router is silent now,
    /// or one is no more.
    pub fn receive(&mut self, now: Instant, frames: &[Frame]) -> bool {
        let own = self.interface.map(|interface| interface.mac);
        let mut changed = false;
        for frame in frames.iter().filter(|frame| Some(frame.mac) != own) {
            if let Some(router) = self.routers.get_mut(&frame.sender) {
                router.at = Some(frame.mac);
                router.unanswered_since = None;
                changed |= std::mem::take(&mut router.silent);
            }
        }
        for router in self.routers.values_mut() {
            if router.look.take_if(|look| *look <= now).is_some() && router.unanswered_since.is_none() {
                router.next = now + ANSWERED_INTERVAL;
            }
            if router.unanswered_since.is_some_and(|since| since + SILENT_AFTER <= now) {
                changed |= !std::mem::replace(&mut router.silent, true);
            }
        }
        changed
    }

    /// The routers to send a request to now, each with the hardware address to send it to;
    /// without one, to all.
    pub fn poll(&mut self, now: Instant) -> Vec<(Ipv4Addr, Option<Mac>)> {
        let due = self.routers.iter_mut().filter(|(_, router)| router.next <= now);
        let ask = |(address, router): (&Ipv4Addr, &mut Router)| {
            (router.next, router.look) = (now + INTERVAL, Some(now + ANSWER_TIME));
            router.unanswered_since.get_or_insert(now);
            (*address, router.at.take())
        };
        due.map(ask).collect()
    }

    /// When to call [`Self::receive`] and [`Self::poll`] next.
    pub fn due(&self) -> Option<Instant> {
        self.routers.values().flat_map(|router| [Some(router.next), router.look]).flatten().min()
    }

    /// The routers that are silent.
    pub fn silent(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.routers.iter().filter(|(_, router)| router.silent).map(|(address, _)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const THEIRS: Mac = [2, 0, 0, 0, 0, 9];
    const ROUTER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);

    /// Asks until then as the agent does, and returns to whom and after how many seconds.
    fn run(
        watch: &mut RouterWatch,
        start: Instant,
        seconds: std::ops::Range<u64>,
        answers: bool,
    ) -> Vec<(u64, Option<Mac>)> {
        let mut asked = Vec::new();
        let mut answer = Vec::new();
        for second in seconds {
            let now = start + Duration::from_secs(second);
            if watch.due().is_some_and(|due| due <= now) {
                watch.receive(now, &std::mem::take(&mut answer));
                for (router, to) in watch.poll(now) {
                    asked.push((second, to));
                    let mac = if answers { THEIRS } else { OWN };
                    answer.push(Frame { request: false, mac, sender: router, target: Ipv4Addr::UNSPECIFIED });
                }
            }
        }
        asked
    }

    #[test]
    fn b16_router_is_silent_after_a_minute_without_an_answer() {
        let start = Instant::now();
        let interface = |carrier_changes| Some(AnnouncingInterface { index: 3, mac: OWN, carrier_changes });
        let mut watch = RouterWatch::default();
        watch.set(start, None, &[ROUTER]);
        assert_eq!(watch.due(), None, "there is nowhere to ask");
        watch.set(start, interface(1), &[ROUTER]);
        // One request every ten seconds, to all.
        let asked = run(&mut watch, start, 0..60, false);
        assert_eq!(asked, [0, 10, 20, 30, 40, 50].map(|second| (second, None)));
        assert_eq!(watch.silent().count(), 0);
        run(&mut watch, start, 60..62, false);
        assert_eq!(watch.silent().collect::<Vec<_>>(), [ROUTER]);
        // The first answer ends it; then it alone is asked, once a minute.
        let asked = run(&mut watch, start, 62..200, true);
        assert_eq!(asked, [(70, None), (131, Some(THEIRS)), (192, Some(THEIRS))]);
        assert_eq!(watch.silent().count(), 0);
        let asked = run(&mut watch, start, 200..330, false);
        assert_eq!(asked[..2], [(253, Some(THEIRS)), (263, None)]);
        assert_eq!(watch.silent().collect::<Vec<_>>(), [ROUTER]);
        // What another interface has, nobody knows.
        watch.set(start, interface(2), &[ROUTER]);
        assert_eq!(watch.silent().count(), 0);
        watch.set(start, interface(2), &[]);
        assert_eq!(watch.due(), None);
    }
}
