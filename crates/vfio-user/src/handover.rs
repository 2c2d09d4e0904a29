//! A server's socket and connection as they go to another process: file descriptors, and bytes that say what they are.
//!
//! What goes along: the listening socket, the connection, the files of guest memory, the eventfds of the vectors; the version that was agreed, how the
//! client lays out its messages, and answers that it has not taken yet. What does not: config space and pending vectors, which are the
//! exposure's section, and the state of the function.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use towline_core::crc::crc32c;

use crate::interrupts::check_eventfd;
use crate::memory::SharedRange;
use crate::peer::{Agreement, MAX_GIVEN_UP};
use crate::protocol::{DmaMap, MAX_DATA_BYTES, MAX_DMA_MAPS, dma_flags};
use crate::section::Reader;
use crate::socket::MAX_OUTGOING_BYTES;

const MAGIC: [u8; 4] = *b"TLVH";
/// The version that is written, and the only one that is read.
const VERSION: u16 = 1;
const MAX_PATH_BYTES: usize = 107;
const MAX_VECTORS: u16 = 2048;
/// A range has a file, which comes along.
const WITH_FILE: u32 = 1 << 31;

/// The most file descriptors of one hand-over: two sockets, a file each range, an eventfd each vector.
pub const MAX_HANDOVER_FDS: usize = 2 + MAX_DMA_MAPS + MAX_VECTORS as usize;
/// The most bytes of one.
pub const MAX_HANDOVER_BYTES: usize = MAX_OUTGOING_BYTES + MAX_DMA_MAPS * 28 + 4096;

