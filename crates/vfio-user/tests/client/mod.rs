//! A client of the protocol, written from the specification alone: it shares no code with the server's encoders and decoders.
#![allow(dead_code)]

use std::collections::{HashMap, VecDeque};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use towline_core::bar::BarTarget;
use towline_core::memory::GuestMemory;

pub const VERSION: u16 = 1;
pub const DMA_MAP: u16 = 2;
pub const DMA_UNMAP: u16 = 3;
pub const GET_INFO: u16 = 4;
pub const REGION_INFO: u16 = 5;
pub const IRQ_INFO: u16 = 7;
pub const SET_IRQS: u16 = 8;
pub const READ: u16 = 9;
pub const WRITE: u16 = 10;
pub const DMA_READ: u16 = 11;
pub const DMA_WRITE: u16 = 12;
pub const RESET: u16 = 13;
pub const MULTI: u16 = 15;
pub const FEATURE: u16 = 16;

pub const EINVAL: u32 = 22;
pub const EEXIST: u32 = 17;
pub const ENOTSUP: u32 = 95;

const NO_REPLY: u32 = 0x10;
const PATIENCE: Duration = Duration::from_secs(10);

/// `(value, bytes)` one after the other, little-endian.
pub fn le(fields: &[(u64, usize)]) -> Vec<u8> {
    fields.iter().flat_map(|(value, bytes)| value.to_le_bytes().into_iter().take(*bytes)).collect()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut out = le(&[(id.into(), 2), (command.into(), 2), (16 + body.len() as u64, 4), (flags.into(), 4), (0, 4)]);
    out.extend_from_slice(body);
    out
}

/// How this client lays out the messages by which its memory is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaLayout {
    /// 64 bits of count.
    Specified,
    /// 32 bits of count, and four bytes behind the data: as QEMU has it.
    Qemu,
}

/// What the client does with a DMA message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answering {
    /// Serves it.
    Serve,
    /// Keeps it until [`Client::answer_held`].
    Hold,
    /// Serves it, with one bit wrong of what is no command but data.
    Corrupt,
    /// Says that it failed.
    Refuse,
}

#[derive(Default)]
struct Replies {
    arrived: HashMap<u16, (u32, u32, Vec<u8>)>,
    held: VecDeque<(Vec<u8>, Vec<u8>)>,
    gone: bool,
}

struct Inner {
    socket: UnixStream,
    sending: Mutex<()>,
    replies: Mutex<Replies>,
    changed: Condvar,
    next: AtomicU16,
    memory: Option<Arc<dyn GuestMemory>>,
    layout: DmaLayout,
    answering: Mutex<Answering>,
    dma_messages: AtomicUsize,
    quit: AtomicBool,
}

/// A connection. A thread of its own takes what comes in.
pub struct Client {
    inner: Arc<Inner>,
    reader: Option<JoinHandle<()>>,
}

pub fn connect(path: &Path) -> UnixStream {
    try_connect(path).unwrap()
}

pub fn try_connect(path: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(path)
}

pub fn send_with(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    try_send(socket, bytes, fds).unwrap();
}

pub fn try_send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), rustix::io::Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let mut sent = 0;
    while sent < bytes.len() {
        sent += sendmsg(socket, &[IoSlice::new(&bytes[sent..])], &mut control, SendFlags::NOSIGNAL)?;
        control = SendAncillaryBuffer::default();
    }
    Ok(())
}

/// One message as it comes: header and body.
pub fn receive(socket: &UnixStream) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut header = vec![0; 16];
    (&mut &*socket).read_exact(&mut header).ok()?;
    let mut body = vec![0; u32_at(&header, 4) as usize - 16];
    (&mut &*socket).read_exact(&mut body).ok()?;
    Some((header, body))
}

impl Inner {
    fn read_all(&self) {
        while let Some((header, body)) = receive(&self.socket) {
            let (id, flags) = (u16::from_le_bytes([header[0], header[1]]), u32_at(&header, 8));
            if flags & 15 == 1 {
                let mut replies = self.replies.lock().unwrap();
                assert!(replies.arrived.insert(id, (flags, u32_at(&header, 12), body)).is_none());
                drop(replies);
                self.changed.notify_all();
            } else {
                self.dma_messages.fetch_add(1, Ordering::SeqCst);
                let answering = *self.answering.lock().unwrap();
                if answering == Answering::Hold {
                    self.replies.lock().unwrap().held.push_back((header, body));
                    self.changed.notify_all();
                } else {
                    self.serve(&header, &body, answering);
                }
            }
        }
        self.replies.lock().unwrap().gone = true;
        self.changed.notify_all();
    }

