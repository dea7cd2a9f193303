//! What the gateway owns in netfilter.
//!
//! ```text
//!   from the LAN                                                     to the target
//!   ───▶ source ranges ─▶ strays ─▶ counters ─▶ NAT ─▶ routing ─▶ filter ─▶ masquerade ───▶
//!        (-110)           (-108)    (-105)      (-100)  │         (forward) (100)
//!                                                       │ proxied
//!                                                       └▶ redirect ─▶ filter ─▶ the proxy
//!                                                          (-90)       (input)
//! ```
//!
//! | File | Holds |
//! |---|---|
//! | [`filter`] | what is forwarded, and what reaches the pod itself |
//! | [`source_ranges`] | the networks that clients may connect from |
//! | [`nat`] | from frontends to targets, by one of several back ends |
//! | [`redirect`] | from proxied frontends to the pod's own proxy |
//! | [`background`] | the tasks that program best-effort tables: |
//! | [`counters`] | traffic by frontend |
//! | [`ct_timeouts`] | timeouts of served TCP connections |
//! | [`strays`] | packets of connections that another pod of the gateway knows |
//! | [`source_ports`] | relief of targets near source-port exhaustion |
//! | [`conntrack`] | listing connections, deleting stale ones |
//! | [`nft`] | nftables tables: transactions, reading, drift |
//! | [`command`], [`nfnetlink`] | programs and netlink sockets below these |
//!
//! A table that serving depends on implements [`Managed`] and has its place in the
//! order of programming, [`Datapath::default`]. A table that it does not depend on is
//! a [`BackgroundTable`](background::BackgroundTable).

pub mod background;
pub mod command;
pub mod conntrack;
pub mod counters;
pub mod ct_timeouts;
pub mod filter;
pub mod nat;
pub mod nfnetlink;
pub mod nft;
pub mod redirect;
pub mod source_ports;
pub mod source_ranges;
pub mod strays;

use std::collections::BTreeSet;

use futures::future::{FutureExt, LocalBoxFuture};

use crate::config::{Frontend, Target};
use crate::fault::Fault;
use crate::limit::Limit;

/// The bit of a packet's mark that says that it belongs to a connection that this pod
/// leads: towards the client such a packet passes without the lease.
pub const OWN_CONNECTION: u32 = 0x1000;

/// Whether the kernel's state is assumed to be as last applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is as last applied.
    AsApplied,
    /// It may have been changed since: read it before comparing.
    Unverified,
}

/// What the tables depend on, that serving depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The packet filter.
    pub filter: filter::Desired,
    /// The source ranges of frontends.
    pub source_ranges: source_ranges::Limits,
    /// The NAT.
    pub nat: nat::Desired,
    /// What the proxy serves instead of the NAT, if there is anything.
    pub proxy: Option<redirect::Desired>,
}

impl Desired {
    /// Each frontend that is served, with where it leads.
    pub fn targets(&self) -> impl Iterator<Item = (&Frontend, &Target)> {
        self.nat.targets.iter().chain(self.proxy.iter().flat_map(|proxy| &proxy.targets))
    }

    /// Whether every connection that `before` forwarded is still forwarded, by this
    /// pod or another of the gateway's: every frontend has the same target or more
    /// endpoints, for the same clients. The proxy looks after its own connections.
    pub fn keeps(&self, before: &Self) -> bool {
        let keeps_target = |now: &Target, then: &Target| match (now, then) {
            // Where there was no endpoint, clients that were refused may wait.
            (Target::Endpoints(now), Target::Endpoints(then)) => {
                now.live.is_superset(&then.live)
                    && now.draining.is_superset(&then.draining)
                    && (!then.live.is_empty() || now.live.is_empty())
            }
            _ => now == then,
        };
        let proxied = |desired: &Self| -> BTreeSet<Frontend> {
            desired.proxy.iter().flat_map(|proxy| proxy.targets.keys().copied()).collect()
        };
        let keeps_proxied = proxied(self).is_superset(&proxied(before));
        let keeps_forwarded = before.nat.targets.iter().all(|(frontend, target)| {
            self.nat.targets.get(frontend).is_some_and(|now| keeps_target(now, target))
                && self.source_ranges.get(frontend) == before.source_ranges.get(frontend)
        });
        keeps_proxied && keeps_forwarded
    }
}

