//! A workload for tests: says who it is, over TCP (HTTP) and UDP.
//!
//! `lb-svc-backend [tcp/PORT | udp/PORT]...`, by default `tcp/80`.
//!
//! - `GET /`: one line, `<pod> tcp/<port> <client address>`;
//! - `GET /bye`: the same, and the end of the connection;
//! - `GET /bytes/N`: N bytes;
//! - a datagram: `<pod> udp/<port> <client address> <the datagram>`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// What is written at a time of an answer of many bytes: enough for the kernel
/// to make packets as large as it can, as servers of files write.
static PIECE: [u8; 1 << 17] = [b'.'; 1 << 17];

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut ports: Vec<String> = std::env::args().skip(1).collect();
    if ports.is_empty() {
        ports.push("tcp/80".to_owned());
    }
    let me: Arc<str> = std::env::var("HOSTNAME").unwrap_or_else(|_| "backend".to_owned()).into();
    let mut servers = JoinSet::new();
    for text in ports {
        let (protocol, port) =
            text.split_once('/').with_context(|| format!("{text} is not PROTOCOL/PORT"))?;
        let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port.parse().context(text.clone())?);
        let me = Arc::clone(&me);
        match protocol {
            "tcp" => {
                let listener = TcpListener::bind(address).await.with_context(|| text.clone())?;
                servers.spawn(serve_tcp(listener, me));
            }
            "udp" => {
                let socket = UdpSocket::bind(address).await.with_context(|| text.clone())?;
                servers.spawn(serve_udp(socket, me));
            }
            other => bail!("{other} is neither tcp nor udp"),
        }
    }
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        Some(ended) = servers.join_next() => ended?,
    }
}

async fn serve_tcp(listener: TcpListener, me: Arc<str>) -> anyhow::Result<()> {
    loop {
        let (stream, client) = listener.accept().await?;
        let me = Arc::clone(&me);
        // A client that goes away is no matter.
        tokio::spawn(async move { converse(stream, client, &me).await.ok() });
    }
}

async fn converse(stream: TcpStream, client: SocketAddr, me: &str) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let port = stream.local_addr()?.port();
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request).await? == 0 {
            return Ok(());
        }
        let mut header = String::new();
        while stream.read_line(&mut header).await? > 2 {
            header.clear();
        }
        let path = request.split_ascii_whitespace().nth(1).unwrap_or("/");
        let head = |length: u64| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        if let Some(length) = path.strip_prefix("/bytes/") {
            let length = length.parse()?;
            stream.write_all(head(length).as_bytes()).await?;
            let mut left: u64 = length;
            while left > 0 {
                let part = left.min(PIECE.len() as u64);
                stream.write_all(PIECE.get(..part as usize).unwrap_or_default()).await?;
                left -= part;
            }
        } else {
            let body = format!("{me} tcp/{port} {client}\n");
            stream.write_all((head(body.len() as u64) + &body).as_bytes()).await?;
        }
        stream.flush().await?;
        if path == "/bye" {
            return Ok(());
        }
    }
}

async fn serve_udp(socket: UdpSocket, me: Arc<str>) -> anyhow::Result<()> {
    let port = socket.local_addr()?.port();
    let mut buffer = vec![0; 65536];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await?;
        let answer =
            [format!("{me} udp/{port} {client} ").as_bytes(), buffer.get(..length).unwrap_or_default()]
                .concat();
        socket.send_to(&answer, client).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn who_says_bye_hears_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_tcp(listener, "me".into()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\nGET /bye HTTP/1.1\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        let end = stream.read_to_end(&mut said);
        tokio::time::timeout(std::time::Duration::from_secs(5), end).await.unwrap().unwrap();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said.matches("me tcp/").count(), 2, "{said}");
    }
}
