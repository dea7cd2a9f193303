//! Making the kernel's state the desired one: the executor of a run.

use std::collections::BTreeSet;

use super::desired::Desired;
use super::network::Network;
use crate::datapath::Datapath;
use crate::fault::Fault;
use crate::limit::Limit;
use crate::route::model::NetworkState;
use crate::route::plan::{Op, plan};

/// Rounds of programming and observing before the state counts as not converging.
const ROUNDS: usize = 3;

/// What a run changed.
#[derive(Debug)]
pub struct Changes {
    /// The kernel's state after them.
    pub state: NetworkState,
    /// The changes of the network state.
    pub ops: Vec<Op>,
    /// Whether the data path was changed.
    pub datapath: bool,
    /// A change that is still missing after all rounds.
    pub missing: Option<Op>,
    /// Changes of IPv6 that the kernel refused: they are tried again in the next run.
    pub ipv6_refused: Option<Limit>,
}

impl Changes {
    /// Whether anything was changed.
    pub fn any(&self) -> bool {
        self.datapath || !self.ops.is_empty()
    }

    /// The kinds of objects that were changed.
    pub fn kinds(&self) -> BTreeSet<&'static str> {
        self.ops.iter().map(Op::kind).chain(self.datapath.then_some("nat")).collect()
    }

    /// The changes for the log.
    pub fn summary(&self) -> String {
        const SHOWN: usize = 10;
        let mut shown: Vec<String> = self.ops.iter().take(SHOWN).map(ToString::to_string).collect();
        if self.ops.len() > SHOWN {
            shown.push(format!("and {} more", self.ops.len() - SHOWN));
        }
        if self.datapath {
            shown.push("nat".to_owned());
        }
        shown.join(", ")
    }
}

/// Programs the data path, then the network state, which adds addresses last: nothing
/// is forwarded unfiltered, and no address is answered for before it is served. Then
/// observes the state again, until nothing is left to change. Changes of IPv6, which is
/// not served, hold nothing up.
///
/// # Errors
/// The first of a part. What was programmed before it stays.
pub async fn converge(
    datapath: &mut Datapath,
    network: &mut impl Network,
    desired: &Desired,
    mut state: NetworkState,
) -> Result<Changes, Fault> {
    let (mut ops, mut datapath_changed) = (Vec::new(), false);
    let mut ipv6_refused = None;
    let mut left = plan(&state, &desired.route);
    for _ in 0..ROUNDS {
        datapath_changed |= datapath.ensure(&desired.datapath).await?;
        if left.is_empty() {
            break;
        }
        for op in left {
            match network.apply(&op).await {
                Err(Fault::NetlinkFailed(why)) if op.is_ipv6() => {
                    ipv6_refused = Some(Limit::Ipv6NotBlocked(why));
                }
                applied => applied.map(|()| ops.push(op))?,
            }
        }
        state = network.observe().await?;
        left = plan(&state, &desired.route);
        left.retain(|op| ipv6_refused.is_none() || !op.is_ipv6());
    }
    let missing = left.into_iter().next();
    Ok(Changes { state, ops, datapath: datapath_changed, missing, ipv6_refused })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::desired::tests::made;
    use crate::datapath;
    use crate::route::desired::tests::state;

    /// A kernel that takes changes, and forgets them if it is to.
    struct Fake {
        state: NetworkState,
        applied: usize,
        forgets: bool,
    }

    impl Network for Fake {
        async fn observe(&mut self) -> Result<NetworkState, Fault> {
            Ok(self.state.clone())
        }

        async fn apply(&mut self, op: &Op) -> Result<(), Fault> {
            self.applied += 1;
            if self.forgets {
                return Ok(());
            }
            match op {
                Op::Up(_) => self.state.links.iter_mut().for_each(|link| link.up = true),
                Op::Set(index, values) => {
                    let links = self.state.links.iter_mut().filter(|link| link.index == *index);
                    links.for_each(|link| link.settings.extend(values));
                }
                Op::ReplaceRoute(route) => self.state.routes.push(route.clone()),
                Op::AddRule(rule) => self.state.rules.push(rule.clone()),
                Op::AddAddress(address) => self.state.addresses.push(address.clone()),
                Op::MakeNoIpv6Addresses(_) => return Err(Fault::NetlinkFailed("not supported".to_owned())),
                _ => unreachable!("there is nothing to remove"),
            }
            Ok(())
        }
    }

    async fn run(datapath_fails: bool, forgets: bool) -> (Result<Changes, Fault>, Fake) {
        let mut network = Fake { state: state(), applied: 0, forgets };
        let (desired, _) = made(&state());
        let mut datapath = datapath::tests::recorder(datapath_fails);
        let result = converge(&mut datapath, &mut network, &desired, state()).await;
        (result, network)
    }

    #[tokio::test]
    async fn converge_returns_all_changes_and_the_state_after_them() {
        let (changes, network) = run(false, false).await;
        let changes = changes.unwrap();
        assert_eq!(changes.missing, None);
        assert_eq!(changes.ops.len(), network.applied);
        assert_eq!(changes.state, network.state);
        assert_eq!(changes.kinds(), ["address", "devconf", "link", "nat", "route", "rule"].into());
        assert!(changes.any() && changes.summary().ends_with(", and 6 more, nat"), "{}", changes.summary());
    }

    #[tokio::test]
    async fn converge_changes_that_do_not_last_are_missing() {
        let (changes, network) = run(false, true).await;
        let changes = changes.unwrap();
        assert!(changes.missing.is_some());
        assert_eq!(network.applied % ROUNDS, 0);
        assert!(network.applied > ROUNDS);
    }

    #[tokio::test]
    async fn b41_refused_change_of_ipv6_holds_nothing_up() {
        let mut state = state();
        state.links[1].makes_ipv6_addresses = true;
        let mut network = Fake { state: state.clone(), applied: 0, forgets: false };
        let (desired, _) = made(&state);
        let mut datapath = datapath::tests::recorder(false);
        let changes = converge(&mut datapath, &mut network, &desired, state.clone()).await.unwrap();
        assert_eq!((changes.missing, changes.ops.len()), (None, network.applied - 1));
        assert!(changes.ops.iter().all(|op| !op.is_ipv6()));
        assert!(matches!(changes.ipv6_refused, Some(Limit::Ipv6NotBlocked(_))));
        assert_eq!(desired.assigned(&changes.state).len(), 3);
        // Nor is it a change, run after run.
        let again = converge(&mut datapath, &mut network, &desired, changes.state).await.unwrap();
        assert!(again.ops.is_empty() && again.ipv6_refused.is_some());
    }

    #[tokio::test]
    async fn converge_failed_datapath_leaves_the_network_state() {
        let (changes, network) = run(true, false).await;
        assert!(matches!(changes, Err(Fault::FilterFailed(_))));
        assert_eq!(network.applied, 0);
    }
}
