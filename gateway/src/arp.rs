//! Announcing the addresses on the LAN by gratuitous ARP, so that neighbours
//! that knew them at another hardware address learn of the new one at once.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket};

/// After the first announcement: an ARP cache that ignores an update within
/// the second of another one (`locktime`) hears the later ones.
const BURST: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(500),
    Duration::from_secs(1),
];
/// From then on.
const STEADY: Duration = Duration::from_secs(60);

/// A hardware address.
pub type Mac = [u8; 6];

/// As people write it, `aa:bb:cc:dd:ee:ff`.
pub fn show(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// An ARP announcement (RFC 5227): a request, to all, for the sender's own
/// address.
pub fn announcement(mac: Mac, address: Ipv4Addr) -> [u8; 42] {
    question(mac, address, address)
}

/// An ARP probe (RFC 5227): a request, to all, by a sender that has no address
/// yet, so that nobody learns one from it.
pub fn probe(mac: Mac, address: Ipv4Addr) -> [u8; 42] {
    question(mac, Ipv4Addr::UNSPECIFIED, address)
}

/// An ARP request (RFC 826), to all: who has `target`?
pub fn question(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    // Ethernet, IPv4, their lengths, request.
    frame[14..22].copy_from_slice(&[0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&sender.octets());
    // The target's hardware address is what is asked for: zero.
    frame[38..].copy_from_slice(&target.octets());
    frame
}

/// The same question to one host alone, if one is named, which leaves all others
/// in peace (RFC 1122, 2.3.2.1, calls it a unicast poll).
pub fn to(host: Option<Mac>, mut question: [u8; 42]) -> [u8; 42] {
    if let Some(host) = host {
        question[..6].copy_from_slice(&host);
    }
    question
}

/// What of an ARP frame matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// A request, not a reply.
    pub request: bool,
    /// The sender's hardware address.
    pub mac: Mac,
    /// The sender's address.
    pub sender: Ipv4Addr,
    /// The address that is asked for, or of who asked.
    pub target: Ipv4Addr,
}

impl Frame {
    /// Reads an Ethernet frame; `None` if it is no ARP for IPv4.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let arp = frame.get(12..42)?;
        let request = match arp.get(..10)? {
            [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1] => true,
            [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2] => false,
            _ => return None,
        };
        let ip = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(arp.get(at..at + 4)?).ok()?));
        Some(Self { request, mac: arp.get(10..16)?.try_into().ok()?, sender: ip(16)?, target: ip(26)? })
    }
}

/// The interface to announce by. Another one, the same with another hardware
/// address, or one that was away meanwhile is news to the neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// `ifindex`.
    pub index: u32,
    /// Hardware address.
    pub mac: Mac,
    /// How often its carrier came or went.
    pub carrier_changes: u32,
}

/// When to announce which address. Pure: time comes in from outside.
#[derive(Debug, Default)]
pub struct Schedule {
    port: Option<Port>,
    next: BTreeMap<Ipv4Addr, (Instant, usize)>,
}

impl Schedule {
    /// Announce these addresses by this interface; without one, none. A new
    /// address is announced at once. When the interface is another, or its link
    /// was away, all are announced anew, after `settle`: who was away may not be
    /// the one any more that has them.
    pub fn set(&mut self, now: Instant, port: Option<Port>, addresses: &[Ipv4Addr], settle: Duration) {
        if port != self.port {
            match port {
                Some(_) => self.next.values_mut().for_each(|next| *next = (now + settle, 0)),
                None => self.next.clear(),
            }
            self.port = port;
        }
        self.next.retain(|address, _| addresses.contains(address));
        if port.is_some() {
            for address in addresses {
                self.next.entry(*address).or_insert((now, 0));
            }
        }
    }

    /// Forget what has been announced, so that it is again.
    pub fn restart(&mut self) {
        self.next.clear();
    }

    /// When the next announcement is due.
    pub fn due(&self) -> Option<Instant> {
        self.next.values().map(|(at, _)| *at).min()
    }

    /// What to announce now.
    pub fn take(&mut self, now: Instant) -> Vec<(Port, Ipv4Addr)> {
        let Some(port) = self.port else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        for (address, (at, sent)) in &mut self.next {
            if *at <= now {
                taken.push((port, *address));
                *at = now + BURST.get(*sent).copied().unwrap_or(STEADY);
                *sent += 1;
            }
        }
        taken
    }
}

/// Sends ARP frames.
#[derive(Debug, Default)]
pub struct Sender {
    socket: Option<OwnedFd>,
    /// The interface last sent by: to look it up costs far more than to send.
    known: Option<(String, LinkAddr)>,
}

