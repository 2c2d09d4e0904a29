//! Requests of this side to the client: DMA by messages. The threads that do DMA wait here; the connection's reader brings the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::protocol::{Header, command};
use crate::socket::{Ended, Outbox};

/// The most requests under way at once; one a thread that does DMA.
const MAX_PENDING: usize = 64;
/// The most requests that were given up and may still be answered. A client that leaves so many unanswered is cut off.
pub(crate) const MAX_GIVEN_UP: usize = 256;
/// Bytes of address and count before the data.
const ADDRESS_BYTES: usize = 16;
/// Where QEMU's client has the data in the body of a DMA message: its structure has a count of four bytes, and the compiler rounds its size
/// up to sixteen, so that four bytes follow the data (`hw/vfio-user/protocol.h`, `VFIOUserDMARW`).
const SHORT_DATA: usize = 12;

/// Why a DMA message did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerError {
    /// No connection, or no answer in time.
    Gone,
    /// The range was taken away, or the function reset, meanwhile.
    Cancelled,
    /// The client refused; its errno.
    Refused(u32),
}

/// How the client lays out DMA messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// As the specification has it: 64 bits of count, then the data.
    Specified,
    /// As QEMU's client has it: see [`SHORT_DATA`].
    Short,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    command: u16,
    gpa: u64,
    count: usize,
}

#[derive(Debug)]
enum Slot {
    Waiting(Request),
    Done(Result<Vec<u8>, PeerError>),
}

#[derive(Debug)]
struct Pending {
    closed: bool,
    /// Nothing is begun while the function is being reset.
    held: bool,
    next: u16,
    slots: BTreeMap<u16, Slot>,
    /// Identifiers of requests that nobody waits for any more.
    given_up: BTreeSet<u16>,
    layout: Layout,
    /// The layout was seen, not only guessed.
    layout_seen: bool,
}

/// The client as the one who answers DMA messages.
pub(crate) struct Peer {
    outbox: Outbox,
    pending: Mutex<Pending>,
    changed: Condvar,
    timeout: Duration,
    max_data: Mutex<usize>,
}

/// What was agreed with a client, and what is still owed, for whoever takes the connection over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// It has said which version it speaks.
    pub(crate) greeted: bool,
    /// It lays DMA messages out as QEMU does, and whether that was seen.
    pub(crate) short_layout: bool,
    pub(crate) layout_seen: bool,
    /// The last identifier of a request of ours.
    pub(crate) last_id: u16,
    /// The most data of one message, in bytes.
    pub(crate) max_data: u32,
    /// Requests of ours that may still be answered, though nobody waits.
    pub(crate) given_up: Vec<u16>,
    /// Bytes that it has not taken yet; the first may be in the middle of a message.
    pub(crate) unsent: Vec<u8>,
}

/// A request under way.
#[must_use]
pub(crate) struct Ticket(u16);

