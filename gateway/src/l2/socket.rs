//! Packet sockets: [`PacketReceiver`] and [`PolledReceiver`] receive,
//! [`FrameSender`] sends.

use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc::{BPF_ABS, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, sendto, socket,
};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use tokio::net::unix::pipe::Receiver;

/// `ETH_P_ARP` (`linux/if_ether.h`).
const ETH_P_ARP: u16 = 0x0806;
/// `ETH_P_ALL` (`linux/if_ether.h`).
const ETH_P_ALL: u16 = 0x0003;
/// Offset of the sender's address in an ARP frame.
const SENDER: u32 = 28;
/// Offset of the target's address in an ARP frame.
const TARGET: u32 = 38;

/// Most frames to take from a receiver at a time: more than its queue holds, so that
/// nothing older is left; and whoever floods it does not keep the process from
/// everything else.
pub const BATCH: usize = 512;
/// Requested size of a receiver's queue. The kernel doubles it and counts at least 768
/// bytes for each frame: 341 frames.
const QUEUE: usize = 128 * 1024;

const LOAD_BYTE: u16 = (BPF_LD | BPF_B | BPF_ABS) as u16;
const LOAD: u16 = (BPF_LD | BPF_W | BPF_ABS) as u16;
const IF_EQUAL: u16 = (BPF_JMP | BPF_JEQ | BPF_K) as u16;
const RETURN: u16 = (BPF_RET | BPF_K) as u16;

/// A classic BPF program (`linux/filter.h`) that passes the frames which have these
/// bytes at this offset.
pub(crate) fn bytes_filter(offset: usize, bytes: &[u8]) -> Vec<SockFilter> {
    let compare = |(at, byte): (u32, &u8)| {
        [
            SockFilter::new(LOAD_BYTE, 0, 0, at),
            SockFilter::new(IF_EQUAL, 1, 0, u32::from(*byte)),
            SockFilter::new(RETURN, 0, 0, 0),
        ]
    };
    let mut program: Vec<SockFilter> = (offset as u32..).zip(bytes).flat_map(compare).collect();
    program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    program
}

/// Which ARP frames to receive; the kernel drops all others, so that they do
/// not wake the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArpFilter {
    /// Frames from these sender addresses.
    pub senders: Vec<Ipv4Addr>,
    /// Frames for these target addresses.
    pub targets: Vec<Ipv4Addr>,
}

impl ArpFilter {
    /// The filter as a classic BPF program (`linux/filter.h`). With more
    /// addresses than a jump can span, it accepts every frame.
    fn program(&self) -> Vec<SockFilter> {
        let accept = SockFilter::new(RETURN, 0, 0, u32::MAX);
        // A jump spans 255 instructions at most.
        let Ok(mut left) = u8::try_from(self.senders.len() + self.targets.len() + 2) else {
            return vec![accept];
        };
        let mut program = Vec::new();
        for (offset, addresses) in [(SENDER, &self.senders), (TARGET, &self.targets)] {
            program.push(SockFilter::new(LOAD, 0, 0, offset));
            left -= 1;
            for address in addresses {
                // Jumps over everything that is left, to the last instruction.
                program.push(SockFilter::new(IF_EQUAL, left, 0, (*address).into()));
                left -= 1;
            }
        }
        program.extend([SockFilter::new(RETURN, 0, 0, 0), accept]);
        program
    }
}

/// Opens a non-blocking packet socket that receives frames of `protocol`, an
/// EtherType, on an interface. Needs NET_RAW.
///
/// # Errors
/// If there is no such interface, or the kernel refuses the socket.
pub(crate) fn packet_socket(interface: &LinkAddr, protocol: u16) -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(protocol.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(QUEUE)?;
    // An address with protocol 0 leaves the socket's protocol as it is.
    bind(socket.as_raw_fd(), interface)?;
    Ok(socket)
}

/// The address of an interface for packet sockets. To look it up may take as long as
/// anything on the node changes interfaces.
///
/// # Errors
/// ENODEV if there is no interface of that name.
pub(crate) fn link_address(interface: &str) -> io::Result<LinkAddr> {
    nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .filter(|link| link.family() == Some(AddressFamily::Packet))
        .ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENODEV))
}

/// Reads one frame, cut to 128 bytes; `None` if there is none.
fn read_frame(read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> Option<Vec<u8>> {
    let mut frame = vec![0; 128];
    let length = read(&mut frame).ok()?;
    frame.truncate(length);
    Some(frame)
}

/// A packet socket that tokio waits for.
pub struct PacketReceiver(Receiver);

impl PacketReceiver {
    /// Receives the ARP frames that pass `filter` on the named interface. Needs
    /// NET_RAW.
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses the socket.
    pub fn arp(interface: &str, filter: &ArpFilter) -> io::Result<Self> {
        Self::arp_on(&link_address(interface)?, filter)
    }

    /// The same, of an interface that is known.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub(crate) fn arp_on(interface: &LinkAddr, filter: &ArpFilter) -> io::Result<Self> {
        let receiver = Self::of(interface, ETH_P_ARP)?;
        receiver.set_filter(filter)?;
        Ok(receiver)
    }

    /// Receives every frame of an interface, including those that netfilter drops
    /// and those that leave by it. Needs NET_RAW.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub(crate) fn all(interface: &LinkAddr) -> io::Result<Self> {
        Self::of(interface, ETH_P_ALL)
    }

    fn of(interface: &LinkAddr, protocol: u16) -> io::Result<Self> {
        Ok(Self(Receiver::from_owned_fd_unchecked(packet_socket(interface, protocol)?.into())?))
    }

    /// Replaces the filter. Frames that passed the previous one may still be
    /// queued.
    ///
    /// # Errors
    /// If the kernel refuses the program.
    pub fn set_filter(&self, filter: &ArpFilter) -> io::Result<()> {
        SockRef::from(&self.0).attach_filter(&filter.program())
    }

    /// Resolves when a frame is queued; never without a receiver.
    pub async fn readable(receiver: Option<&Self>) {
        match receiver {
            Some(Self(frames)) => {
                let _ = frames.readable().await;
            }
            None => std::future::pending().await,
        }
    }

    /// The queued frames, at most [`BATCH`].
    pub fn receive(&self) -> impl Iterator<Item = Vec<u8>> {
        std::iter::from_fn(|| read_frame(|buffer| self.0.try_read(buffer))).take(BATCH)
    }
}

