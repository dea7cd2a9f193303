//! MetalLB beside it: its controller and speakers as plain processes, on the
//! local cluster. Speakers find one another through pods; theirs do nothing
//! and only stand for them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::runtime::watcher::{Config, Event as Change, watcher};
use lb_svc_e2e::failover::Event;
use lb_svc_e2e::objects::{backends, on_the_first_node, port, service, web};
use lb_svc_e2e::outage::{Outage, Watch};
use lb_svc_e2e::{Lab, SLOW, client};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::stage::{NAMESPACE, Stage, within};

/// The class of its Services, which are nobody else's.
const CLASS: &str = "lb-svc-bench/metallb";
/// What its CRDs are known by, so that they go and no others do.
const LABEL: &str = "lb-svc-bench";
/// Addresses of the LAN that nothing else of the measurements uses.
const POOL: &str = "172.18.208.0/21";
/// The nodes that may announce: as for our gateways, not that of the backends.
const NODES: [u32; 2] = [2, 3];
/// How long a process is away, as in ours.
const AWAY: Duration = Duration::from_secs(5);
/// How long one node has to be the only one to announce before that counts.
const STEADY: Duration = Duration::from_secs(3);
/// How long it may take until one is: who was lost is looked for again once
/// in a minute.
const AGREED: Duration = Duration::from_secs(90);
/// How long all has to be quiet before the next thing happens.
const QUIET: Duration = Duration::from_millis(500);

/// The directory with its programs and CRDs, where they were built.
pub fn programs() -> Option<PathBuf> {
    std::env::var_os("LB_SVC_METALLB").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// Its CRDs, and a pool of addresses that are announced on the LAN.
///
/// # Errors
/// When they cannot be made, or are there already: MetalLB itself may be.
pub async fn install(programs: &Path) -> anyhow::Result<()> {
    ensure!(Lab::is_local(), "MetalLB is measured on the local cluster only");
    let dir = programs.to_str().context("the directory's name")?;
    Lab::kubectl(&["create", "-f", dir]).await.context("MetalLB's CRDs")?;
    Lab::kubectl(&["label", "-f", dir, &format!("{LABEL}=")]).await?;
    Lab::kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "-f", dir]).await?;
    let nodes: Vec<String> = NODES.iter().map(|node| format!("n{node}")).collect();
    let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "metallb.io/v1beta1",
            "kind": "IPAddressPool",
            "metadata": { "name": "bench", "namespace": NAMESPACE },
            "spec": { "addresses": [POOL] },
        },
        {
            "apiVersion": "metallb.io/v1beta1",
            "kind": "L2Advertisement",
            "metadata": { "name": "bench", "namespace": NAMESPACE },
            "spec": {
                "ipAddressPools": ["bench"],
                "interfaces": ["eth0"],
                "nodeSelectors": [{ "matchExpressions": [
                    { "key": "kubernetes.io/hostname", "operator": "In", "values": nodes },
                ] }],
            },
        },
    ] });
    Lab::apply(&objects.to_string()).await
}

/// Takes its CRDs away, and with them all that was made of them.
///
/// # Errors
/// When that does not work.
pub async fn remove() -> anyhow::Result<()> {
    Lab::kubectl(&["delete", "crd", "-l", LABEL, "--ignore-not-found"]).await.map(drop)
}

/// One of its programs. It ends with what is returned.
async fn start(
    programs: &Path,
    name: &str,
    prefix: &str,
    args: &[&str],
    mark: &str,
) -> anyhow::Result<Child> {
    let kubeconfig = Lab::cluster(&["kubeconfig"]).await?;
    let program = programs.join(name);
    let program = program.to_str().context("the program's name")?;
    let mut words = prefix.split_whitespace().chain([program]).chain(args.iter().copied());
    let mut command = Command::new(words.next().context("no command")?);
    command.args(words).args(["--namespace", NAMESPACE, "--lb-class", CLASS, "--log-level=error"]);
    command.env("KUBECONFIG", kubeconfig.trim()).env("LB_SVC_PROCESS", mark);
    // The libraries speak up at each start, whatever the level.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().with_context(|| format!("MetalLB's {name}"))
}

async fn controller(programs: &Path) -> anyhow::Result<Child> {
    start(programs, "controller", "", &["--webhook-mode=disabled"], "metallb").await
}

