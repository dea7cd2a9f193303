//! The lb-svc controller.

use std::io::IsTerminal;

use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    let args = lb_svc_controller::Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal).with_writer(std::io::stderr).init();
    lb_svc_controller::panics::abort_unless_contained();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(lb_svc_controller::run(args))
}