/// A packet socket that queues ARP frames for a reader that polls it. Unlike a
/// [`PacketReceiver`], a frame does not wake the process.
pub struct PolledReceiver(Socket);

impl PolledReceiver {
    /// Queues the ARP frames that pass `filter` on the named interface. Needs
    /// NET_RAW.
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses the socket.
    pub fn arp(interface: &str, filter: &ArpFilter) -> io::Result<Self> {
        let socket = packet_socket(&link_address(interface)?, ETH_P_ARP)?;
        socket.attach_filter(&filter.program())?;
        Ok(Self(socket))
    }

    /// The queued frames, at most [`BATCH`].
    pub fn receive(&self) -> impl Iterator<Item = Vec<u8>> {
        std::iter::from_fn(|| read_frame(|buffer| (&self.0).read(buffer))).take(BATCH)
    }
}

/// Sends Ethernet frames. Opens its socket with the first one.
#[derive(Debug, Default)]
pub struct FrameSender {
    socket: Option<OwnedFd>,
    /// The interface last sent by: the lookup costs far more than sending.
    known: Option<(String, LinkAddr)>,
}

impl FrameSender {
    /// Sends a frame by the named interface. Needs NET_RAW.
    ///
    /// # Errors
    /// If there is no such interface, it is down, or the kernel refuses.
    pub fn send(&mut self, interface: &str, frame: &[u8]) -> io::Result<()> {
        let known = self.known.take().filter(|(name, _)| name == interface);
        self.known = match known.filter(|(_, link)| self.send_on(link, frame).is_ok()) {
            Some(sent) => Some(sent),
            // Another interface, perhaps a new one of the same name.
            None => {
                let link = link_address(interface)?;
                self.send_on(&link, frame)?;
                Some((interface.to_owned(), link))
            }
        };
        Ok(())
    }

    /// Sends a frame by an interface that is known. Needs NET_RAW.
    ///
    /// # Errors
    /// If the interface is gone or down, or the kernel refuses.
    pub(crate) fn send_on(&mut self, interface: &LinkAddr, frame: &[u8]) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            // Protocol 0: the socket receives nothing.
            None => self.socket.insert(socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                None,
            )?),
        };
        sendto(socket.as_raw_fd(), frame, interface, MsgFlags::empty())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l2::arp::{self, Mac};

    const FOREIGN: Mac = [0x02, 0, 0, 0, 0, 0x99];
    const VIP: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 18);
    const OTHER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 50);

    /// The indices of the frames that pass the filter in the kernel.
    fn passing(filter: &ArpFilter, frames: &[[u8; 42]]) -> Vec<usize> {
        // A Unix socket takes the same filter, without NET_RAW.
        let (sender, receiver) = std::os::unix::net::UnixDatagram::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        SockRef::from(&receiver).attach_filter(&filter.program()).unwrap();
        let passes = |frame: &[u8; 42]| sender.send(frame).is_ok() && receiver.recv(&mut [0; 64]).is_ok();
        (0..frames.len()).filter(|at| passes(&frames[*at])).collect()
    }

    #[test]
    fn r17_bytes_filter_passes_only_frames_with_the_bytes() {
        let (sender, receiver) = std::os::unix::net::UnixDatagram::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        SockRef::from(&receiver).attach_filter(&bytes_filter(2, &[7, 0xff])).unwrap();
        let passes = |frame: &[u8]| sender.send(frame).is_ok() && receiver.recv(&mut [0; 64]).is_ok();
        assert!(passes(&[0, 0, 7, 0xff]) && passes(&[1, 2, 7, 0xff, 3]));
        assert!(!passes(&[0, 0, 7]) && !passes(&[0, 0, 8, 0xff]) && !passes(&[7, 0xff, 0, 0]));
    }

    #[test]
    fn arp_filter_passes_only_the_listed_senders_and_targets() {
        let router = Ipv4Addr::new(172, 18, 0, 1);
        let frames = [
            arp::request(FOREIGN, OTHER, router),
            arp::request(FOREIGN, router, OTHER),
            arp::request(FOREIGN, OTHER, VIP),
            arp::announcement(FOREIGN, VIP),
            arp::probe(FOREIGN, OTHER),
        ];
        let filter = |senders: &[Ipv4Addr], targets: &[Ipv4Addr]| ArpFilter {
            senders: senders.to_vec(),
            targets: targets.to_vec(),
        };
        let passes = |senders: &[_], targets: &[_]| passing(&filter(senders, targets), &frames);
        assert_eq!(passes(&[VIP, router], &[VIP]), [1, 2, 3]);
        assert_eq!(passes(&[router], &[]), [1]);
        assert_eq!(passes(&[], &[router, OTHER]), [0, 1, 4]);
        assert!(passes(&[], &[]).is_empty());
        let many: Vec<Ipv4Addr> = (0..126).map(|last| Ipv4Addr::new(10, 0, 0, last)).chain([VIP]).collect();
        assert_eq!(passes(&many[..126], &many[..127]), [2, 3]);
        assert_eq!(passes(&many, &many), [0, 1, 2, 3, 4], "more than a program can compare");
    }
}