/// A part of the kernel's state that serving depends on.
pub trait Managed {
    /// Makes the kernel's state the desired one. Returns whether anything was
    /// changed.
    ///
    /// # Errors
    /// If a program or the kernel fails.
    fn ensure<'a>(
        &'a mut self,
        desired: &'a Desired,
        trust: Trust,
    ) -> LocalBoxFuture<'a, Result<bool, Fault>>;

    /// Reads back what was just programmed, if [`Self::ensure`] does not.
    ///
    /// # Errors
    /// If the kernel does not answer.
    fn read_back(&mut self) -> LocalBoxFuture<'_, Result<(), Fault>> {
        async { Ok(()) }.boxed_local()
    }

    /// What [`Self::ensure`] left undone, and serving does not depend on.
    fn limits(&self) -> Vec<Limit> {
        Vec::new()
    }
}

/// All managed parts, in the order of programming.
pub struct Datapath {
    parts: Vec<Box<dyn Managed>>,
    trust: Trust,
}

impl Default for Datapath {
    fn default() -> Self {
        Self {
            parts: vec![
                // First the filter: nothing is ever forwarded unfiltered.
                Box::<filter::Filter>::default(),
                // Then the source ranges: a new frontend is limited before it leads
                // anywhere.
                Box::<source_ranges::SourceRangeFilter>::default(),
                // Then the way to the proxy, which has begun to serve the frontend.
                Box::<redirect::Redirect>::default(),
                // Then the NAT. Routes and addresses come after it, so that an address
                // is answered for only when it is served.
                Box::<nat::Nat>::default(),
            ],
            trust: Trust::Unverified,
        }
    }
}

impl Datapath {
    /// Programs every part. All of them count as applied after that.
    ///
    /// # Errors
    /// The first that occurs; the parts after it are left as they are.
    pub async fn ensure(&mut self, desired: &Desired) -> Result<bool, Fault> {
        let mut changed = false;
        for part in &mut self.parts {
            changed |= part.ensure(desired, self.trust).await?;
        }
        self.trust = Trust::AsApplied;
        Ok(changed)
    }

