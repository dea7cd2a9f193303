//! The flags of the gateway's binary.

use std::path::PathBuf;

use lb_svc_crds::names;
use lb_svc_crds::seal::PublicKey;

/// The flags, as `--help` shows them.
#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "lb-svc-gateway",
    version,
    about = "Owns LoadBalancer addresses on a pod's second interface and forwards what they serve"
)]
pub struct Cli {
    /// Directory of the gateway's configuration, a mounted ConfigMap.
    #[arg(long, env = "LB_SVC_CONFIG_DIR", default_value = names::CONFIG_DIR)]
    pub config_dir: PathBuf,
    /// Directory of Multus's network-status, a downward-API volume.
    #[arg(long, env = "LB_SVC_POD_INFO_DIR", default_value = names::POD_INFO_DIR)]
    pub pod_info_dir: PathBuf,
    /// Directory of the election's key, a mounted Secret; a pod without it has no election.
    #[arg(long, env = "LB_SVC_KEY_DIR", default_value = names::KEY_DIR)]
    pub key_dir: PathBuf,
    /// The gateway's id, for which its configuration has to be signed.
    #[arg(long, env = names::GATEWAY_ID_VARIABLE, default_value = "")]
    pub gateway_id: String,
    /// The public keys, separated by commas, one of which has to have signed the
    /// configuration; without any, it need not be signed.
    #[arg(long, env = names::TRUSTED_KEYS_VARIABLE, value_delimiter = ',')]
    pub trusted_keys: Vec<PublicKey>,
    /// Directory where the configuration that was last pushed is kept; without it none can
    /// be pushed.
    #[arg(long, env = "LB_SVC_STATE_DIR", default_value = names::STATE_DIR)]
    pub state_dir: PathBuf,
    /// TCP port of /readyz, /status, /metrics and /config on the pod's address.
    #[arg(long, env = "LB_SVC_PORT", default_value_t = names::GATEWAY_PORT)]
    pub port: u16,
}
