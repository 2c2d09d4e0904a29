//! The client of the socket. Both vCPUs' threads use it at once: each request has an identifier, and a thread that reads hands answers out.
//!
//! The server also asks: for guest memory that it could not map.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::message::{
    Body, DMA_MAP, DMA_READ, DMA_WRITE, GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, HEADER_BYTES, Header, MAX_DATA,
    REGION_READ, REGION_WRITE, RESET, SET_IRQS, VERSION, u32_at, u64_at,
};
use super::{CONFIG_REGION, MSIX_INDEX};
use crate::error::{Error, Result};
use crate::ram::Ram;

const EFAULT: u32 = 14;
const ENOTSUP: u32 = 95;
/// Requests that wait for an answer at once: two vCPUs, the doorbell thread and the caller, with room.
const MOST_WAITING: usize = 64;

/// What became of a request.
enum Answer {
    Body(Vec<u8>),
    Errno(u32),
}

#[derive(Default)]
struct Waiting {
    answers: HashMap<u16, Option<Answer>>,
    /// Why nothing comes any more.
    broken: Option<String>,
}

struct Shared {
    socket: UnixStream,
    sending: Mutex<()>,
    waiting: Mutex<Waiting>,
    changed: Condvar,
    next: AtomicU16,
    timeout: Duration,
    ram: Arc<Ram>,
    messages: AtomicU64,
    waits: AtomicU64,
}

/// A connection to a device.
pub struct Client {
    shared: Arc<Shared>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

/// Size and use of a region.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub bytes: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn broken(&self, why: String) {
        let mut waiting = lock(&self.waiting);
        waiting.broken.get_or_insert(why);
        self.changed.notify_all();
        // The reader ends, too; a socket that is closed already needs no more.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn send(&self, header: &Header, body: &[u8], fds: &[RawFd]) -> std::io::Result<()> {
        let head = header.encode();
        let message = [head.as_slice(), body].concat();
        let _sending = lock(&self.sending);
        self.messages.fetch_add(1, Ordering::Relaxed);
        let mut rest = message.as_slice();
        if !fds.is_empty() {
            let sent = self
                .socket
                .send_with_fds(&[message.as_slice()], fds)
                .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))?;
            rest = message.get(sent..).unwrap_or_default();
        }
        (&self.socket).write_all(rest)
    }

    /// Takes messages until the socket ends; says why it ended.
    fn read_all(&self) -> String {
        loop {
            let mut head = [0; HEADER_BYTES];
            if let Err(e) = (&self.socket).read_exact(&mut head) {
                return format!("the connection ended: {e}");
            }
            let Some(header) = Header::decode(&head) else { return "a message of impossible length".into() };
            let mut body = vec![0; header.size as usize - HEADER_BYTES];
            if let Err(e) = (&self.socket).read_exact(&mut body) {
                return format!("the connection ended: {e}");
            }
            if header.is_reply() {
                let answer = if header.is_error() { Answer::Errno(header.errno) } else { Answer::Body(body) };
                let mut waiting = lock(&self.waiting);
                // An answer that nobody asked for, or waits for no more, is dropped.
                if let Some(place) = waiting.answers.get_mut(&header.id) {
                    *place = Some(answer);
                    self.changed.notify_all();
                }
            } else if let Err(e) = self.serve(&header, &body) {
                return format!("answering failed: {e}");
            }
        }
    }

    /// The server reads or writes guest memory that it could not map.
    fn serve(&self, header: &Header, body: &[u8]) -> std::io::Result<()> {
        let (result, errno) = match self.dma(header.command, body) {
            Ok(reply) => (reply, 0),
            Err(errno) => (Vec::new(), errno),
        };
        if header.wants_reply() {
            self.send(&header.reply(result.len(), errno), &result, &[])?;
        }
        Ok(())
    }

    fn dma(&self, command: u16, body: &[u8]) -> std::result::Result<Vec<u8>, u32> {
        let (address, count) = u64_at(body, 0).zip(u64_at(body, 8)).ok_or(EFAULT)?;
        let count = usize::try_from(count).ok().filter(|c| *c <= MAX_DATA).ok_or(EFAULT)?;
        let head = body.get(..16).ok_or(EFAULT)?;
        match command {
            DMA_READ => {
                let mut data = vec![0; count];
                if !self.ram.read(address, &mut data) {
                    return Err(EFAULT);
                }
                Ok([head, &data].concat())
            }
            DMA_WRITE => {
                let data = body.get(16..).filter(|d| d.len() == count).ok_or(EFAULT)?;
                if !self.ram.write(address, data) {
                    return Err(EFAULT);
                }
                Ok(head.to_vec())
            }
            _ => Err(ENOTSUP),
        }
    }
}

