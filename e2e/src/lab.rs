use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long any one command may take.
const COMMAND: Duration = Duration::from_secs(120);

/// The cluster under test.
#[derive(Clone)]
pub struct Lab {
    /// A client with all rights.
    pub client: Client,
}

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cluster/cluster.sh")
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl Lab {
    /// The cluster that `cluster.sh up` made.
    ///
    /// # Errors
    /// When there is none.
    pub async fn connect() -> anyhow::Result<Self> {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let path = Self::cluster(&["kubeconfig"]).await.context("no cluster: make cluster-up")?;
        let kubeconfig = Kubeconfig::read_from(path.trim())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self { client: Client::try_from(config)? })
    }

    /// Whether the cluster is the local one, whose nodes are namespaces of
    /// this machine.
    pub fn is_local() -> bool {
        std::env::var("CLUSTER").as_deref() != Ok("kind")
    }

    /// The name of the node that has the control plane, and that tests never
    /// stop.
    pub fn first_node() -> &'static str {
        if Self::is_local() { "n1" } else { "lb-svc-control-plane" }
    }

    /// `cluster.sh ARGS`; what it printed.
    ///
    /// # Errors
    /// With what it said, if it failed.
    pub async fn cluster(args: &[&str]) -> anyhow::Result<String> {
        let output = Self::output(Command::new(script()).args(args), None).await?;
        if !output.status.success() {
            bail!("cluster.sh {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What `cluster.sh` calls the node of this name.
    ///
    /// # Panics
    /// If it is no name of the local cluster's, nor of kind's.
    pub fn number(node: &str) -> String {
        let number = |text: &str| text.parse::<u32>().ok();
        let local = node.strip_prefix('n').and_then(number);
        let kind = || match node.strip_prefix("lb-svc-")? {
            "control-plane" => Some(1),
            "worker" => Some(2),
            worker => Some(number(worker.strip_prefix("worker")?)? + 1),
        };
        let number = local.or_else(kind).unwrap_or_else(|| panic!("{node} is no node of the cluster"));
        number.to_string()
    }

    /// `kubectl ARGS`; what it printed.
    ///
    /// # Errors
    /// With what it said, if it failed.
    pub async fn kubectl(args: &[&str]) -> anyhow::Result<String> {
        Self::cluster(&[&["kubectl"], args].concat()).await
    }

    /// `kubectl apply -f -` of `manifest`.
    ///
    /// # Errors
    /// With what it said, if it failed.
    pub async fn apply(manifest: &str) -> anyhow::Result<()> {
        let mut command = Command::new(script());
        command.args(["kubectl", "apply", "-f", "-"]);
        let output = Self::output(&mut command, Some(manifest)).await?;
        if !output.status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    async fn output(command: &mut Command, input: Option<&str>) -> anyhow::Result<Output> {
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(input.as_bytes()).await?;
        }
        tokio::time::timeout(COMMAND, child.wait_with_output())
            .await
            .context("the command hangs")?
            .map_err(Into::into)
    }

    /// Runs a command in a pod's only container.
    ///
    /// # Errors
    /// With what it said, if it failed.
    pub async fn exec(namespace: &str, pod: &str, command: &[&str]) -> anyhow::Result<String> {
        Self::kubectl(&[&["exec", "-n", namespace, pod, "--"], command].concat()).await
    }

    /// The processes in the containers of the pod with this uid: on the local
    /// cluster and on kind, a node's processes are processes of this machine.
    pub fn processes(pod_uid: &str) -> Vec<u32> {
        let dashes = pod_uid.replace('-', "_");
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            cgroup.contains(pod_uid) || cgroup.contains(&dashes)
        })
        .collect()
    }

    /// Kills, without notice, the process of this name in the pod.
    ///
    /// # Errors
    /// When there is none.
    pub async fn kill(pod_uid: &str, name: &str) -> anyhow::Result<()> {
        Self::signal(pod_uid, name, "KILL").await
    }

    /// Sends a signal (`KILL`, `STOP`, ...) to the process of this name in the
    /// pod.
    ///
    /// # Errors
    /// When there is none.
    pub async fn signal(pod_uid: &str, name: &str, signal: &str) -> anyhow::Result<()> {
        for pid in Self::processes(pod_uid) {
            // The kernel cuts names off after 15 bytes.
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if !comm.trim().is_empty() && name.starts_with(comm.trim()) {
                let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().await?;
                return if status.success() { Ok(()) } else { bail!("kill -s {signal} {pid}: {status}") };
            }
        }
        bail!("pod {pod_uid} has no process {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::Lab;

    #[test]
    fn node_is_numbered_by_its_name_on_either_cluster() {
        for (name, number) in [
            ("n1", "1"),
            ("n3", "3"),
            ("lb-svc-control-plane", "1"),
            ("lb-svc-worker", "2"),
            ("lb-svc-worker2", "3"),
        ] {
            assert_eq!(Lab::number(name), number);
        }
    }
}
