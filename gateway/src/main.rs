//! The gateway's binary: see [`lb_svc_gateway`].

use clap::Parser;
use lb_svc_gateway::run::{Settings, run};
use lb_svc_gateway::turns;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> std::io::Result<()> {
    let settings = Settings::parse();
    tracing_subscriber::fmt()
        .compact()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .init();
    // All that has to be in time is done on this thread.
    if let Err(error) = turns::ask_for_short_turns() {
        tracing::warn!("on a busy node this process may be late, for it gets no short turns: {error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Process 1 of a container ends by no signal it does not ask for.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = run(settings) => {}
        }
        // The kernel's state stays, and with it the service: the next process
        // takes it over, or it goes with the pod's network namespace.
        tracing::info!("ending; what is programmed stays");
        Ok(())
    })
}
