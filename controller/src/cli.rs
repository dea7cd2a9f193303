//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use lb_svc_crds::gateway::NatBackend;

/// LoadBalancer Services on any layer-2 network: claims their addresses and
/// runs a gateway for each.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Serve LoadBalancer Services. Off, nothing is written, and gateways that
    /// run serve on.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub enable_lb_svc: bool,

    /// A file with settings for all gateways, YAML or JSON; it is read at
    /// start.
    #[arg(long)]
    pub config: Option<PathBuf>,

    /// The gateway's image, unless the configuration names another.
    #[arg(long, env = "GATEWAY_IMAGE", default_value = "localhost/lb-svc-gateway:dev")]
    pub gateway_image: String,

    /// What programs the NAT of gateways whose Service does not say: iptables
    /// or nftables.
    #[arg(long, default_value = "iptables")]
    pub nat_backend: NatBackend,

    /// The namespace for all gateways; without it each is in its Service's. The
    /// controller then needs its rights over ConfigMaps and Deployments, and to
    /// annotate pods, in that namespace only.
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub gateway_namespace: Option<String>,

    /// Where to serve /healthz, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// The namespace of the leader's Lease: the controller's own.
    #[arg(long, env = "POD_NAMESPACE", default_value = "lb-svc-system")]
    pub namespace: String,

    /// This process's name in the Lease and on Events.
    #[arg(long, env = "POD_NAME", default_value = "lb-svc-controller")]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_is_off_unless_enabled() {
        let parse =
            |args: &[&str]| Args::try_parse_from([&["controller"], args].concat()).unwrap().enable_lb_svc;
        assert!(!parse(&[]));
        assert!(parse(&["--enable-lb-svc"]));
        assert!(parse(&["--enable-lb-svc=true"]));
        assert!(!parse(&["--enable-lb-svc=false"]));
    }
}
