//! One run: objects are read, a screen is made of them and printed.

use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use kube::ResourceExt;
use lb_svc_core::model::ServiceRef;

use crate::cli::{Args, Command, Common, Output, Question};
use crate::cluster::Cluster;
use crate::reader::{Reader, Want};
use crate::screen::Screen;
use crate::view::View;
use crate::{documents, render, screens};

/// The command line is wrong, or nothing could be read.
const FAILED: u8 = 2;

/// Does what the command line asks; the exit code says what came of it.
pub fn run(args: &Args) -> ExitCode {
    let screen = match screen(args) {
        Ok(screen) => screen,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", render::shown(&format!("{error:#}")));
            return ExitCode::from(FAILED);
        }
    };
    let text = match args.common.output {
        Output::Json => render::json(&screen),
        Output::Table => render::text(&screen, has_colours()),
    };
    // Who closes the pipe has seen enough.
    let _ = stdout().write_all(text.as_bytes());
    ExitCode::from(u8::from(screen.fails()))
}

/// Whether standard output is a terminal whose user wants colours (no-color.org).
fn has_colours() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stdout().is_terminal()
        && !is_set("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn screen(Args { command, common }: &Args) -> anyhow::Result<Screen> {
    match command {
        Command::Check { file } => check(file, common),
        Command::Cluster(question) => {
            if let Question::Drain { node, dry_run: false } = question {
                bail!(
                    "this only shows what a drain would move: add --dry-run. To drain the node: kubectl drain {node} --ignore-daemonsets"
                );
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(ask(question, common))
        }
    }
}

fn check(files: &[PathBuf], common: &Common) -> anyhow::Result<Screen> {
    let namespace = common.namespace.as_deref().unwrap_or("default");
    let cluster = documents::read(files, namespace, Timestamp::now())?;
    let is_any = cluster.services.iter().next().is_some() || cluster.subnets.iter().next().is_some();
    ensure!(is_any, "there is no Service and no Subnet to check");
    Ok(screens::check(cluster))
}

async fn ask(question: &Question, common: &Common) -> anyhow::Result<Screen> {
    let reader = Reader::connect(common).await?;
    let namespace = common.namespace.as_deref().unwrap_or(&reader.namespace);
    let (of_context, of_all) = ((!common.all_namespaces).then_some(namespace), common.namespace.as_deref());
    let gateways = Want::Gateways { events: false, lease: false, budgets: false };
    match question {
        Question::Status => {
            let want = Want::Gateways { events: false, lease: true, budgets: false };
            let cluster = reader.read(of_all, &want).await?;
            Ok(screens::status(&View::of(&cluster), of_all))
        }
        Question::Services { problems } => {
            let cluster = reader.read(of_context, &gateways).await?;
            Ok(screens::services(&View::of(&cluster), of_context, *problems))
        }
        Question::Subnets => {
            let cluster = reader.read(None, &Want::Subnets).await?;
            needs(cluster.subnets.is_whole(), &cluster)?;
            Ok(screens::subnets(&View::of(&cluster)))
        }
        Question::Gateways => {
            let want = Want::Gateways { events: true, lease: false, budgets: false };
            let cluster = reader.read(of_context, &want).await?;
            needs(cluster.pods.is_whole(), &cluster)?;
            Ok(screens::gateways(&View::of(&cluster), of_context))
        }
        Question::Trace { service } => {
            let name = match service.split_once('/') {
                Some((namespace, name)) => ServiceRef::checked(namespace, name),
                None => ServiceRef::checked(namespace, service),
            };
            let name =
                name.with_context(|| format!("{service:?} is neither NAME nor NAMESPACE/NAME of a Service"))?;
            let cluster = reader.read(Some(&name.namespace), &Want::Service(name.clone())).await?;
            let service = cluster.services.get(&name.namespace, &name.name);
            Ok(screens::trace(&View::of(&cluster), service.with_context(|| format!("Service {name}"))?))
        }
        Question::Drain { node, .. } => {
            let want = Want::Gateways { events: false, lease: false, budgets: true };
            let cluster = reader.read(of_all, &want).await?;
            needs(cluster.pods.is_whole(), &cluster)?;
            let is_it = cluster.nodes.iter().any(|known| known.name_any() == *node);
            ensure!(is_it || !cluster.nodes.is_whole(), "there is no node {node:?}");
            Ok(screens::drain(&View::of(&cluster), of_all, node))
        }
    }
}

/// Fails where what a screen is about is not seen: an empty one would say that there is
/// none.
fn needs(is_seen: bool, cluster: &Cluster) -> anyhow::Result<()> {
    ensure!(is_seen, "what this shows cannot be listed: {}", cluster.unseen.join("; "));
    Ok(())
}
