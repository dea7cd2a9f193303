//! Whether what lies on the side of the pod network works: checks that run in the
//! background, and what their results mean.
//!
//! ```text
//!   pod ──(next_hop)──▶ next hop ──▶ cluster ──(cluster_ip)──▶ ClusterIP
//!                                       └─────(health_check)──▶ endpoint
//! ```
//!
//! | File | Checks |
//! |---|---|
//! | [`next_hop`] | the next hop answers ARP |
//! | [`cluster_ip`] | ClusterIPs work for forwarded packets |
//! | [`health_check`] | endpoints accept connections, or answer HTTP |

pub mod cluster_ip;
pub mod health_check;
pub mod next_hop;

use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

/// How long nothing answers before that is reported.
const SILENT_AFTER: Duration = Duration::from_secs(60);

/// The interface that checks leave by: `None` where the pod's own table may decide,
/// which has no routes to the LAN.
pub type Outgoing = Option<std::sync::Arc<str>>;

/// Connects by an interface, from the pod's address on it.
///
/// # Errors
/// The system's.
pub(crate) async fn connect(by: &Outgoing, to: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind_device(by.as_deref().map(str::as_bytes))?;
    socket.connect(to.into()).await
}