    fn serve(&self, header: &[u8], body: &[u8], answering: Answering) {
        let (address, count) = (u64_at(body, 0), u32_at(body, 8) as usize);
        let id = u16::from_le_bytes([header[0], header[1]]);
        let command = u16::from_le_bytes([header[2], header[3]]);
        let start = if self.layout == DmaLayout::Qemu { 12 } else { 16 };
        let memory = self.memory.as_ref().expect("DMA to a client without memory");
        let refuse = |errno: u32| {
            let mut reply = message(id, command, 0x21, &[]);
            reply[12..16].copy_from_slice(&errno.to_le_bytes());
            reply
        };
        let reply = match command {
            _ if answering == Answering::Refuse => refuse(14),
            DMA_READ => {
                assert_eq!(body.len(), 16);
                let mut data = vec![0; count];
                match memory.read(address, &mut data) {
                    Err(_) => refuse(14),
                    Ok(()) => {
                        if answering == Answering::Corrupt && count >= 512 {
                            data[count / 2] ^= 1;
                        }
                        let mut answer = body.to_vec();
                        answer.extend(vec![0; count]);
                        answer[start..start + count].copy_from_slice(&data);
                        message(id, command, 1, &answer)
                    }
                }
            }
            DMA_WRITE => {
                assert_eq!(body.len(), 16 + count);
                match memory.write(address, &body[start..start + count]) {
                    Err(_) => refuse(14),
                    Ok(()) if self.layout == DmaLayout::Qemu => message(id, command, 1, &[]),
                    Ok(()) => message(id, command, 1, &body[..16]),
                }
            }
            other => panic!("the server sent command {other}"),
        };
        let _sending = self.sending.lock().unwrap();
        if !self.quit.load(Ordering::SeqCst) {
            send_with(&self.socket, &reply, &[]);
        }
    }
}

impl Client {
    /// Connects and agrees on the version.
    pub fn new(path: &Path, memory: Option<Arc<dyn GuestMemory>>, layout: DmaLayout) -> Self {
        let client = Self::silent(path, memory, layout);
        let minor = u64::from(layout == DmaLayout::Specified);
        let mut hello = le(&[(0, 2), (minor, 2)]);
        hello.extend(b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}\0");
        let answer = client.call(VERSION, &hello, &[]).unwrap();
        assert_eq!(answer[..4], [0; 4], "version 0.0");
        assert_eq!(answer.last(), Some(&0));
        client
    }

    /// Connects and says nothing.
    pub fn silent(path: &Path, memory: Option<Arc<dyn GuestMemory>>, layout: DmaLayout) -> Self {
        let inner = Arc::new(Inner {
            socket: connect(path),
            sending: Mutex::new(()),
            replies: Mutex::default(),
            changed: Condvar::new(),
            next: AtomicU16::new(1),
            memory,
            layout,
            answering: Mutex::new(Answering::Serve),
            dma_messages: AtomicUsize::new(0),
            quit: AtomicBool::new(false),
        });
        let run = Arc::clone(&inner);
        Self { inner, reader: Some(std::thread::spawn(move || run.read_all())) }
    }

    pub fn answering(&self, answering: Answering) {
        *self.inner.answering.lock().unwrap() = answering;
    }

    /// Waits until a DMA message is held.
    pub fn wait_held(&self) {
        let replies = self.inner.replies.lock().unwrap();
        let (replies, timeout) =
            self.inner.changed.wait_timeout_while(replies, PATIENCE, |replies| replies.held.is_empty()).unwrap();
        assert!(!timeout.timed_out() && !replies.held.is_empty(), "no DMA message came");
    }

    /// Serves what was held, late.
    pub fn answer_held(&self) -> usize {
        self.answering(Answering::Serve);
        let held = std::mem::take(&mut self.inner.replies.lock().unwrap().held);
        held.iter().for_each(|(header, body)| self.inner.serve(header, body, Answering::Serve));
        held.len()
    }

    pub fn dma_messages(&self) -> usize {
        self.inner.dma_messages.load(Ordering::SeqCst)
    }