impl Sender {
    /// Sends a frame by the interface of this name.
    pub fn send(&mut self, interface: &str, frame: &[u8]) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            // Of protocol 0: it is to receive nothing.
            None => self.socket.insert(socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                None,
            )?),
        };
        let send = |link: &LinkAddr| sendto(socket.as_raw_fd(), frame, link, MsgFlags::empty());
        let known = self.known.take().filter(|(name, link)| name == interface && send(link).is_ok());
        self.known = match known {
            Some(sent) => Some(sent),
            // Another one, maybe of the same name.
            None => {
                let link = link_address(interface)?;
                send(&link)?;
                Some((interface.to_owned(), link))
            }
        };
        Ok(())
    }
}

/// The interface as an address of packet sockets.
pub(crate) fn link_address(interface: &str) -> io::Result<LinkAddr> {
    nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .filter(|link| link.family() == Some(AddressFamily::Packet))
        .ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{ArpHardwareId, ArpOperation, EtherType, LinkSlice, NetSlice, SlicedPacket};

    const MAC: Mac = [0x02, 0, 0, 0, 0, 0x18];
    const PORT: Port = Port { index: 3, mac: MAC, carrier_changes: 1 };
    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);

    #[test]
    fn the_frame_is_an_arp_announcement() {
        let frame = announcement(MAC, VIP);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(LinkSlice::Ethernet2(ethernet)) = packet.link else {
            panic!("no ethernet header");
        };
        assert_eq!(ethernet.destination(), [0xff; 6]);
        assert_eq!(ethernet.source(), MAC);
        let Some(NetSlice::Arp(arp)) = packet.net else {
            panic!("no ARP");
        };
        assert_eq!(arp.hw_addr_type(), ArpHardwareId::ETHERNET);
        assert_eq!(arp.proto_addr_type(), EtherType::IPV4);
        assert_eq!(arp.operation(), ArpOperation::REQUEST);
        assert_eq!(arp.sender_hw_addr(), MAC);
        assert_eq!(arp.sender_protocol_addr(), VIP.octets());
        assert_eq!(arp.target_hw_addr(), [0; 6]);
        assert_eq!(arp.target_protocol_addr(), VIP.octets());
        let read = Frame { request: true, mac: MAC, sender: VIP, target: VIP };
        assert_eq!(Frame::parse(&frame), Some(read));
        assert_eq!(Frame::parse(&probe(MAC, VIP)), Some(Frame { sender: Ipv4Addr::UNSPECIFIED, ..read }));
    }

    /// Runs the schedule for two and a half minutes.
    fn times(schedule: &mut Schedule, start: Instant) -> Vec<u128> {
        let mut times = Vec::new();
        while let Some(due) = schedule.due() {
            let at = (due - start).as_millis();
            if at > 150_000 {
                break;
            }
            assert_eq!(schedule.take(due), [(PORT, VIP)]);
            times.push(at);
        }
        times
    }

    #[test]
    fn a_burst_then_once_a_minute() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        assert_eq!(schedule.due(), None);
        schedule.set(start, Some(PORT), &[VIP], Duration::ZERO);
        assert_eq!(times(&mut schedule, start), [0, 100, 500, 1000, 2000, 62_000, 122_000]);
    }

    #[test]
    fn a_new_link_or_hardware_address_starts_over() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.set(start, Some(PORT), &[VIP], Duration::ZERO);
        schedule.take(start);
        // Nothing new: nothing at once.
        schedule.set(start, Some(PORT), &[VIP], Duration::ZERO);
        assert_eq!(schedule.due(), Some(start + BURST[0]));
        let away = Port { carrier_changes: 3, ..PORT };
        let other = Port { mac: [2; 6], ..PORT };
        for port in [away, other, Port { index: 4, ..other }] {
            schedule.set(start, Some(port), &[VIP], Duration::ZERO);
            assert_eq!(schedule.due(), Some(start));
            schedule.take(start);
        }
        // Who has others to agree with listens first; a new address does not wait.
        let settle = Duration::from_millis(300);
        schedule.set(start, Some(PORT), &[VIP], settle);
        assert_eq!(schedule.due(), Some(start + settle));
        schedule.set(start, Some(PORT), &[VIP, Ipv4Addr::new(172, 18, 0, 19)], settle);
        assert_eq!(schedule.due(), Some(start));
        // Without carrier nobody would hear.
        schedule.set(start, None, &[VIP], Duration::ZERO);
        assert_eq!(schedule.due(), None);
        schedule.set(start, Some(other), &[VIP], Duration::ZERO);
        assert_eq!(schedule.due(), Some(start));
        schedule.set(start, Some(other), &[], Duration::ZERO);
        assert_eq!(schedule.due(), None);
    }
}
