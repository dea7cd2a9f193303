//! The outside client.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one attempt may take: longer than TCP waits before it sends again
/// what was lost (1 s, RFC 6298), so that one lost frame is no refusal.
pub const ATTEMPT: Duration = Duration::from_secs(3);

/// `GET path` at `address`; the body.
///
/// # Errors
/// Whatever is in the way, or a time-out after `limit`.
pub async fn get_within(address: SocketAddr, path: &str, limit: Duration) -> io::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        answer(&mut stream).await
    };
    timeout(limit, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// `GET /` over a connection that lives on; the body.
///
/// # Errors
/// Whatever is in the way, or a time-out.
pub async fn ask(stream: &mut TcpStream) -> io::Result<String> {
    let exchange = async {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await?;
        answer(stream).await
    };
    timeout(ATTEMPT, exchange).await?
}

/// The body of the answer that comes.
async fn answer(stream: &mut TcpStream) -> io::Result<String> {
    let mut answer = Vec::new();
    let mut buffer = [0; 65536];
    loop {
        if let Some(body) = body(&answer) {
            return Ok(String::from_utf8_lossy(body).into_owned());
        }
        match stream.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => answer.extend_from_slice(buffer.get(..length).unwrap_or_default()),
        }
    }
}

/// The body of an HTTP answer, once all of it is there.
pub fn body(answer: &[u8]) -> Option<&[u8]> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let length = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
    };
    let length = head.lines().find_map(length)?;
    answer.get(end + 4..).filter(|body| body.len() >= length)
}

/// `GET /` at `address` over a connection of its own.
///
/// # Errors
/// Whatever is in the way.
pub async fn get(ip: IpAddr, port: u16) -> io::Result<String> {
    get_within(SocketAddr::new(ip, port), "/", ATTEMPT).await
}

/// The pods that answered `count` requests.
///
/// # Errors
/// The first request that was not answered.
pub async fn answerers(ip: IpAddr, port: u16, count: usize) -> io::Result<BTreeSet<String>> {
    let mut pods = BTreeSet::new();
    for _ in 0..count {
        let answer = get(ip, port).await?;
        pods.insert(answer.split(' ').next().unwrap_or_default().to_owned());
    }
    Ok(pods)
}

/// A UDP client that keeps its source port.
#[derive(Debug)]
pub struct Udp(UdpSocket);

impl Udp {
    /// A client of `ip`:`port`.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub async fn new(ip: IpAddr, port: u16) -> io::Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0").await?;
        socket.connect(SocketAddr::new(ip, port)).await?;
        Ok(Self(socket))
    }

    /// Sends a datagram; the answer to it.
    ///
    /// # Errors
    /// A time-out, or the port is unreachable.
    pub async fn ask(&self) -> io::Result<String> {
        let mut buffer = [0; 2048];
        // An answer to an earlier datagram that came too late is not this one's.
        while self.0.try_recv(&mut buffer).is_ok() {}
        self.0.send(b"hello").await?;
        let length = timeout(Duration::from_millis(300), self.0.recv(&mut buffer))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
    }
}

/// Whether a TCP connection to the port is refused or goes unanswered.
///
/// # Errors
/// What answered.
pub async fn refused(ip: IpAddr, port: u16) -> Result<(), String> {
    match timeout(Duration::from_millis(500), TcpStream::connect(SocketAddr::new(ip, port))).await {
        Ok(Ok(_)) => Err(format!("{ip}:{port} accepts connections")),
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}