    fn send(&self, command: u16, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> u16 {
        let id = self.inner.next.fetch_add(1, Ordering::SeqCst);
        let _sending = self.inner.sending.lock().unwrap();
        send_with(&self.inner.socket, &message(id, command, flags, body), fds);
        id
    }

    /// Sends a command and returns the body of its answer, or its errno.
    pub fn call(&self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Vec<u8>, u32> {
        let id = self.send(command, 0, body, fds);
        self.reply(id)
    }

    /// Waits for the answer to a message.
    pub fn reply(&self, id: u16) -> Result<Vec<u8>, u32> {
        let replies = self.inner.replies.lock().unwrap();
        let missing = |replies: &mut Replies| !replies.arrived.contains_key(&id) && !replies.gone;
        let (mut replies, timeout) = self.inner.changed.wait_timeout_while(replies, PATIENCE, missing).unwrap();
        assert!(!timeout.timed_out(), "no answer to message {id}");
        let (flags, errno, body) = replies.arrived.remove(&id).ok_or(u32::MAX)?;
        if flags & 0x20 != 0 {
            assert!(body.is_empty(), "an error has no body");
            return Err(errno);
        }
        Ok(body)
    }

    /// Sends raw bytes.
    pub fn raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let _sending = self.inner.sending.lock().unwrap();
        send_with(&self.inner.socket, bytes, fds);
    }

    /// Waits until the server has closed the connection.
    pub fn wait_gone(&self) {
        let replies = self.inner.replies.lock().unwrap();
        let gone = self.inner.changed.wait_timeout_while(replies, PATIENCE, |replies| !replies.gone).unwrap();
        assert!(!gone.1.timed_out(), "the server keeps the connection");
    }

    pub fn map(&self, address: u64, size: u64, offset: u64, fd: Option<BorrowedFd<'_>>) -> Result<(), u32> {
        let body = le(&[(32, 4), (3, 4), (offset, 8), (address, 8), (size, 8)]);
        self.call(DMA_MAP, &body, fd.as_slice()).map(|answer| assert!(answer.is_empty()))
    }

    pub fn unmap(&self, address: u64, size: u64) -> Result<(), u32> {
        let body = le(&[(24, 4), (0, 4), (address, 8), (size, 8)]);
        self.call(DMA_UNMAP, &body, &[]).map(|answer| assert_eq!(answer, body))
    }

    pub fn read(&self, region: u32, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        let body = le(&[(offset, 8), (region.into(), 4), (len.into(), 4)]);
        let answer = self.call(READ, &body, &[])?;
        assert_eq!(answer[..16], body);
        assert_eq!(answer.len(), 16 + len as usize);
        Ok(answer[16..].to_vec())
    }

    fn write_body(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
        let mut body = le(&[(offset, 8), (region.into(), 4), (data.len() as u64, 4)]);
        body.extend_from_slice(data);
        body
    }

    pub fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.call(WRITE, &Self::write_body(region, offset, data), &[]).map(|_| ())
    }

    /// Without an answer, as QEMU's posted writes.
    pub fn post(&self, region: u32, offset: u64, data: &[u8]) {
        self.send(WRITE, NO_REPLY, &Self::write_body(region, offset, data), &[]);
    }

    pub fn config32(&self, at: u64) -> u32 {
        u32_at(&self.read(7, at, 4).unwrap(), 0)
    }

    pub fn register32(&self, at: u64) -> u32 {
        u32_at(&self.read(0, at, 4).unwrap(), 0)
    }

    /// Bus master and memory space, or neither.
    pub fn bus_master(&self, on: bool) {
        self.write(7, 4, &[if on { 6 } else { 0 }, 0]).unwrap();
    }

    /// A function level reset, by the PCI Express capability.
    pub fn flr(&self) -> Result<(), u32> {
        let mut at = self.config32(0x34) & 0xff;
        while self.config32(at.into()) & 0xff != 0x10 {
            at = self.config32(at.into()) >> 8 & 0xff;
            assert_ne!(at, 0, "no PCI Express capability");
        }
        let control = self.config32(u64::from(at) + 8) as u16 | 0x8000;
        self.write(7, u64::from(at) + 8, &control.to_le_bytes())
    }

    pub fn set_irqs(&self, flags: u32, index: u32, start: u32, count: u32, fds: &[BorrowedFd<'_>]) -> Result<(), u32> {
        let body = le(&[(20, 4), (flags.into(), 4), (index.into(), 4), (start.into(), 4), (count.into(), 4)]);
        self.call(SET_IRQS, &body, fds).map(|_| ())
    }

    /// Wires an eventfd to each of the first `count` MSI-X vectors.
    pub fn wire(&self, count: u32) -> Vec<OwnedFd> {
        let new = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let events: Vec<OwnedFd> = (0..count).map(|_| new()).collect();
        let fds: Vec<_> = events.iter().map(AsFd::as_fd).collect();
        self.set_irqs(0x24, 2, 0, count, &fds).unwrap();
        events
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.inner.quit.store(true, Ordering::SeqCst);
        drop(self.inner.socket.shutdown(std::net::Shutdown::Both));
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// BAR 0 of the function behind a client. Doorbells are posted, everything else is answered.
pub struct Bar(pub Arc<Client>);

impl BarTarget for Bar {
    fn read(&self, offset: u64, out: &mut [u8]) {
        match self.0.read(0, offset, out.len() as u32) {
            Ok(data) => out.copy_from_slice(&data),
            Err(_) => out.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= 0x1000 {
            self.0.post(0, offset, data);
        } else {
            let _ = self.0.write(0, offset, data);
        }
    }
}

/// Waits until `done`.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
