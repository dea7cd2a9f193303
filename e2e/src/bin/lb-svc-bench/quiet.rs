//! What an election costs while nothing happens, and whether addresses stay
//! where they are: on a quiet machine, and on one that others keep busy.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use lb_svc_crds::gateway::GatewayConfig;
use lb_svc_crds::names;
use lb_svc_e2e::capture::{self, Ear};
use lb_svc_e2e::objects::{PROVIDER, backends, elsewhere, on_the_first_node, port, service};
use lb_svc_e2e::outage::{Outage, Watch};
use lb_svc_e2e::{SLOW, Scene, scene, serves, without_controller};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::gateways::pair;
use crate::stage::{process, within};
use crate::table::{Goal, Row};
use crate::{Options, start::millis};

/// The intervals tried, in milliseconds, and the one that gateways have.
const INTERVALS: [u16; 4] = [25, 50, 100, 200];
const DEFAULT: u16 = lb_svc_crds::gateway::ADVERTISEMENT_INTERVAL_MS;
/// For how long the heartbeat's costs are counted.
const COUNTED: Duration = Duration::from_secs(30);
/// Ordinary processes that keep a core busy, for each core.
const HOGS: usize = 2;
/// The election's frames (IEEE 802, local experimental).
const ETHERTYPE: u16 = 0x88b5;

/// The rows that are asked for.
pub async fn measure(options: &Options) -> anyhow::Result<Vec<Row>> {
    let rows = Arc::new(Mutex::new(Ok(Vec::new())));
    let found = Arc::clone(&rows);
    scene("bench-quiet", async |scene| {
        let measured = on(&scene, options).await;
        *found.lock().unwrap_or_else(PoisonError::into_inner) = measured;
    })
    .await;
    let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::replace(&mut *rows, Ok(Vec::new()))
}

async fn on(scene: &Arc<Scene>, options: &Options) -> anyhow::Result<Vec<Row>> {
    let mut workload = backends("web", 1, &["tcp/80", "udp/53"]);
    on_the_first_node(&mut workload);
    scene.create::<Deployment>(workload).await;
    let mut names = vec![("alone".to_owned(), 1)];
    names.extend(INTERVALS.map(|interval| (pair_name(interval), 2)));
    for (name, replicas) in &names {
        let mut object = service(name, &json!([port("TCP", 80, 80), port("UDP", 53, 53)]));
        object["spec"]["selector"] = json!({ "app": "web" });
        elsewhere(&mut object, *replicas);
        scene.create::<Service>(object).await;
    }
    for (name, _) in &names {
        serves(scene.address(name).await).await;
    }
    terms(scene).await?;
    // It would set the intervals right.
    without_controller(&scene.lab, async || {
        for interval in INTERVALS {
            set(scene, interval).await.with_context(|| format!("an interval of {interval} ms"))?;
        }
        let mut rows = Vec::new();
        if options.wants("heartbeat") {
            eprintln!("heartbeat: what an election costs, {COUNTED:?}");
            rows.extend(heartbeat(scene).await?);
        }
        let time = Duration::from_secs(if options.quick { 10 } else { options.minutes * 60 });
        let long = if options.quick { "10 s".to_owned() } else { format!("{} min", options.minutes) };
        if options.wants("quiet") {
            eprintln!("quiet: nothing happens, {long}");
            let (outage, moves) = watched(scene, time).await?;
            rows.push(Row::alone(
                &format!("Nothing happens, {long}: probes lost of {}", outage.sent),
                "",
                outage.lost as f64,
                Goal::AtMost(0.0),
            ));
            rows.extend(moved(&format!("Nothing happens, {long}"), &moves));
        }
        if options.wants("busy") {
            let hogs = hogs()?;
            eprintln!("busy: {} processes that never wait, {long}", hogs.len());
            let (outage, moves) = watched(scene, time).await?;
            drop(hogs);
            eprintln!("  {} of {} probes lost, {:?} at a time", outage.lost, outage.sent, outage.longest);
            rows.extend(moved(&format!("Every core busy, {long}"), &moves));
        }
        Ok(rows)
    })
    .await
}

fn pair_name(interval: u16) -> String {
    format!("every-{interval}")
}