impl Peer {
    pub(crate) fn new(outbox: Outbox, timeout: Duration) -> Self {
        let pending = Pending {
            closed: false,
            held: false,
            next: 0,
            slots: BTreeMap::new(),
            given_up: BTreeSet::new(),
            layout: Layout::Specified,
            layout_seen: false,
        };
        Self {
            outbox,
            pending: Mutex::new(pending),
            changed: Condvar::new(),
            timeout,
            max_data: Mutex::new(crate::protocol::MAX_DATA_BYTES),
        }
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the client's VERSION said. `minor` 0 is QEMU's client, and the others are later: a first guess at its layout.
    pub(crate) fn introduce(&self, minor: u16, max_data: usize) {
        *self.max_data.lock().unwrap_or_else(PoisonError::into_inner) = max_data;
        if minor == 0 {
            self.lock().layout = Layout::Short;
        }
    }

    /// The most data of one message, in bytes.
    pub(crate) fn max_data(&self) -> usize {
        *self.max_data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the client for `count` bytes at `gpa`. At most [`Peer::max_data`].
    pub(crate) fn ask(&self, gpa: u64, count: usize) -> Result<Ticket, PeerError> {
        let mut pending = self.lock();
        self.begin(&mut pending, Request { command: command::DMA_READ, gpa, count }, &[])
    }

    /// Gives the client `data` for `gpa`.
    pub(crate) fn give(&self, gpa: u64, data: &[u8]) -> Result<Ticket, PeerError> {
        let mut pending = self.lock();
        let request = Request { command: command::DMA_WRITE, gpa, count: data.len() };
        match pending.layout {
            Layout::Specified => self.begin(&mut pending, request, data),
            Layout::Short => {
                // The upper half of the count is where its data begins.
                let shifted: Vec<u8> = data.iter().copied().chain([0; 4]).collect();
                self.begin(&mut pending, request, &shifted)
            }
        }
    }

    fn begin(&self, pending: &mut Pending, request: Request, data: &[u8]) -> Result<Ticket, PeerError> {
        if pending.closed || pending.slots.len() >= MAX_PENDING {
            return Err(PeerError::Gone);
        }
        if pending.held {
            return Err(PeerError::Cancelled);
        }
        // There are fewer in use than identifiers.
        let id = loop {
            pending.next = pending.next.wrapping_add(1);
            if !pending.slots.contains_key(&pending.next) && !pending.given_up.contains(&pending.next) {
                break pending.next;
            }
        };
        let count = u32::try_from(request.count).unwrap_or(u32::MAX).to_le_bytes();
        let high: &[u8] =
            if pending.layout == Layout::Short && request.command == command::DMA_WRITE { &[] } else { &[0; 4] };
        let parts: [&[u8]; 4] = [&request.gpa.to_le_bytes(), &count, high, data];
        let message = Header::message(id, request.command, 0, &parts);
        self.outbox.send(message).map_err(|_| PeerError::Gone)?;
        pending.slots.insert(id, Slot::Waiting(request));
        Ok(Ticket(id))
    }

    /// Waits for the answer: the body after the header, cut down to the data.
    pub(crate) fn wait(&self, ticket: Ticket) -> Result<Vec<u8>, PeerError> {
        let Ticket(id) = ticket;
        let deadline = Instant::now() + self.timeout;
        let mut pending = self.lock();
        loop {
            if matches!(pending.slots.get(&id), None | Some(Slot::Done(_))) {
                return match pending.slots.remove(&id) {
                    Some(Slot::Done(result)) => result,
                    _ => Err(PeerError::Cancelled),
                };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                pending.slots.remove(&id);
                pending.given_up.insert(id);
                return Err(PeerError::Gone);
            }
            pending = self.changed.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// An answer came in.
    ///
    /// # Errors
    /// It answers nothing that was asked, or has not the form that was asked for: the stream can't be trusted any more.
    pub(crate) fn answer(&self, header: &Header, body: Vec<u8>) -> Result<(), Ended> {
        let mut pending = self.lock();
        if pending.given_up.remove(&header.id) {
            return Ok(());
        }
        let unexpected = |what: &str| Ended::Protocol(format!("an answer to {}, {what}", header.command));
        let request = match pending.slots.get(&header.id) {
            Some(Slot::Waiting(request)) => *request,
            _ => return Err(unexpected("which was not asked")),
        };
        if header.command != request.command {
            return Err(unexpected("when another command was sent"));
        }
        let result = if header.is_error() {
            Err(PeerError::Refused(header.error))
        } else if request.command == command::DMA_WRITE {
            Ok(Vec::new())
        } else {
            let echo = body.first_chunk::<SHORT_DATA>();
            let expected = request.gpa.to_le_bytes().into_iter().chain((request.count as u32).to_le_bytes());
            if body.len() != ADDRESS_BYTES + request.count || !echo.is_some_and(|echo| expected.eq(*echo)) {
                return Err(unexpected("of another range than was asked"));
            }
            Ok(body)
        };
        pending.slots.insert(header.id, Slot::Done(result));
        drop(pending);
        self.changed.notify_all();
        Ok(())
    }

    /// Which layout an answer to DMA_READ has, as far as its bytes tell: between the count and the data there are four zero bytes in
    /// one, behind the data in the other.
    fn layout_of(body: &[u8]) -> Option<Layout> {
        let between = body.get(SHORT_DATA..ADDRESS_BYTES).unwrap_or_default();
        let behind = body.last_chunk::<4>().map_or(&[] as &[u8], |last| last);
        match (between.iter().any(|b| *b != 0), behind.iter().any(|b| *b != 0)) {
            (true, _) => Some(Layout::Short),
            (false, true) => Some(Layout::Specified),
            (false, false) => None,
        }
    }

    /// The data of an answer to DMA_READ, and whether the layout that was used is sure. Copies as many bytes as `out` has.
    pub(crate) fn unpack(&self, body: &[u8], out: &mut [u8]) -> bool {
        let mut pending = self.lock();
        if let Some(layout) = Self::layout_of(body)
            && !pending.layout_seen
        {
            pending.layout = layout;
            pending.layout_seen = true;
        }
        let start = match pending.layout {
            Layout::Specified => ADDRESS_BYTES,
            Layout::Short => SHORT_DATA,
        };
        out.iter_mut().zip(body.get(start..).unwrap_or_default()).for_each(|(to, from)| *to = *from);
        // All zero is the same in either.
        pending.layout_seen || body.get(SHORT_DATA..).is_none_or(|rest| rest.iter().all(|b| *b == 0))
    }

    /// Takes the answer to a read from where the data would begin with a byte that is not zero, were the layout the short one.
    pub(crate) fn settle(&self, body: &[u8]) {
        let mut pending = self.lock();
        if !pending.layout_seen {
            let short = body.get(SHORT_DATA).is_some_and(|first| *first != 0);
            pending.layout = if short { Layout::Short } else { Layout::Specified };
            pending.layout_seen = true;
        }
    }

    /// Where in an answer the first byte that is not zero would be, were it in the short layout: reading from there tells which it is.
    pub(crate) fn doubtful_offset(body: &[u8]) -> Option<usize> {
        body.get(SHORT_DATA..)?.iter().position(|b| *b != 0)
    }

    /// Waits until no request to `gpa .. gpa + len` is under way, at most `limit`; what is left then is cancelled.
    pub(crate) fn drain(&self, gpa: u64, len: u64, limit: Duration) {
        let end = gpa.saturating_add(len);
        let touches = |slot: &Slot| match slot {
            Slot::Waiting(r) => r.gpa < end && r.gpa.saturating_add(r.count as u64) > gpa,
            Slot::Done(_) => false,
        };
        let deadline = Instant::now() + limit;
        let mut pending = self.lock();
        while pending.slots.values().any(touches) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                Self::cancel_where(&mut pending, touches);
                break;
            }
            pending = self.changed.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(pending);
        self.changed.notify_all();
    }

    fn cancel_where(pending: &mut Pending, which: impl Fn(&Slot) -> bool) {
        let ids: Vec<u16> = pending.slots.iter().filter(|(_, slot)| which(slot)).map(|(id, _)| *id).collect();
        for id in ids {
            pending.slots.insert(id, Slot::Done(Err(PeerError::Cancelled)));
            pending.given_up.insert(id);
        }
    }

    /// Whether a request is under way.
    pub(crate) fn busy(&self) -> bool {
        self.lock().slots.values().any(|slot| matches!(slot, Slot::Waiting(_)))
    }

    /// Ends DMA by messages: what is under way has `limit` to end, then it is cancelled, and nothing is begun until [`Peer::release`].
    /// Without this, whoever waits for the controller would wait for answers of a client that itself waits for him.
    pub(crate) fn hold(&self, limit: Duration) {
        self.drain(0, u64::MAX, limit);
        let mut pending = self.lock();
        pending.held = true;
        Self::cancel_where(&mut pending, |slot| matches!(slot, Slot::Waiting(_)));
        drop(pending);
        self.changed.notify_all();
    }

    /// The opposite of [`Peer::hold`].
    pub(crate) fn release(&self) {
        self.lock().held = false;
    }

    /// What was agreed; `None` while a request of ours is under way.
    pub(crate) fn agreement(&self, greeted: bool) -> Option<Agreement> {
        let max_data = u32::try_from(self.max_data()).unwrap_or(u32::MAX);
        let pending = self.lock();
        if !pending.slots.is_empty() {
            return None;
        }
        Some(Agreement {
            greeted,
            short_layout: pending.layout == Layout::Short,
            layout_seen: pending.layout_seen,
            last_id: pending.next,
            max_data,
            given_up: pending.given_up.iter().copied().collect(),
            unsent: self.outbox.unsent(),
        })
    }

    /// Goes on where another process has left off.
    pub(crate) fn agree(&self, agreement: &Agreement) {
        *self.max_data.lock().unwrap_or_else(PoisonError::into_inner) = agreement.max_data as usize;
        {
            let mut pending = self.lock();
            pending.layout = if agreement.short_layout { Layout::Short } else { Layout::Specified };
            pending.layout_seen = agreement.layout_seen;
            pending.next = agreement.last_id;
            pending.given_up = agreement.given_up.iter().copied().collect();
        }
        self.outbox.resume(agreement.unsent.clone());
    }

    /// The connection goes on after [`Peer::close`].
    pub(crate) fn reopen(&self) {
        self.lock().closed = false;
    }

    /// Whether too many answers are missing.
    pub(crate) fn hopeless(&self) -> bool {
        self.lock().given_up.len() > MAX_GIVEN_UP
    }

    /// The connection is gone: nothing is answered any more.
    pub(crate) fn close(&self) {
        let mut pending = self.lock();
        pending.closed = true;
        for slot in pending.slots.values_mut() {
            if matches!(slot, Slot::Waiting(_)) {
                *slot = Slot::Done(Err(PeerError::Gone));
            }
        }
        drop(pending);
        self.changed.notify_all();
    }
}
