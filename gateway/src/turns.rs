//! How soon this process has its turn when it wakes, on a node that others keep
//! busy.

use std::io;

use nix::libc;

/// The turn asked for: the shortest that the kernel grants (Linux,
/// `kernel/sched/syscalls.c`: 100 µs).
const TURN_NS: u64 = 100_000;

/// Asks the scheduler for short turns instead of long ones: who wants little at
/// a time is let in sooner. It takes nothing from others and needs no
/// privilege. Kernels before 6.12 take it and do nothing with it.
///
/// It concerns the calling thread; programs that it starts have the usual turns.
///
/// # Errors
/// When the kernel, or a filter of system calls, refuses.
pub fn ask_for_short_turns() -> io::Result<()> {
    let mut attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or_default(),
        sched_policy: libc::SCHED_OTHER.unsigned_abs(),
        sched_flags: libc::SCHED_FLAG_RESET_ON_FORK.unsigned_abs().into(),
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: TURN_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of the structure, which lives until
    // the call returns, and keeps nothing of it.
    #[allow(unsafe_code, reason = "no library has this system call")]
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attributes, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_it() {
        ask_for_short_turns().unwrap();
        // Since 6.12 a thread's turn is shown; how is for people, so only that
        // it is not the usual one.
        let shown = std::fs::read_to_string("/proc/thread-self/sched").unwrap_or_default();
        if let Some(slice) = shown.lines().find_map(|line| line.strip_prefix("se.slice")) {
            assert!(slice.trim_start_matches([' ', ':']).starts_with("100000"), "{slice}");
        }
    }
}
