//! Questions to the kernel's netfilter, by netlink: of its connection table and
//! of its nftables (`linux/netfilter/nfnetlink.h`).
//!
//! nft(8) reads all elements of all tables whatever it is asked, which with
//! many clients in one of them takes it seconds and more memory than a gateway
//! has. What is read here is what is asked for.

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
/// What is said of every change of nftables (`NFNLGRP_NFTABLES`).
pub const NFTABLES_GROUP: u32 = 7;
/// That a transaction is in force (`NFNL_SUBSYS_NFTABLES`, `NFT_MSG_NEWGEN`).
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// `NFNL_SUBSYS_*`.
    pub subsystem: u16,
    /// The message's kind within it.
    pub kind: u16,
    /// `NFPROTO_*`.
    pub family: u8,
    /// Its attributes.
    pub attributes: &'a [u8],
}

/// Closes a socket beside the caller. While anything that was deleted from
/// nftables may still be in use, whoever closes a socket of netfilter waits for
/// that to end (`nft_rcv_nl_event`), some hundredths of a second.
struct Open(Option<TokioSocket>);

impl Open {
    fn new(prepare: impl FnOnce(&mut sys::Socket) -> io::Result<()>) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocols::NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        prepare(socket.socket_mut())?;
        Ok(Self(Some(socket)))
    }

    /// It is there until this is dropped.
    fn get(&self) -> io::Result<&TokioSocket> {
        self.0.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let socket = self.0.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(|| drop(socket));
        }
    }
}

/// A connection to it.
pub struct Socket {
    socket: Open,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// The kernel answers at once; a request that takes longer is lost.
    const TIMEOUT: Duration = Duration::from_secs(5);

    /// Opens one.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn open() -> io::Result<Self> {
        let socket = Open::new(|socket| socket.connect(&SocketAddr::new(0, 0)))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Has something done, or asks for one thing, whose attributes are handed to
    /// `answer`; waits for the kernel to say that this was it.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn ask(&mut self, question: Question<'_>, answer: impl FnMut(&[u8])) -> io::Result<()> {
        self.request(NLM_F_ACK, question, answer).await
    }

    /// Asks for all there is, and hands the attributes of each to `each`.
    ///
    /// # Errors
    /// What the kernel says; `Interrupted` if something was changed meanwhile,
    /// so that what was handed over may be of two times.
    pub async fn dump(&mut self, question: Question<'_>, each: impl FnMut(&[u8])) -> io::Result<()> {
        self.request(NLM_F_DUMP, question, each).await
    }

    async fn request(
        &mut self,
        flags: u16,
        question: Question<'_>,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let socket = self.socket.get()?;
        socket.send(&message(flags, self.sequence, question)).await?;
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

/// Hears of every change of nftables.
pub struct Ear(Open);

impl Ear {
    /// Hears what happens from now on.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> io::Result<Self> {
        Open::new(|socket| socket.add_membership(NFTABLES_GROUP)).map(Self)
    }

    /// Waits until a transaction of this process is in force; for ever, if the
    /// kernel had more to tell than there was room for.
    ///
    /// It is known by the address of its socket, which the kernel makes of the
    /// number of the process unless another has that already.
    pub async fn transaction_of(&self, process: u32) {
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

fn message(flags: u16, sequence: u32, question: Question<'_>) -> Vec<u8> {
    let Question { subsystem, kind, family, attributes } = question;
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

/// Appends an attribute, padded.
pub fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The attributes that there are, by kind and value; what is cut short ends
/// them.
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
    /// The address of the socket that it is about, or an answer to.
    port: u32,
}

/// The first message of a datagram: header, payload; and the rest.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let payload = bytes.get(NLMSG_HEADER..length)?;
    let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let header = Header { kind: u16_at(4), flags: u16_at(6), sequence: u32_at(8), port: u32_at(12) };
    Some((header, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}
