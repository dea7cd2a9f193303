//! What speaks for an address on the LAN, as the client hears it.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// `ETH_P_ALL`: what goes out as well, which is nobody's but the client's own.
const ALL: u16 = 3;

/// An ARP frame that says who has the address.
#[derive(Clone, Debug)]
struct Spoken {
    at: Instant,
    mac: String,
    /// An ARP announcement (RFC 5227).
    announcement: bool,
    what: String,
}

/// A capture under way.
pub struct Capture(Ear<Spoken>);

impl Capture {
    /// Begins to listen. Needs NET_RAW, in the client's network namespace.
    ///
    /// # Panics
    /// If there is no socket to be had, or the address is not IPv4.
    pub fn begin(ip: IpAddr) -> Self {
        let IpAddr::V4(ip) = ip else { panic!("{ip} is not IPv4") };
        let ear = Ear::open(ALL, move |frame| spoken(frame, ip));
        Self(ear.unwrap_or_else(|error| panic!("a packet socket: {error}")))
    }

    /// Ends it. Returns what was heard of the `old` hardware address after the
    /// `new` one's first announcement, and after `from`.
    ///
    /// # Panics
    /// If `new` announced nothing.
    pub fn end(self, old: &str, new: &str, from: Instant) -> Vec<String> {
        let all = self.0.end();
        let first = all.iter().position(|spoken| spoken.mac == new && spoken.announcement);
        let first = first.unwrap_or_else(|| {
            let heard: BTreeSet<_> = all.iter().map(|spoken| (&spoken.mac, spoken.announcement)).collect();
            panic!(
                "{new} announced nothing, of {} frames from (and whether they announce) {heard:?}",
                all.len()
            )
        });
        let late = all.into_iter().skip(first).filter(|spoken| spoken.mac == old && spoken.at >= from);
        late.map(|spoken| spoken.what).collect()
    }
}

/// What is heard on a thread of its own, until it is ended.
pub struct Ear<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<T>>,
}

impl<T: Send + 'static> Ear<T> {
    /// Hears the frames of a protocol (`linux/if_ether.h`), and keeps what
    /// `heard` makes of them. Needs NET_RAW.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn open(protocol: u16, heard: impl Fn(&[u8]) -> Option<T> + Send + 'static) -> io::Result<Self> {
        let protocol = Protocol::from(i32::from(protocol.to_be()));
        let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut all = Vec::new();
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = socket.read(&mut buffer) else { continue };
                all.extend(heard(buffer.get(..length).unwrap_or_default()));
            }
            all
        });
        Ok(Self { stop, thread })
    }

    /// Ends it. Returns what was heard, in order.
    ///
    /// # Panics
    /// If the thread did.
    pub fn end(self) -> Vec<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// The hardware address that a frame comes from.
pub fn source(frame: &[u8]) -> Option<String> {
    let mac: Vec<String> = frame.get(6..12)?.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(mac.join(":"))
}

fn spoken(frame: &[u8], ip: Ipv4Addr) -> Option<Spoken> {
    let mac = source(frame)?;
    let address = |at: usize| frame.get(at..at + 4);
    let ours = Some(&ip.octets()[..]);
    // Packets are no matter here: a pod leads its connections on.
    if frame.get(12..14)? != [0x08, 0x06] || address(28) != ours {
        return None;
    }
    let (announcement, what) =
        (address(38) == ours, if frame.get(21) == Some(&1) { "ARP request" } else { "ARP reply" });
    Some(Spoken { at: Instant::now(), mac, announcement, what: format!("{what} from {ip}") })
}
