//! The election among a gateway's pods, as they report it: which one answers for
//! the addresses.

use std::collections::BTreeMap;

use lb_svc_crds::gateway::{ElectionStatus, Role};

use crate::model::{Pod, StatusReport};

/// The active pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivePod<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The term: how often the addresses were taken over, this time included.
    pub term: u64,
    /// Why it is active, if it reports that itself.
    pub why: Option<&'a str>,
}

/// A pod's report of its election.
fn election(pod: &Pod) -> Option<&ElectionStatus> {
    pod.reported()?.election.as_ref()
}

/// The active one of `pods`, as they report: the one with the highest term, if
/// two are. One that does not respond is active if its peers report it.
pub fn active<'a>(pods: &[&'a Pod]) -> Option<ActivePod<'a>> {
    let says = |pod: &&'a Pod| {
        let election = election(pod).filter(|election| election.role == Role::Active)?;
        Some(ActivePod { pod, term: election.term, why: Some(&election.why) })
    };
    let is_said = |pod: &&'a Pod| {
        let election = election(pod)?;
        let name = election.active.as_ref()?;
        let is_silent = |pod: &Pod| matches!(pod.report, StatusReport::Missed | StatusReport::NoResponse);
        let active = pods.iter().find(|other| other.name == *name && is_silent(other))?;
        Some(ActivePod { pod: active, term: election.term, why: None })
    };
    pods.iter().filter_map(says).chain(pods.iter().filter_map(is_said)).max_by_key(|active| active.term)
}

/// A view of a gateway's election.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElectionView {
    /// The active pod's name, and its term.
    pub active: Option<(String, u64)>,
    /// How many splits each pod had counted, by uid.
    pub splits: BTreeMap<String, u64>,
}

/// A change of an election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElectionEvent {
    /// The pod of this name became active, on this node and for this reason, as far
    /// as these are known.
    ActiveChanged(String, Option<String>, Option<String>),
    /// These pods report that two were active at once.
    SplitBrain(Vec<String>),
}

impl ElectionView {
    /// The view of the election among `pods`, and its changes since `before`. The
    /// first view has none.
    pub fn observe(before: Option<&Self>, pods: &[&Pod]) -> (Self, Vec<ElectionEvent>) {
        let mut news = Vec::new();
        let active = active(pods);
        let told = before.and_then(|before| before.active.clone());
        let now = active.map(|active| (active.pod.name.clone(), active.term));
        if let (Some(active), Some(_)) = (active, told.as_ref().filter(|told| now.as_ref() != Some(told))) {
            let ActivePod { pod, why, .. } = active;
            news.push(ElectionEvent::ActiveChanged(
                pod.name.clone(),
                pod.node.clone(),
                why.map(str::to_owned),
            ));
        }
        let mut splits = BTreeMap::new();
        let mut witnesses = Vec::new();
        for pod in pods {
            let known = before.map(|before| before.splits.get(&pod.uid).copied().unwrap_or_default());
            let counted = election(pod).map(|election| election.splits);
            if known.zip(counted).is_some_and(|(known, counted)| counted > known) {
                witnesses.push(pod.name.clone());
            }
            splits.extend(counted.or(known).map(|count| (pod.uid.clone(), count)));
        }
        if !witnesses.is_empty() {
            news.push(ElectionEvent::SplitBrain(witnesses));
        }
        (Self { active: now.or(told), splits }, news)
    }
}

/// The pod that answers for the addresses: the active one, where there is an
/// election; while there is none yet, one that takes no part.
pub fn answering<'a>(pods: &[&'a Pod]) -> Option<&'a Pod> {
    let alone = || pods.iter().copied().filter(|pod| !pod.member && pod.mac.is_some());
    active(pods).map(|active| active.pod).or_else(|| alone().max_by_key(|pod| pod.ready))
}

/// Which pods serve, where there are several, without anything that changes
/// while they stay the same.
pub fn active_pods(view: Option<&ElectionView>, pods: &[&Pod]) -> String {
    let Some((active, _)) = view.and_then(|view| view.active.as_ref()) else { return String::new() };
    let place = |pod: &Pod| {
        let on = pod.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        format!("{}{on}", pod.name)
    };
    let Some(active) = pods.iter().find(|pod| pod.name == *active) else { return String::new() };
    let standbys = pods.iter().filter(|pod| pod.member && pod.ready && pod.name != active.name);
    let mut standbys: Vec<String> = standbys.map(|pod| place(pod)).collect();
    standbys.sort_unstable();
    let standbys = match standbys.is_empty() {
        true => "no standby".to_owned(),
        false => format!("standby {}", standbys.join(", ")),
    };
    format!(" by {}; {standbys}", place(active))
}

