//! What is to be looked at, and when.
//!
//! A key that is asked for often is run once; one that is running is run again
//! afterwards, never twice at a time; no key waits for another.

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use kube::runtime::scheduler::{ScheduleRequest, scheduler};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::index::Key;

/// How many keys are worked on at once. Work on a key is waiting for the API
/// server or a gateway, so this bounds open requests, not threads.
const CONCURRENT: usize = 256;
/// Changes within so long are one run, and one write: who edits a Service often edits it
/// again at once, and endpoints change in several slices.
const GATEWAY_DELAY: Duration = Duration::from_millis(20);
/// A Subnet's status is brought up to date once for many claims.
const SUBNET_DELAY: Duration = Duration::from_millis(100);

/// Why a key is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Something that concerns it has changed.
    Change,
    /// Only time has passed.
    Time,
}

/// A key that is to be looked at.
#[derive(Debug)]
pub struct Request {
    /// The key.
    pub key: Key,
    at: Instant,
    cause: Cause,
}

/// The sending side; cheap to clone.
#[derive(Clone, Debug)]
pub struct Queue(mpsc::UnboundedSender<Request>);

/// The receiving side.
pub type Requests = mpsc::UnboundedReceiver<Request>;

/// A queue. It holds no more than what was asked since it was last read, and
/// it is read all the time: [`run`] keeps each key once.
pub fn queue() -> (Queue, Requests) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Queue(sender), receiver)
}

impl Queue {
    /// Looks at `key`, which something that has changed concerns, soon.
    pub fn push(&self, key: Key) {
        let delay = match key {
            Key::Gateway(_) => GATEWAY_DELAY,
            Key::Backend(_) => Duration::ZERO,
            Key::Subnet(_) => SUBNET_DELAY,
        };
        self.send(key, delay, Cause::Change);
    }

    /// Looks at `key` after `delay`, or earlier if it is asked for earlier.
    fn send(&self, key: Key, delay: Duration, cause: Cause) {
        // A closed queue means that the process is on its way out.
        let _ = self.0.send(Request { key, at: Instant::now() + delay, cause });
    }

    /// Looks at all of `keys` soon.
    pub fn extend(&self, keys: impl IntoIterator<Item = Key>) {
        keys.into_iter().for_each(|key| self.push(key));
    }
}

