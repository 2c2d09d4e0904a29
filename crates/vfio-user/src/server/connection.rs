//! One client, from its first message to its last.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};

use super::Shared;
use super::commands::Commands;
use super::queue::Queue;
use crate::peer::Peer;
use crate::protocol::{MessageType, Version, command};
use crate::socket::{Ended, Inbox, Message, Outbox};
use crate::{ClientMemory, Interrupts};

/// Serves a client until it goes, breaks the protocol, or the server is closed. On return the function does no DMA, is reset, and none of the
/// client's memory and descriptors is left.
pub(super) fn serve(shared: &Shared, listener: &OwnedFd, socket: OwnedFd) -> Ended {
    let socket = Arc::new(socket);
    let outbox = Outbox::new(Arc::clone(&socket), Arc::clone(&shared.wake));
    let peer = Arc::new(Peer::new(outbox, shared.options.dma_timeout));
    let memory = Arc::new(ClientMemory::new(Arc::clone(&peer), shared.options.allow_shrinkable));
    let function = &*shared.function;
    function.prepare();
    let interrupts = Arc::new(Interrupts::new(function.vectors()));
    function.attach(Arc::clone(&memory) as _, Arc::clone(&interrupts));
    *shared.current() = Some((Arc::clone(&memory), Arc::clone(&interrupts)));

    let stopped = || shared.stopped();
    let queue = Queue::default();
    let idle = || queue.is_idle();
    let inbox = Inbox {
        socket: Arc::clone(&socket),
        outbox: peer.outbox(),
        listener,
        wake: &shared.wake,
        stop: &stopped,
        control: &shared.control,
        idle: &idle,
        paused: Cell::new(None),
    };
    let commands = Commands { function, peer: &peer, memory: &memory, interrupts: &interrupts };
    let talk = || {
        thread::scope(|scope| {
            let worker = || {
                let _end = End { peer: &peer, queue: &queue, socket: &socket };
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
            let _end = End { peer: &peer, queue: &queue, socket: &socket };
            converse(shared, &inbox, &commands, &queue)
        })
    };
    thread::scope(|scope| {
        // It also ends what whoever detaches the function would wait for.
        let watch = thread::Builder::new().name("vfio-user-irq".into()).spawn_scoped(scope, || interrupts.watch());
        let _end = EndWatch(&interrupts);
        let ended = match watch {
            // What the threads share is given up below, whatever state a panic left it in.
            Ok(_) => catch_unwind(AssertUnwindSafe(talk)).unwrap_or(Ended::Panicked),
            Err(error) => no_thread(&error),
        };
        interrupts.unwire();
        function.detach();
        memory.unmap_all();
        ended
    })
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

fn converse(shared: &Shared, inbox: &Inbox<'_>, commands: &Commands<'_>, queue: &Queue) -> Ended {
    let next = || {
        let message = inbox.receive();
        shared.messages.fetch_add(1, Ordering::Relaxed);
        message
    };
    let greeted = next().and_then(|message| greet(commands, message));
    if let Err(ended) = greeted {
        return ended;
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
