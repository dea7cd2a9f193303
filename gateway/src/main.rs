//! The gateway's binary: see [`lb_svc_gateway`].

use clap::Parser;
use lb_svc_gateway::agent::{self, scheduling};
use lb_svc_gateway::cli::Cli;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> std::io::Result<()> {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .compact()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .init();
    // Everything with deadlines runs on this thread.
    if let Err(error) = scheduling::request_short_slice() {
        tracing::warn!(%error, "no short scheduling slice: the process may be late on a busy node");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Process 1 of a container ends only by signals that it handles.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = agent::run(cli) => {}
        }
        // The kernel's state stays, and with it the service: the next process takes it
        // over, or it goes with the pod's network namespace.
        tracing::info!("terminating: the kernel's state stays");
        Ok(())
    })
}
