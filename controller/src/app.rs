//! Wiring: command line, leader election, watches, queue, shutdown.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, ListParams};
use kube::{Client, Config};
use lb_svc_core::gateway::pod_settings::Configuration;
use lb_svc_crds::{IP, Subnet};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};

use crate::api_server::bounded;
use crate::api_server::client::ApiServer;
use crate::api_server::leader::Election;
use crate::api_server::watch;
use crate::cli::Args;
use crate::config_file;
use crate::gateway_client::GatewayClient;
use crate::index::Index;
use crate::reconcile::{Keys, Reconciler, queue};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{health, memory};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a start-up question to the API server may take.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long work that is under way may take when the process is to end.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Runs the controller until it is told to stop.
///
/// # Errors
/// What keeps it from running at all.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let ready: health::Ready = Arc::new(AtomicBool::new(false));
    let index = Arc::new(Mutex::new(Index::new(args.gateway_namespace.clone())));
    let metrics = Arc::new(Metrics::default());
    let mut registry = Registry::default();
    metrics.register(&mut registry, &index);
    let server = tokio::spawn(health::serve(args.listen, Arc::clone(&ready), registry));
    let stopped = stop_signal()?;

    let work = async {
        if !args.enable_lb_svc {
            tracing::info!("--enable-lb-svc is off: nothing is written, gateways that run serve on");
            ready.store(true, Ordering::Relaxed);
            stopped.await;
            return Ok(());
        }
        lead(args, &index, metrics, &ready, stopped).await
    };
    tokio::select! {
        done = work => done,
        () = memory::watch() => Ok(()),
        served = server => match served {
            Ok(Err(error)) => Err(error).context("serving health and metrics"),
            _ => bail!("the health server ended"),
        },
    }
}

/// Resolves at SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    })
}

async fn lead(
    args: Args,
    index: &Arc<Mutex<Index>>,
    metrics: Arc<Metrics>,
    ready: &health::Ready,
    stopped: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let apart = args.gateway_namespace.is_some();
    let configuration = match &args.config {
        Some(file) => config_file::load(file, &args.gateway_image, apart)?,
        None => Configuration::new(&args.gateway_image, apart),
    };
    let configuration = Configuration { nat_backend: args.nat_backend, ..configuration };
    let mut config = Config::infer().await.context("no way to reach an API server")?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(Duration::from_secs(u64::from(watch::WATCH_SECONDS)) + CONNECT_TIMEOUT);
    let client = bounded::client(config)?;
    check_cluster(&client).await?;

    let api_server = ApiServer::new(client.clone(), args.name.clone());
    let signing = api_server.signing_keys(&args.namespace).await.context(
        "the keys that gateways' configurations are signed with: see that manifests/controller is applied as a whole",
    )?;
    index.lock().unwrap_or_else(PoisonError::into_inner).trust(&signing.trusted());

    let (queue, mut requests) = queue::queue();
    let synced = watch::start(&client, index, &queue, args.gateway_namespace.as_deref());
    for mut synced in synced {
        synced.wait_for(|synced| *synced).await.context("a watch ended")?;
    }
    // A standby is ready too: it has seen the cluster.
    ready.store(true, Ordering::Relaxed);

    let mut election = Election::stand(client, args.namespace.clone(), args.name.clone()).await?;
    let mut stopped = std::pin::pin!(stopped);
    let led = tokio::select! {
        () = &mut stopped => false,
        led = election.led() => led.map(|()| true)?,
        // A standby has no use for what changes; the first run looks at all.
        () = async { while requests.recv().await.is_some() {} } => bail!("every watch ended"),
    };
    let mut lost = false;
    if led {
        tracing::info!(name = args.name, "leading");
        metrics.lead();
        let reconciler = Reconciler::new(
            Arc::clone(index),
            configuration,
            api_server,
            GatewayClient::default(),
            metrics,
            queue.clone(),
            Keys::new(args.namespace, signing),
        );
        queue.extend(index.lock().unwrap_or_else(PoisonError::into_inner).keys());
        let stop = async {
            tokio::select! {
                () = &mut stopped => STOP_WITHIN,
                () = election.lost() => {
                    lost = true;
                    Duration::ZERO
                }
            }
        };
        tokio::select! {
            () = queue::run(requests, queue, stop, |key, cause| reconciler.run(key, cause)) => {}
            () = reconciler.keep_master() => {}
        }
    }

    election.leave().await;
    if lost {
        bail!("lost the Lease: another controller leads now");
    }
    Ok(())
}

/// The oldest minor version of Kubernetes 1 whose API server takes what is written:
/// the CRDs' validation rules use CEL's `isIP`, `isCIDR` and `cidr()`, a Service's
/// status `ipMode`.
const KUBERNETES_MINOR: u32 = 31;

/// Fails below the oldest version that will do. `minor` is that of `/version`, and
/// may end in a plus; a version that cannot be read is believed to do.
fn check_version(major: &str, minor: &str) -> anyhow::Result<()> {
    let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok();
    match digits(major).zip(digits(minor)) {
        Some(version) if version < (1, KUBERNETES_MINOR) => bail!(
            "the API server is Kubernetes {major}.{minor}, and lb-svc needs 1.{KUBERNETES_MINOR} or newer: \
             upgrade the cluster"
        ),
        Some(_) => Ok(()),
        None => {
            tracing::warn!(
                major,
                minor,
                "the API server's version cannot be read; 1.{KUBERNETES_MINOR} or newer is needed"
            );
            Ok(())
        }
    }
}

/// What must be so before anything is written.
async fn check_cluster(client: &Client) -> anyhow::Result<()> {
    match tokio::time::timeout(STARTUP_TIMEOUT, client.apiserver_version()).await {
        Ok(Ok(version)) => check_version(&version.major, &version.minor)?,
        Ok(Err(error)) => tracing::warn!(%error, "the API server does not say its version"),
        Err(_) => bail!("the API server does not answer"),
    }
    let one = ListParams::default().limit(1);
    let missing =
        "our CustomResourceDefinitions are missing or not readable: kubectl apply -k manifests/crds";
    let asked = async {
        Api::<Subnet>::all(client.clone()).list_metadata(&one).await.context(missing)?;
        Api::<IP>::all(client.clone()).list_metadata(&one).await.context(missing)?;
        Api::<Deployment>::namespaced(client.clone(), "kube-system")
            .get_metadata_opt("kube-ovn-controller")
            .await
            .context("looking for Kube-OVN")
    };
    let kube_ovn =
        tokio::time::timeout(STARTUP_TIMEOUT, asked).await.context("the API server does not answer")??;
    if kube_ovn.is_some() {
        bail!(
            "Kube-OVN's controller runs in this cluster on the same CustomResourceDefinitions \
             and would collect our claims: use one of the two"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r38_api_server_below_the_oldest_version_is_refused_with_both_versions() {
        for (major, minor) in [("1", "31"), ("1", "34+"), ("2", "0"), ("1", ""), ("", "")] {
            assert!(check_version(major, minor).is_ok(), "{major}.{minor}");
        }
        for (major, minor) in [("1", "30"), ("1", "28+"), ("0", "99")] {
            let said = check_version(major, minor).unwrap_err().to_string();
            assert!(said.contains(&format!("{major}.{minor}")) && said.contains("1.31"), "{said}");
        }
    }
}
