//! Frames that wait for each other go out in one write, and the same bytes as otherwise.

use std::io::IoSlice;
use std::time::Duration;

use towline_core::stream::SectionKind;
use uuid::Uuid;

use super::Sender;
use crate::cancel::Cancel;
use crate::dialogue::Message;
use crate::error::LinkError;
use crate::link::Link;

/// Keeps what is written; breaks at the `broken_at`th write.
#[derive(Default)]
struct Kept {
    writes: Vec<Vec<u8>>,
    broken_at: Option<usize>,
}

impl Link for Kept {
    fn read(&mut self, _out: &mut [u8]) -> Result<usize, LinkError> {
        Err(LinkError::Closed { peer: "nobody".into() })
    }

    fn write_all(&mut self, bufs: &mut [IoSlice<'_>]) -> Result<(), LinkError> {
        if self.broken_at == Some(self.writes.len()) {
            return Err(LinkError::Closed { peer: "nobody".into() });
        }
        self.writes.push(bufs.iter().flat_map(|buf| buf.iter().copied()).collect());
        Ok(())
    }

    fn arm(&mut self, _cancel: &Cancel) {}

    fn disarm(&mut self) {}

    fn idle_timeout(&self) -> Duration {
        Duration::ZERO
    }

    fn set_idle_timeout(&mut self, _timeout: Duration) {}

    fn peer(&self) -> &'static str {
        "nobody"
    }
}

fn sender() -> Sender {
    Sender::new(Uuid::from_u128(7), None).unwrap()
}

fn section(sender: &mut Sender, link: &mut Kept, channel: u32, data: &[u8]) -> Result<(), crate::error::EngineError> {
    sender.section_begin(link, channel, SectionKind::Caller, &format!("section {channel}"))?;
    sender.section_data(link, channel, data)?;
    sender.manifest(link, channel, "section")
}

#[test]
fn what_is_held_goes_in_one_write_and_is_the_same() {
    let (mut plain, mut one_by_one) = (sender(), Kept::default());
    let (mut holding, mut together) = (sender(), Kept::default());
    holding.hold();
    for (sender, link) in [(&mut plain, &mut one_by_one), (&mut holding, &mut together)] {
        for channel in 2..26 {
            section(sender, link, channel, &[channel as u8; 1000]).unwrap();
        }
    }
    assert_eq!((one_by_one.writes.len(), together.writes.len()), (24 * 3, 0));
    holding.let_go(&mut together).unwrap();
    assert_eq!(together.writes.len(), 1);
    assert_eq!(one_by_one.writes.concat(), together.writes.concat());
    assert_eq!(plain.wire_bytes(), holding.wire_bytes());
    assert_eq!(holding.wire_bytes(), together.writes.concat().len() as u64);
    // Afterwards nothing is held.
    section(&mut holding, &mut together, 30, b"at once").unwrap();
    assert_eq!(together.writes.len(), 4);
}

#[test]
fn a_message_does_not_wait_and_nothing_overtakes() {
    let (mut plain, mut one_by_one) = (sender(), Kept::default());
    let (mut holding, mut together) = (sender(), Kept::default());
    holding.hold();
    for (sender, link) in [(&mut plain, &mut one_by_one), (&mut holding, &mut together)] {
        section(sender, link, 2, b"before").unwrap();
        sender.message(link, &Message::Ping { nonce: 1 }).unwrap();
        section(sender, link, 3, b"after").unwrap();
        // More than is held back.
        section(sender, link, 4, &vec![9; super::sender::HELD_BYTES]).unwrap();
    }
    // What was before and the message, what was after, and what does not fit; the last manifest waits.
    assert_eq!(together.writes.len(), 4);
    holding.let_go(&mut together).unwrap();
    assert_eq!(one_by_one.writes.concat(), together.writes.concat());
}

#[test]
fn a_link_that_breaks_is_not_written_to_again() {
    let mut link = Kept { broken_at: Some(0), ..Kept::default() };
    let mut holding = sender();
    holding.hold();
    section(&mut holding, &mut link, 2, b"held").unwrap();
    assert!(holding.let_go(&mut link).is_err());
    link.broken_at = None;
    assert!(holding.message(&mut link, &Message::MemoryTaken).is_err());
    holding.hold();
    assert!(section(&mut holding, &mut link, 3, b"lost").is_err());
    assert!(link.writes.is_empty());
}
