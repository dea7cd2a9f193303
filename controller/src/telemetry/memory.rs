//! How near the process is to the memory limit of its container. At the limit the kernel
//! ends it, and again while it lists everything at the next start: the larger cluster
//! fails all at once. So it is said before.

use std::path::Path;
use std::time::Duration;

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(60);
/// The percentage of the limit from which on it is said.
const NEAR: u64 = 70;

/// The memory of the process and its limit, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What is resident.
    pub used: u64,
    /// The limit of the container; `None` without one.
    pub limit: Option<u64>,
}

impl Memory {
    /// As of now; `None` where the kernel does not say.
    pub fn now() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        // cgroup version 2, then 1 (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst).
        let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let limit = limits.iter().find_map(|path| std::fs::read_to_string(Path::new(path)).ok());
        Some(Self { used: resident(&status)?, limit: limit.as_deref().and_then(parse_limit) })
    }

    /// Whether so much of the limit is used that it is to be said.
    fn is_near(self) -> bool {
        self.limit.is_some_and(|limit| self.used > limit / 100 * NEAR)
    }
}

/// The resident bytes in `/proc/self/status` (proc_pid_status(5)).
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A limit as cgroups say it: `max`, or in version 1 a number of almost 2^63, is none.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < 1 << 60)
}

/// Says in the log when the process comes near its limit.
pub async fn watch() {
    let mut said = false;
    loop {
        if let Some(memory) = Memory::now() {
            if memory.is_near() && !said {
                let (used, limit) = (memory.used >> 20, memory.limit.unwrap_or_default() >> 20);
                tracing::warn!(
                    used_mib = used,
                    limit_mib = limit,
                    "memory limit is near: raise resources.limits.memory of the controller's Deployment",
                );
            }
            said = memory.is_near();
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r11_limit_is_near_at_seventy_percent() {
        let status = "Name:\tlb-svc\nVmHWM:\t  999999 kB\nVmRSS:\t   71680 kB\nThreads:\t1\n";
        let used = resident(status).unwrap();
        assert_eq!(used, 70 << 20);
        let near = |limit: &str| Memory { used, limit: parse_limit(limit) }.is_near();
        assert!(near("104857500\n"));
        assert!(!near("105906176\n"), "101 MiB");
        for none in ["max\n", "9223372036854771712\n", ""] {
            assert!(!near(none), "{none}");
        }
        assert!(Memory::now().is_some_and(|memory| memory.used > 1 << 20));
    }
}
