//! Packet filter and NAT: what is wanted of them, and the back ends that can
//! carry it out.

pub mod iptables;

use std::net::Ipv4Addr;

use crate::config::Forwards;
use crate::fault::Fault;

/// What the NAT is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The LAN interface's name.
    pub lan: String,
    /// The gateway's addresses on it.
    pub addresses: Vec<Ipv4Addr>,
    /// What is served.
    pub forwards: Forwards,
}

/// What a back end did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel held it all already.
    Kept,
    /// The kernel holds it now.
    Applied,
}

/// A way to program the NAT.
pub enum Backend {
    /// `iptables-restore` of the nf_tables variant.
    Iptables(iptables::Iptables),
}

impl Backend {
    /// Makes the kernel's NAT what `desired` says, in one transaction a table.
    /// With `suspect`, what the kernel holds is read first; without, it is
    /// taken to be as it was left.
    pub async fn ensure(&mut self, desired: &Desired, suspect: bool) -> Result<Outcome, Fault> {
        match self {
            Self::Iptables(iptables) => iptables.ensure(desired, suspect).await,
        }
    }
}
