//! Relaying bytes between two connections, both ways, until both ends have closed, or
//! one of them resets.
//!
//! ```text
//!   client ──(fill)──▶ pipe ──(drain)──▶ target      the end of the client's bytes is
//!   client ◀─(drain)── pipe ◀─(fill)──── target      the end of what the target is sent
//! ```
//!
//! Nothing is read while the other side takes nothing: what waits is in one pipe and in
//! the kernel's buffers of the two sockets.

use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::pipe::Pipes;

/// How much may wait in a socket's buffer, beside what is under way.
const UNSENT: u32 = 64 * 1024;

/// A peer that answers none of these probes for a day is gone: an idle connection lives
/// for as long as one that is forwarded does ([`ct_timeouts`](crate::datapath::ct_timeouts)).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(8 * 3600);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(4 * 3600);
const KEEPALIVE_PROBES: u32 = 4;

/// Sets a socket up for a relayed connection; a listener, for those that it accepts. It
/// is reset when it is closed, by the end of the process as well.
///
/// # Errors
/// The system's.
pub fn set_up(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// One of the two connections, as [set up](set_up): dropped before both ends have closed
/// it, it is reset.
#[derive(Debug)]
pub struct End(pub TcpStream);

impl End {
    /// Closes it in order from now on.
    fn finish(&self) -> io::Result<()> {
        SockRef::from(&self.0).set_linger(None)
    }

    /// Sends these few bytes on a connection that has sent nothing yet.
    ///
    /// # Errors
    /// The system's, or if it does not take them.
    pub fn greet(&self, bytes: &[u8]) -> io::Result<()> {
        match self.0.try_write(bytes)? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Waits for an error of a connection of which nothing is read.
    async fn failure(&self) -> io::Error {
        match self.0.ready(Interest::ERROR).await {
            Ok(_) => {
                let taken = self.0.take_error().ok().flatten();
                taken.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
            }
            Err(error) => error,
        }
    }
}

/// Relays until both ends have closed.
///
/// # Errors
/// That of either end: what is left of both is reset.
pub async fn relay(client: &End, target: &End, pipes: &Pipes) -> io::Result<()> {
    let (mut up, mut down) = (pin!(one_way(client, target, pipes)), pin!(one_way(target, client, pipes)));
    // An end that has sent all of its bytes is not read any more, and may reset.
    tokio::select! {
        ended = &mut up => {
            ended?;
            tokio::select! {
                ended = &mut down => ended?,
                error = client.failure() => return Err(error),
            }
        }
        ended = &mut down => {
            ended?;
            tokio::select! {
                ended = &mut up => ended?,
                error = target.failure() => return Err(error),
            }
        }
    }
    client.finish()?;
    target.finish()
}

/// Moves bytes until `from` has sent its last, and passes that on.
async fn one_way(from: &End, to: &End, pipes: &Pipes) -> io::Result<()> {
    loop {
        from.0.readable().await?;
        let mut pipe = pipes.take()?;
        match from.0.try_io(Interest::READABLE, || pipe.fill(&from.0)) {
            Ok(0) => {
                pipes.give_back(pipe);
                return SockRef::from(&to.0).shutdown(Shutdown::Write);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pipes.give_back(pipe);
                continue;
            }
            Err(error) => return Err(error),
        }
        while !pipe.is_empty() {
            match to.0.try_io(Interest::WRITABLE, || pipe.drain(&to.0)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::select! {
                    writable = to.0.writable() => writable?,
                    error = from.failure() => return Err(error),
                },
                drained => drained?,
            }
        }
        pipes.give_back(pipe);
        // Others are served as well while one has more and more.
        tokio::task::coop::consume_budget().await;
    }
}
