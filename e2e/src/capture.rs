//! What speaks for an address on the LAN, as the client hears it.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// `ETH_P_ALL`: what goes out as well, which is nobody's but the client's own.
const ALL: u16 = 3;

/// A frame from the address, or an ARP frame that says who has it.
#[derive(Clone, Debug)]
struct Spoken {
    at: Instant,
    mac: String,
    /// An ARP announcement (RFC 5227).
    announcement: bool,
    what: String,
}

/// A capture under way.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Spoken>>,
}

impl Capture {
    /// Begins to listen. Needs NET_RAW, in the client's network namespace.
    ///
    /// # Panics
    /// If there is no socket to be had, or the address is not IPv4.
    pub fn begin(ip: IpAddr) -> Self {
        let IpAddr::V4(ip) = ip else { panic!("{ip} is not IPv4") };
        let protocol = Protocol::from(i32::from(ALL.to_be()));
        let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
            .unwrap_or_else(|error| panic!("a packet socket: {error}"));
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap_or_else(|error| panic!("a packet socket: {error}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut all: Vec<Spoken> = Vec::new();
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = socket.read(&mut buffer) else { continue };
                let spoken = spoken(buffer.get(..length).unwrap_or_default(), ip);
                all.extend(spoken);
            }
            all
        });
        Self { stop, thread }
    }

    /// Ends it. Returns what was heard of the `old` hardware address after the
    /// `new` one's first announcement, and after `from`.
    ///
    /// # Panics
    /// If `new` announced nothing.
    pub fn end(self, old: &str, new: &str, from: Instant) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.thread.join().unwrap_or_default();
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

fn spoken(frame: &[u8], ip: Ipv4Addr) -> Option<Spoken> {
    let mac: Vec<String> = frame.get(6..12)?.iter().map(|byte| format!("{byte:02x}")).collect();
    let address = |at: usize| frame.get(at..at + 4);
    let ours = Some(&ip.octets()[..]);
    let (announcement, what) = match frame.get(12..14)? {
        [0x08, 0x06] if address(28) == ours => {
            let kind = if frame.get(21) == Some(&1) { "ARP request" } else { "ARP reply" };
            (address(38) == ours, kind)
        }
        [0x08, 0x00] if address(26) == ours => (false, "packet"),
        _ => return None,
    };
    Some(Spoken { at: Instant::now(), mac: mac.join(":"), announcement, what: format!("{what} from {ip}") })
}
