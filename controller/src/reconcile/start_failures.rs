//! Why pods do not start, by their nodes' Events, which are said nowhere else.
//!
//! Events have no index, so that a look-up may take the API server long, and
//! where many pods hang there are many. They are made beside the runs, a few at
//! a time, and no run waits for one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lb_svc_core::model::Pod;
use tokio::sync::Semaphore;

use super::lock;
use super::memory::Memory;
use super::queue::Queue;
use crate::api_server::client::ApiServer;
use crate::index::Key;
use crate::panics::contain_future;

/// How long after a look-up the next one about the same pod is made.
const AGAIN: Duration = Duration::from_secs(60);
/// How many look-ups are made at once.
const AT_ONCE: usize = 4;

/// Reason and message.
type Failure = (String, String);

/// What is known of one pod.
#[derive(Debug, Default)]
pub(super) struct StartFailure {
    /// When it was looked up; `None` while it is.
    at: Option<Instant>,
    /// What was found, if anything.
    pub found: Option<Failure>,
}

/// What looks them up.
pub(super) struct LookUps {
    api_server: ApiServer,
    queue: Queue,
    memory: Arc<Mutex<HashMap<Key, Memory>>>,
    turns: Arc<Semaphore>,
}

impl LookUps {
    /// Look-ups of which the results get into `memory`.
    pub fn new(api_server: ApiServer, queue: Queue, memory: Arc<Mutex<HashMap<Key, Memory>>>) -> Self {
        Self { api_server, queue, memory, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Has it looked up why these pods of a gateway do not start, and has the
    /// gateway looked at where that is news. What is known of others is forgotten.
    pub fn begin(&self, key: &Key, namespace: &str, pods: &[Pod]) {
        let mut memory = lock(&self.memory);
        if pods.is_empty() && !memory.contains_key(key) {
            return;
        }
        let known = &mut memory.entry(key.clone()).or_default().start_failures;
        known.retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
        for Pod { uid, .. } in pods {
            if let Some(failure) = known.get_mut(uid) {
                if failure.at.is_none_or(|at| at.elapsed() < AGAIN) {
                    continue;
                }
                failure.at = None;
            } else {
                known.insert(uid.clone(), StartFailure::default());
            }
            tokio::spawn(self.look_up(key.clone(), namespace.to_owned(), uid.clone()));
        }
    }

    fn look_up(&self, key: Key, namespace: String, uid: String) -> impl Future<Output = ()> + use<> {
        let (api_server, queue) = (self.api_server.clone(), self.queue.clone());
        let (memory, turns) = (Arc::clone(&self.memory), Arc::clone(&self.turns));
        async move {
            let Ok(_turn) = turns.acquire().await else { return };
            let is_known = |memory: &Memory| memory.start_failures.contains_key(&uid);
            if !lock(&memory).get(&key).is_some_and(is_known) {
                return;
            }
            let told = contain_future(api_server.start_failure(&namespace, &uid)).await;
            let told = told.unwrap_or_else(|panic| Err(panic.into()));
            let mut memory = lock(&memory);
            let known = memory.get_mut(&key).and_then(|memory| memory.start_failures.get_mut(&uid));
            let Some(known) = known else { return };
            known.at = Some(Instant::now());
            match told {
                Ok(found) if found == known.found => {}
                Ok(found) => {
                    known.found = found;
                    queue.push(key);
                }
                Err(error) => tracing::warn!(%key, uid, %error, "start failure not looked up"),
            }
        }
    }
}
