//! What the end-to-end tests and measurements share.
//!
//! They run as a host of the LAN that is no part of the cluster: inside the
//! client's network namespace (`cluster.sh runner`).
//!
//! - [`Lab`]: the cluster, its kubectl and its levers;
//! - [`Scene`]: a namespace of a test's own, which shows what was in it when
//!   the test fails, and goes away after it;
//! - [`Controller`], [`Proxy`], [`StandIns`]: a controller beside the cluster,
//!   its way to the API server, and gateways that are played;
//! - [`client`]: an HTTP and UDP client with a deadline for everything;
//! - [`capture`]: what is heard on the LAN;
//! - [`outage`]: probes that say for how long an address went unanswered;
//! - [`until`]: waits for a condition, never just for time.

pub mod capture;
pub mod client;
mod controller;
pub mod failover;
pub mod fleet;
pub mod flows;
mod lab;
pub mod objects;
pub mod outage;
mod proxy;
mod scene;
mod stand_ins;

pub use controller::{Controller, controllers, scale_controller, with_controller, without_controller};
pub use lab::{Lab, repository};
pub use proxy::{Cut, Proxy, Write};
pub use scene::{
    GATEWAYS, Scene, alone, gateway_pods, is_ready, is_true, scene, serves, subnet, until_using,
};
pub use stand_ins::StandIns;

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long anything may take that involves a new pod.
pub const SLOW: Duration = Duration::from_secs(60);
/// How long anything may take that does not.
pub const QUICK: Duration = Duration::from_secs(15);

/// Tries `check` until it is `Ok`, at most for `timeout`.
///
/// # Panics
/// With `what` and the last error when the time is over.
pub async fn until<T, E: Debug>(
    what: &str,
    timeout: Duration,
    mut check: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        match check().await {
            Ok(value) => return value,
            Err(error) if start.elapsed() > timeout => panic!("{what}: not within {timeout:?}: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Checks again and again that `check` holds, for `time`.
///
/// # Panics
/// With `what` and the first error.
pub async fn throughout<T, E: Debug>(
    what: &str,
    time: Duration,
    mut check: impl AsyncFnMut() -> Result<T, E>,
) {
    let start = Instant::now();
    while start.elapsed() < time {
        if let Err(error) = check().await {
            panic!("{what}: not after {:?}: {error:?}", start.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `Ok` if `holds`, else what was `seen` instead.
///
/// # Errors
/// What was seen.
pub fn expect<T: Debug>(holds: bool, seen: T) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{seen:?}")) }
}
