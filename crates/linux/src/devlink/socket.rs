//! Requests and dumps of one generic netlink family.

use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket as Netlink, SocketAddr};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::attribute::{Attributes, damaged, put_text};
use super::meaning::meaning;
use super::message::{Part, Refusal, Reply, Request, decode};
use crate::sysfs::{HostError, HostErrorKind, Meaning};

/// The family that tells the numbers of the others (`GENL_ID_CTRL`), and of it what is needed.
const CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// The kernel never makes a longer message for a dump than the buffer that it sees, and answers to single requests are shorter.
const BUFFER_BYTES: usize = 64 << 10;
/// `MSG_TRUNC`: a message that is longer than the buffer says so.
const MSG_TRUNC: i32 = 0x20;
/// A request is executed while it is sent: when that has returned, the answer is there.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a dump is begun anew when devices came or went meanwhile.
const DUMP_ATTEMPTS: u32 = 5;

#[derive(Debug)]
pub(super) struct Socket {
    socket: Netlink,
    family: u16,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket and asks for the number of `family`.
    pub(super) fn open(family: &str) -> Result<Self, HostError> {
        let what = format!("opening generic netlink for {family}");
        let failed = |e: std::io::Error| HostError::refused(what.as_str(), errno_of(&e), socket_means(errno_of(&e)));
        let mut socket = Netlink::new(NETLINK_GENERIC).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        // Errors with words, and without the whole request repeated. Kernels before 4.12 have neither.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let mut opened = Self { socket, family: CTRL, sequence: 0, buffer: Vec::with_capacity(BUFFER_BYTES) };
        let mut request = Vec::new();
        put_text(&mut request, CTRL_ATTR_FAMILY_NAME, family);
        let replies = opened.exchange(&what, CTRL_CMD_GETFAMILY, NLM_F_ACK, &request, 1)?.map_err(|refusal| {
            let missing =
                Meaning(HostErrorKind::Unsupported, "this kernel does not have it", "load the driver of the device");
            HostError::refused(what.as_str(), refusal.errno, (refusal.errno == Errno::NOENT).then_some(missing))
        })?;
        let reply = replies.0.first().ok_or_else(|| damaged(&what, "there is none"))?;
        let attributes = Attributes::parse(&what, &reply.body)?;
        opened.family = attributes.required("the number", attributes.u16(CTRL_ATTR_FAMILY_ID)?)?;
        Ok(opened)
    }

    /// Sends a request and returns the messages of its answer.
    pub(super) fn request(&mut self, what: &str, command: u8, attributes: &[u8]) -> Result<Vec<Reply>, HostError> {
        let answer = self.exchange(what, command, NLM_F_ACK, attributes, 1)?;
        Ok(answer.map_err(|refusal| refused(what, command, refusal))?.0)
    }

    /// Lists everything of a kind, at most `most`.
    pub(super) fn dump(&mut self, what: &str, command: u8, most: usize) -> Result<Vec<Reply>, HostError> {
        for _ in 0..DUMP_ATTEMPTS {
            let answer = self.exchange(what, command, NLM_F_DUMP, &[], most)?;
            let (replies, interrupted) = answer.map_err(|refusal| refused(what, command, refusal))?;
            if !interrupted {
                return Ok(replies);
            }
        }
        let changing = HostError::new(HostErrorKind::State, what, "devices kept coming and going meanwhile");
        Err(changing.mend("try again"))
    }

    /// One request with its whole answer: the messages, and whether what they tell changed meanwhile.
    fn exchange(
        &mut self,
        what: &str,
        command: u8,
        flags: u16,
        attributes: &[u8],
        most: usize,
    ) -> Result<Result<(Vec<Reply>, bool), Refusal>, HostError> {
        self.sequence = self.sequence.wrapping_add(1);
        let (family, sequence) = (self.family, self.sequence);
        let flags = flags | NLM_F_REQUEST;
        let request = Request { family, command, version: 1, flags, sequence, attributes }.encode();
        let sent = self.socket.send(&request, 0).map_err(|e| HostError::refused(what, errno_of(&e), None))?;
        if sent != request.len() {
            return Err(HostError::new(HostErrorKind::System, what, "the request was sent in part only"));
        }
        let (mut replies, mut interrupted) = (Vec::new(), false);
        loop {
            self.receive(what)?;
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let (part, length) = decode(what, family, sequence, rest)?;
                rest = rest.get(length..).unwrap_or_default();
                match part {
                    Part::Reply(..) if replies.len() == most => {
                        return Err(HostError::new(HostErrorKind::Limit, what, format!("more than {most} answers")));
                    }
                    Part::Reply(reply, changed) => {
                        interrupted |= changed;
                        replies.push(reply);
                    }
                    Part::End(changed) => return Ok(Ok((replies, interrupted | changed))),
                    Part::Refused(refusal) => return Ok(Err(refusal)),
                    Part::Other => {}
                }
            }
        }
    }

    /// Fills the buffer with the next datagram of the kernel.
    fn receive(&mut self, what: &str) -> Result<(), HostError> {
        let limit = rustix::event::Timespec { tv_sec: ANSWER.as_secs().cast_signed(), tv_nsec: 0 };
        loop {
            let mut waiting = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)];
            match poll(&mut waiting, Some(&limit)) {
                Ok(0) => return Err(HostError::new(HostErrorKind::System, what, "the kernel did not answer")),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(HostError::refused(what, errno, None)),
            }
            self.buffer.clear();
            let (length, sender) = match self.socket.recv_from(&mut self.buffer, MSG_TRUNC) {
                Ok(received) => received,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(HostError::refused(what, errno_of(&e), None)),
            };
            if length > self.buffer.len() {
                return Err(damaged(what, "a message is longer than the buffer"));
            }
            // Other processes may send to this socket too.
            if sender.port_number() == 0 && length > 0 {
                return Ok(());
            }
        }
    }
}

fn refused(what: &str, command: u8, refusal: Refusal) -> HostError {
    let known = meaning(command, refusal.errno);
    HostError { kernel: refusal.text, ..HostError::refused(what, refusal.errno, known) }
}

fn errno_of(e: &std::io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

fn socket_means(errno: Errno) -> Option<Meaning> {
    match errno {
        Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT => {
            Some(Meaning(HostErrorKind::Unsupported, "this kernel has no generic netlink, or forbids it here", ""))
        }
        _ => None,
    }
}
