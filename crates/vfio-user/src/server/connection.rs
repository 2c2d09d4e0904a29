//! One client, from its first message to its last; or until another process goes on with it.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};

use super::Shared;
use super::commands::Commands;
use super::queue::Queue;
use crate::handover::{HandedConnection, HandoverError};
use crate::peer::Peer;
use crate::protocol::{MessageType, Version, command};
use crate::socket::{Ended, Inbox, Message, Outbox, dismiss};
use crate::{ClientMemory, Interrupts};

/// A client that is there, whether or not somebody reads what it sends.
pub(super) struct Connection {
    socket: Arc<OwnedFd>,
    peer: Arc<Peer>,
    memory: Arc<ClientMemory>,
    interrupts: Arc<Interrupts>,
    /// It has said which version it speaks.
    greeted: AtomicBool,
}

impl Connection {
    fn attached(shared: &Shared, socket: Arc<OwnedFd>) -> Self {
        let outbox = Outbox::new(Arc::clone(&socket), Arc::clone(&shared.wake));
        let peer = Arc::new(Peer::new(outbox, shared.options.dma_timeout));
        let memory = Arc::new(ClientMemory::new(Arc::clone(&peer), shared.options.allow_shrinkable));
        let function = &*shared.function;
        function.prepare();
        let interrupts = Arc::new(Interrupts::new(function.vectors()));
        function.attach(Arc::clone(&memory) as _, Arc::clone(&interrupts));
        *shared.current() = Some((Arc::clone(&memory), Arc::clone(&interrupts)));
        Self { socket, peer, memory, interrupts, greeted: AtomicBool::new(false) }
    }

    /// A client that has just come.
    pub(super) fn new(shared: &Shared, socket: OwnedFd) -> Self {
        let connection = Self::attached(shared, Arc::new(socket));
        // Whoever finds it counted finds it connected, or gone.
        shared.clients.fetch_add(1, Ordering::Release);
        connection
    }

    /// A client of another process.
    pub(super) fn adopt(shared: &Shared, handed: HandedConnection) -> Result<Self, HandoverError> {
        let HandedConnection { socket, agreement, ranges, triggers } = handed;
        let connection = Self::attached(shared, socket);
        let take = || {
            let vectors = connection.interrupts.count() as usize;
            if triggers.len() != vectors {
                let what = format!("it has {} vectors, this function has {vectors}", triggers.len());
                return Err(HandoverError::Mismatch(what));
            }
            for range in &ranges {
                let mapped = connection.memory.map(&range.map, range.file.as_ref());
                mapped.map_err(|error| HandoverError::Mismatch(error.to_string()))?;
            }
            Ok(())
        };
        if let Err(error) = take() {
            connection.end(shared);
            return Err(error);
        }
        connection.peer.agree(&agreement);
        connection.greeted.store(agreement.greeted, Ordering::Relaxed);
        connection.interrupts.adopt(triggers);
        Ok(connection)
    }

    /// As another process gets it. Nobody reads from it meanwhile, and the function is stopped.
    pub(super) fn share(&self) -> Result<HandedConnection, HandoverError> {
        let agreement = self.peer.agreement(self.greeted.load(Ordering::Relaxed));
        let agreement = agreement.ok_or(HandoverError::Busy("a request of the function to its client is under way"))?;
        Ok(HandedConnection {
            socket: Arc::clone(&self.socket),
            agreement,
            ranges: self
                .memory
                .share()
                .map_err(|error| HandoverError::System { call: "dup", source: io::Error::other(error) })?,
            triggers: self.interrupts.share(),
        })
    }

