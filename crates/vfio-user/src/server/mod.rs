//! The socket, and the thread that serves one client after the other.

mod commands;
mod connection;
mod queue;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, fchmod, lstat, unlink};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};

use self::connection::Connection;
use crate::control::Control;
use crate::handover::{Handed, Handover, HandoverError, system as handover_system};
use crate::pci::PciFunction;
use crate::socket::{Ended, PAUSE, Wake, dismiss_waiting, wait_for_client};
use crate::{ClientMemory, ExposureSection, Interrupts, SectionError};

/// How long what a client has sent may take until it is done, before a migration goes on. Nothing of a stopped function takes long.
const SETTLE: Duration = Duration::from_secs(2);

/// How often it is looked whether the thread that reads has ended.
const LOOK: Duration = Duration::from_micros(200);

/// How a function is served.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// How long the client has to answer a DMA message. QEMU gives up on this side after 5 s.
    pub dma_timeout: Duration,
    /// Maps guest memory whose file may shrink. Whoever can shrink it can then end this process by `SIGBUS`: only for clients that are
    /// trusted as much as this process itself. Otherwise such memory is reached by messages.
    pub allow_shrinkable: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { dma_timeout: Duration::from_secs(3), allow_shrinkable: false }
    }
}

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Something is at the path already.
    #[error("{path} is there already, and {what}")]
    Exists {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// A system call failed.
    #[error("{call} of {path}: {source}")]
    System {
        /// Its name.
        call: &'static str,
        /// The path of the socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a server has seen so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStatus {
    /// A client is there now.
    pub connected: bool,
    /// Clients so far.
    pub clients: u64,
    /// Ranges of guest memory that are mapped now.
    pub mapped_ranges: usize,
    /// Ranges of guest memory that are reached by messages now.
    pub message_ranges: usize,
    /// Interrupts raised to this client.
    pub interrupts: u64,
    /// Messages received so far.
    pub messages: u64,
    /// Why the last connection ended, or a client could not be accepted.
    pub last_error: Option<String>,
}

/// What the threads share.
pub(crate) struct Shared {
    pub(crate) function: Arc<dyn PciFunction>,
    pub(crate) options: ServerOptions,
    pub(crate) wake: Arc<Wake>,
    pub(crate) messages: AtomicU64,
    pub(crate) control: Control,
    stop: AtomicBool,
    /// Somebody else is to go on: nothing more is read, and nobody accepted.
    pause: AtomicBool,
    /// A thread serves. Locked while one decides to end.
    served: Mutex<bool>,
    /// A connection that nobody reads from now.
    parked: Mutex<Option<Connection>>,
    clients: AtomicU64,
    current: Mutex<Option<(Arc<ClientMemory>, Arc<Interrupts>)>>,
    last_error: Mutex<Option<String>>,
}

impl Shared {
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn pausing(&self) -> bool {
        self.pause.load(Ordering::Acquire)
    }

    fn parked(&self) -> MutexGuard<'_, Option<Connection>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> MutexGuard<'_, Option<(Arc<ClientMemory>, Arc<Interrupts>)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, what: &Ended) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.to_string());
    }
}

/// A socket that listens, and its name in the file system. Dropping it removes the name, and no other file that is there meanwhile, and ends the
/// connections of those who wait to be accepted.
struct Name {
    listener: Arc<OwnedFd>,
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    /// Another process has it: it stays.
    left: bool,
}

impl Drop for Name {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        if lstat(&self.path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.identity) {
            let _ = unlink(&self.path);
        }
        dismiss_waiting(&self.listener);
    }
}

/// A socket on which nothing is served yet: who connects waits. It is had before a function is taken from whoever uses it, so that a path that
/// can't be had costs nobody anything. Dropping it takes the socket away.
pub struct VfioUserListener {
    name: Name,
    wake: Arc<Wake>,
}

/// A function on a socket. One client at a time: another one is turned away while there is one, and welcome afterwards; it finds the function
/// reset. Dropping it closes it.
pub struct VfioUserServer {
    path: PathBuf,
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
}

/// What a server has until it is closed.
struct Running {
    name: Name,
    /// `None` while it is handed over.
    thread: Option<JoinHandle<()>>,
}

