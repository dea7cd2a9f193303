//! A Service with two gateway pods, what can happen to the active one, and how
//! long its address then goes unanswered.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::ResourceExt;
use kube::api::DeleteParams;
use lb_svc_crds::gateway::{GatewayConfig, Role};
use lb_svc_crds::names::{self, SERVICE_UID_LABEL};
use serde_json::{Value, json};

use crate::capture::Capture;
use crate::flows::{Clients, Flows};
use crate::objects::{backends, elsewhere, on_the_first_node, port, service};
use crate::outage::{Outage, Watch};
use crate::{Lab, SLOW, Scene, client, expect, until};

/// Ports of the Service.
const TCP: u16 = 80;
const UDP: u16 = 53;
/// How long a process is stopped, its container kept from coming back, or its
/// LAN away.
const AWAY: Duration = Duration::from_secs(5);
/// How long all has to be quiet before the next thing happens.
const QUIET: Duration = Duration::from_millis(500);

/// What can happen to the active pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its process is killed, and does not come back for a while.
    Killed,
    /// It is deleted.
    Deleted,
    /// Its node is drained.
    Drained,
    /// Its Deployment's template changes, and both pods are replaced.
    Updated,
    /// Its node dies, as by a power failure.
    NodeDies,
    /// Its node dies, and the API server with it.
    NodeDiesUntold,
    /// Its node's link to the LAN goes down.
    LinkDown,
    /// Its node's link to the LAN stays up, and carries nothing.
    LanDeaf,
    /// Its link to the pod network goes down.
    PodNetworkDown,
    /// Its process is stopped for a while, and goes on.
    Stopped,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Killed,
        Self::Deleted,
        Self::Drained,
        Self::Updated,
        Self::NodeDies,
        Self::NodeDiesUntold,
        Self::LinkDown,
        Self::LanDeaf,
        Self::PodNetworkDown,
        Self::Stopped,
    ];

    /// Its name, for tables and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Killed => "process killed",
            Self::Deleted => "pod deleted",
            Self::Drained => "node drained",
            Self::Updated => "pods updated",
            Self::NodeDies => "node dies",
            Self::NodeDiesUntold => "node and API server die",
            Self::LinkDown => "LAN link down",
            Self::LanDeaf => "LAN deaf",
            Self::PodNetworkDown => "pod network down",
            Self::Stopped => "process stopped",
        }
    }

    /// Whether the active pod has time to hand over.
    pub fn is_planned(self) -> bool {
        matches!(self, Self::Deleted | Self::Drained | Self::Updated)
    }

    /// Whether its node is dead afterwards.
    fn kills_node(self) -> bool {
        matches!(self, Self::NodeDies | Self::NodeDiesUntold)
    }

    /// How long the address may go unanswered, at worst.
    pub fn worst(self) -> Duration {
        Duration::from_millis(if self.is_planned() { 50 } else { 800 })
    }
}

/// A Service with two gateway pods.
pub struct Pair {
    scene: Arc<Scene>,
    name: String,
    /// Its address.
    pub ip: IpAddr,
}

/// What an event did.
#[derive(Debug)]
pub struct Seen {
    /// To the client's probes.
    pub outage: Outage,
    /// To connections.
    pub flows: Flows,
    /// What ARP was heard of the pod that was active, after the other's first
    /// announcement.
    pub late: Vec<String>,
}

impl Pair {
    /// Makes the Service `name`. Its backends are on the first node, its
    /// gateways on the others, of which there have to be two.
    ///
    /// # Panics
    /// If it is not served by two gateways in time.
    pub async fn make(scene: &Arc<Scene>, name: &str) -> Self {
        let mut workload = backends(name, 1, &["tcp/80", "udp/53"]);
        on_the_first_node(&mut workload);
        scene.create::<Deployment>(workload).await;
        let mut object = service(name, &json!([port("TCP", TCP, TCP), port("UDP", UDP, UDP)]));
        elsewhere(&mut object, 2);
        scene.create::<Service>(object).await;
        let ip = scene.address(name).await;
        let pair = Self { scene: Arc::clone(scene), name: name.to_owned(), ip };
        pair.settled().await;
        until("it to serve", SLOW, async || client::get(ip, TCP).await).await;
        pair.proven().await;
        pair
    }

