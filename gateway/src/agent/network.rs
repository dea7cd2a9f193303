//! The connection to the kernel's network state, made anew when it breaks.

use crate::fault::Fault;
use crate::route::model::NetworkState;
use crate::route::netlink::Netlink;
use crate::route::plan::Op;

/// Reads and changes the network state.
pub trait Network {
    /// Reads the network state.
    ///
    /// # Errors
    /// If the kernel refuses, or does not answer in time.
    async fn observe(&mut self) -> Result<NetworkState, Fault>;

    /// Carries out one change.
    ///
    /// # Errors
    /// If the kernel refuses, or does not answer in time.
    async fn apply(&mut self, op: &Op) -> Result<(), Fault>;
}

/// The network state of the pod's kernel. Connects when it is first used.
#[derive(Default)]
pub struct Kernel(Option<Netlink>);

impl Kernel {
    /// Drops the connection; the next use makes a new one.
    pub fn disconnect(&mut self) {
        self.0 = None;
    }

    /// See [`Netlink::confirm_neighbours`].
    ///
    /// # Errors
    /// If the kernel refuses, or does not answer in time.
    pub async fn confirm_neighbours(&mut self, interface: u32) -> Result<(), Fault> {
        self.connected().await?.confirm_neighbours(interface).await
    }

    async fn connected(&mut self) -> Result<&Netlink, Fault> {
        let netlink = match self.0.take() {
            Some(netlink) => netlink,
            None => Netlink::connect().await?,
        };
        Ok(self.0.insert(netlink))
    }
}

impl Network for Kernel {
    async fn observe(&mut self) -> Result<NetworkState, Fault> {
        self.connected().await?.observe().await
    }

    async fn apply(&mut self, op: &Op) -> Result<(), Fault> {
        self.connected().await?.apply(op).await
    }
}