    /// Reads back what was just programmed. Serving does not wait for that.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn read_back(&mut self) -> Result<(), Fault> {
        for part in &mut self.parts {
            part.read_back().await?;
        }
        Ok(())
    }

    /// What was left undone, and serving does not depend on.
    pub fn limits(&self) -> Vec<Limit> {
        self.parts.iter().flat_map(|part| part.limits()).collect()
    }

    /// Notes that the kernel's state may have been changed.
    pub fn distrust(&mut self) {
        self.trust = Trust::Unverified;
    }

    /// Whether the kernel's state is assumed to be as applied.
    pub fn trust(&self) -> Trust {
        self.trust
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;

    use lb_svc_crds::gateway::{NatBackend, Transport};

    use super::*;
    use crate::config::{Endpoints, Frontend, Targets};

    const FRONTEND: Frontend =
        Frontend { address: std::net::Ipv4Addr::new(172, 18, 0, 18), transport: Transport::Tcp, port: 80 };

    /// A desired state with these targets and no source ranges.
    pub(crate) fn desired(targets: Targets) -> Desired {
        let lan = "net1".to_owned();
        Desired {
            filter: filter::Desired { lan: lan.clone(), addresses: Vec::new(), proxied: BTreeSet::new() },
            source_ranges: source_ranges::Limits::new(),
            nat: nat::Desired { backend: NatBackend::Iptables, lan, targets },
            proxy: None,
        }
    }

    fn cluster_ip(ip: &str) -> Target {
        Target::ClusterIp(ip.parse().unwrap())
    }

    #[test]
    fn keeps_needs_the_same_targets_or_more() {
        let dns = Frontend { transport: Transport::Udp, port: 53, ..FRONTEND };
        let more = desired([(FRONTEND, cluster_ip("10.0.0.1")), (dns, cluster_ip("10.0.0.2"))].into());
        let less = desired([(FRONTEND, cluster_ip("10.0.0.1"))].into());
        assert!(more.keeps(&less) && more.keeps(&more));
        assert!(!less.keeps(&more));
        let mut elsewhere = more.clone();
        elsewhere.nat.targets.insert(FRONTEND, cluster_ip("10.0.0.9"));
        assert!(!elsewhere.keeps(&more));
        let direct = |live: &[&str], draining: &[&str]| {
            let at = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
            let endpoints = Endpoints { live: at(live), draining: at(draining), ..Endpoints::default() };
            let mut direct = more.clone();
            direct.nat.targets.insert(FRONTEND, Target::Endpoints(Arc::new(endpoints)));
            direct
        };
        let (one, two) = (direct(&["10.0.0.1:80"], &[]), direct(&["10.0.0.1:80", "10.0.0.2:80"], &[]));
        assert!(two.keeps(&one) && !one.keeps(&two) && !one.keeps(&more));
        assert!(!direct(&["10.0.0.1:80"], &["10.0.0.2:80"]).keeps(&two), "UDP does not drain");
        assert!(!one.keeps(&direct(&["10.0.0.1:80"], &["10.0.0.2:80"])), "it is gone");
        assert!(!one.keeps(&direct(&[], &[])), "refused clients may wait");
        let mut limited = more.clone();
        limited.source_ranges.insert(FRONTEND, Arc::default());
        assert!(!limited.keeps(&more));
        let mut proxied = more.clone();
        let targets = proxied.nat.targets.clone();
        proxied.nat.targets.clear();
        let listener = "127.0.0.1:4711".parse().unwrap();
        proxied.proxy = Some(redirect::Desired { lan: "net1".to_owned(), listener, targets });
        assert!(proxied.keeps(&proxied) && !proxied.keeps(&more) && !more.keeps(&proxied));
    }

    type Calls = Rc<RefCell<Vec<(&'static str, Trust)>>>;

    /// Records its calls, and fails if it is to.
    struct Recorder(&'static str, Calls, bool);

    impl Managed for Recorder {
        fn ensure<'a>(&'a mut self, _: &'a Desired, trust: Trust) -> LocalBoxFuture<'a, Result<bool, Fault>> {
            self.1.borrow_mut().push((self.0, trust));
            let failed = Err(Fault::FilterFailed("as asked".to_owned()));
            let result = if self.2 { failed } else { Ok(self.0 == "second") };
            async { result }.boxed_local()
        }
    }

    /// A data path that changes something, or fails.
    pub(crate) fn recorder(fails: bool) -> Datapath {
        let part = Box::new(Recorder("second", Calls::default(), fails));
        Datapath { parts: vec![part], trust: Trust::Unverified }
    }

    #[tokio::test]
    async fn ensure_programs_in_order_and_trusts_after_all_succeeded() {
        let calls = Calls::default();
        let part = |name, fails| Box::new(Recorder(name, Rc::clone(&calls), fails)) as Box<dyn Managed>;
        let desired = desired(Targets::new());
        let parts = vec![part("first", true), part("second", false)];
        let mut datapath = Datapath { parts, trust: Trust::Unverified };
        assert!(datapath.ensure(&desired).await.is_err());
        assert_eq!(datapath.trust(), Trust::Unverified);
        assert_eq!(calls.take(), [("first", Trust::Unverified)]);
        datapath.parts[0] = part("first", false);
        assert_eq!(datapath.ensure(&desired).await, Ok(true));
        assert_eq!(datapath.ensure(&desired).await, Ok(true));
        let unverified = [("first", Trust::Unverified), ("second", Trust::Unverified)];
        let applied = [("first", Trust::AsApplied), ("second", Trust::AsApplied)];
        assert_eq!(calls.take(), [unverified, applied].concat());
        datapath.distrust();
        assert_eq!(datapath.trust(), Trust::Unverified);
    }
}
