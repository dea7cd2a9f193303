use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use http::Response;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use lb_svc_crds::gateway::{GatewayConfig, GatewayStatus};
use lb_svc_crds::names;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// How soon a configuration that was not there is looked for again.
const AGAIN: Duration = Duration::from_millis(50);

/// Stand-ins for the gateways of a namespace whose pods no node takes.
///
/// Each gives its pod what kubelet and Multus would, answers as the gateway
/// does, carries its configuration out at once, and reads it anew only when its
/// pod is nudged. So the controller can be tried, and measured, by itself.
pub struct StandIns {
    cast: Arc<Mutex<Cast>>,
    /// They end with this.
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Cast {
    /// By the pod's uid.
    gateways: HashMap<String, Gateway>,
    overlaps: BTreeSet<String>,
    made: u32,
}

struct Gateway {
    pod: String,
    address: Ipv4Addr,
    nudge: String,
    digest: String,
    serves: Vec<IpAddr>,
}

impl StandIns {
    /// Stands in for the gateways in `namespace`.
    ///
    /// # Errors
    /// When the gateways' port is not to be had.
    pub async fn start(client: &Client, namespace: &str) -> io::Result<Self> {
        let cast = Arc::new(Mutex::new(Cast::default()));
        // A pod's address is one of 127.0.0.0/8, so one listener hears for all.
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, names::GATEWAY_PORT)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(answer(listener, Arc::clone(&cast)));
        tasks.spawn(play(client.clone(), namespace.to_owned(), Arc::clone(&cast)));
        Ok(Self { cast, _tasks: tasks })
    }

    /// Who serves each address now, by pod.
    pub fn serving(&self) -> BTreeMap<IpAddr, String> {
        let cast = lock(&self.cast);
        let gateways = cast.gateways.values();
        gateways.flat_map(|gateway| gateway.serves.iter().map(|ip| (*ip, gateway.pod.clone()))).collect()
    }

    /// The addresses that two pods ever served at once.
    pub fn overlaps(&self) -> BTreeSet<String> {
        lock(&self.cast).overlaps.clone()
    }
}

fn lock(cast: &Mutex<Cast>) -> MutexGuard<'_, Cast> {
    cast.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers for every pod at its own address.
async fn answer(listener: TcpListener, cast: Arc<Mutex<Cast>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(at) = stream.local_addr() else { continue };
        let status = lock(&cast).status(at.ip());
        let service = service_fn(move |_| {
            let status = status.clone();
            async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(status)))) }
        });
        tokio::spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn play(client: Client, namespace: String, cast: Arc<Mutex<Cast>>) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let ours = format!("{}={}", names::MANAGED_BY_LABEL, names::MANAGED_BY);
    let mut events = watcher(pods, watcher::Config::default().labels(&ours)).boxed();
    let mut again: Vec<Pod> = Vec::new();
    loop {
        let shown = tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::InitApply(pod) | Event::Apply(pod))) => vec![pod],
                Some(Ok(Event::Delete(pod))) => {
                    lock(&cast).remove(&pod);
                    again.retain(|waiting| waiting.uid() != pod.uid());
                    continue;
                }
                Some(_) => continue,
                None => return,
            },
            () = tokio::time::sleep(AGAIN), if !again.is_empty() => std::mem::take(&mut again),
        };
        for pod in shown {
            if pod.metadata.deletion_timestamp.is_some() {
                lock(&cast).remove(&pod);
            } else if perform(&client, &cast, &pod).await.is_none() {
                again.push(pod);
            }
        }
    }
}

/// Reads the configuration if the pod is new or was nudged; `None` if it is not
/// to be had now.
async fn perform(client: &Client, cast: &Mutex<Cast>, pod: &Pod) -> Option<()> {
    let uid = pod.uid()?;
    let nudge = pod.annotations().get(names::CONFIG_ANNOTATION).cloned().unwrap_or_default();
    let known = lock(cast).gateways.get(&uid).map(|gateway| gateway.nudge.clone());
    if known.as_ref() == Some(&nudge) {
        return Some(());
    }
    let namespace = pod.namespace()?;
    let volumes = pod.spec.as_ref()?.volumes.as_deref()?;
    let config = volumes.iter().find_map(|volume| volume.config_map.as_ref())?;
    let configs: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let config = configs.get(&config.name).await.ok()?.data?.remove(names::CONFIG_KEY)?;
    let (address, mac) = lock(cast).take(uid, pod.name_any(), nudge, &config)?;
    if known.is_some() {
        return Some(());
    }
    let attachment = pod.annotations().get(names::NETWORKS_ANNOTATION)?;
    let report = json!([{ "name": attachment, "interface": "net1", "mac": mac }]).to_string();
    let patch = json!({ "metadata": { "annotations": { names::NETWORK_STATUS_ANNOTATION: report } } });
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let (name, params) = (pod.name_any(), PatchParams::default());
    let reported = pods.patch(&name, &params, &Patch::Merge(patch)).await;
    let status = json!({ "status": {
        "podIP": address,
        "podIPs": [{ "ip": address }],
        "conditions": [{ "type": "Ready", "status": "True" }],
    } });
    let ready = pods.patch_status(&name, &params, &Patch::Strategic(status)).await;
    if reported.and(ready).is_err() {
        lock(cast).remove(pod);
        return None;
    }
    Some(())
}

impl Cast {
    /// The pod has read `config`; its address and its interface's.
    fn take(&mut self, uid: String, pod: String, nudge: String, config: &str) -> Option<(Ipv4Addr, String)> {
        let parsed: GatewayConfig = serde_json::from_str(config).ok()?;
        let serves: Vec<IpAddr> = parsed.addresses.iter().map(|address| address.address).collect();
        let digest = names::digest(config.as_bytes());
        for other in self.gateways.iter().filter(|(other, _)| **other != uid).map(|(_, gateway)| gateway) {
            for ip in serves.iter().filter(|ip| other.serves.contains(ip)) {
                self.overlaps.insert(format!("{ip} on {} and {pod}", other.pod));
            }
        }
        let number = self.gateways.get(&uid).map(|gateway| u32::from(gateway.address));
        let number = number.unwrap_or_else(|| {
            self.made += 1;
            u32::from(Ipv4Addr::new(127, 1, 0, 0)) + self.made
        });
        let address = Ipv4Addr::from(number);
        self.gateways.insert(uid, Gateway { pod, address, nudge, digest, serves });
        let [_, a, b, c] = number.to_be_bytes();
        Some((address, format!("02:00:00:{a:02x}:{b:02x}:{c:02x}")))
    }

    fn remove(&mut self, pod: &Pod) {
        self.gateways.remove(&pod.uid().unwrap_or_default());
    }

    fn status(&self, at: IpAddr) -> String {
        let gateway = self.gateways.values().find(|gateway| IpAddr::V4(gateway.address) == at);
        let status = gateway.map_or_else(GatewayStatus::default, |gateway| GatewayStatus {
            digest: Some(gateway.digest.clone()),
            seen: Some(gateway.digest.clone()),
            addresses: gateway.serves.clone(),
            ..GatewayStatus::default()
        });
        serde_json::to_string(&status).unwrap_or_default()
    }
}
