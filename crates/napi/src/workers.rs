//! Threads for work that blocks for as long as it likes. None waits for another: where no thread is idle a new one is made. Those that
//! have done their work stay for a while, as a migration has a dozen steps within its downtime.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

type Job = Box<dyn FnOnce() + Send>;

/// The most that stay.
const MOST_IDLE: usize = 8;
/// How long they stay.
const STAY: Duration = Duration::from_secs(10);

/// See the module.
pub struct Workers {
    idle: Mutex<Idle>,
    stay: Duration,
}

struct Idle {
    workers: Vec<(u64, Sender<Job>)>,
    next: u64,
}

impl Workers {
    pub const fn new() -> Self {
        Self { idle: Mutex::new(Idle { workers: Vec::new(), next: 0 }), stay: STAY }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `job`, which does not panic, on a thread that does nothing else meanwhile.
    ///
    /// # Errors
    /// Where one is needed and can't be started.
    pub fn run(&'static self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let job: Job = Box::new(job);
        let worker = self.idle().workers.pop();
        let job = match worker {
            None => job,
            // Whoever is on the list takes what it is sent; it leaves the list first, and then the thread.
            Some((_, worker)) => match worker.send(job) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.0,
            },
        };
        thread::Builder::new().name("towline-step".into()).spawn(move || self.work(job)).map(drop)
    }

    fn work(&self, first: Job) {
        let (sender, jobs) = channel();
        let mut job = first;
        loop {
            job();
            let id = {
                let mut idle = self.idle();
                if idle.workers.len() >= MOST_IDLE {
                    return;
                }
                let id = idle.next;
                idle.next += 1;
                idle.workers.push((id, sender.clone()));
                id
            };
            match self.wait(id, &jobs) {
                Some(next) => job = next,
                None => return,
            }
        }
    }

    fn wait(&self, id: u64, jobs: &Receiver<Job>) -> Option<Job> {
        match jobs.recv_timeout(self.stay) {
            Ok(job) => return Some(job),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let mut idle = self.idle();
        match idle.workers.iter().position(|(other, _)| *other == id) {
            Some(at) => {
                idle.workers.remove(at);
                None
            }
            // Somebody has taken it off the list just now: the work comes.
            None => {
                drop(idle);
                jobs.recv().ok()
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::sync::Barrier;
    use std::thread::ThreadId;
    use std::time::Instant;

    use super::*;

    fn workers(stay: Duration) -> &'static Workers {
        Box::leak(Box::new(Workers { stay, ..Workers::new() }))
    }

    fn eventually(what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(60), "{what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn thread_of(workers: &'static Workers) -> ThreadId {
        let (tell, told) = channel();
        workers.run(move || tell.send(thread::current().id()).unwrap()).unwrap();
        told.recv().unwrap()
    }

    #[test]
    fn one_after_the_other_is_done_by_the_same_thread() {
        let workers = workers(Duration::from_secs(600));
        let first = thread_of(workers);
        for _ in 0..50 {
            eventually("it is idle", || workers.idle().workers.len() == 1);
            assert_eq!(thread_of(workers), first);
        }
    }

    #[test]
    fn what_waits_for_each_other_goes_on() {
        let workers = workers(Duration::from_secs(600));
        for _ in 0..20 {
            // All have to run at once, however many are idle.
            let count = 3 * MOST_IDLE;
            let barrier = Arc::new(Barrier::new(count + 1));
            let (tell, told) = channel();
            for _ in 0..count {
                let (barrier, tell) = (Arc::clone(&barrier), tell.clone());
                workers
                    .run(move || {
                        barrier.wait();
                        tell.send(thread::current().id()).unwrap();
                    })
                    .unwrap();
            }
            barrier.wait();
            let threads: HashSet<ThreadId> = told.iter().take(count).collect();
            assert_eq!(threads.len(), count);
            assert!(workers.idle().workers.len() <= MOST_IDLE);
        }
    }

    #[test]
    fn they_leave_when_nothing_comes_and_nothing_is_lost_then() {
        let workers = workers(Duration::from_millis(1));
        for n in 0..500 {
            thread_of(workers);
            if n % 2 == 0 {
                thread::sleep(Duration::from_micros(900 + 2 * n));
            }
        }
        eventually("all have left", || workers.idle().workers.is_empty());
    }
}
