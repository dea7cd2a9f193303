use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Stdio;

use futures::FutureExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::{Lab, SLOW, expect, until};

const SYSTEM: &str = "lb-svc-system";

/// A controller of a test's own: a process beside the cluster.
pub struct Controller {
    child: Child,
    /// Where it serves its health and metrics, on 127.0.0.1.
    pub port: u16,
}

impl Controller {
    /// Starts the program that the variable `LB_SVC_CONTROLLER` names, with
    /// this kubeconfig. It ends with what is returned.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn start(kubeconfig: &Path) -> io::Result<Self> {
        Self::start_with(kubeconfig, None)
    }

    /// The same, with this configuration.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn start_with(kubeconfig: &Path, configuration: Option<&Path>) -> io::Result<Self> {
        let program = std::env::var_os("LB_SVC_CONTROLLER")
            .ok_or_else(|| io::Error::other("LB_SVC_CONTROLLER does not say where the controller is"))?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned());
        let child = Command::new(program)
            .arg("--enable-lb-svc=true")
            // The name stays, so that the next one need not wait for the Lease.
            .args(["--name=beside", "--namespace", SYSTEM])
            .arg(format!("--listen=127.0.0.1:{port}"))
            .args(configuration.map(|file| format!("--config={}", file.display())))
            .env("KUBECONFIG", kubeconfig)
            .env("RUST_LOG", log)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child, port })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Kills it, and waits for its end.
    ///
    /// # Errors
    /// When it cannot be.
    pub async fn kill(mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// Asks it to stop, and waits for its end.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn stop(mut self) -> io::Result<()> {
        Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().await?;
        self.child.wait().await.map(drop)
    }
}

/// The cluster's controllers, those on their way out aside.
///
/// # Panics
/// If the API server does not say.
pub async fn controllers(lab: &Lab) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(lab.client.clone(), SYSTEM);
    let pods = pods.list(&ListParams::default().labels("app=lb-svc-controller")).await;
    let pods = pods.unwrap_or_else(|error| panic!("listing the controllers: {error}")).items;
    pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
}

/// Runs `test` with no controller in the cluster and no node that takes pods;
/// in any case both are back afterwards.
///
/// # Panics
/// As the test does.
pub async fn without_controller<T>(lab: &Lab, test: impl AsyncFnOnce() -> T) -> T {
    scale_controller(lab, 0).await;
    close_nodes(lab, true).await;
    let outcome = AssertUnwindSafe(Box::pin(test())).catch_unwind().await;
    with_controller(lab).await;
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Has the controller in the cluster and the nodes as they usually are.
///
/// # Panics
/// If that cannot be.
pub async fn with_controller(lab: &Lab) {
    close_nodes(lab, false).await;
    scale_controller(lab, 1).await;
}

/// Sets how many controllers run in the cluster, and if none, waits until none
/// does.
///
/// # Panics
/// If it cannot be set.
pub async fn scale_controller(lab: &Lab, replicas: u32) {
    let deployments: Api<Deployment> = Api::namespaced(lab.client.clone(), SYSTEM);
    let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    let scaled = deployments.patch("lb-svc-controller", &PatchParams::default(), &patch).await;
    scaled.unwrap_or_else(|error| panic!("scaling the controller: {error}"));
    if replicas == 0 {
        until("the controller to be away", SLOW, async || {
            let pods: Api<Pod> = Api::namespaced(lab.client.clone(), SYSTEM);
            let left = pods.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            expect(left.items.is_empty(), left.items.len())
        })
        .await;
    }
}

async fn close_nodes(lab: &Lab, closed: bool) {
    let nodes: Api<Node> = Api::all(lab.client.clone());
    let list = nodes.list(&ListParams::default()).await;
    let patch = Patch::Merge(json!({ "spec": { "unschedulable": closed } }));
    for node in list.unwrap_or_else(|error| panic!("listing nodes: {error}")).items {
        let patched = nodes.patch(&node.name_any(), &PatchParams::default(), &patch).await;
        patched.unwrap_or_else(|error| panic!("node {}: {error}", node.name_any()));
    }
}
