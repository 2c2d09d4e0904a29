//! Takes a share of the vCPUs' time: in each slice of 10 ms they are out of the guest for that share.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::vcpu::Vcpu;

const SLICE: Duration = Duration::from_millis(10);
/// The most that is taken, in percent: a guest without any time never gets to where it could be stopped better.
pub const MOST_PERCENT: u32 = 99;

#[derive(Default)]
struct State {
    percent: u32,
    quit: bool,
}

/// See the module.
pub struct Throttle {
    shared: Arc<(Mutex<State>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Throttle {
    pub fn start(vcpus: Vec<Arc<Vcpu>>) -> Result<Self> {
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let runs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("throttle".into())
            .spawn(move || work(&runs, &vcpus))
            .map_err(Error::system("starting a thread"))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        let (state, changed) = &*self.shared;
        f(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }

    /// # Errors
    /// [`Error::Argument`] above 99.
    pub fn set(&self, percent: u32) -> Result<()> {
        if percent > MOST_PERCENT {
            return Err(Error::Argument(format!("a throttle of {percent} percent; 0 to {MOST_PERCENT} are possible")));
        }
        self.change(|s| s.percent = percent);
        Ok(())
    }

    /// Idempotent.
    pub fn close(&self) {
        self.change(|s| s.quit = true);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.close();
    }
}

fn work((state, changed): &(Mutex<State>, Condvar), vcpus: &[Arc<Vcpu>]) {
    let mut guard = state.lock().unwrap_or_else(PoisonError::into_inner);
    while !guard.quit {
        if guard.percent == 0 {
            guard = changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let until = Instant::now() + SLICE * guard.percent / 100;
        vcpus.iter().for_each(|v| v.hold_until(until));
        guard = changed.wait_timeout(guard, SLICE).unwrap_or_else(PoisonError::into_inner).0;
    }
}