/// A Service of its class.
fn its(mut object: Value) -> Value {
    object["metadata"]["annotations"] = Value::Null;
    object["spec"]["loadBalancerClass"] = json!(CLASS);
    object
}

/// A Service that asks it for any address.
pub fn asking(name: &str) -> Value {
    its(web(name))
}

/// From its controller's start until each of so many Services, which are there,
/// has an address.
///
/// # Errors
/// When it does not come to that.
pub async fn fleet(stage: &Stage, programs: &Path, many: usize) -> anyhow::Result<Duration> {
    let mut changes = watcher(stage.api::<Service>(), Config::default()).boxed();
    let mut served = std::collections::HashSet::new();
    let mut started = None;
    let all = async {
        while served.len() < many {
            match changes.next().await.context("the watch ended")?? {
                Change::InitDone => started = Some((Instant::now(), controller(programs).await?)),
                Change::Apply(service) | Change::InitApply(service) if address(&service).is_some() => {
                    served.insert(service.name_any());
                }
                _ => {}
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(SLOW * 5, all).await.context("MetalLB's controller does not get through")??;
    let (start, mut controller) = started.context("served before it began")?;
    let took = start.elapsed();
    controller.kill().await?;
    Ok(took)
}

fn address(service: &Service) -> Option<IpAddr> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?;
    ingress.first()?.ip.as_ref()?.parse().ok()
}

/// A Service of its, and the speakers that announce its address.
pub struct Announced<'a> {
    stage: &'a Stage,
    programs: PathBuf,
    ip: IpAddr,
    _controller: Child,
    speakers: [Option<Child>; 2],
    /// Which of them announces while all is well: always the same.
    first: usize,
}

impl<'a> Announced<'a> {
    /// Whether it has this event too.
    pub fn knows(event: Event) -> bool {
        matches!(event, Event::Killed | Event::Deleted | Event::NodeDies | Event::LinkDown | Event::Stopped)
    }

    /// Makes the Service, with its backends on the first node.
    ///
    /// # Errors
    /// When it is not served in time.
    pub async fn make(stage: &'a Stage, programs: PathBuf) -> anyhow::Result<Self> {
        for number in NODES {
            stage.create::<Pod>(stand_in(number)).await?;
        }
        let mut workload = backends("announced", 1, &["tcp/80", "udp/53"]);
        on_the_first_node(&mut workload);
        stage.create::<Deployment>(workload).await?;
        stage.ready("announced").await?;
        stage.ready("speaker").await?;
        let ports = json!([port("TCP", 80, 80), port("UDP", 53, 53)]);
        stage.create::<Service>(its(service("announced", &ports))).await?;
        let controller = controller(&programs).await?;
        let ip = within("MetalLB to give an address", SLOW, async || {
            Ok(address(&stage.api::<Service>().get("announced").await?))
        })
        .await?;
        let mut made =
            Self { stage, programs, ip, _controller: controller, speakers: [None, None], first: 0 };
        for index in 0..NODES.len() {
            made.speak(index).await?;
        }
        made.first = made.agreed(None).await?;
        Ok(made)
    }

    /// Takes the Service away.
    ///
    /// # Errors
    /// When that does not work.
    pub async fn end(self) -> anyhow::Result<()> {
        self.stage.delete::<Service>("announced").await?;
        self.stage.delete::<Deployment>("announced").await?;
        for number in NODES {
            self.stage.delete::<Pod>(&format!("speaker-n{number}")).await?;
        }
        self.stage.gone("speaker").await
    }

    /// Starts a speaker, in its node's network.
    async fn speak(&mut self, index: usize) -> anyhow::Result<()> {
        let (number, node) = (NODES[index].to_string(), format!("n{}", NODES[index]));
        let pod = self.stage.api::<Pod>().get(&format!("speaker-{node}")).await?;
        let ip = pod.status.and_then(|status| status.host_ip).context("a pod without a node")?;
        let prefix = Lab::cluster(&["runner", &number]).await?;
        let args = [
            "--node-name",
            &node,
            "--pod-name",
            &format!("speaker-{node}"),
            "--host",
            &ip,
            "--ml-bindaddr",
            &ip,
            "--ml-labels",
            "app=speaker",
        ];
        // The mark says that it dies with the node.
        let speaker = start(&self.programs, "speaker", &prefix, &args, &format!("speaker-{node}")).await?;
        self.speakers[index] = Some(speaker);
        Ok(())
    }

    /// Which speaker's node the client sends to now, if it is answered at all.
    async fn announces(&self) -> anyhow::Result<Option<usize>> {
        let answered = client::get(self.ip, 80).await.is_ok();
        let seen = Command::new("ip").args(["-j", "neigh", "show", &self.ip.to_string()]).output().await?;
        let seen: Value = serde_json::from_slice(&seen.stdout).unwrap_or_default();
        for (index, number) in NODES.iter().enumerate() {
            // A node that is off has no link, and announces nothing.
            let link = Lab::cluster(&["node", &number.to_string(), "ip", "-j", "link", "show", "eth0"]).await;
            let link: Value = serde_json::from_str(&link.unwrap_or_default()).unwrap_or_default();
            if answered && link[0]["address"].is_string() && link[0]["address"] == seen[0]["lladdr"] {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Waits until one announces and goes on to: the one that is `wanted`.
    async fn agreed(&self, wanted: Option<usize>) -> anyhow::Result<usize> {
        let (mut last, mut since) = (None, Instant::now());
        within("MetalLB's speakers to agree", AGREED, async || {
            let now = self.announces().await?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
            let fits = now.is_some() && wanted.is_none_or(|wanted| now == Some(wanted));
            Ok(now.filter(|_| fits && since.elapsed() >= STEADY))
        })
        .await
    }

    fn signal(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.speakers[self.first].as_ref().and_then(Child::id).context("no speaker")?;
        let sent = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).status()?;
        ensure!(sent.success(), "kill -s {name} {pid}: {sent}");
        Ok(())
    }

    /// Has the event happen to the speaker that announces, or to its node,
    /// while the address is probed; and puts right what it broke, under the
    /// probes too but where a node comes back.
    ///
    /// # Errors
    /// When it does not come to an end.
    pub async fn suffer(&mut self, event: Event) -> anyhow::Result<Outage> {
        let (first, other) = (self.first, 1 - self.first);
        let (number, node) = (NODES[first].to_string(), format!("n{}", NODES[first]));
        self.agreed(Some(first)).await?;
        let watch = Watch::begin(self.ip, 80, 53);
        tokio::time::sleep(QUIET).await;
        match event {
            Event::Killed | Event::Deleted => {
                self.signal(if event == Event::Killed { "KILL" } else { "TERM" })?;
                tokio::time::sleep(AWAY).await;
                if let Some(mut speaker) = self.speakers[first].take() {
                    speaker.wait().await?;
                }
                self.speak(first).await?;
            }
            Event::Stopped => {
                self.signal("STOP")?;
                tokio::time::sleep(AWAY).await;
                self.signal("CONT")?;
            }
            Event::NodeDies => {
                Lab::cluster(&["node-stop", &number]).await?;
                self.agreed(Some(other)).await?;
            }
            Event::LinkDown => {
                Lab::cluster(&["lan", "ip", "link", "set", &node, "down"]).await?;
                self.agreed(Some(other)).await?;
                Lab::cluster(&["lan", "ip", "link", "set", &node, "up"]).await?;
            }
            _ => bail!("MetalLB is not measured with this event"),
        }
        if event != Event::NodeDies {
            self.agreed(Some(first)).await?;
        }
        tokio::time::sleep(QUIET).await;
        let outage = watch.end().await;
        if event == Event::NodeDies {
            Lab::cluster(&["node-start", &number]).await?;
            self.speak(first).await?;
        }
        Ok(outage)
    }
}

/// The pod that stands for a node's speaker: it has the node's address, and
/// stays when the node is away.
fn stand_in(number: u32) -> Value {
    json!({
        "metadata": { "name": format!("speaker-n{number}"), "labels": { "app": "speaker" } },
        "spec": {
            "hostNetwork": true,
            "nodeSelector": { "kubernetes.io/hostname": format!("n{number}") },
            "tolerations": [{ "operator": "Exists" }],
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "pause",
                "image": "localhost/pause:1",
                "imagePullPolicy": "IfNotPresent",
            }],
        },
    })
}