    /// Serves the client until it goes, breaks the protocol, the server is closed, or somebody else is to go on. In all cases but the last the
    /// function does no DMA on return, is reset, and none of the client's memory and descriptors is left.
    pub(super) fn talk(&self, shared: &Shared, listener: &OwnedFd) -> Ended {
        let Self { socket, peer, memory, interrupts, .. } = self;
        let function = &*shared.function;
        let stopped = || shared.stopped();
        let queue = Queue::default();
        let idle = || queue.is_idle();
        let pause = || shared.pausing().then(|| queue.is_idle());
        let inbox = Inbox {
            socket: Arc::clone(socket),
            outbox: peer.outbox(),
            listener,
            wake: &shared.wake,
            stop: &stopped,
            pause: &pause,
            control: &shared.control,
            idle: &idle,
            paused: Cell::new(None),
        };
        let commands = Commands { function, peer, memory, interrupts };
        let talk = || {
            thread::scope(|scope| {
                let worker = || {
                    let _end = End { peer, queue: &queue, socket };
                    queue.work(|message| {
                        // A function whose state is on its way keeps it, until it runs again or is gone.
                        if !commands.holds(&message) || queue.wait_while(|| function.sealed()) {
                            commands.execute(message);
                        }
                    });
                };
                if let Err(error) = thread::Builder::new().name("vfio-user-wait".into()).spawn_scoped(scope, worker) {
                    return no_thread(&error);
                }
                let _end = End { peer, queue: &queue, socket };
                self.converse(shared, &inbox, &commands, &queue)
            })
        };
        interrupts.begin();
        thread::scope(|scope| {
            // It also ends what whoever detaches the function would wait for.
            let watch = thread::Builder::new().name("vfio-user-irq".into()).spawn_scoped(scope, || interrupts.watch());
            let _end = EndWatch(interrupts);
            let ended = match watch {
                // What the threads share is given up below, whatever state a panic left it in.
                Ok(_) => catch_unwind(AssertUnwindSafe(talk)).unwrap_or(Ended::Panicked),
                Err(error) => no_thread(&error),
            };
            if ended == Ended::Paused {
                // The function may run again before somebody reads: its requests wait then.
                peer.reopen();
            } else {
                self.let_go(shared);
            }
            ended
        })
    }

    fn let_go(&self, shared: &Shared) {
        self.interrupts.unwire();
        shared.function.detach();
        self.memory.unmap_all();
    }

    /// Ends a connection after it was served, in a way that its client can tell from a fault.
    pub(super) fn dismiss(self) {
        dismiss(&self.socket);
    }

    /// Ends a connection that nobody reads from. Another process may have it: nothing is read, and nothing said to the client.
    pub(super) fn end(self, shared: &Shared) {
        self.let_go(shared);
        *shared.current() = None;
    }

    fn converse(&self, shared: &Shared, inbox: &Inbox<'_>, commands: &Commands<'_>, queue: &Queue) -> Ended {
        let next = || {
            let message = inbox.receive()?;
            shared.messages.fetch_add(1, Ordering::Relaxed);
            Ok(message)
        };
        if !self.greeted.load(Ordering::Relaxed) {
            if let Err(ended) = next().and_then(|message| greet(commands, message)) {
                return ended;
            }
            self.greeted.store(true, Ordering::Relaxed);
        }
        loop {
            let message = match next() {
                Ok(message) => message,
                Err(ended) => return ended,
            };
            match message.header.message_type() {
                MessageType::Reply => {
                    if let Err(ended) = commands.peer.answer(&message.header, message.body) {
                        return ended;
                    }
                }
                MessageType::Command if !queue.is_idle() || commands.waits(&message) => {
                    if let Err(ended) = queue.push(message) {
                        return ended;
                    }
                }
                MessageType::Command => commands.execute(message),
            }
            if commands.peer.hopeless() {
                return Ended::Protocol("it does not answer DMA messages".into());
            }
        }
    }
}

fn no_thread(error: &io::Error) -> Ended {
    Ended::System { call: "start of a thread", errno: Errno::from_io_error(error).unwrap_or(Errno::AGAIN) }
}

/// Ends the watch over interrupts.
struct EndWatch<'a>(&'a Interrupts);

impl Drop for EndWatch<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Ends the conversation when one of its threads ends, by a panic too: else the other would wait for ever.
struct End<'a> {
    peer: &'a Peer,
    queue: &'a Queue,
    socket: &'a OwnedFd,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        // In this order: whoever waits for an answer has to hear that there is none before he can end.
        self.peer.close();
        self.queue.close();
        if thread::panicking() {
            // The reader finds the end of the stream.
            let _ = shutdown(self.socket, Shutdown::Both);
        }
    }
}

/// The first message has to be VERSION.
fn greet(commands: &Commands<'_>, message: Message) -> Result<(), Ended> {
    let Message { header, body, .. } = message;
    let refuse = |errno: Errno, why: String| {
        // The connection ends with it either way.
        let _ = commands.peer.outbox().send(header.error_reply(errno.raw_os_error().unsigned_abs()));
        Err(Ended::Protocol(why))
    };
    if header.message_type() != MessageType::Command
        || header.command != command::VERSION
        || header.unknown_flags() != 0
    {
        return refuse(Errno::INVAL, format!("message {} before VERSION", header.command));
    }
    let version = match Version::decode(&body) {
        Ok(version) => version,
        Err(error) => return refuse(Errno::INVAL, error.to_string()),
    };
    if version.major != 0 {
        return refuse(Errno::OPNOTSUPP, format!("major version {}; this is 0", version.major));
    }
    commands.peer.introduce(version.minor, version.capabilities.max_data_bytes);
    let answer = header.reply(&[&Version::answer()]);
    commands.peer.outbox().send(answer).map_err(|_| Ended::ByClient)
}
