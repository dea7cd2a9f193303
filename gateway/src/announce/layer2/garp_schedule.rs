//! When to send gratuitous ARP for which address, so that neighbours with an
//! outdated ARP cache entry learn the new hardware address at once.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::l2::arp::Mac;
use crate::route::model::Link;

/// Intervals after the first announcement. An ARP cache ignores an update
/// within a second of the previous one (`locktime`), so one announcement is not
/// enough.
const BURST: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(500),
    Duration::from_secs(1),
];
/// Interval after the burst.
const STEADY: Duration = Duration::from_secs(60);

/// The LAN interface as neighbours know it. If the interface, its hardware
/// address, or its carrier count changed, neighbours may be outdated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncingInterface {
    /// `ifindex`.
    pub index: u32,
    /// Hardware address.
    pub mac: Mac,
    /// How often its carrier came or went.
    pub carrier_changes: u32,
}

impl AnnouncingInterface {
    /// The link as an announcing interface; `None` while it has no carrier.
    pub fn of(link: &Link) -> Option<Self> {
        let Link { index, carrier_changes, .. } = *link;
        link.mac.filter(|_| link.running).map(|mac| Self { index, mac, carrier_changes })
    }
}

/// The announcements that are due, by address. Pure: the time is an argument.
#[derive(Debug, Default)]
pub struct GarpSchedule {
    interface: Option<AnnouncingInterface>,
    /// When to announce next, and how many announcements were sent before.
    next: BTreeMap<Ipv4Addr, (Instant, usize)>,
}

impl GarpSchedule {
    /// Sets which addresses to announce on which interface; without an
    /// interface, none. A new address is due at once. If the interface changed
    /// or its carrier was lost, every address is due again after `settle`: this
    /// pod may have been replaced as their owner meanwhile.
    pub fn set(
        &mut self,
        now: Instant,
        interface: Option<AnnouncingInterface>,
        addresses: &[Ipv4Addr],
        settle: Duration,
    ) {
        if interface != self.interface {
            match interface {
                Some(_) => self.next.values_mut().for_each(|next| *next = (now + settle, 0)),
                None => self.next.clear(),
            }
            self.interface = interface;
        }
        self.next.retain(|address, _| addresses.contains(address));
        if interface.is_some() {
            for address in addresses {
                self.next.entry(*address).or_insert((now, 0));
            }
        }
    }

    /// Forgets what was announced: the next [`Self::set`] starts every address
    /// anew.
    pub fn restart(&mut self) {
        self.next.clear();
    }

    /// When the next announcement is due.
    pub fn due(&self) -> Option<Instant> {
        self.next.values().map(|(at, _)| *at).min()
    }

    /// Returns the announcements that are due, and schedules the next ones.
    pub fn poll(&mut self, now: Instant) -> Vec<(AnnouncingInterface, Ipv4Addr)> {
        let Some(interface) = self.interface else {
            return Vec::new();
        };
        let mut due = Vec::new();
        for (address, (at, sent)) in &mut self.next {
            if *at <= now {
                due.push((interface, *address));
                *at = now + BURST.get(*sent).copied().unwrap_or(STEADY);
                *sent += 1;
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x02, 0, 0, 0, 0, 0x18];
    const LAN: AnnouncingInterface = AnnouncingInterface { index: 3, mac: MAC, carrier_changes: 1 };
    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);

    /// Runs the schedule for two and a half minutes.
    fn times(schedule: &mut GarpSchedule, start: Instant) -> Vec<u128> {
        let mut times = Vec::new();
        while let Some(due) = schedule.due() {
            let at = (due - start).as_millis();
            if at > 150_000 {
                break;
            }
            assert_eq!(schedule.poll(due), [(LAN, VIP)]);
            times.push(at);
        }
        times
    }

    #[test]
    fn new_address_is_announced_in_a_burst_then_every_minute() {
        let start = Instant::now();
        let mut schedule = GarpSchedule::default();
        assert_eq!(schedule.due(), None);
        schedule.set(start, Some(LAN), &[VIP], Duration::ZERO);
        assert_eq!(times(&mut schedule, start), [0, 100, 500, 1000, 2000, 62_000, 122_000]);
    }

    #[test]
    fn changed_link_or_hardware_address_restarts_the_burst() {
        let start = Instant::now();
        let mut schedule = GarpSchedule::default();
        schedule.set(start, Some(LAN), &[VIP], Duration::ZERO);
        schedule.poll(start);
        // Nothing new: nothing at once.
        schedule.set(start, Some(LAN), &[VIP], Duration::ZERO);
        assert_eq!(schedule.due(), Some(start + BURST[0]));
        let away = AnnouncingInterface { carrier_changes: 3, ..LAN };
        let other = AnnouncingInterface { mac: [2; 6], ..LAN };
        for interface in [away, other, AnnouncingInterface { index: 4, ..other }] {
            schedule.set(start, Some(interface), &[VIP], Duration::ZERO);
            assert_eq!(schedule.due(), Some(start));
            schedule.poll(start);
        }
        // Who has others to agree with listens first; a new address does not wait.
        let settle = Duration::from_millis(300);
        schedule.set(start, Some(LAN), &[VIP], settle);
        assert_eq!(schedule.due(), Some(start + settle));
        schedule.set(start, Some(LAN), &[VIP, Ipv4Addr::new(172, 18, 0, 19)], settle);
        assert_eq!(schedule.due(), Some(start));
        // Without carrier nothing can be received.
        schedule.set(start, None, &[VIP], Duration::ZERO);
        assert_eq!(schedule.due(), None);
        schedule.set(start, Some(other), &[VIP], Duration::ZERO);
        assert_eq!(schedule.due(), Some(start));
        schedule.set(start, Some(other), &[], Duration::ZERO);
        assert_eq!(schedule.due(), None);
    }
}