#[cfg(test)]
mod tests {
    use lb_svc_crds::gateway::GatewayStatus;

    use super::*;
    use crate::testing::election_status as status;

    fn pod(name: &str, election: Option<ElectionStatus>) -> Pod {
        let report = match election {
            Some(_) => {
                StatusReport::Reported(Box::new(GatewayStatus { election, ..GatewayStatus::default() }))
            }
            None => StatusReport::NoResponse,
        };
        Pod {
            name: name.into(),
            uid: format!("uid-{name}"),
            node: Some(format!("on-{name}")),
            report,
            ..Pod::default()
        }
    }

    fn of(pods: &[Pod]) -> Option<(String, u64, bool)> {
        let pods: Vec<&Pod> = pods.iter().collect();
        active(&pods).map(|active| (active.pod.name.clone(), active.term, active.why.is_some()))
    }

    #[test]
    fn active_pod_is_the_one_with_the_highest_term() {
        let a = pod("a", Some(status(Role::Active, "a", 1)));
        let b = pod("b", Some(status(Role::Standby, "a", 1)));
        assert_eq!(of(&[a.clone(), b]), Some(("a".into(), 1, true)));
        // The LAN is in two parts.
        let b = pod("b", Some(status(Role::Active, "b", 2)));
        assert_eq!(of(&[a.clone(), b.clone()]), Some(("b".into(), 2, true)));
        assert_eq!(of(&[b, a]), Some(("b".into(), 2, true)));
        assert_eq!(of(&[pod("a", Some(ElectionStatus::default()))]), None);
    }

    #[test]
    fn unresponsive_pod_is_active_if_peers_report_it() {
        let b = pod("b", Some(status(Role::Standby, "a", 3)));
        assert_eq!(of(&[pod("a", None), b.clone()]), Some(("a".into(), 3, false)));
        // It was asked a moment before it became active, or is gone: the next look knows.
        let a = pod("a", Some(status(Role::Standby, "b", 2)));
        assert_eq!(of(&[a, b.clone()]), None);
        assert_eq!(of(&[b]), None);
    }

    /// Looks once after another, and what was news each time.
    fn looks(looks: &[&[Pod]]) -> Vec<Vec<ElectionEvent>> {
        let mut seen = None;
        let look = |pods: &&[Pod]| {
            let (now, news) = ElectionView::observe(seen.as_ref(), &pods.iter().collect::<Vec<_>>());
            seen = Some(now);
            news
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn change_is_an_event_once_and_first_view_is_none() {
        let a = pod("a", Some(status(Role::Active, "a", 1)));
        let b = pod("b", Some(status(Role::Active, "b", 2)));
        let again = pod("a", Some(status(Role::Active, "a", 3)));
        let later = pod("a", Some(status(Role::Active, "a", 5)));
        let nobody = pod("c", None);
        let news = looks(&[
            std::slice::from_ref(&a),
            std::slice::from_ref(&a),
            // It is gone, and who comes next is not known yet.
            std::slice::from_ref(&nobody),
            std::slice::from_ref(&b),
            std::slice::from_ref(&b),
            &[again, b.clone()],
            // Away and back between two looks.
            std::slice::from_ref(&later),
        ]);
        let told = |name: &str, term: u64| {
            vec![ElectionEvent::ActiveChanged(
                name.into(),
                Some(format!("on-{name}")),
                Some(format!("why {term}")),
            )]
        };
        assert_eq!(news, [vec![], vec![], vec![], told("b", 2), vec![], told("a", 3), told("a", 5)]);
    }

    #[test]
    fn split_is_an_event_once() {
        let split = |name: &str, splits| {
            let role = if name == "a" { Role::Active } else { Role::Standby };
            pod(name, Some(ElectionStatus { splits, ..status(role, "a", 1) }))
        };
        let news = looks(&[
            &[split("a", 3)],
            &[split("a", 3), split("b", 0)],
            &[split("a", 4), split("b", 1)],
            // One that is not asked for once has counted nothing new.
            &[split("a", 4), pod("b", None)],
            &[split("a", 4), split("b", 1)],
            // A process that starts anew counts from the beginning.
            &[split("a", 0), split("b", 1)],
            &[split("a", 1), split("b", 1), split("c", 1)],
        ]);
        let saw = |names: &[&str]| {
            vec![ElectionEvent::SplitBrain(names.iter().map(|&name| name.to_owned()).collect())]
        };
        assert_eq!(news, [vec![], vec![], saw(&["a", "b"]), vec![], vec![], vec![], saw(&["a", "c"])]);
    }
}
