//! What tells the gateway that something may have changed: its mounted files,
//! the kernel's network state, the kernel's nftables. What exactly changed is
//! read anew each time; a message is only ever a reason to look.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols};
use tokio::net::unix::pipe::Receiver;
use tracing::warn;

use crate::nfnetlink::NFTABLES_GROUP;

/// Where something may have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The mounted files.
    pub files: bool,
    /// Links, addresses, routes, rules, settings.
    pub network: bool,
    /// Any nftables table, and with it iptables' rules.
    pub nat: bool,
}

/// All sources.
pub struct Watch {
    directories: Vec<(PathBuf, bool)>,
    files: Option<Files>,
    network: Option<TokioSocket>,
    nat: Option<TokioSocket>,
}

impl Watch {
    /// Opens every source there is. One that cannot be opened is made up for
    /// by looking from time to time.
    pub fn open(directories: &[&Path]) -> Self {
        let network = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv4Netconf,
        ];
        let network: Vec<u32> = network.iter().map(|group| *group as u32).collect();
        let mut watch = Self {
            directories: directories.iter().map(|dir| (dir.to_path_buf(), false)).collect(),
            files: or_warn("the mounted files", Files::open()),
            network: or_warn("the network state", listen(protocols::NETLINK_ROUTE, &network)),
            nat: or_warn("nftables", listen(protocols::NETLINK_NETFILTER, &[NFTABLES_GROUP])),
        };
        watch.arm();
        watch
    }

    /// Watches the directories that are not watched yet, because they were not
    /// there.
    pub fn arm(&mut self) {
        // The kubelet swaps a symbolic link in the directory; others write the
        // file and close it.
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        let Some(files) = &self.files else { return };
        for (directory, armed) in &mut self.directories {
            if !*armed {
                *armed = files.inotify.add_watch(directory.as_path(), flags).is_ok();
            }
        }
    }

    /// Waits for a sign of change anywhere, and takes in all there are.
    pub async fn wait(&mut self) -> Changed {
        tokio::select! {
            () = readable(self.files.as_ref()) => Changed { files: true, ..self.take() },
            () = message(self.network.as_ref()) => Changed { network: true, ..self.take() },
            () = message(self.nat.as_ref()) => Changed { nat: true, ..self.take() },
        }
    }

    /// Takes in all signs there are.
    pub fn take(&mut self) -> Changed {
        Changed {
            files: self.files.as_ref().is_some_and(Files::drain),
            network: self.network.as_ref().is_some_and(drain),
            nat: self.nat.as_ref().is_some_and(drain),
        }
    }
}

/// Watches on directories.
struct Files {
    inotify: Inotify,
    /// The same file, as something that tokio waits for: what is read from it
    /// does not matter, only that there is something.
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
    result.inspect_err(|error| warn!("cannot watch {what}, and will look from time to time: {error}")).ok()
}

fn listen(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.socket_mut().add_membership(*group)?;
    }
    Ok(socket)
}

/// Resolves when a file event is there; never without a source.
async fn readable(files: Option<&Files>) {
    match files {
        Some(files) => {
            let _ = files.events.readable().await;
        }
        None => std::future::pending().await,
    }
}

/// Resolves when a message is there, or was lost for want of room; never
/// without a source.
async fn message(socket: Option<&TokioSocket>) {
    match socket {
        // Its beginning is enough to know that there is one.
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
