//! How long an address goes unanswered when something happens to the active
//! one of a gateway's two pods, beside MetalLB where it has the same event.

use std::sync::{Arc, Mutex, PoisonError};

use lb_svc_e2e::failover::{Event, Pair};
use lb_svc_e2e::scene;

use crate::Options;
use crate::metallb::{self, Announced};
use crate::stage::Stage;
use crate::start::millis;
use crate::table::{Goal, Row, median, worst};

/// Runs of each event of MetalLB's: each takes seconds, and they differ little.
const THEIRS: usize = 5;

/// What has to be reached in the middle, where it is asked for.
fn middle(event: Event) -> Goal {
    match event {
        Event::Killed | Event::NodeDies => Goal::AtMost(300.0),
        _ => Goal::None,
    }
}

/// Two rows for each event: the median of its runs, and the worst.
pub async fn measure(stage: &Stage, options: &Options) -> anyhow::Result<Vec<Row>> {
    let theirs = theirs(stage, options).await?;
    let mut rows = Vec::new();
    let (ours, late) = ours(options.failovers).await;
    for (event, ours, lost) in ours {
        let theirs =
            theirs.iter().find(|(theirs, _)| *theirs == event).map(|(_, outages)| outages.as_slice());
        let mut row = |what: &str, of, goal| {
            let beside = if theirs.is_some() { ", over MetalLB's" } else { "" };
            let name = format!("{}: unanswered, {what}{beside}", event.name());
            rows.push(Row::of(of, &name, "ms", &ours, theirs, goal));
        };
        row("median", median, middle(event));
        row("worst", worst, Goal::AtMost(millis(event.worst())));
        let goal = if event.is_planned() { Goal::AtMost(0.0) } else { Goal::None };
        let name = format!("{}: connections of clients lost, in all runs", event.name());
        rows.push(Row::alone(&name, "", lost as f64, goal));
    }
    let name = "frames of the one before, after the next one's first announcement";
    rows.push(Row::alone(name, "", late as f64, Goal::AtMost(0.0)));
    Ok(rows)
}

/// Of each event its outages and the connections lost, and how much was heard of those before, in all.
async fn ours(runs: usize) -> (Vec<(Event, Vec<f64>, usize)>, usize) {
    let all = Arc::new(Mutex::new((Vec::new(), 0)));
    let found = Arc::clone(&all);
    scene("bench-failover", async |scene| {
        let pair = Pair::make(&scene, "web").await;
        for event in Event::ALL {
            let (mut outages, mut broken) = (Vec::new(), 0);
            for run in 1..=runs {
                let seen = pair.suffer(event).await;
                let flows = &seen.flows;
                broken += flows.not_opened + flows.broken;
                let ms = millis(seen.outage.longest);
                let (lost, late) = (seen.outage.lost, seen.late.len());
                eprintln!(
                    "  {run:2}  {}: {ms:.0} ms, {lost} lost, then {} ms, {late} late; of {} connections {} not opened, {} broken, pause {} ms",
                    event.name(),
                    seen.outage.again.as_millis(),
                    flows.opened,
                    flows.not_opened,
                    flows.broken,
                    flows.pause.as_millis()
                );
                outages.push(ms);
                found.lock().unwrap_or_else(PoisonError::into_inner).1 += late;
            }
            found.lock().unwrap_or_else(PoisonError::into_inner).0.push((event, outages, broken));
        }
    })
    .await;
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *all)
}

async fn theirs(stage: &Stage, options: &Options) -> anyhow::Result<Vec<(Event, Vec<f64>)>> {
    let Some(programs) = metallb::programs() else { return Ok(Vec::new()) };
    metallb::install(&programs).await?;
    let mut announced = Announced::make(stage, programs).await?;
    let mut all = Vec::new();
    for event in Event::ALL.into_iter().filter(|event| Announced::knows(*event)) {
        let mut outages = Vec::new();
        for run in 1..=options.failovers.min(THEIRS) {
            let outage = announced.suffer(event).await?;
            let ms = millis(outage.longest);
            eprintln!(
                "  {run:2}  MetalLB, {}: {ms:.0} ms, {} lost, then {} ms",
                event.name(),
                outage.lost,
                outage.again.as_millis()
            );
            outages.push(ms);
        }
        all.push((event, outages));
    }
    announced.end().await?;
    metallb::remove().await?;
    Ok(all)
}