/// Why a server can't be handed over, or taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandoverError {
    /// The server is closed, or has been given away.
    #[error("the server is closed, or another process has it")]
    Closed,
    /// The function runs, or its section was taken already.
    #[error("{0}")]
    NotStopped(&'static str),
    /// The client's requests could not be brought to an end in time.
    #[error("{0}")]
    Busy(&'static str),
    /// What came is no hand-over of this version.
    #[error("the hand-over {0}")]
    Format(String),
    /// The function here is another one.
    #[error("the hand-over does not fit: {0}")]
    Mismatch(String),
    /// A system call failed.
    #[error("{call}: {source}")]
    System {
        /// Its name.
        call: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// A server, on its way to another process on this host.
#[derive(Debug)]
pub struct Handover {
    /// To be passed in this order, by `SCM_RIGHTS` say. At most [`MAX_HANDOVER_FDS`].
    pub fds: Vec<OwnedFd>,
    /// What they are. At most [`MAX_HANDOVER_BYTES`].
    pub bytes: Vec<u8>,
}

/// A connection in a hand-over.
pub(crate) struct HandedConnection {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) agreement: Agreement,
    pub(crate) ranges: Vec<SharedRange>,
    pub(crate) triggers: Vec<Option<Arc<OwnedFd>>>,
}

/// The contents of a hand-over.
pub(crate) struct Handed {
    pub(crate) path: PathBuf,
    /// Device and inode of the socket's name.
    pub(crate) identity: (u64, u64),
    pub(crate) listener: Arc<OwnedFd>,
    pub(crate) connection: Option<HandedConnection>,
}

pub(crate) fn system(call: &'static str) -> impl Fn(std::io::Error) -> HandoverError {
    move |source| HandoverError::System { call, source }
}

fn errno(call: &'static str) -> impl Fn(Errno) -> HandoverError {
    move |errno| HandoverError::System { call, source: errno.into() }
}

fn bad(what: impl Into<String>) -> HandoverError {
    HandoverError::Format(what.into())
}

/// A length as it is written; what is longer than can be written is longer than every cap.
fn short(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes()
}

fn long(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

impl Handed {
    /// Makes bytes and duplicates of the descriptors. Little-endian: magic `TLVH`, version u16, whether there is a connection u16; length
    /// of the path u16, path; device and inode of its name u64. Of a connection: flags u16 (1 greeted, 2 short layout, 4 layout seen),
    /// last identifier u16, most data u32, requests given up u16 and their identifiers u16; ranges u32, each flags u32, offset,
    /// address and size u64; vectors u16, a byte each that says whether it has an eventfd; bytes not sent u32 and these. CRC32C u32.
    pub(crate) fn encode(&self) -> Result<Handover, HandoverError> {
        use std::os::unix::ffi::OsStrExt;
        let dup = |fd: &OwnedFd| fd.try_clone().map_err(system("dup"));
        let mut fds = vec![dup(&self.listener)?];
        let mut out = MAGIC.to_vec();
        let path = self.path.as_os_str().as_bytes();
        out.extend(VERSION.to_le_bytes());
        out.extend(u16::from(self.connection.is_some()).to_le_bytes());
        out.extend(short(path.len()));
        out.extend(path);
        out.extend(self.identity.0.to_le_bytes());
        out.extend(self.identity.1.to_le_bytes());
        if let Some(HandedConnection { socket, agreement, ranges, triggers }) = &self.connection {
            fds.push(dup(socket)?);
            let flag = |has: bool, flag: u16| if has { flag } else { 0 };
            let flags = flag(agreement.greeted, 1) | flag(agreement.short_layout, 2) | flag(agreement.layout_seen, 4);
            out.extend(flags.to_le_bytes());
            out.extend(agreement.last_id.to_le_bytes());
            out.extend(agreement.max_data.to_le_bytes());
            out.extend(short(agreement.given_up.len()));
            agreement.given_up.iter().for_each(|id| out.extend(id.to_le_bytes()));
            out.extend(long(ranges.len()));
            for SharedRange { map, file } in ranges {
                let flags = map.flags | if file.is_some() { WITH_FILE } else { 0 };
                out.extend(flags.to_le_bytes());
                [map.offset, map.address, map.size].iter().for_each(|number| out.extend(number.to_le_bytes()));
                if let Some(file) = file {
                    fds.push(dup(file)?);
                }
            }
            out.extend(short(triggers.len()));
            for trigger in triggers {
                out.push(trigger.is_some().into());
                if let Some(trigger) = trigger {
                    fds.push(dup(trigger)?);
                }
            }
            out.extend(long(agreement.unsent.len()));
            out.extend(&agreement.unsent);
        }
        let crc = crc32c(0, &out);
        out.extend(crc.to_le_bytes());
        Ok(Handover { fds, bytes: out })
    }

    /// Reads what [`Handed::encode`] made. Nothing in it is trusted: every length, and what each descriptor is.
    pub(crate) fn decode(Handover { fds, bytes }: Handover) -> Result<Self, HandoverError> {
        use std::os::unix::ffi::OsStringExt;
        if bytes.len() > MAX_HANDOVER_BYTES || fds.len() > MAX_HANDOVER_FDS {
            return Err(bad(format!("has {} bytes and {} descriptors", bytes.len(), fds.len())));
        }
        let (content, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| bad("is too short"))?;
        if crc32c(0, content).to_le_bytes() != *crc {
            return Err(bad("is damaged: its checksum is another"));
        }
        let mut fds = fds.into_iter();
        let mut next = |what: &str| fds.next().ok_or_else(|| bad(format!("has no descriptor for {what}")));
        let mut reader = Reader(content);
        let cut = || bad("is cut");
        if reader.take::<4>() != Some(MAGIC) {
            return Err(bad("is not one of a vfio-user server"));
        }
        let version = reader.u16().ok_or_else(cut)?;
        if version != VERSION {
            return Err(bad(format!("is of version {version}; {VERSION} is read here")));
        }
        let connected = reader.u16().filter(|n| *n < 2).ok_or_else(cut)? == 1;
        let len = usize::from(reader.u16().ok_or_else(cut)?);
        if len == 0 || len > MAX_PATH_BYTES {
            return Err(bad(format!("has a path of {len} bytes")));
        }
        let path = PathBuf::from(std::ffi::OsString::from_vec(reader.bytes(len).ok_or_else(cut)?.to_vec()));
        let identity = (reader.u64().ok_or_else(cut)?, reader.u64().ok_or_else(cut)?);
        let listener = Arc::new(socket(next("the listening socket")?)?);
        let connection = if connected { Some(HandedConnection::decode(&mut reader, &mut next)?) } else { None };
        if !reader.0.is_empty() {
            return Err(bad("has something behind its end"));
        }
        if fds.next().is_some() {
            return Err(bad("has more descriptors than it names"));
        }
        Ok(Self { path, identity, listener, connection })
    }
}

impl HandedConnection {
    fn decode(
        reader: &mut Reader<'_>,
        next: &mut impl FnMut(&str) -> Result<OwnedFd, HandoverError>,
    ) -> Result<Self, HandoverError> {
        let cut = || bad("is cut");
        let over = |what: &str, count: usize| bad(format!("has {count} {what}"));
        let socket = Arc::new(socket(next("the connection")?)?);
        let flags = reader.u16().filter(|flags| *flags < 8).ok_or_else(cut)?;
        let last_id = reader.u16().ok_or_else(cut)?;
        let max_data = reader.u32().ok_or_else(cut)?;
        if max_data == 0 || max_data as usize > MAX_DATA_BYTES {
            return Err(bad(format!("has messages of {max_data} bytes")));
        }
        let count = usize::from(reader.u16().ok_or_else(cut)?);
        if count > MAX_GIVEN_UP + 1 {
            return Err(over("requests that were given up", count));
        }
        let given_up = (0..count).map(|_| reader.u16()).collect::<Option<Vec<u16>>>().ok_or_else(cut)?;
        let count = reader.u32().ok_or_else(cut)? as usize;
        if count > MAX_DMA_MAPS {
            return Err(over("ranges of memory", count));
        }
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            let flags = reader.u32().ok_or_else(cut)?;
            let mut number = || reader.u64().ok_or_else(cut);
            let (offset, address, size) = (number()?, number()?, number()?);
            let map = DmaMap { flags: flags & !WITH_FILE, offset, address, size };
            let known = dma_flags::READ | dma_flags::WRITE;
            let ends = address.checked_add(size).is_some() && offset.checked_add(size).is_some();
            if map.flags == 0 || map.flags & !known != 0 || size == 0 || !ends {
                return Err(bad(format!("has a range of {size:#x} bytes at {address:#x} with flags {flags:#x}")));
            }
            let file = if flags & WITH_FILE != 0 { Some(next("a range of memory")?) } else { None };
            ranges.push(SharedRange { map, file });
        }
        let vectors = reader.u16().ok_or_else(cut)?;
        if vectors > MAX_VECTORS {
            return Err(over("vectors", vectors.into()));
        }
        let mut triggers = Vec::with_capacity(vectors.into());
        for _ in 0..vectors {
            triggers.push(match reader.u8() {
                Some(0) => None,
                Some(1) => {
                    let fd = next("a vector")?;
                    check_eventfd(&fd).map_err(errno("check of an eventfd"))?;
                    Some(Arc::new(fd))
                }
                _ => return Err(cut()),
            });
        }
        let count = reader.u32().ok_or_else(cut)? as usize;
        if count > MAX_OUTGOING_BYTES {
            return Err(over("bytes to be sent", count));
        }
        let unsent = reader.bytes(count).ok_or_else(cut)?.to_vec();
        let (greeted, short_layout, layout_seen) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        let agreement = Agreement { greeted, short_layout, layout_seen, last_id, max_data, given_up, unsent };
        Ok(Self { socket, agreement, ranges, triggers })
    }
}

/// Checks that a descriptor is a socket.
fn socket(fd: OwnedFd) -> Result<OwnedFd, HandoverError> {
    let stat = fstat(fd.as_fd()).map_err(errno("fstat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(bad("has a descriptor that is no socket where one has to be"));
    }
    Ok(fd)
}