/// Runs `reconcile` for every key asked for until `stop`, which says for how
/// long what is running then may go on: it is cut off after that.
///
/// `reconcile` is told whether anything has changed since it last looked at the
/// key, and returns after which time to look again, if at all.
pub async fn run<F>(
    requests: Requests,
    queue: Queue,
    stop: impl Future<Output = Duration>,
    reconcile: impl Fn(Key, Cause) -> F,
) where
    F: Future<Output = Option<Duration>>,
{
    // The scheduler keeps one request for a key, and not why it was made.
    let changed = RefCell::new(HashSet::new());
    let requests = futures::stream::unfold(requests, async |mut requests| {
        let Request { key, at, cause } = Requests::recv(&mut requests).await?;
        if cause == Cause::Change {
            changed.borrow_mut().insert(key.clone());
        }
        Some((ScheduleRequest { message: key, run_at: at }, requests))
    });
    let mut scheduler = pin!(scheduler(requests));
    let mut stop = pin!(stop.fuse());
    let mut busy = HashSet::new();
    let mut running = FuturesUnordered::new();
    let grace = loop {
        let next = std::future::poll_fn(|cx| {
            let can_take = |key: &Key| busy.len() < CONCURRENT && !busy.contains(key);
            scheduler.as_mut().hold_unless(can_take).poll_next_unpin(cx)
        });
        tokio::select! {
            biased;
            grace = &mut stop => break grace,
            Some((key, again)) = running.next(), if !running.is_empty() => {
                busy.remove(&key);
                if let Some(delay) = again {
                    queue.send(key, delay, Cause::Time);
                }
            }
            Some(key) = next => {
                busy.insert(key.clone());
                let cause = if changed.borrow_mut().remove(&key) { Cause::Change } else { Cause::Time };
                let work = reconcile(key.clone(), cause);
                running.push(work.map(move |again| (key, again)));
            }
        }
    };
    let rest = async { while running.next().await.is_some() {} };
    if tokio::time::timeout(grace, rest).await.is_err() {
        tracing::warn!("work cut off; another controller, or the next run, begins it anew");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use lb_svc_core::gateway::assignment::gateway_of;
    use lb_svc_core::model::{GatewayRef, ServiceRef};

    use super::*;

    fn key(name: &str) -> Key {
        Key::Gateway(gateway_of(&ServiceRef::new("default", name)))
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn key_runs_once_at_a_time_and_delays_no_other() {
        let (queue, requests) = queue();
        let (log, slow) = (Rc::new(RefCell::new(Vec::new())), Duration::from_secs(10));
        queue.extend([key("slow"), key("slow"), key("quick")]);
        let again = queue.clone();
        let stop = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            again.push(key("slow"));
            tokio::time::sleep(Duration::from_secs(7)).await;
            Duration::from_secs(60)
        };
        let written = Rc::clone(&log);
        run(requests, queue.clone(), stop, |key, _| {
            let log = Rc::clone(&written);
            async move {
                let Key::Gateway(GatewayRef::Dedicated(service)) = key else { return None };
                log.borrow_mut().push(format!("+{}", service.name));
                if service.name == "slow" {
                    tokio::time::sleep(slow).await;
                }
                log.borrow_mut().push(format!("-{}", service.name));
                None
            }
        })
        .await;
        let mut log = log.borrow().clone();
        log[..3].sort();
        assert_eq!(log, ["+quick", "+slow", "-quick", "-slow", "+slow", "-slow"]);
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn changes_within_a_moment_are_one_run() {
        let (queue, requests) = queue();
        let (runs, again, start) = (Rc::new(RefCell::new(Vec::new())), queue.clone(), Instant::now());
        let stop = async {
            for pause in [0, 10, 9, 6] {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                again.push(key("web"));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            Duration::ZERO
        };
        run(requests, queue.clone(), stop, |_, _| {
            runs.borrow_mut().push(start.elapsed().as_millis());
            async { None }
        })
        .await;
        assert_eq!(*runs.borrow(), [20, 45], "of those after 0, 10 and 19 ms, and of that after 25");
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn r21_work_goes_on_for_its_grace_and_no_longer() {
        for (grace, finishes) in [(0, false), (5, false), (15, true)] {
            let (queue, requests) = queue();
            queue.push(key("slow"));
            let done = Rc::new(Cell::new(false));
            let stop = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Duration::from_secs(grace)
            };
            run(requests, queue.clone(), stop, |_, _| {
                let done = Rc::clone(&done);
                async move {
                    tokio::time::sleep(Duration::from_secs(10)).await;
                    done.set(true);
                    None
                }
            })
            .await;
            assert_eq!(done.get(), finishes, "grace {grace} s");
        }
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn r30_run_knows_whether_anything_has_changed() {
        let (queue, requests) = queue();
        let (seen, again) = (Rc::new(RefCell::new(Vec::new())), queue.clone());
        queue.push(key("web"));
        let stop = async {
            tokio::time::sleep(Duration::from_secs(25)).await;
            // Nor is it lost behind the timer, or in a run.
            again.extend([key("web"), key("web")]);
            tokio::time::sleep(Duration::from_secs(10)).await;
            Duration::ZERO
        };
        run(requests, queue.clone(), stop, |_, cause| {
            seen.borrow_mut().push(cause);
            async { Some(Duration::from_secs(10)) }
        })
        .await;
        let (change, time) = (Cause::Change, Cause::Time);
        assert_eq!(*seen.borrow(), [change, time, time, change]);
    }
}