impl Shared {
    fn new(function: Arc<dyn PciFunction>, options: ServerOptions, wake: Arc<Wake>) -> Arc<Self> {
        Arc::new(Self {
            function,
            options,
            wake,
            messages: AtomicU64::new(0),
            control: Control::default(),
            stop: AtomicBool::new(false),
            pause: AtomicBool::new(false),
            served: Mutex::default(),
            parked: Mutex::default(),
            clients: AtomicU64::new(0),
            current: Mutex::default(),
            last_error: Mutex::default(),
        })
    }

    /// Starts the thread that serves.
    fn start(self: &Arc<Self>, listener: &Arc<OwnedFd>) -> io::Result<JoinHandle<()>> {
        let (run, listener) = (Arc::clone(self), Arc::clone(listener));
        *self.served() = true;
        let thread = thread::Builder::new().name("vfio-user".into()).spawn(move || serve(&run, &listener));
        thread.inspect_err(|_| *self.served() = false)
    }

    fn served(&self) -> MutexGuard<'_, bool> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the thread that serves is to end; then it counts as gone.
    fn leaves(&self) -> bool {
        let mut served = self.served();
        let leaves = self.stopped() || self.pausing();
        *served = !leaves;
        leaves
    }

    /// Nobody is to end any more. Returns whether a thread serves.
    fn unpause(&self) -> bool {
        let served = self.served();
        self.pause.store(false, Ordering::Release);
        *served
    }
}

fn system<'a>(call: &'static str, path: &'a Path) -> impl Fn(Errno) -> ServerError + 'a {
    move |errno| ServerError::System { call, path: path.to_owned(), source: errno.into() }
}

/// A UNIX socket that listens at `path`, for its owner only.
fn listening(path: &Path) -> Result<Name, ServerError> {
    let failed = |call| system(call, path);
    let address = SocketAddrUnix::new(path).map_err(failed("socket address"))?;
    let new = || {
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
            .map_err(failed("socket"))
    };
    match lstat(path) {
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed("lstat")(errno)),
        Ok(stat) => {
            let exists = |what| Err(ServerError::Exists { path: path.to_owned(), what });
            if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
                return exists("is no socket");
            }
            // A process that was killed leaves its socket; one that lives answers.
            match connect(new()?, &address) {
                Err(Errno::CONNREFUSED) => unlink(path).map_err(failed("unlink"))?,
                _ => return exists("somebody listens on it"),
            }
        }
    }
    let socket = new()?;
    // The file gets the mode of the socket when it is bound, so that there is no moment at which others may connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("fchmod"))?;
    bind(&socket, &address).map_err(failed("bind"))?;
    let stat = lstat(path).map_err(failed("lstat"))?;
    let identity = (stat.st_dev, stat.st_ino);
    let name = Name { listener: Arc::new(socket), path: path.to_owned(), identity, left: false };
    listen(&name.listener, 4).map_err(failed("listen"))?;
    Ok(name)
}

impl VfioUserListener {
    /// Makes a socket at `path`, of mode 0600.
    ///
    /// # Errors
    /// [`ServerError`]; then nothing is there that was not before.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let wake = Arc::new(Wake::new().map_err(system("eventfd", path))?);
        Ok(Self { name: listening(path)?, wake })
    }

    /// Serves `function` to who connects.
    ///
    /// # Errors
    /// [`ServerError::System`] where no thread can be started; the socket is gone then.
    pub fn serve(self, function: Arc<dyn PciFunction>, options: ServerOptions) -> Result<VfioUserServer, ServerError> {
        let Self { name, wake } = self;
        let path = name.path.clone();
        let shared = Shared::new(function, options, wake);
        let thread = shared.start(&name.listener);
        let thread =
            thread.map_err(|source| ServerError::System { call: "start of a thread", path: path.clone(), source })?;
        let running = Running { name, thread: Some(thread) };
        Ok(VfioUserServer { path, shared, running: Mutex::new(Some(running)) })
    }
}

