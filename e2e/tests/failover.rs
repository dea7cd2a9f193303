//! A Service with two gateway pods, of which the active one is hit. These run
//! alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use lb_svc_e2e::failover::{Event, Pair};
use lb_svc_e2e::scene;

/// Far more than a move takes, far less than Kubernetes does without one: how
/// fast it is, `make bench` says.
const MOVED: Duration = Duration::from_secs(2);

async fn survives(name: &str, event: Event) {
    scene(name, async |scene| {
        let pair = Pair::make(&scene, "web").await;
        let seen = pair.suffer(event).await;
        let outage = &seen.outage;
        eprintln!(
            "{}: unanswered for {:?}, {} of {} lost",
            event.name(),
            outage.longest,
            outage.lost,
            outage.sent
        );
        let flows = &seen.flows;
        eprintln!(
            "{}: of {} connections {} not opened, {} broken, the longest pause of the others {:?}",
            event.name(),
            flows.opened,
            flows.not_opened,
            flows.broken,
            flows.pause
        );
        assert!(flows.opened > 100, "{flows:?}");
        assert!(flows.is_whole() || !event.is_planned(), "connections were lost: {flows:?}");
        assert!(outage.longest <= MOVED, "{outage:?}");
        assert!(outage.again <= MOVED / 4, "no second outage: {outage:?}");
        assert_eq!(seen.late.len(), 0, "the one before spoke on: {:?}", seen.late.first());
    })
    .await;
}

#[tokio::test]
async fn the_process_is_killed() {
    survives("ha-killed", Event::Killed).await;
}

#[tokio::test]
async fn the_pod_is_deleted() {
    survives("ha-deleted", Event::Deleted).await;
}

#[tokio::test]
async fn the_node_is_drained() {
    survives("ha-drained", Event::Drained).await;
}

#[tokio::test]
async fn the_pods_are_updated() {
    survives("ha-updated", Event::Updated).await;
}

#[tokio::test]
async fn the_node_and_the_api_server_die() {
    survives("ha-untold", Event::NodeDiesUntold).await;
}

#[tokio::test]
async fn the_node_dies() {
    survives("ha-node", Event::NodeDies).await;
}

#[tokio::test]
async fn the_lan_link_goes_down() {
    survives("ha-link", Event::LinkDown).await;
}

#[tokio::test]
async fn the_lan_goes_deaf() {
    survives("ha-deaf", Event::LanDeaf).await;
}

#[tokio::test]
async fn the_pod_network_goes_down() {
    survives("ha-pods", Event::PodNetworkDown).await;
}

#[tokio::test]
async fn the_process_is_stopped() {
    survives("ha-stopped", Event::Stopped).await;
}
