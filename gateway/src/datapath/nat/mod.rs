//! The NAT: from frontends to their targets, and back.
//!
//! | File | Holds |
//! |---|---|
//! | [`iptables`] | the back end by iptables of the nf_tables variant |
//! | [`nftables`] | the back end by an nftables table |
//!
//! A new back end implements [`NatBackend`] and is added to the registry,
//! `backends`.

pub mod iptables;
pub mod nftables;

use futures::future::{FutureExt, LocalBoxFuture};
use lb_svc_crds::gateway as wire;

use super::{Managed, Trust};
use crate::config::Targets;
use crate::datapath;
use crate::fault::Fault;

/// What the NAT depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The back end to use.
    pub backend: wire::NatBackend,
    /// The LAN interface's name.
    pub lan: String,
    /// Where each frontend leads.
    pub targets: Targets,
}

/// A way to program the NAT.
pub trait NatBackend {
    /// Its name in the configuration.
    fn name(&self) -> wire::NatBackend;

    /// Programs the NAT, in one transaction per table; without anything desired,
    /// removes everything that the back end ever programmed. Returns whether
    /// anything was changed.
    ///
    /// # Errors
    /// If a program or the kernel fails.
    fn ensure<'a>(
        &'a mut self,
        desired: Option<&'a Desired>,
        trust: Trust,
    ) -> LocalBoxFuture<'a, Result<bool, Fault>>;

    /// Reads back what was just programmed, if [`Self::ensure`] does not.
    ///
    /// # Errors
    /// If the kernel does not answer.
    fn read_back(&mut self) -> LocalBoxFuture<'_, Result<(), Fault>> {
        async { Ok(()) }.boxed_local()
    }
}

/// The registry: one of each back end.
fn backends() -> Vec<Box<dyn NatBackend>> {
    vec![Box::<iptables::Iptables>::default(), Box::<nftables::Nftables>::default()]
}

/// The NAT by the configured back end, of which one at a time is in use.
pub struct Nat {
    backends: Vec<Box<dyn NatBackend>>,
    /// The back end in use, once nothing of the others is left.
    only: Option<wire::NatBackend>,
}

impl Default for Nat {
    fn default() -> Self {
        Self { backends: backends(), only: None }
    }
}

impl Nat {
    async fn program(&mut self, desired: &Desired, trust: Trust) -> Result<bool, Fault> {
        let (mut selected, others): (Vec<_>, Vec<_>) =
            self.backends.iter_mut().partition(|backend| backend.name() == desired.backend);
        let mut changed = false;
        for backend in &mut selected {
            changed |= backend.ensure(Some(desired), trust).await?;
        }
        // The others are removed after that: at no time is there no NAT.
        if self.only != Some(desired.backend) {
            for backend in others {
                backend.ensure(None, Trust::Unverified).await?;
            }
            self.only = Some(desired.backend);
        }
        Ok(changed)
    }
}

impl Managed for Nat {
    fn ensure<'a>(
        &'a mut self,
        desired: &'a datapath::Desired,
        trust: Trust,
    ) -> LocalBoxFuture<'a, Result<bool, Fault>> {
        self.program(&desired.nat, trust).boxed_local()
    }

    fn read_back(&mut self) -> LocalBoxFuture<'_, Result<(), Fault>> {
        async {
            for backend in &mut self.backends {
                backend.read_back().await?;
            }
            Ok(())
        }
        .boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use wire::NatBackend::{Iptables, Nftables};

    use super::*;

    type Calls = Rc<RefCell<Vec<(wire::NatBackend, bool, Trust)>>>;

    /// Records its calls: whether anything was desired, and the trust.
    struct Recorder(wire::NatBackend, Calls);

    impl NatBackend for Recorder {
        fn name(&self) -> wire::NatBackend {
            self.0
        }

        fn ensure<'a>(
            &'a mut self,
            desired: Option<&'a Desired>,
            trust: Trust,
        ) -> LocalBoxFuture<'a, Result<bool, Fault>> {
            self.1.borrow_mut().push((self.0, desired.is_some(), trust));
            async { Ok(true) }.boxed_local()
        }
    }

    #[test]
    fn registry_has_each_configurable_back_end_once() {
        let names: Vec<_> = backends().iter().map(|backend| backend.name()).collect();
        assert_eq!(names, [Iptables, Nftables]);
    }

    #[tokio::test]
    async fn other_back_ends_are_removed_once_and_after_the_selected_is_programmed() {
        let calls = Calls::default();
        let recorder = |name| Box::new(Recorder(name, Rc::clone(&calls))) as Box<dyn NatBackend>;
        let mut nat = Nat { backends: vec![recorder(Iptables), recorder(Nftables)], only: None };
        let mut desired = Desired { backend: Nftables, lan: "net1".to_owned(), targets: Targets::new() };
        let as_applied = Trust::AsApplied;
        assert_eq!(nat.program(&desired, as_applied).await, Ok(true));
        assert_eq!(nat.program(&desired, as_applied).await, Ok(true));
        desired.backend = Iptables;
        assert_eq!(nat.program(&desired, as_applied).await, Ok(true));
        let expected = [
            (Nftables, true, as_applied),
            (Iptables, false, Trust::Unverified),
            (Nftables, true, as_applied),
            (Iptables, true, as_applied),
            (Nftables, false, Trust::Unverified),
        ];
        assert_eq!(*calls.borrow(), expected);
    }
}