impl VfioUserServer {
    /// Serves `function` on a new socket at `path`: [`VfioUserListener::bind`] and [`VfioUserListener::serve`].
    ///
    /// # Errors
    /// [`ServerError`]; then nothing is there that was not before.
    pub fn start(path: &Path, function: Arc<dyn PciFunction>, options: ServerOptions) -> Result<Self, ServerError> {
        VfioUserListener::bind(path)?.serve(function, options)
    }

    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it has seen so far.
    #[must_use]
    pub fn status(&self) -> ServerStatus {
        let clients = self.shared.clients.load(Ordering::Acquire);
        let current = self.shared.current().clone();
        let (mapped_ranges, message_ranges) = current.as_ref().map_or((0, 0), |(memory, _)| memory.counts());
        ServerStatus {
            connected: current.is_some(),
            clients,
            mapped_ranges,
            message_ranges,
            interrupts: current.map_or(0, |(_, interrupts)| interrupts.raised()),
            messages: self.shared.messages.load(Ordering::Relaxed),
            last_error: self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Guest memory as the client gives it now; `None` without a client.
    #[must_use]
    pub fn memory(&self) -> Option<Arc<ClientMemory>> {
        self.shared.current().as_ref().map(|(memory, _)| Arc::clone(memory))
    }

    /// What identifies the function to a guest, the same at both ends of a migration; `None` where it has no section of its own.
    #[must_use]
    pub fn section_format(&self) -> Option<String> {
        self.shared.function.section_format()
    }

    /// Takes the section of the exposure, for a function that was stopped to be migrated, before its state is read. What the client has sent until
    /// now is done first, so that a doorbell which a guest rang before it was paused is in the function's state. From here on, until the function
    /// runs again:
    ///
    /// * writes to BARs are answered and kept; they are done once it runs again, in their order;
    /// * resets, and what takes its memory away, wait;
    /// * everything else is answered as ever: reads, config space, interrupts, memory;
    /// * no further client is accepted.
    ///
    /// A function that does not run again, as it is another host's, never does what was kept.
    ///
    /// # Errors
    /// [`SectionError`]; then nothing has changed.
    pub fn save_section(&self) -> Result<Vec<u8>, SectionError> {
        self.settle()?;
        Ok(self.shared.function.save_section()?.encode())
    }

    /// Puts the section of the source in place, once the function's state was loaded and before it runs. A client that is there already keeps its
    /// memory and eventfds; one that comes later finds the function as the guest knows it.
    ///
    /// # Errors
    /// [`SectionError`]; then nothing has changed.
    pub fn restore_section(&self, bytes: &[u8]) -> Result<(), SectionError> {
        let section = ExposureSection::decode(bytes)?;
        self.settle()?;
        self.shared.function.restore_section(&section)
    }

    /// Undoes [`VfioUserServer::restore_section`].
    pub fn forget_section(&self) {
        self.shared.function.forget_section();
    }

    /// Waits until everything that the client has sent is done.
    fn settle(&self) -> Result<(), SectionError> {
        // While it is handed over nothing is read: what came before is done.
        let there = || self.shared.current().is_some() && !self.shared.pausing();
        let wish = self.shared.control.ask();
        self.shared.wake.set();
        if self.shared.control.wait(wish, SETTLE, there) {
            return Ok(());
        }
        Err(SectionError::Busy("what the client has asked for before did not come to an end"))
    }

    /// Stops reading, between two messages and with everything done that was received, so that another process can go on: what the client sends
    /// from here on waits in its socket. The function has been stopped, and its section was not taken yet: it is taken after this, and
    /// then its state is read. Nothing is given away by it: [`VfioUserServer::resume`] goes on here, [`VfioUserServer::surrender`] leaves it
    /// to the other process. On an error the server goes on.
    ///
    /// # Errors
    /// [`HandoverError`]: among others [`HandoverError::Busy`] for a client that has sent half a message.
    pub fn detach(&self) -> Result<Handover, HandoverError> {
        let mut guard = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = guard.as_mut().ok_or(HandoverError::Closed)?;
        let thread = running.thread.as_ref().ok_or(HandoverError::Closed)?;
        if self.shared.function.sealed() {
            let what = "the function's section was taken already: what its client did since would be lost";
            return Err(HandoverError::NotStopped(what));
        }
        if !self.shared.function.stopped() {
            return Err(HandoverError::NotStopped("the function runs: it is stopped before it is handed over"));
        }
        self.shared.pause.store(true, Ordering::Release);
        self.shared.wake.set();
        let deadline = Instant::now() + SETTLE;
        while *self.shared.served() && !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
        let handed = if !*self.shared.served() || thread.is_finished() {
            drop(running.thread.take().map(JoinHandle::join));
            self.share(running)
        } else {
            Err(HandoverError::Busy("what the client has asked for did not come to an end"))
        };
        if handed.is_err() {
            self.go_on(running)?;
        } else {
            // It may be another process's from here on, whatever becomes of this one.
            running.name.left = true;
        }
        handed
    }

    fn share(&self, running: &Running) -> Result<Handover, HandoverError> {
        let connection = self.shared.parked().as_ref().map(Connection::share).transpose()?;
        let (path, identity) = (self.path.clone(), running.name.identity);
        Handed { path, identity, listener: Arc::clone(&running.name.listener), connection }.encode()
    }

    fn go_on(&self, running: &mut Running) -> Result<(), HandoverError> {
        // The wish may have been heard meanwhile.
        if !self.shared.unpause() || running.thread.is_none() {
            drop(running.thread.take().map(JoinHandle::join));
            running.thread =
                Some(self.shared.start(&running.name.listener).map_err(handover_system("start of a thread"))?);
        }
        // From here on the name is ours to take away.
        running.name.left = false;
        Ok(())
    }

    /// Goes on after [`VfioUserServer::detach`], where nobody has taken it over; or begins after [`VfioUserServer::adopt`], once the function
    /// runs here.
    ///
    /// # Errors
    /// [`HandoverError::Closed`], and where no thread can be started.
    pub fn resume(&self) -> Result<(), HandoverError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.go_on(running.as_mut().ok_or(HandoverError::Closed)?)
    }

    /// Closes the server here after [`VfioUserServer::detach`]: socket, name and connection are another process's. Idempotent.
    ///
    /// # Errors
    /// [`HandoverError::NotStopped`] where it is served here; nothing has changed then.
    pub fn surrender(&self) -> Result<(), HandoverError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_some_and(|running| running.thread.is_some()) {
            return Err(HandoverError::NotStopped("it is served here: it was not detached"));
        }
        if let Some(Running { mut name, .. }) = running.take() {
            name.left = true;
        }
        self.shared.stop.store(true, Ordering::Release);
        self.end_parked();
        Ok(())
    }

