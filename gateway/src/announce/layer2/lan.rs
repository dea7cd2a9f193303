//! The LAN as the election task uses it besides the election's own frames: ARP
//! received and sent.

use std::io;
use std::net::Ipv4Addr;

use nix::sys::socket::LinkAddr;

use super::isolation::Hosts;
use crate::l2::arp::{self, Frame, Mac};
use crate::l2::socket::{ArpFilter, FrameSender, PacketReceiver};

/// The sockets on the LAN interface.
pub(super) struct Lan {
    interface: LinkAddr,
    arp: PacketReceiver,
    /// The hosts that the filter of `arp` is set for.
    filtered: Option<Hosts>,
    /// Open while the pod is isolated: receives what the lease drops.
    all: Option<PacketReceiver>,
    sender: FrameSender,
}

impl Lan {
    /// Opens an interface. Needs NET_RAW.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn open(interface: LinkAddr) -> io::Result<Self> {
        Ok(Self {
            interface,
            arp: PacketReceiver::arp_on(&interface, &ArpFilter::default())?,
            filtered: None,
            all: None,
            sender: FrameSender::default(),
        })
    }

    /// Receives ARP about these hosts: from the routers, and from or for the
    /// addresses.
    pub fn set_hosts(&mut self, hosts: &Hosts) {
        if self.filtered.as_ref() == Some(hosts) {
            return;
        }
        let Hosts { addresses, routers, .. } = hosts;
        let filter = ArpFilter { senders: [&addresses[..], routers].concat(), targets: addresses.clone() };
        // If the kernel refuses, the next call tries again.
        self.filtered = self.arp.set_filter(&filter).is_ok().then(|| hosts.clone());
    }

    /// Starts or stops receiving frames of every type. Without them a client is
    /// not seen, only the router.
    pub fn receive_all(&mut self, all: bool) {
        self.all = all.then(|| PacketReceiver::all(&self.interface).ok()).flatten();
    }

    /// Resolves when a frame is queued.
    pub async fn readable(&self) {
        tokio::select! {
            () = PacketReceiver::readable(Some(&self.arp)) => {}
            () = PacketReceiver::readable(self.all.as_ref()) => {}
        }
    }

    /// The queued ARP frames.
    pub fn received_arp(&self) -> Vec<Frame> {
        self.arp.receive().filter_map(|frame| Frame::parse(&frame)).collect()
    }

    /// The queued frames of every type.
    pub fn receive(&self) -> impl Iterator<Item = Vec<u8>> {
        self.all.iter().flat_map(PacketReceiver::receive)
    }

    /// Sends an ARP probe for an address, to the host with the hardware address
    /// `to`, or to all. Errors are ignored: if nothing can be sent, the
    /// election's own frames show it.
    pub fn probe(&mut self, mac: Mac, address: Ipv4Addr, to: Option<Mac>) {
        let _ = self.sender.send_on(&self.interface, &arp::unicast_to(to, arp::probe(mac, address)));
    }
}
