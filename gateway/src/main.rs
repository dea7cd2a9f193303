//! The gateway's binary: see [`lb_svc_gateway`].

use std::pin::pin;

use clap::Parser;
use lb_svc_gateway::cli::Cli;
use lb_svc_gateway::{agent, scheduling};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_appender::non_blocking::NonBlockingBuilder;
use tracing_subscriber::EnvFilter;

/// Most log lines that wait to be written.
const LOG_LINES: usize = 4096;

fn main() -> std::io::Result<()> {
    let cli = Cli::parse();
    // Lines that nobody takes are dropped: no thread waits for whoever reads the log.
    let (log, _flushed_at_the_end) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LOG_LINES).finish(std::io::stderr());
    tracing_subscriber::fmt()
        .compact()
        .with_writer(log)
        .with_ansi(false)
        .with_target(false)
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .init();
    // Checks and probes have deadlines; the election has a thread of its own.
    if let Err(error) = scheduling::request_short_slice() {
        tracing::warn!(%error, "no short scheduling slice: the process may be late on a busy node");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        // Process 1 of a container ends only by signals that it handles.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (end, told) = watch::channel(false);
        let mut agent = pin!(agent::run(cli, told));
        // Told a second time, it ends at once.
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = &mut agent => break,
            }
            end.send_replace(true);
        }
        // The kernel's state stays, and with it the service: the next process takes it
        // over, or it goes with the pod's network namespace.
        tracing::info!("terminating: the kernel's state stays");
        Ok(())
    });
    // What other threads wait for, the kernel or a program, is not waited for.
    runtime.shutdown_background();
    ended
}
