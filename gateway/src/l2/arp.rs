//! ARP for IPv4 over Ethernet (RFC 826, RFC 5227).

use std::net::Ipv4Addr;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The notation of people and tools, `aa:bb:cc:dd:ee:ff`.
pub fn format_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads that notation; `None` if it is none.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let octets = text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect::<Result<Vec<u8>, _>>();
    Mac::try_from(octets.ok()?).ok()
}

/// A gratuitous ARP request (RFC 5227: ARP announcement): a broadcast request
/// for the sender's own address.
pub fn announcement(mac: Mac, address: Ipv4Addr) -> [u8; 42] {
    request(mac, address, address)
}

/// An ARP probe (RFC 5227): a broadcast request without a sender address, so
/// that no receiver updates its ARP cache from it.
pub fn probe(mac: Mac, address: Ipv4Addr) -> [u8; 42] {
    request(mac, Ipv4Addr::UNSPECIFIED, address)
}

/// A broadcast ARP request (RFC 826) for the hardware address of `target`.
pub fn request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    // Ethernet, IPv4, their lengths, request.
    frame[14..22].copy_from_slice(&[0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&sender.octets());
    // The target's hardware address is what is requested: zero.
    frame[38..].copy_from_slice(&target.octets());
    frame
}

/// The request sent to one host only, if `host` is known: a unicast poll (RFC
/// 1122, 2.3.2.1), which does not wake the other hosts. Without one, the
/// request stays a broadcast.
pub fn unicast_to(host: Option<Mac>, mut request: [u8; 42]) -> [u8; 42] {
    if let Some(host) = host {
        request[..6].copy_from_slice(&host);
    }
    request
}

/// The fields of an ARP frame that the gateway uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// A request; otherwise a reply.
    pub request: bool,
    /// The sender's hardware address.
    pub mac: Mac,
    /// The sender's address.
    pub sender: Ipv4Addr,
    /// The requested address; in a reply, the requester's.
    pub target: Ipv4Addr,
}

impl Frame {
    /// Parses an Ethernet frame; `None` if it is not ARP for IPv4.
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

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{ArpHardwareId, ArpOperation, EtherType, LinkSlice, NetSlice, SlicedPacket};

    const MAC: Mac = [0x02, 0, 0, 0, 0, 0x18];
    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);

    #[test]
    fn announcement_bytes_are_a_gratuitous_arp_request() {
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
}