    /// Both pods know that no other host has the address: a standby that does
    /// not asks the LAN before it serves what it took over.
    async fn proven(&self) {
        until("both pods to have nothing to ask the LAN for", SLOW, async || {
            let config = self.scene.api::<ConfigMap>().get(&format!("lb-svc-{}", self.name)).await;
            let mut data = config.map_err(|error| error.to_string())?.data.unwrap_or_default();
            let text = data.remove(names::CONFIG_KEY).unwrap_or_default();
            let config: GatewayConfig = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let wanted = Some(names::digest(text.as_bytes()));
            let mut digests = Vec::new();
            for pod in self.scene.gateways(&self.name).await {
                digests.push(self.scene.status(&pod).await.map_err(|error| error.to_string())?.digest);
            }
            let asks = config.addresses.iter().any(|address| address.probe);
            expect(!asks && digests.iter().all(|digest| *digest == wanted), (asks, digests))
        })
        .await;
    }

    /// The active pod and the standby, once each is what it is and both are
    /// ready, and know of one another.
    ///
    /// # Panics
    /// If it does not come to that.
    pub async fn settled(&self) -> (Pod, Pod) {
        until("one active and one standby", SLOW * 2, async || {
            let mut roles = Vec::new();
            for pod in self.scene.gateways(&self.name).await {
                let status = self.scene.status(&pod).await.map_err(|error| error.to_string())?;
                let election = status.election.unwrap_or_default();
                roles.push((pod, election.role, election.peers.len()));
            }
            let of = |wanted: Role| {
                let mut fitting = roles.iter().filter(|(_, role, peers)| *role == wanted && *peers == 1);
                fitting.next().filter(|_| roles.len() == 2).map(|(pod, _, _)| pod.clone())
            };
            let seen = || roles.iter().map(|(pod, role, _)| (pod.name_any(), *role)).collect::<Vec<_>>();
            of(Role::Active).zip(of(Role::Standby)).ok_or_else(|| format!("{:?}", seen()))
        })
        .await
    }

    /// The hardware address that a pod says it has on the LAN.
    async fn mac(&self, pod: &Pod) -> String {
        let status = self.scene.status(pod).await.unwrap_or_else(|error| panic!("{error:#}"));
        status.interface.map(|interface| interface.mac).unwrap_or_default()
    }

    /// Has the event happen to the active pod while the address is probed, and
    /// puts right what it broke, still under the probes: the end of an outage
    /// must not be another one.
    ///
    /// # Panics
    /// If it does not come to an end.
    pub async fn suffer(&self, event: Event) -> Seen {
        let (active, standby) = self.settled().await;
        let (old, new) = (self.mac(&active).await, self.mac(&standby).await);
        let capture = Capture::begin(self.ip);
        let watch = Watch::begin(self.ip, TCP, UDP);
        let clients = Clients::begin(self.ip, TCP);
        tokio::time::sleep(QUIET).await;
        let begun = Instant::now();
        let undo = Undo::of(event, &active, self).await;
        let moved = AssertUnwindSafe(self.scene.shown(self.moved(event, &active, &standby)));
        let moved = moved.catch_unwind().await;
        undo.run().await;
        if let Err(panic) = moved {
            // The next test needs all nodes.
            if event.kills_node() {
                start_node(&active).await;
            }
            resume_unwind(panic);
        }
        if !event.kills_node() {
            self.settled().await;
        }
        tokio::time::sleep(QUIET).await;
        let outage = watch.end().await;
        let flows = clients.end().await;
        // What a node's coming back costs others on this machine is no matter
        // of the address.
        if event.kills_node() {
            start_node(&active).await;
            self.settled().await;
        }
        let late = match event {
            // The address went from pod to pod, and maybe to a third.
            Event::Updated => Vec::new(),
            _ => capture.end(&old, &new, begun),
        };
        Seen { outage, flows, late }
    }

    /// Waits until an event has had its effect.
    async fn moved(&self, event: Event, active: &Pod, standby: &Pod) {
        if event == Event::Updated {
            until("both pods to be new ones", SLOW * 2, async || {
                let old = [active.uid(), standby.uid()];
                let pods = self.scene.gateways(&self.name).await;
                let new = pods.iter().filter(|pod| !old.contains(&pod.uid())).count();
                expect((new, pods.len()) == (2, 2), (new, pods.len()))
            })
            .await;
        } else {
            until("the standby to be active", SLOW, async || {
                let status = self.scene.status(standby).await.map_err(|error| error.to_string())?;
                let role = status.election.unwrap_or_default().role;
                expect(role == Role::Active, role)
            })
            .await;
        }
    }
}

fn node(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()
}

/// A node's number: `n2` is 2.
fn number(pod: &Pod) -> String {
    Lab::number(&node(pod))
}

async fn cluster(args: &[&str]) -> String {
    Lab::cluster(args).await.unwrap_or_else(|error| panic!("{error:#}"))
}

async fn kubectl(args: &[&str]) {
    Lab::kubectl(args).await.unwrap_or_else(|error| panic!("{error:#}"));
}

