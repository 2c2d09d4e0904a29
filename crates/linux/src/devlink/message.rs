//! Generic netlink messages as bytes, and what their answers mean.

use netlink_packet_core::{
    DecodeError, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use rustix::io::Errno;

use super::attribute::{Attributes, damaged};
use crate::sysfs::HostError;

/// `struct genlmsghdr`: command, version, two reserved bytes.
const GENL_HEADER: usize = 4;
/// `struct nlmsghdr`.
const NL_HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG`: what the kernel says, as text.
const EXT_ACK_TEXT: u16 = 1;

/// A generic netlink message: its command and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    family: u16,
    bytes: Vec<u8>,
}

impl NetlinkSerializable for Body {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Body {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { family: header.message_type, bytes: payload.to_vec() })
    }
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub family: u16,
    pub command: u8,
    pub version: u8,
    pub flags: u16,
    pub sequence: u32,
    pub attributes: &'a [u8],
}

impl Request<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.command, self.version, 0, 0];
        bytes.extend_from_slice(self.attributes);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (self.flags, self.sequence);
        let body = Body { family: self.family, bytes };
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(body));
        message.finalize();
        let mut out = vec![0; message.buffer_len()];
        message.serialize(&mut out);
        out
    }
}

/// A message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub command: u8,
    /// Its attributes.
    pub body: Vec<u8>,
}

/// The kernel's errno, and what it says in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub errno: Errno,
    pub text: Option<String>,
}

/// What one message of an answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Some of the answer; whether what it tells changed while it was told.
    Reply(Reply, bool),
    /// The end, of a request or a dump; whether what was dumped changed meanwhile.
    End(bool),
    /// The kernel refuses.
    Refused(Refusal),
    /// Of an earlier request, or nothing.
    Other,
}

/// Reads the first message of `bytes`, and tells its length, padded.
pub(super) fn decode(what: &str, family: u16, sequence: u32, bytes: &[u8]) -> Result<(Part, usize), HostError> {
    let message = NetlinkMessage::<Body>::deserialize(bytes).map_err(|e: DecodeError| damaged(what, &e.to_string()))?;
    let (header, payload) = message.into_parts();
    let length = usize::try_from(header.length).map_err(|_| damaged(what, "a message is too long"))?;
    let padded = length.div_ceil(4).saturating_mul(4).min(bytes.len()).max(NL_HEADER);
    if header.sequence_number != sequence {
        return Ok((Part::Other, padded));
    }
    let interrupted = header.flags & NLM_F_DUMP_INTR != 0;
    let part = match payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Part::End(interrupted),
        NetlinkPayload::Error(error) => {
            Part::Refused(Refusal { errno: errno(error.raw_code()), text: ext_ack(header.flags, &error.header) })
        }
        NetlinkPayload::Done(done) if done.code < 0 => {
            let text = (header.flags & NLM_F_ACK_TLVS != 0).then(|| words(&done.extended_ack)).flatten();
            Part::Refused(Refusal { errno: errno(done.code), text })
        }
        NetlinkPayload::Done(_) => Part::End(interrupted),
        NetlinkPayload::InnerMessage(body) if body.family == family => {
            let command = body.bytes.first().copied();
            let rest = body.bytes.get(GENL_HEADER..);
            let (Some(command), Some(rest)) = (command, rest) else {
                return Err(damaged(what, "a message is cut short"));
            };
            Part::Reply(Reply { command, body: rest.to_vec() }, interrupted)
        }
        NetlinkPayload::Overrun(_) => return Err(damaged(what, "messages were lost")),
        _ => Part::Other,
    };
    Ok((part, padded))
}

fn errno(code: i32) -> Errno {
    Errno::from_raw_os_error(code.checked_neg().filter(|number| (1..4096).contains(number)).unwrap_or(5))
}

/// The kernel's words behind the request that an error repeats: only its header where the error is capped.
fn ext_ack(flags: u16, repeated: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let length = match flags & NLM_F_CAPPED {
        0 => repeated.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes) as usize)?,
        _ => NL_HEADER,
    };
    words(repeated.get(length.checked_next_multiple_of(4)?..)?)
}

/// Damage in the explanation of an error must not hide the error.
fn words(attributes: &[u8]) -> Option<String> {
    let text = Attributes::parse("", attributes).ok()?.text(EXT_ACK_TEXT).ok()??;
    (!text.is_empty()).then_some(text)
}
