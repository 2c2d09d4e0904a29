//! Resets that wait for locks.

use std::time::Duration;

use rustix::io::Errno;

/// How often a reset is tried again that the kernel couldn't do because somebody else held the device's lock.
const TRIES: u32 = 20;
/// How long it waits in between.
const WAIT: Duration = Duration::from_millis(50);

/// Calls `reset` until it is done, or fails with more than a lock that is held: the kernel only tries the locks that a reset needs.
pub(super) fn reset_with_retries(reset: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    for attempt in 1.. {
        match reset() {
            Err(Errno::AGAIN) if attempt < TRIES => std::thread::sleep(WAIT),
            Err(Errno::INTR) if attempt < TRIES => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}
