//! The NAT: what is wanted of it, and the back ends that can carry it out.

pub mod iptables;
pub mod nftables;

use lb_svc_crds::gateway::NatBackend;

use crate::config::Forwards;
use crate::fault::Fault;

/// What the NAT is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// By which back end.
    pub backend: NatBackend,
    /// The LAN interface's name.
    pub lan: String,
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

/// The ways to program the NAT, of which one at a time is in use.
#[derive(Default)]
pub struct Backends {
    iptables: iptables::Iptables,
    nftables: nftables::Nftables,
    /// The one in use, once nothing of the other is left.
    sole: Option<NatBackend>,
}

impl Backends {
    /// Makes the kernel's NAT what `desired` says, in one transaction a table.
    /// With `suspect`, what the kernel holds is read first; without, it is
    /// taken to be as it was left.
    ///
    /// # Errors
    /// When the kernel or a program refuses.
    pub async fn ensure(&mut self, desired: &Desired, suspect: bool) -> Result<Outcome, Fault> {
        let outcome = match desired.backend {
            NatBackend::Iptables => self.iptables.ensure(Some(desired), suspect).await?,
            NatBackend::Nftables => self.nftables.ensure(Some(desired), suspect).await?,
        };
        // What the other has left goes only now: at no time is there neither.
        if self.sole != Some(desired.backend) {
            match desired.backend {
                NatBackend::Iptables => self.nftables.ensure(None, true).await?,
                NatBackend::Nftables => self.iptables.ensure(None, true).await?,
            };
            self.sole = Some(desired.backend);
        }
        Ok(outcome)
    }

    /// Looks at how the kernel holds what was just programmed, so that it is
    /// known again: who waits to be served need not wait for that.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn settle(&mut self) -> Result<(), Fault> {
        self.nftables.settle().await
    }
}
