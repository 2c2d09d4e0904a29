//! The VMM's own state as bytes: one section a kind of state and vCPU.
//!
//! | offset | type | what |
//! |---|---|---|
//! | 0 | u32 | [`MAGIC`] |
//! | 4 | u16 | version of this kind's payload |
//! | 6 | u16 | number of the kind |
//! | 8 | u32 | bytes of the payload |
//! | 12 | u32 | vCPU; 0 for those of the machine |
//!
//! Then the payload. All numbers are little-endian. Payloads of KVM's own state are its structures as `<linux/kvm.h>` has them on x86-64.

pub mod plain;
pub mod registers;
pub mod tsc;

use crate::error::{Error, Result};

/// "TMVS"
pub const MAGIC: u32 = 0x5356_4d54;
const HEADER: usize = 16;
/// No section is longer, in bytes.
pub const MOST_BYTES: usize = 64 << 10;

/// The kinds, in the order in which they are restored. Those of the machine come first; then, for each vCPU, the others.
///
/// The local APIC comes before the MSRs, because of the timer's deadline, and what is pending after both. The TSC is last: it is meant to go on from
/// the time of restoring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    Control = 1,
    Clock = 2,
    Ioapic = 3,
    Msix = 4,
    MpState = 16,
    Regs = 17,
    Sregs = 18,
    Xsave = 19,
    Xcrs = 20,
    Debugregs = 21,
    Lapic = 22,
    Msrs = 23,
    Events = 24,
    Tsc = 25,
}

pub const MACHINE: [Kind; 4] = [Kind::Control, Kind::Clock, Kind::Ioapic, Kind::Msix];
pub const VCPU: [Kind; 10] = [
    Kind::MpState,
    Kind::Regs,
    Kind::Sregs,
    Kind::Xsave,
    Kind::Xcrs,
    Kind::Debugregs,
    Kind::Lapic,
    Kind::Msrs,
    Kind::Events,
    Kind::Tsc,
];

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Clock => "clock",
            Self::Ioapic => "ioapic",
            Self::Msix => "msix",
            Self::MpState => "mp_state",
            Self::Regs => "regs",
            Self::Sregs => "sregs",
            Self::Xsave => "xsave",
            Self::Xcrs => "xcrs",
            Self::Debugregs => "debugregs",
            Self::Lapic => "lapic",
            Self::Msrs => "msrs",
            Self::Events => "vcpu_events",
            Self::Tsc => "tsc",
        }
    }

    /// Of what is written here.
    fn version(self) -> u16 {
        1
    }
}

/// Which section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    pub kind: Kind,
    /// `None`: of the machine.
    pub vcpu: Option<usize>,
}

impl Id {
    pub fn name(&self) -> String {
        match self.vcpu {
            None => self.kind.word().into(),
            Some(vcpu) => format!("vcpu{vcpu}.{}", self.kind.word()),
        }
    }

    /// Every section of a machine, in the order of restoring.
    pub fn all(vcpus: usize) -> Vec<Self> {
        let machine = MACHINE.map(|kind| Self { kind, vcpu: None });
        let each = (0..vcpus).flat_map(|vcpu| VCPU.map(|kind| Self { kind, vcpu: Some(vcpu) }));
        machine.into_iter().chain(each).collect()
    }

    /// What is wrong with it.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::Section { name: self.name(), what: what.into() }
    }

    fn number(&self) -> u32 {
        self.vcpu.unwrap_or(0) as u32
    }

    /// Puts the header before a payload.
    pub fn wrap(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + payload.len());
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&self.kind.version().to_le_bytes());
        out.extend_from_slice(&(self.kind as u16).to_le_bytes());
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.number().to_le_bytes());
        out.extend_from_slice(payload);
        out
    }

    /// Takes the header off.
    ///
    /// # Errors
    /// [`Error::Section`] where it is not this section, of this version, and whole.
    pub fn unwrap<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8]> {
        let (Some(header), Some(payload)) = (bytes.first_chunk::<HEADER>(), bytes.get(HEADER..)) else {
            return Err(self.error(format!("{} bytes are too few", bytes.len())));
        };
        if bytes.len() > MOST_BYTES {
            return Err(self.error(format!("{} bytes are too many", bytes.len())));
        }
        let mut words = header.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w));
        let mut word = || words.next().unwrap_or(0);
        let (magic, kind, len, vcpu) = (word(), word(), word(), word());
        if magic != MAGIC {
            return Err(self.error("is none"));
        }
        if kind >> 16 != u32::from(self.kind as u16) || vcpu != self.number() {
            return Err(self.error("is another one"));
        }
        if kind & 0xffff != u32::from(self.kind.version()) {
            return Err(self.error(format!("has version {}, {} is known", kind & 0xffff, self.kind.version())));
        }
        if len as usize != payload.len() {
            return Err(self.error(format!("says {len} bytes and has {}", payload.len())));
        }
        Ok(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_order() {
        let names: Vec<String> = Id::all(2).iter().map(Id::name).collect();
        assert_eq!(names.len(), 24);
        assert_eq!((names[0].as_str(), names[23].as_str()), ("control", "vcpu1.tsc"));
        let mut sorted = names.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), names.len());
    }

    #[test]
    fn what_was_cut_or_changed_is_refused() {
        for id in Id::all(2) {
            let payload: Vec<u8> = (0..100).collect();
            let whole = id.wrap(&payload);
            assert_eq!(id.unwrap(&whole).unwrap(), payload);
            for len in 0..whole.len() {
                assert!(id.unwrap(&whole[..len]).is_err(), "{} cut to {len}", id.name());
            }
            let mut longer = whole.clone();
            longer.push(0);
            assert!(id.unwrap(&longer).is_err());
            for at in 0..HEADER {
                for bit in 0..8 {
                    let mut damaged = whole.clone();
                    damaged[at] ^= 1 << bit;
                    assert!(id.unwrap(&damaged).is_err(), "{} bit {bit} of byte {at}", id.name());
                }
            }
            for other in Id::all(2) {
                assert_eq!(other.unwrap(&whole).is_ok(), other == id);
            }
        }
    }
}