    /// Takes over what [`VfioUserServer::detach`] gave, for `function`, which is the same to a guest. Nothing is read yet: the state of the
    /// function is loaded and its section restored, then [`VfioUserServer::resume`]. Until then it can be dropped, and the process that gave
    /// it goes on.
    ///
    /// # Errors
    /// [`HandoverError`]; the function is as after a reset then.
    pub fn adopt(
        handover: Handover,
        function: Arc<dyn PciFunction>,
        options: ServerOptions,
    ) -> Result<Self, HandoverError> {
        let Handed { path, identity, listener, connection } = Handed::decode(handover)?;
        let wake = Wake::new().map_err(|errno| handover_system("eventfd")(errno.into()))?;
        let shared = Shared::new(function, options, Arc::new(wake));
        shared.pause.store(true, Ordering::Release);
        if let Some(handed) = connection {
            let connection = Connection::adopt(&shared, handed)?;
            *shared.parked() = Some(connection);
        }
        let name = Name { listener, path: path.clone(), identity, left: true };
        Ok(Self { path, shared, running: Mutex::new(Some(Running { name, thread: None })) })
    }

    /// Takes the socket away and ends the client's connection. On return the function does no DMA any more. Idempotent.
    pub fn close(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Running { name, thread }) = running.take() else { return };
        self.shared.stop.store(true, Ordering::Release);
        drop(name);
        self.shared.wake.set();
        // A thread that panicked has nothing more to say; the function is then detached here.
        if thread.is_some_and(|thread| thread.join().is_err()) {
            self.shared.function.detach();
        }
        self.end_parked();
    }

    fn end_parked(&self) {
        let parked = self.shared.parked().take();
        if let Some(connection) = parked {
            connection.end(&self.shared);
        }
    }
}

impl Drop for VfioUserServer {
    fn drop(&mut self) {
        self.close();
    }
}

fn serve(shared: &Shared, listener: &OwnedFd) {
    let ends = || shared.stopped() || shared.pausing();
    loop {
        let parked = shared.parked().take();
        let connection = match parked {
            Some(connection) => connection,
            None => match wait_for_client(listener, &shared.wake, &ends, &|| shared.function.sealed()) {
                Ok(None) if shared.leaves() => return,
                Ok(None) => continue,
                Ok(Some(socket)) => Connection::new(shared, socket),
                Err(ended) => {
                    shared.note(&ended);
                    thread::sleep(PAUSE);
                    continue;
                }
            },
        };
        let ended = connection.talk(shared, listener);
        if ended == Ended::Paused {
            *shared.parked() = Some(connection);
            if shared.leaves() {
                return;
            }
            continue;
        }
        shared.note(&ended);
        // Its descriptors first; last, who sees that the client is gone finds everything settled.
        connection.dismiss();
        *shared.current() = None;
    }
}
