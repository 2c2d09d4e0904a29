//! Commands that may have to wait, and everything that came after them: a second thread carries them out, in order.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::socket::{Ended, Message};

/// The most messages that wait. QEMU has at most some hundred unanswered.
const MAX_MESSAGES: usize = 4096;
/// The most bytes of them.
const MAX_BYTES: usize = 32 << 20;

/// How often [`Queue::wait_while`] looks.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Inner {
    messages: VecDeque<Message>,
    bytes: usize,
    working: bool,
    closed: bool,
}

/// See the file's comment.
#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is being done and nothing waits. Only the thread that pushes may rely on it.
    pub(super) fn is_idle(&self) -> bool {
        let inner = self.lock();
        inner.messages.is_empty() && !inner.working
    }

    pub(super) fn push(&self, message: Message) -> Result<(), Ended> {
        let mut inner = self.lock();
        let bytes = inner.bytes.saturating_add(message.body.len());
        if inner.messages.len() >= MAX_MESSAGES || bytes > MAX_BYTES {
            return Err(Ended::Protocol(format!(
                "more than {MAX_MESSAGES} commands, or {MAX_BYTES} bytes, unanswered"
            )));
        }
        inner.bytes = bytes;
        inner.messages.push_back(message);
        self.changed.notify_all();
        Ok(())
    }

    /// Carries out what is pushed until the queue is closed.
    pub(super) fn work(&self, mut execute: impl FnMut(Message)) {
        let mut inner = self.lock();
        loop {
            if inner.closed {
                return;
            }
            let Some(message) = inner.messages.pop_front() else {
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            inner.bytes -= message.body.len();
            inner.working = true;
            drop(inner);
            execute(message);
            inner = self.lock();
            inner.working = false;
        }
    }

    /// Waits as long as `what` holds, which nobody tells. Returns whether the queue is open still.
    pub(super) fn wait_while(&self, what: impl Fn() -> bool) -> bool {
        while what() {
            let inner = self.lock();
            if inner.closed {
                return false;
            }
            drop(self.changed.wait_timeout(inner, LOOK).unwrap_or_else(PoisonError::into_inner));
        }
        !self.lock().closed
    }

    /// Ends [`Queue::work`] after the command that it is at.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.messages.clear();
        self.changed.notify_all();
    }
}
