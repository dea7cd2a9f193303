//! The kubectl plugin `kubectl lb-svc`.

use std::process::ExitCode;

use clap::Parser;
use kubectl_lb_svc::cli::Args;
use kubectl_lb_svc::run;

fn main() -> ExitCode {
    run::run(&Args::parse())
}
