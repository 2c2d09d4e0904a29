//! The section over configuration space in memory, with a record of the order of what was done.

use std::cell::RefCell;

use super::*;

struct Fake {
    config: RefCell<[u8; 256]>,
    done: RefCell<Vec<String>>,
}

/// MSI at 0x40, something else at 0x50, MSI-X with 20 vectors at 0x60.
fn fake() -> Fake {
    let mut config = [0u8; 256];
    config[0x06] = 0x10;
    config[0x34] = 0x40;
    config[0x40..0x44].copy_from_slice(&[MSI, 0x50, 0x01, 0x00]);
    config[0x50..0x52].copy_from_slice(&[0x10, 0x60]);
    config[0x60..0x64].copy_from_slice(&[MSIX, 0x00, 19, 0x80]);
    config[0x04..0x06].copy_from_slice(&[0x06, 0xf4]);
    config[0x3c] = 11;
    for n in 0..24 {
        config[0x10 + n] = n as u8;
    }
    Fake { config: RefCell::new(config), done: RefCell::default() }
}

impl ExposurePort for Fake {
    fn read_config(&self, offset: u16, out: &mut [u8]) -> Result<(), ChannelError> {
        let at = usize::from(offset);
        out.copy_from_slice(&self.config.borrow()[at..at + out.len()]);
        Ok(())
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), ChannelError> {
        let at = usize::from(offset);
        self.config.borrow_mut()[at..at + data.len()].copy_from_slice(data);
        self.done.borrow_mut().push(format!("{offset:#04x}={data:02x?}"));
        Ok(())
    }

    fn wire(&self, index: u32, vectors: &[bool]) -> Result<(), ChannelError> {
        self.done.borrow_mut().push(format!("wire {index} {}", vectors.iter().filter(|v| **v).count()));
        Ok(())
    }
}

fn wiring(count: usize) -> Wiring {
    Wiring { index: 2, vectors: (0..count).map(|n| n % 3 != 1).collect() }
}

#[test]
fn it_is_saved_and_restored_in_the_stated_order() {
    let source = fake();
    let section = ExposureSection::save(&source, Some(wiring(20))).unwrap();
    assert_eq!((section.command, section.interrupt_line, section.msix_control), (0x0406, 11, Some(0x8000)));
    assert_eq!(section.msi_control, Some(1));
    assert_eq!(section.bars[1], 0x0706_0504);
    assert!(source.done.borrow().is_empty(), "saving writes nothing");
    let there = ExposureSection::decode(&section.encode()).unwrap();
    assert_eq!(there, section);
    let destination = fake();
    there.restore(&destination).unwrap();
    let done = destination.done.take();
    assert_eq!(done[..6].iter().filter(|step| step.starts_with("0x1") || step.starts_with("0x2")).count(), 6);
    let rest: Vec<&str> = done[6..].iter().map(String::as_str).collect();
    // Bus mastering comes last, and interrupts are wired before it.
    assert_eq!(rest, ["0x3c=[0b]", "0x04=[02, 04]", "wire 2 13", "0x42=[01, 00]", "0x62=[00, 80]", "0x04=[06, 04]"]);
}

#[test]
fn a_function_that_differs_is_refused_before_anything_is_written() {
    let section = ExposureSection::save(&fake(), Some(wiring(20))).unwrap();
    let smaller = fake();
    smaller.config.borrow_mut()[0x62] = 18;
    let without = fake();
    without.config.borrow_mut()[0x51] = 0;
    let in_a_circle = fake();
    in_a_circle.config.borrow_mut()[0x51] = 0x40;
    let no_list = fake();
    no_list.config.borrow_mut()[0x06] = 0;
    for (n, function) in [smaller, without, in_a_circle, no_list].into_iter().enumerate() {
        let error = section.restore(&function).unwrap_err();
        assert_eq!(error.kind, ChannelErrorKind::BadState, "{n}: {error}");
        assert!(function.done.borrow().is_empty(), "{n}");
    }
    let without = ExposureSection { msix_control: None, wiring: None, ..section };
    assert!(without.restore(&fake()).is_err(), "the destination has more than the source");
}

#[test]
fn what_is_no_section_is_refused() {
    for count in [0, 1, 7, 8, 9, 2048] {
        let section = ExposureSection::save(&fake(), Some(wiring(count))).unwrap();
        let bytes = section.encode();
        assert_eq!(ExposureSection::decode(&bytes), Ok(section));
        for len in 0..bytes.len() {
            assert!(ExposureSection::decode(&bytes[..len]).is_err(), "cut to {len}");
        }
        assert!(ExposureSection::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
    }
    assert!(ExposureSection::save(&fake(), Some(wiring(2049))).is_err());
    let good = ExposureSection::save(&fake(), Some(wiring(9))).unwrap().encode();
    for (at, value, what) in [
        (0, 2, "version"),
        (2, 0x0f, "an unknown part"),
        (2, 0x05, "control of MSI-X without it"),
        (5, 0xf8, "reserved bits of PCI_COMMAND"),
        (7, 1, "a reserved byte"),
        (32, 1, "a reserved bit of MSI-X"),
        (36, 3, "an index that there isn't"),
        (39, 0x10, "more vectors than MSI-X has"),
        (41, 0x02, "bits behind the last vector"),
    ] {
        let mut bytes = good.clone();
        bytes[at] = value;
        assert!(ExposureSection::decode(&bytes).is_err(), "{what}");
    }
    let none = ExposureSection { wiring: None, msi_control: None, ..ExposureSection::decode(&good).unwrap() };
    assert_eq!(ExposureSection::decode(&none.encode()), Ok(none));
}

/// One flipped bit is refused or means something else; it never panics.
#[test]
fn any_bytes_are_read_without_panic() {
    let good = ExposureSection::save(&fake(), Some(wiring(20))).unwrap().encode();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(section) = ExposureSection::decode(&bytes) {
            assert_eq!(section.encode(), bytes);
        }
    }
}
