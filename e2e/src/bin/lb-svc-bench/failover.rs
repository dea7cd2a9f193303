//! How long an address goes unanswered when something happens to the active
//! one of a gateway's two pods.

use std::sync::{Arc, Mutex};

use lb_svc_e2e::failover::{Event, Pair};
use lb_svc_e2e::scene;

use crate::table::{Goal, Row, median};

/// What has to be reached in the middle, where it is asked for.
fn middle(event: Event) -> Goal {
    match event {
        Event::Killed | Event::NodeDies => Goal::AtMost(300.0),
        _ => Goal::None,
    }
}

/// Two rows for each event: the median of its runs, and the worst.
pub async fn measure(runs: usize) -> anyhow::Result<Vec<Row>> {
    let rows = Arc::new(Mutex::new(Vec::new()));
    let found = Arc::clone(&rows);
    scene("bench-failover", async |scene| {
        let pair = Pair::make(&scene, "web").await;
        for event in Event::ALL {
            let mut outages = Vec::new();
            for run in 1..=runs {
                let seen = pair.suffer(event).await;
                let ms = seen.outage.longest.as_secs_f64() * 1000.0;
                let (lost, late) = (seen.outage.lost, seen.late.len());
                eprintln!(
                    "  {run:2}  {}: {ms:.0} ms, {lost} lost, then {} ms, {late} late",
                    event.name(),
                    seen.outage.again.as_millis()
                );
                outages.push(ms);
            }
            let worst = outages.iter().copied().fold(0.0, f64::max);
            let goal = Goal::AtMost(event.worst().as_secs_f64() * 1000.0);
            let mut rows = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            rows.push(Row::alone(
                &format!("{}: unanswered, median of {runs}", event.name()),
                "ms",
                median(&outages),
                middle(event),
            ));
            rows.push(Row::alone(&format!("{}: unanswered, worst", event.name()), "ms", worst, goal));
        }
    })
    .await;
    let mut rows = rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(std::mem::take(&mut *rows))
}
