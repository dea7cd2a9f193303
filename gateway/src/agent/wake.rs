//! Wake-up sources: the mounted files, the kernel's network state, the kernel's
//! nftables. A notification only starts a run, which reads the whole state anew.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols};
use tokio::net::unix::pipe::Receiver;
use tracing::warn;

use crate::datapath::nfnetlink::NFTABLES_GROUP;

/// What may have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The mounted files.
    pub files: bool,
    /// Links, addresses, routes, rules, settings.
    pub network: bool,
    /// nftables, and with them iptables' rules.
    pub nftables: bool,
}

impl Changed {
    /// Everything may have changed.
    pub const ALL: Self = Self { files: true, network: true, nftables: true };
    /// A state that the agent itself keeps has changed; the kernel has to follow.
    pub const OWN: Self = Self { files: false, network: true, nftables: false };
}

/// All sources.
pub struct WakeSources {
    directories: Vec<(PathBuf, bool)>,
    files: Option<Files>,
    network: Option<TokioSocket>,
    nftables: Option<TokioSocket>,
}

impl WakeSources {
    /// Opens every source. The periodic runs make up for one that cannot be opened.
    pub fn open(directories: &[&Path]) -> Self {
        let network = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv4Netconf,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let network: Vec<u32> = network.iter().map(|group| *group as u32).collect();
        let mut sources = Self {
            directories: directories.iter().map(|dir| (dir.to_path_buf(), false)).collect(),
            files: or_warn("the mounted files", Files::open()),
            network: or_warn("the network state", listen(protocols::NETLINK_ROUTE, &network)),
            nftables: or_warn("nftables", listen(protocols::NETLINK_NETFILTER, &[NFTABLES_GROUP])),
        };
        sources.watch_directories();
        sources
    }

    /// Watches the directories that are not watched yet because they did not exist.
    pub fn watch_directories(&mut self) {
        // The kubelet swaps a symbolic link in the directory; other programs write
        // and close the file.
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        let Some(files) = &self.files else { return };
        for (directory, watched) in &mut self.directories {
            if !*watched {
                *watched = files.inotify.add_watch(directory.as_path(), flags).is_ok();
            }
        }
    }

    /// Waits for a notification of any source, and takes all queued ones.
    pub async fn wait(&mut self) -> Changed {
        tokio::select! {
            () = readable(self.files.as_ref()) => Changed { files: true, ..self.take() },
            () = message(self.network.as_ref()) => Changed { network: true, ..self.take() },
            () = message(self.nftables.as_ref()) => Changed { nftables: true, ..self.take() },
        }
    }

    /// Takes all queued notifications.
    pub fn take(&mut self) -> Changed {
        Changed {
            files: self.files.as_ref().is_some_and(Files::drain),
            network: self.network.as_ref().is_some_and(drain),
            nftables: self.nftables.as_ref().is_some_and(drain),
        }
    }
}

/// inotify watches on directories.
struct Files {
    inotify: Inotify,
    /// The same file descriptor, for tokio to wait for. The events' content does not
    /// matter.
    events: Receiver,
}

impl Files {
    fn open() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events = Receiver::from_owned_fd_unchecked(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Self { inotify, events })
    }

    fn drain(&self) -> bool {
        let mut any = false;
        while self.events.try_read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
            any = true;
        }
        any
    }
}

fn or_warn<T>(what: &str, result: io::Result<T>) -> Option<T> {
    result.inspect_err(|error| warn!(%error, "cannot watch {what}: relying on periodic runs")).ok()
}

fn listen(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.socket_mut().add_membership(*group)?;
    }
    Ok(socket)
}

/// Resolves when a file event is queued; never without a source.
async fn readable(files: Option<&Files>) {
    match files {
        Some(files) => {
            let _ = files.events.readable().await;
        }
        None => std::future::pending().await,
    }
}

/// Resolves when a message is queued, or was lost for want of buffer space; never
/// without a source.
async fn message(socket: Option<&TokioSocket>) {
    match socket {
        // The beginning of a message is enough.
        Some(socket) => {
            let _ = socket.recv(&mut [0; 16].as_mut_slice()).await;
        }
        None => std::future::pending().await,
    }
}

fn drain(socket: &TokioSocket) -> bool {
    let mut any = false;
    loop {
        match socket.socket_ref().recv(&mut [0; 16].as_mut_slice(), 0) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return any,
            Err(error) if error.raw_os_error() != Some(nix::libc::ENOBUFS) => return any,
            _ => any = true,
        }
    }
}
