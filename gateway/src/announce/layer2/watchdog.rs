//! What wedges the agent's loop silences the election as well, though that has a thread
//! of its own: a pod whose loop stands still can neither add an address nor follow its
//! configuration.
//!
//! ```text
//!   agent's loop ── beat ──▶ Heartbeat ◀── look ── Watchdog ──▶ the member resigns
//! ```

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The agent's loop stands still if it has not come round for this time.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// Work that waits for programs and for the kernel may take this long: each step of it is
/// given up after some seconds, and on a starved node there may be several of them.
const WORK_MAX: Duration = Duration::from_secs(60);
/// The loop comes round at least so often while it waits.
pub const BEAT: Duration = Duration::from_secs(1);

/// When the agent's loop last came round; a clone shares it.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    start: Instant,
    /// In milliseconds from the start.
    last: Arc<AtomicU64>,
}

impl Default for Heartbeat {
    /// The loop comes round now.
    fn default() -> Self {
        Self { start: Instant::now(), last: Arc::default() }
    }
}

impl Heartbeat {
    /// Notes that the loop comes round.
    pub fn beat(&self, now: Instant) {
        let since = now.saturating_duration_since(self.start).as_millis();
        self.last.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Does work of the loop, which comes round while the work waits for something else.
    pub async fn beside<T>(&self, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let mut work = pin!(work);
        loop {
            let now = Instant::now();
            self.beat(now);
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(BEAT), if now < began + WORK_MAX => {}
            }
        }
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// Watches a heartbeat.
#[derive(Debug)]
pub struct Watchdog {
    heartbeat: Heartbeat,
    stalled: bool,
}

impl Watchdog {
    /// A watchdog that takes the loop to come round.
    pub fn new(heartbeat: Heartbeat) -> Self {
        Self { heartbeat, stalled: false }
    }

    /// Whether the loop stands still; `Some` if that has changed.
    pub fn look(&mut self, now: Instant) -> Option<bool> {
        let stalled = now.saturating_duration_since(self.heartbeat.last()) > STALLED_AFTER;
        (std::mem::replace(&mut self.stalled, stalled) != stalled).then_some(stalled)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use lb_svc_election::{Election, Instance, Key, MemberConfig, Output, Reason, Role};

    use super::*;

    #[test]
    fn r16_member_resigns_when_the_loop_stands_still() {
        let heartbeat = Heartbeat::default();
        let mut watchdog = Watchdog::new(heartbeat.clone());
        let config = MemberConfig {
            uid: [7; 16],
            key: Key::try_from(&[9; 32][..]).unwrap(),
            instance: Instance([5; 16]),
            name: "pod-0".to_owned(),
            interval: Duration::from_millis(50),
            priority: NonZeroU8::new(200).unwrap(),
        };
        let mut election = Election::new(config, Duration::ZERO);
        let start = Instant::now();
        let mut roles = Vec::new();
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(30) {
            // It comes round for five seconds, and then no more.
            if now <= Duration::from_secs(5) {
                heartbeat.beat(start + now);
            }
            let outputs = match watchdog.look(start + now) {
                Some(true) => election.stalled(now),
                _ if watchdog.stalled => Vec::new(),
                _ => election.tick(now),
            };
            roles.extend(outputs.into_iter().filter_map(|output| match output {
                Output::RoleChanged(role, reason) => Some((now.as_secs(), role, reason)),
                _ => None,
            }));
            now += Duration::from_millis(10);
        }
        assert_eq!(
            roles,
            [(0, Role::Active, Reason::Alone), (15, Role::Standby, Reason::Stalled)],
            "ten seconds after the loop came round last"
        );
        heartbeat.beat(start + now);
        assert_eq!(watchdog.look(start + now), Some(false));
    }

    #[tokio::test]
    async fn r16_loop_comes_round_while_its_work_waits() {
        let heartbeat = Heartbeat::default();
        let began = Instant::now();
        let waits = async {
            tokio::time::sleep(BEAT + Duration::from_millis(200)).await;
            heartbeat.last()
        };
        assert!(heartbeat.beside(waits).await >= began + BEAT);
    }
}
