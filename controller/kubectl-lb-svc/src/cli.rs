//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// What lb-svc does in this cluster, and why not: from objects alone.
///
/// Exit codes: 0 all is well; 1 there is trouble, as said; 2 the command line is
/// wrong, a file cannot be read, or the API server does not answer.
#[derive(Debug, Parser)]
#[command(name = "kubectl-lb_svc", bin_name = "kubectl lb-svc", version)]
pub struct Args {
    /// What is asked.
    #[command(subcommand)]
    pub command: Command,
    /// Of which cluster and namespace, and in which form.
    #[command(flatten)]
    pub common: Common,
}

/// What is asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Of a cluster.
    #[command(flatten)]
    Cluster(Question),
    /// Decide offline what would become of the objects in files, as the controller does.
    Check {
        /// YAML or JSON; "-" is standard input.
        #[arg(short, long = "filename", required = true)]
        file: Vec<PathBuf>,
    },
}

/// What is asked of a cluster.
#[derive(Debug, Subcommand)]
pub enum Question {
    /// Show on one screen whether all is well; fail if it is not.
    Status,
    /// List Services, their addresses, and whether they are served.
    Services {
        /// Only those that are not served, or less well than they should be; fail if
        /// there are any.
        #[arg(long)]
        problems: bool,
    },
    /// List Subnets, and what is left of them.
    Subnets,
    /// List gateways: which pod is active, since when, and why.
    Gateways,
    /// Follow one Service from its claim to its last announcement, what is wrong first.
    Trace {
        /// The Service, NAME or NAMESPACE/NAME.
        service: String,
    },
    /// Show what draining a node would move. It moves nothing: kubectl drain does.
    Drain {
        /// The node.
        node: String,
        /// Only show; required, as nothing else is done.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Of which cluster and namespace, and in which form.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// Services of this namespace; by default those of the context's, and with
    /// status, subnets and drain those of all.
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Services of all namespaces.
    #[arg(short = 'A', long, global = true, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// The context of the kubeconfig; by default the current one.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The kubeconfig; by default KUBECONFIG, ~/.kube/config, or the pod's own account.
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// The form.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub output: Output,
}

/// The form of what is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables for people.
    Table,
    /// JSON, for programs.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn namespace_and_all_namespaces_exclude_each_other() {
        let parse = |args: &[&str]| Args::try_parse_from([&["kubectl-lb_svc"], args].concat());
        assert!(parse(&["services", "-n", "shop"]).is_ok());
        assert!(parse(&["-n", "shop", "services", "-o", "json"]).is_ok());
        assert!(parse(&["services", "-A", "-n", "shop"]).is_err());
        assert!(parse(&["check"]).is_err(), "there is nothing to check");
        assert!(parse(&["status", "-o", "yaml"]).is_err());
    }
}
