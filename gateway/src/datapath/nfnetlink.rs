//! Netlink to the kernel's netfilter: its connection table and its nftables
//! (`linux/netfilter/nfnetlink.h`).
//!
//! nft(8) reads all elements of all tables for any listing, which with many clients
//! in one of them takes seconds and more memory than a gateway has. Here only the
//! requested objects are read.

use std::io;
use std::time::Duration;

use rtnetlink::packet_core::{NLA_HEADER_SIZE, NlasIterator};
use rtnetlink::sys::{self, AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols};

// linux/netlink.h, linux/netfilter/nfnetlink.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;

/// IPv4 (`NFPROTO_IPV4`).
pub const IPV4: u8 = 2;
/// IPv6 (`NFPROTO_IPV6`).
pub const IPV6: u8 = 10;
/// Multicast group of changes of nftables (`NFNLGRP_NFTABLES`).
pub const NFTABLES_GROUP: u32 = 7;
/// Message: a transaction is committed (`NFNL_SUBSYS_NFTABLES`, `NFT_MSG_NEWGEN`).
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `NFNL_SUBSYS_*`.
    pub subsystem: u16,
    /// The type of the message within the subsystem.
    pub kind: u16,
    /// `NFPROTO_*`.
    pub family: u8,
    /// Its attributes.
    pub attributes: &'a [u8],
}

/// A socket that is closed on another thread. While objects deleted from nftables
/// may still be in use, closing a netfilter socket blocks until they are freed
/// (`nft_rcv_nl_event`), some hundredths of a second.
struct BackgroundClose(Option<TokioSocket>);

impl BackgroundClose {
    fn new(prepare: impl FnOnce(&mut sys::Socket) -> io::Result<()>) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocols::NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        prepare(socket.socket_mut())?;
        Ok(Self(Some(socket)))
    }

    /// The socket; it exists until this is dropped.
    fn get(&self) -> io::Result<&TokioSocket> {
        self.0.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for BackgroundClose {
    fn drop(&mut self) {
        let socket = self.0.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(|| drop(socket));
        }
    }
}

/// A netlink connection to netfilter.
pub struct Socket {
    socket: BackgroundClose,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// The kernel answers at once; an answer that takes longer is lost.
    const TIMEOUT: Duration = Duration::from_secs(5);

    /// Opens a connection.
    ///
    /// # Errors
    /// If the kernel refuses a socket.
    pub fn open() -> io::Result<Self> {
        let socket = BackgroundClose::new(|socket| socket.connect(&SocketAddr::new(0, 0)))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Sends a request and waits until the kernel acknowledges it. The attributes
    /// of each answer before that are passed to `answer`.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn request(&mut self, request: Request<'_>, answer: impl FnMut(&[u8])) -> io::Result<()> {
        self.exchange(NLM_F_ACK, request, answer).await
    }

    /// Requests all objects, and passes the attributes of each to `each`.
    ///
    /// # Errors
    /// The kernel's; `Interrupted` if objects were changed meanwhile, so that the
    /// dump may be inconsistent.
    pub async fn dump(&mut self, request: Request<'_>, each: impl FnMut(&[u8])) -> io::Result<()> {
        self.exchange(NLM_F_DUMP, request, each).await
    }

    async fn exchange(
        &mut self,
        flags: u16,
        request: Request<'_>,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let socket = self.socket.get()?;
        socket.send(&message(flags, self.sequence, request)).await?;
        let mut interrupted = false;
        loop {
            self.buffer.clear();
            tokio::time::timeout(Self::TIMEOUT, socket.recv(&mut self.buffer)).await??;
            let mut rest = self.buffer.as_slice();
            while let Some((header, payload, next)) = split(rest) {
                rest = next;
                if header.sequence != self.sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_DONE if interrupted => return Err(io::ErrorKind::Interrupted.into()),
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => each(payload.get(NFGEN_HEADER..).unwrap_or_default()),
                }
            }
        }
    }
}

/// Receives notifications of changes of nftables.
pub struct TransactionListener(BackgroundClose);

impl TransactionListener {
    /// Receives notifications from now on.
    ///
    /// # Errors
    /// If the kernel refuses a socket.
    pub fn open() -> io::Result<Self> {
        BackgroundClose::new(|socket| socket.add_membership(NFTABLES_GROUP)).map(Self)
    }

    /// Resolves when a transaction of this process is committed; never, if the
    /// notification was lost for want of buffer space.
    ///
    /// The transaction is recognised by the port of its socket, which is the
    /// process ID, unless another socket has that port already.
    pub async fn committed_by(&self, process: u32) {
        let Ok(socket) = self.0.get() else { return std::future::pending().await };
        let mut buffer = Vec::with_capacity(64 * 1024);
        loop {
            buffer.clear();
            if let Err(error) = socket.recv(&mut buffer).await {
                if error.raw_os_error() != Some(nix::libc::ENOBUFS) {
                    return std::future::pending().await;
                }
                continue;
            }
            let mut rest = buffer.as_slice();
            while let Some((header, _, next)) = split(rest) {
                rest = next;
                if header.kind == NEW_GENERATION && header.port == process {
                    return;
                }
            }
        }
    }
}

fn message(flags: u16, sequence: u32, request: Request<'_>) -> Vec<u8> {
    let Request { subsystem, kind, family, attributes } = request;
    let length = NLMSG_HEADER + NFGEN_HEADER + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend((subsystem << 8 | kind).to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// Appends an attribute, padded to 4 bytes.
pub fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The attributes by type and value; a truncated one ends the iteration.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
        let end = usize::from(attribute.length());
        (attribute.kind(), attribute.into_inner().get(NLA_HEADER_SIZE..end).unwrap_or_default())
    })
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
    /// The port of the socket that the message concerns or answers.
    port: u32,
}

/// Splits the first message off a datagram: header, payload, and the rest.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let payload = bytes.get(NLMSG_HEADER..length)?;
    let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let header = Header { kind: u16_at(4), flags: u16_at(6), sequence: u32_at(8), port: u32_at(12) };
    Some((header, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}
