//! Keeps the peer from taking this side for dead while a device loads or a caller's hook works.

use std::sync::mpsc::{RecvTimeoutError, Sender as Done, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::dialogue::Message;
use crate::link::{Link, NoLink};
use crate::wire::Sender;

/// How often a ping is sent; at least three times within the idle timeout of this side. The peer's own is not known, and is to be
/// longer than three seconds, or the same.
const EVERY: Duration = Duration::from_secs(1);

/// The nonce of pings that are not answered.
pub(super) const KEEPALIVE: u64 = 0;

/// How often a session over `link` says that it is alive.
pub(super) fn every(link: &dyn Link) -> Duration {
    EVERY.min(link.idle_timeout() / 3).max(Duration::from_millis(1))
}

/// A thread that has the sending half of a session, and pings.
pub(super) struct Keeper {
    done: Done<()>,
    thread: JoinHandle<(Box<dyn Link>, Sender)>,
}

impl Keeper {
    /// Takes the link over. Where no thread can be had, everything stays as it is.
    pub fn start(link: &mut Box<dyn Link>, sender: &mut Sender, every: Duration) -> Option<Self> {
        let (done, told) = channel::<()>();
        // The parts go through a channel, so that they are still here where the thread could not be started.
        let (give, parts) = channel::<(Box<dyn Link>, Sender)>();
        let work = move || {
            let Ok((mut link, mut sender)) = parts.recv() else { return (no_link(String::new()), Sender::idle()) };
            while told.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                // Whoever takes the link back notices what is wrong with it.
                if sender.message(link.as_mut(), &Message::Ping { nonce: KEEPALIVE }).is_err() {
                    break;
                }
            }
            (link, sender)
        };
        let thread = std::thread::Builder::new().name("towline-keepalive".into()).spawn(work).ok()?;
        let peer = link.peer().to_owned();
        let taken = (std::mem::replace(link, no_link(peer)), std::mem::replace(sender, Sender::idle()));
        // The thread waits for it, and can't have ended.
        let _ = give.send(taken);
        Some(Self { done, thread })
    }

    /// Gives the link back.
    pub fn stop(self, link: &mut Box<dyn Link>, sender: &mut Sender) {
        drop(self.done);
        // A thread that panicked has taken the link with it: it is closed then.
        if let Ok(back) = self.thread.join() {
            (*link, *sender) = back;
        }
    }
}

fn no_link(peer: String) -> Box<dyn Link> {
    Box::new(NoLink(peer))
}
