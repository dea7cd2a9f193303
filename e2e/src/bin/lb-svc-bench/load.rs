//! What a client does to a target: one large transfer, or connection after
//! connection.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use lb_svc_e2e::client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::start::millis;

/// Connections at a time.
const AT_ONCE: usize = 32;

/// How long a transfer takes, from the first byte to the last.
pub async fn transfer(target: SocketAddr, from: Option<IpAddr>, bytes: u64) -> anyhow::Result<Duration> {
    let mut stream = reach(target, from).await?;
    stream.write_all(format!("GET /bytes/{bytes} HTTP/1.1\r\n\r\n").as_bytes()).await?;
    let mut buffer = vec![0; 1 << 18];
    let mut left = bytes;
    let mut start = None;
    while left > 0 {
        let length = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await??;
        ensure!(length > 0, "the transfer broke off with {left} bytes left");
        // What comes first has the head, and is not counted.
        start.get_or_insert_with(Instant::now);
        left = left.saturating_sub(length as u64);
    }
    Ok(start.map_or(Duration::ZERO, |start| start.elapsed()))
}

/// Who closes a connection first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closes {
    /// The client, once it has its answer.
    Client,
    /// The server, once it has answered.
    Server,
}

/// Connections, one after another.
#[derive(Clone, Debug)]
pub struct Load {
    /// Who closes them.
    pub closes: Closes,
    /// The clients' addresses, in turn; none is the host's own.
    pub from: Vec<IpAddr>,
    /// For how long they are made before any is counted.
    pub after: Duration,
    /// For how long they are counted.
    pub time: Duration,
}

/// What was counted.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Connections a second: connect, request, answer, close.
    pub per_second: f64,
    /// How long one in a hundred took at least, in milliseconds.
    pub p99: f64,
}

/// Makes connections to the target, so many at a time.
pub async fn connect(target: SocketAddr, load: &Load) -> anyhow::Result<Rate> {
    let begin = tokio::time::Instant::now() + load.after;
    let end = begin + load.time;
    let mut clients = JoinSet::new();
    for number in 0..AT_ONCE {
        let load = load.clone();
        clients.spawn(async move {
            let (mut times, mut failed) = (Vec::new(), 0_u32);
            let mut buffer = [0; 1024];
            for number in (number..).step_by(AT_ONCE) {
                let from = number.checked_rem(load.from.len()).and_then(|at| load.from.get(at));
                let start = Instant::now();
                let Ok(outcome) =
                    timeout_at(end, exchange(target, from.copied(), load.closes, &mut buffer)).await
                else {
                    break;
                };
                if outcome.is_err() {
                    failed += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                } else if tokio::time::Instant::now() > begin {
                    times.push(millis(start.elapsed()));
                }
            }
            (times, failed)
        });
    }
    let (mut times, mut failed) = (Vec::new(), 0);
    while let Some(client) = clients.join_next().await {
        let (more, broken) = client?;
        times.extend(more);
        failed += broken;
    }
    if failed > 0 {
        eprintln!("      {failed} connections to {target} failed");
    }
    ensure!(!times.is_empty(), "not one connection");
    let per_second = times.len() as f64 / load.time.as_secs_f64();
    times.sort_by(f64::total_cmp);
    let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or(f64::NAN);
    Ok(Rate { per_second, p99 })
}

async fn reach(target: SocketAddr, from: Option<IpAddr>) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    Ok(socket.connect(target).await?)
}

async fn exchange(
    target: SocketAddr,
    from: Option<IpAddr>,
    closes: Closes,
    buffer: &mut [u8],
) -> anyhow::Result<()> {
    let mut stream = reach(target, from).await?;
    let path = match closes {
        Closes::Client => "/",
        Closes::Server => "/bye",
    };
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).await?;
    let mut length = 0;
    while buffer.get(..length).and_then(client::body).is_none() {
        match stream.read(buffer.get_mut(length..).unwrap_or_default()).await? {
            0 => bail!("a broken answer"),
            more => length += more,
        }
    }
    if closes == Closes::Server {
        ensure!(stream.read(buffer).await? == 0, "it says more");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;
    use std::sync::{Arc, Mutex};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn connections_are_made_from_all_addresses_and_closed_as_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let sees = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((mut stream, from)) = listener.accept().await {
                let sees = Arc::clone(&sees);
                tokio::spawn(async move {
                    let mut request = [0; 100];
                    let length = stream.read(&mut request).await.unwrap();
                    if length == 0 {
                        // The time was over before it asked.
                        return;
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n.").await.unwrap();
                    let closes =
                        if request[..length].starts_with(b"GET /bye ") { "server" } else { "client" };
                    if closes == "client" {
                        assert_eq!(stream.read(&mut request).await.unwrap_or(0), 0);
                    }
                    sees.lock().unwrap().insert((closes, from.ip().to_string()));
                });
            }
        });
        let from: Vec<IpAddr> = (2..4).map(|last| Ipv4Addr::new(127, 0, 0, last).into()).collect();
        let (after, time) = (Duration::from_millis(50), Duration::from_millis(200));
        for (closes, from) in [(Closes::Server, from), (Closes::Client, Vec::new())] {
            let rate = connect(target, &Load { closes, from, after, time }).await.unwrap();
            assert!(rate.per_second >= 5.0 && rate.p99 > 0.0, "{rate:?}");
        }
        let expected = [("client", "127.0.0.1"), ("server", "127.0.0.2"), ("server", "127.0.0.3")];
        let expected = expected.map(|(closes, from)| (closes, from.to_owned()));
        assert_eq!(*seen.lock().unwrap(), expected.into());
    }
}
