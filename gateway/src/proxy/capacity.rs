//! How many connections the proxy may have: by the pod's limits of memory and of open
//! files.

use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::debug;

/// What a connection takes of memory, the kernel's buffers included.
pub const PER_CONNECTION: u64 = 40 * 1024;
/// What the rest of the gateway takes.
const REST: u64 = 24 * 1024 * 1024;
/// The most connections where nothing else limits them.
const MOST: usize = 65_536;
/// The fewest, in a pod whose memory is hardly enough for the gateway.
const FEWEST: usize = 64;
/// The files of a connection: its sockets, and two pipes while bytes wait.
const FILES: u64 = 6;
/// The files of the rest of the gateway.
const OTHER_FILES: u64 = 128;

/// Where a container finds its limit of memory: cgroup version 2, and version 1.
const LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// The most connections. Raises the limit of open files as far as that goes.
pub fn of_process() -> usize {
    let memory = LIMITS.iter().find_map(|path| std::fs::read_to_string(Path::new(path)).ok());
    capacity(memory.as_deref().and_then(bytes), open_files())
}

fn capacity(memory: Option<u64>, files: Option<u64>) -> usize {
    let by_memory = memory.map(|bytes| bytes.saturating_sub(REST) / PER_CONNECTION);
    let by_files = files.map(|files| files.saturating_sub(OTHER_FILES) / FILES);
    let least = by_memory.into_iter().chain(by_files).min();
    let least = least.map_or(MOST, |least| usize::try_from(least).unwrap_or(MOST));
    least.clamp(FEWEST, MOST)
}

/// A limit as cgroups write it; `None` if there is none.
fn bytes(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn open_files() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => Some(hard),
        Err(error) => {
            debug!(%error, "the limit of open files stays");
            Some(soft)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_files_limit_connections() {
        const MIB: u64 = 1024 * 1024;
        assert_eq!(capacity(Some(64 * MIB), None), 1024, "the default of a gateway's pod");
        assert_eq!(capacity(Some(256 * MIB), Some(1 << 20)), 5939);
        assert_eq!(capacity(Some(256 * MIB), Some(6128)), 1000);
        assert_eq!(capacity(Some(16 * MIB), None), FEWEST);
        assert_eq!(capacity(None, None), MOST);
        // Without a limit, cgroup version 1 has the largest number of whole pages.
        assert_eq!(capacity(bytes("9223372036854771712\n"), None), MOST);
        assert_eq!((bytes("67108864\n"), bytes("max\n")), (Some(64 * MIB), None));
    }
}
