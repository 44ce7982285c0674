//! How the system's scheduler treats a thread.

use std::io;

/// The longest slice that the kernel grants.
const SLICE_NS: u64 = 100_000_000;

/// Lets threads that wake on this thread's core run at once, instead of when its slice is used up.
///
/// A disk without FUA completes a flushed write in a kernel thread on the core that takes the interrupt, which is often the core
/// that waits for it. Beside a busy thread with the default slice (3 ms) it waits for that slice's end; a thread with a long slice
/// is preempted by threads with shorter ones (`PREEMPT_SHORT`). Its share of the core stays the same. Needs no privilege.
///
/// # Errors
/// EINVAL before Linux 6.12, where slices can't be set; harmless.
pub fn let_others_in() -> io::Result<()> {
    set(libc::SCHED_OTHER, SLICE_NS)
}

/// Has this thread run only while no other wants its core: for work that nobody waits for. Needs no privilege.
///
/// # Errors
/// The system's, where it is forbidden; then the thread is treated as any other.
pub fn stand_back() -> io::Result<()> {
    set(libc::SCHED_IDLE, 0)
}

fn set(policy: libc::c_int, slice_ns: u64) -> io::Result<()> {
    // SAFETY: an all-zero sched_attr is a valid value: SCHED_OTHER, no flags.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    attributes.sched_policy = policy as u32;
    attributes.sched_runtime = slice_ns;
    // SAFETY: thread 0 is the caller; the kernel reads `size` bytes of a structure that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get() -> libc::sched_attr {
        // SAFETY: as above; the kernel writes at most `size` bytes.
        let (result, attributes) = unsafe {
            let mut attributes: libc::sched_attr = std::mem::zeroed();
            let bytes = size_of::<libc::sched_attr>() as u32;
            (libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, bytes, 0), attributes)
        };
        assert_eq!(result, 0);
        attributes
    }

    #[test]
    fn thread_stands_back_unless_that_is_forbidden() {
        std::thread::spawn(|| match stand_back() {
            Ok(()) => assert_eq!(get().sched_policy, libc::SCHED_IDLE as u32),
            Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)), "{error}"),
        })
        .join()
        .unwrap();
    }

    #[test]
    fn slice_is_granted_or_refused_as_too_new() {
        std::thread::spawn(|| match let_others_in() {
            Ok(()) => {
                let attributes = get();
                assert_eq!(attributes.sched_policy, libc::SCHED_OTHER as u32);
                // Kernels that don't know slices accept the call and say 0.
                assert!(attributes.sched_runtime == SLICE_NS || attributes.sched_runtime == 0, "{}", attributes.sched_runtime);
            }
            Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM | libc::ENOSYS)), "{error}"),
        })
        .join()
        .unwrap();
    }
}
