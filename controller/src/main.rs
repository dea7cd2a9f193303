//! The lb-svc controller.

use std::io::IsTerminal;

use clap::Parser;
use tracing_appender::non_blocking::NonBlockingBuilder;
use tracing_subscriber::EnvFilter;

/// Most log lines that wait to be written.
const LOG_LINES: usize = 16_384;

fn main() -> anyhow::Result<()> {
    let args = lb_svc_controller::Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    // Lines that nobody takes are dropped: nothing waits for whoever reads the log.
    let (log, _flushed_at_the_end) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LOG_LINES).finish(std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal).with_writer(log).init();
    lb_svc_controller::panics::abort_unless_contained();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(lb_svc_controller::run(args))
}