/// Gives a gateway another interval, as a controller would.
async fn set(scene: &Arc<Scene>, interval: u16) -> anyhow::Result<()> {
    let service = pair_name(interval);
    let name = format!("lb-svc-{service}");
    let configs = scene.api::<ConfigMap>();
    let text = configs.get(&name).await?.data.and_then(|mut data| data.remove(names::CONFIG_KEY));
    let text = text.context("no configuration")?;
    let mut config: GatewayConfig = serde_json::from_str(&text)?;
    config.election.as_mut().context("no election")?.interval_ms = interval;
    let wanted = serde_json::to_string(&config)?;
    if serde_json::from_str::<GatewayConfig>(&text)? == config {
        return Ok(());
    }
    let digest = names::digest(wanted.as_bytes());
    let patch = json!({ "data": { names::CONFIG_KEY: wanted } });
    configs.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    for pod in scene.gateways(&service).await {
        let mut attempt = 0;
        within("a gateway to have another interval", SLOW, async || {
            attempt += 1;
            let patch =
                json!({ "metadata": { "annotations": { "lb-svc-bench/nudge": attempt.to_string() } } });
            let pods = scene.api::<Pod>();
            pods.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
            tokio::time::sleep(Duration::from_millis(250)).await;
            Ok((scene.status(&pod).await?.digest.as_ref() == Some(&digest)).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// How often each gateway's addresses were taken over, once it has an active
/// pod and a standby.
async fn terms(scene: &Arc<Scene>) -> anyhow::Result<[u64; INTERVALS.len()]> {
    let mut terms = [0; INTERVALS.len()];
    for (term, interval) in terms.iter_mut().zip(INTERVALS) {
        let name = pair_name(interval);
        *term = within(&format!("two gateways of {name}"), SLOW, async || {
            let pair = pair(scene, &name).await.ok().flatten();
            Ok(pair.map(|[(_, active), (_, standby)]| active.term.max(standby.term)))
        })
        .await?;
    }
    Ok(terms)
}

/// For a while: what probes of the default gateway saw, and how often each
/// gateway's addresses moved.
async fn watched(scene: &Arc<Scene>, time: Duration) -> anyhow::Result<(Outage, [u64; INTERVALS.len()])> {
    let ip = scene.address(&pair_name(DEFAULT)).await;
    let before = terms(scene).await?;
    let watch = Watch::begin(ip, 80, 53);
    tokio::time::sleep(time).await;
    let outage = watch.end().await;
    let mut moves = terms(scene).await?;
    for (moves, before) in moves.iter_mut().zip(before) {
        *moves = moves.saturating_sub(before);
    }
    Ok((outage, moves))
}

/// A row for each interval; the default's has to stay.
fn moved(what: &str, moves: &[u64]) -> Vec<Row> {
    let rows = INTERVALS.iter().zip(moves).map(|(interval, moves)| {
        let goal = if *interval == DEFAULT { Goal::AtMost(0.0) } else { Goal::None };
        Row::alone(&format!("{what}: needless moves, interval of {interval} ms"), "", *moves as f64, goal)
    });
    rows.collect()
}

/// Ordinary processes that want all the time there is. They end with what is
/// returned, and by themselves if this process cannot end them.
fn hogs() -> anyhow::Result<Vec<Child>> {
    let cores = std::thread::available_parallelism()?.get();
    let hog = || {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -t 1200; while :; do :; done"]).stdin(Stdio::null()).kill_on_drop(true);
        command.spawn().context("a busy process")
    };
    (0..cores * HOGS).map(|_| hog()).collect()
}

/// The processor time of an active pod and of a standby beside a pod that is
/// alone, and the frames they send.
async fn heartbeat(scene: &Arc<Scene>) -> anyhow::Result<Vec<Row>> {
    let name = pair_name(DEFAULT);
    let pair = pair(scene, &name).await?.context("no two gateways")?;
    let [active, standby] = pair.map(|(pod, _)| pod);
    let alone = scene.gateway("alone").await;
    let groups = [cgroup(&active)?, cgroup(&standby)?, cgroup(&alone)?];
    let macs = [mac(&active), mac(&standby)];
    let ear = hear_election(macs.map(String::from))?;
    let begun = Instant::now();
    let before = [usage(&groups[0])?, usage(&groups[1])?, usage(&groups[2])?];
    tokio::time::sleep(COUNTED).await;
    let seconds = begun.elapsed().as_secs_f64();
    let frames = ear.end().len() as f64 / seconds;
    let mut spent = [0.0; 3];
    for ((spent, group), before) in spent.iter_mut().zip(&groups).zip(before) {
        *spent = millis(usage(group)?.saturating_sub(before)) / seconds;
    }
    let [active, standby, alone] = spent;
    let row = |what: &str, spent: f64| {
        let name = format!("Heartbeat of {DEFAULT} ms: CPU of the {what} pod, over a gateway of one pod");
        Row::new(&name, "ms/s", &[spent], &[alone], Goal::None)
    };
    let name = format!("Heartbeat of {DEFAULT} ms: frames of two pods");
    Ok(vec![row("active", active), row("standby", standby), Row::alone(&name, "/s", frames, Goal::None)])
}

fn mac(pod: &Pod) -> &str {
    let key = format!("{PROVIDER}.kubernetes.io/mac_address");
    pod.annotations().get(&key).map(String::as_str).unwrap_or_default()
}

/// The file with the processor time that a gateway's container has used: of
/// version 2 of the cgroups, or of version 1.
fn cgroup(pod: &Pod) -> anyhow::Result<PathBuf> {
    let text = std::fs::read_to_string(process(pod, "lb-svc-gateway")?.join("cgroup"))?;
    let mut lines = text.lines().filter_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let group = group.trim_start_matches('/');
        match controllers {
            "" => Some(Path::new("/sys/fs/cgroup").join(group).join("cpu.stat")),
            _ if controllers.split(',').any(|name| name == "cpuacct") => {
                Some(Path::new("/sys/fs/cgroup").join(controllers).join(group).join("cpuacct.usage"))
            }
            _ => None,
        }
    });
    lines.find(|file| file.exists()).context("the container's cgroup says nothing of processor time")
}

fn usage(file: &Path) -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string(file)?;
    Ok(match text.lines().find_map(|line| line.strip_prefix("usage_usec ")) {
        Some(micros) => Duration::from_micros(micros.trim().parse()?),
        None => Duration::from_nanos(text.trim().parse()?),
    })
}

/// Hears the election's frames from some hardware addresses, as the client does.
fn hear_election(macs: [String; 2]) -> anyhow::Result<Ear<()>> {
    ensure!(macs.iter().all(|mac| !mac.is_empty()), "a gateway without a hardware address");
    let of_them = move |frame: &[u8]| macs.contains(&capture::source(frame)?).then_some(());
    Ok(Ear::open(ETHERTYPE, of_them)?)
}
