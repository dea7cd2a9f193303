//! The scheduling slice of a thread: how soon it runs after waking up on a busy node.

use std::io;

use nix::libc;

/// The requested slice: the shortest that the kernel grants (Linux,
/// `kernel/sched/syscalls.c`: 100 µs).
const SLICE_NS: u64 = 100_000;

/// Requests a short scheduling slice for the calling thread: a shorter slice gives
/// an earlier EEVDF deadline. It takes no processor time from others and needs no
/// privilege. Kernels before 6.12 accept and ignore it.
///
/// Programs that the thread starts have the default slice.
///
/// # Errors
/// If the kernel, or a seccomp filter, refuses.
pub fn request_short_slice() -> io::Result<()> {
    let mut attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or_default(),
        sched_policy: libc::SCHED_OTHER.unsigned_abs(),
        sched_flags: libc::SCHED_FLAG_RESET_ON_FORK.unsigned_abs().into(),
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: SLICE_NS,
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
    fn kernel_accepts_the_slice() {
        request_short_slice().unwrap();
        // Since 6.12 a thread's slice is shown, in a format for people: check only
        // that it is not the default.
        let shown = std::fs::read_to_string("/proc/thread-self/sched").unwrap_or_default();
        if let Some(slice) = shown.lines().find_map(|line| line.strip_prefix("se.slice")) {
            assert!(slice.trim_start_matches([' ', ':']).starts_with("100000"), "{slice}");
        }
    }
}