async fn start_node(pod: &Pod) {
    cluster(&["node-start", &number(pod)]).await;
}

/// What puts right what an event broke.
enum Undo {
    Nothing,
    /// Run a command of the cluster's.
    Command(Vec<String>),
    /// The same, after the time that something is to be away.
    Later(Vec<String>),
    /// Let a process go on, after that time.
    Continue(String),
    /// Let pods run on a node again.
    Uncordon(String),
}

impl Undo {
    /// Has the event happen.
    async fn of(event: Event, pod: &Pod, pair: &Pair) -> Self {
        let (number, node) = (number(pod), node(pod));
        let uid = pod.uid().unwrap_or_default();
        let signal = async |name: &str| {
            Lab::signal(&uid, "lb-svc-gateway", name).await.unwrap_or_else(|error| panic!("{error:#}"));
        };
        let words = |line: &str| line.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>();
        match event {
            Event::Killed => {
                cluster(&["kubelet-stop", &number]).await;
                signal("KILL").await;
                Self::Later(words(&format!("kubelet-start {number}")))
            }
            Event::Deleted => {
                let pods = pair.scene.api::<Pod>();
                let deleted = pods.delete(&pod.name_any(), &DeleteParams::default()).await;
                deleted.unwrap_or_else(|error| panic!("{error}"));
                Self::Nothing
            }
            Event::Drained => {
                let selector =
                    format!("--pod-selector={SERVICE_UID_LABEL}={}", pod.labels()[SERVICE_UID_LABEL]);
                kubectl(&["drain", &node, "--ignore-daemonsets", &selector]).await;
                Self::Uncordon(node)
            }
            Event::Updated => {
                // How much is of no matter here, only that it is another than before.
                static UPDATES: AtomicU32 = AtomicU32::new(0);
                let memory = 17 + UPDATES.fetch_add(1, Ordering::Relaxed);
                let resources = format!("{{requests: {{memory: {memory}Mi}}}}");
                let annotations = json!({ "lb-svc.kubeovn.io/resources": resources });
                pair.scene
                    .patch_service(&pair.name, json!({ "metadata": { "annotations": annotations } }))
                    .await;
                Self::Nothing
            }
            Event::NodeDiesUntold => {
                cluster(&["api-stop"]).await;
                cluster(&["node-stop", &number]).await;
                // It is over by then, and nobody was there to help.
                tokio::time::sleep(2 * QUIET).await;
                cluster(&["api-start"]).await;
                Self::Nothing
            }
            Event::NodeDies => {
                cluster(&["node-stop", &number]).await;
                Self::Nothing
            }
            Event::LinkDown => {
                cluster(&["lan", "ip", "link", "set", &node, "down"]).await;
                Self::Command(words(&format!("lan ip link set {node} up")))
            }
            Event::LanDeaf => {
                cluster(&["lan", "bridge", "link", "set", "dev", &node, "state", "0"]).await;
                // It cannot hear that it was replaced, and is to find out by itself.
                Self::Later(words(&format!("lan bridge link set dev {node} state 3")))
            }
            Event::PodNetworkDown => {
                let link = pair.scene.in_pod(pod, &["ip", "-j", "link", "show", "eth0"]).await;
                let link: Value = serde_json::from_str(&link).unwrap_or_default();
                let all = cluster(&["node", &number, "ip", "-j", "link"]).await;
                let all: Value = serde_json::from_str(&all).unwrap_or_default();
                let mut all = all.as_array().into_iter().flatten();
                let outer = all.find(|outer| outer["ifindex"] == link[0]["link_index"]);
                let outer = outer.and_then(|outer| outer["ifname"].as_str()).unwrap_or_default();
                cluster(&["node", &number, "ip", "link", "set", outer, "down"]).await;
                Self::Command(words(&format!("node {number} ip link set {outer} up")))
            }
            Event::Stopped => {
                signal("STOP").await;
                Self::Continue(uid.clone())
            }
        }
    }

    async fn run(self) {
        let run = async |words: Vec<String>| {
            cluster(&words.iter().map(String::as_str).collect::<Vec<_>>()).await;
        };
        match self {
            Self::Nothing => {}
            Self::Command(words) => run(words).await,
            Self::Uncordon(node) => kubectl(&["uncordon", &node]).await,
            Self::Later(words) => {
                tokio::time::sleep(AWAY).await;
                run(words).await;
            }
            Self::Continue(uid) => {
                tokio::time::sleep(AWAY).await;
                let signalled = Lab::signal(&uid, "lb-svc-gateway", "CONT").await;
                signalled.unwrap_or_else(|error| panic!("{error:#}"));
            }
        }
    }
}