impl Client {
    /// Connects and agrees on the version.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn connect(path: &Path, ram: Arc<Ram>, timeout: Duration) -> Result<Self> {
        let socket = UnixStream::connect(path).map_err(|e| Error::Device(format!("{}: {e}", path.display())))?;
        socket.set_write_timeout(Some(timeout)).map_err(Error::system("SO_SNDTIMEO"))?;
        let shared = Arc::new(Shared {
            socket,
            sending: Mutex::new(()),
            waiting: Mutex::default(),
            changed: Condvar::new(),
            next: AtomicU16::new(1),
            timeout,
            ram,
            messages: AtomicU64::new(0),
            waits: AtomicU64::new(0),
        });
        let reads = Arc::clone(&shared);
        let reader = std::thread::Builder::new()
            .name("vfio-user".into())
            .spawn(move || {
                let why = reads.read_all();
                reads.broken(why);
            })
            .map_err(Error::system("starting a thread"))?;
        let client = Self { shared, reader: Mutex::new(Some(reader)) };
        client.negotiate()?;
        Ok(client)
    }

    fn negotiate(&self) -> Result<()> {
        let capabilities = format!("{{\"capabilities\":{{\"max_msg_fds\":8,\"max_data_xfer_size\":{MAX_DATA}}}}}\0");
        let body = Body::default().u16(0).u16(1).bytes(capabilities.as_bytes());
        let answer = self.call("VERSION", VERSION, &body.0, &[])?;
        match answer.first_chunk::<4>() {
            Some([0, 0, minor, 0]) if *minor <= 1 => Ok(()),
            _ => Err(Error::Device("another version of the protocol".into())),
        }
    }

    /// Sends a request and waits for its answer.
    fn call(&self, what: &str, command: u16, body: &[u8], fds: &[RawFd]) -> Result<Vec<u8>> {
        let shared = &self.shared;
        let id = self.expect_answer()?;
        shared.waits.fetch_add(1, Ordering::Relaxed);
        if let Err(e) = shared.send(&Header::command(id, command, body.len(), true), body, fds) {
            shared.broken(format!("sending failed: {e}"));
        }
        let waiting = lock(&shared.waiting);
        let (mut waiting, timeout) = shared
            .changed
            .wait_timeout_while(waiting, shared.timeout, |w| {
                w.broken.is_none() && matches!(w.answers.get(&id), Some(None))
            })
            .unwrap_or_else(PoisonError::into_inner);
        let answer = waiting.answers.remove(&id).flatten();
        let broken = waiting.broken.clone();
        drop(waiting);
        match answer {
            Some(Answer::Body(body)) => Ok(body),
            Some(Answer::Errno(errno)) => {
                Err(Error::Device(format!("{what}: {}", std::io::Error::from_raw_os_error(errno as i32))))
            }
            None if timeout.timed_out() => {
                // What comes late could not be told from what is due.
                shared.broken(format!("{what} was not answered"));
                Err(Error::Device(format!("{what} was not answered within {:?}", shared.timeout)))
            }
            None => Err(Error::Device(broken.unwrap_or_else(|| "the connection ended".into()))),
        }
    }

    /// An identifier for a request whose answer is waited for.
    fn expect_answer(&self) -> Result<u16> {
        let mut waiting = lock(&self.shared.waiting);
        if let Some(why) = &waiting.broken {
            return Err(Error::Device(why.clone()));
        }
        if waiting.answers.len() >= MOST_WAITING {
            return Err(Error::Device("too many requests at once".into()));
        }
        loop {
            let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
            if let std::collections::hash_map::Entry::Vacant(place) = waiting.answers.entry(id) {
                place.insert(None);
                return Ok(id);
            }
        }
    }

    /// Number of regions and interrupt indexes are enough for a PCI device, or it is an error.
    pub fn check_device(&self) -> Result<()> {
        let body = Body::default().u32(16).u32(0).u32(0).u32(0);
        let answer = self.call("GET_INFO", GET_INFO, &body.0, &[])?;
        let counts = u32_at(&answer, 8).zip(u32_at(&answer, 12));
        match counts {
            Some((regions, irqs)) if regions > CONFIG_REGION && irqs > MSIX_INDEX => Ok(()),
            _ => Err(Error::Device("it is no PCI device".into())),
        }
    }

    /// Bytes of a region.
    pub fn region(&self, index: u32) -> Result<Region> {
        let body = Body::default().u32(32).u32(0).u32(index).u32(0).u64(0).u64(0);
        let answer = self.call("GET_REGION_INFO", GET_REGION_INFO, &body.0, &[])?;
        let bytes = u64_at(&answer, 16).ok_or_else(|| Error::Device("GET_REGION_INFO: a short answer".into()))?;
        Ok(Region { bytes })
    }

    /// Number of MSI-X vectors.
    pub fn vectors(&self) -> Result<u32> {
        let body = Body::default().u32(16).u32(0).u32(MSIX_INDEX).u32(0);
        let answer = self.call("GET_IRQ_INFO", GET_IRQ_INFO, &body.0, &[])?;
        u32_at(&answer, 12).ok_or_else(|| Error::Device("GET_IRQ_INFO: a short answer".into()))
    }

    /// Gives the device all of RAM, by its descriptors.
    pub fn map_ram(&self) -> Result<()> {
        use std::os::fd::AsRawFd;
        const READ_WRITE: u32 = 3;
        for range in self.shared.ram.ranges() {
            let body = Body::default().u32(32).u32(READ_WRITE).u64(range.fd_offset).u64(range.gpa).u64(range.len);
            self.call("DMA_MAP", DMA_MAP, &body.0, &[range.file.as_raw_fd()])?;
        }
        Ok(())
    }

    /// Wires an eventfd to each of the first vectors; none takes them all away.
    pub fn set_irqs(&self, fds: &[RawFd]) -> Result<()> {
        const NONE_TRIGGER: u32 = 0x21;
        const EVENTFD_TRIGGER: u32 = 0x24;
        /// As many descriptors a message as every server takes.
        const CHUNK: usize = 8;
        let body = |flags: u32, start: usize, count: usize| {
            Body::default().u32(20).u32(flags).u32(MSIX_INDEX).u32(start as u32).u32(count as u32).0
        };
        if fds.is_empty() {
            return self.call("SET_IRQS", SET_IRQS, &body(NONE_TRIGGER, 0, 0), &[]).map(drop);
        }
        for (n, chunk) in fds.chunks(CHUNK).enumerate() {
            self.call("SET_IRQS", SET_IRQS, &body(EVENTFD_TRIGGER, n * CHUNK, chunk.len()), chunk)?;
        }
        Ok(())
    }

    /// Resets the device.
    pub fn reset(&self) -> Result<()> {
        self.call("RESET", RESET, &[], &[]).map(drop)
    }

    /// Reads a region.
    pub fn read(&self, region: u32, offset: u64, out: &mut [u8]) -> Result<()> {
        let body = Body::default().u64(offset).u32(region).u32(out.len() as u32);
        let answer = self.call("REGION_READ", REGION_READ, &body.0, &[])?;
        let data = answer.get(16..).filter(|d| d.len() == out.len());
        out.copy_from_slice(data.ok_or_else(|| Error::Device("REGION_READ: an answer of another length".into()))?);
        Ok(())
    }

    /// Writes a region and waits until it is done.
    pub fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        let body = Body::default().u64(offset).u32(region).u32(data.len() as u32).bytes(data);
        self.call("REGION_WRITE", REGION_WRITE, &body.0, &[]).map(drop)
    }

    /// Writes a region without an answer: later requests are carried out after it all the same.
    pub fn post(&self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        if let Some(why) = self.failure() {
            return Err(Error::Device(why));
        }
        let body = Body::default().u64(offset).u32(region).u32(data.len() as u32).bytes(data);
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let header = Header::command(id, REGION_WRITE, body.0.len(), false);
        self.shared.send(&header, &body.0, &[]).map_err(|e| {
            self.shared.broken(format!("sending failed: {e}"));
            Error::Device(format!("sending failed: {e}"))
        })
    }

    /// Why nothing can be asked any more; `None` while all is well.
    pub fn failure(&self) -> Option<String> {
        lock(&self.shared.waiting).broken.clone()
    }

    /// Messages sent, and answers waited for.
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.messages.load(Ordering::Relaxed), self.shared.waits.load(Ordering::Relaxed))
    }

    /// Ends the connection; whoever waits is told. Idempotent.
    pub fn close(&self) {
        self.shared.broken("disconnected".into());
        if let Some(reader) = lock(&self.reader).take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}
