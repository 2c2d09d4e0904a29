//! The control page: what the VMM tells the guest. The guest can't write it.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory};

use crate::error::{Error, Result};
use crate::layout::{Control, PAGE, at};

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub iops: u32,
    pub read_percent: u32,
    pub dirty_pages_per_s: u32,
    pub working_set_pages: u64,
    pub heartbeat_us: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self { iops: 1500, read_percent: 50, dirty_pages_per_s: 2000, working_set_pages: 16_384, heartbeat_us: 1000 }
    }
}

const MOST_RATE: u32 = 10_000_000;

impl Load {
    fn check(&self) -> std::result::Result<(), &'static str> {
        if self.iops > MOST_RATE || self.dirty_pages_per_s > MOST_RATE {
            return Err("a rate is above 10000000");
        }
        if self.read_percent > 100 {
            return Err("readPercent is above 100");
        }
        if self.heartbeat_us != 0 && !(200..=100_000).contains(&self.heartbeat_us) {
            return Err("heartbeatUs is neither 0 nor in 200..=100000");
        }
        Ok(())
    }
}

/// See the module.
pub struct ControlPage {
    page: MmapRegion,
    control: Mutex<Control>,
}

/// Payload of the section: u32 epoch, u32 request to drain, then the load: u32 × 4, u64.
const SECTION_BYTES: usize = 40;

impl ControlPage {
    pub fn new() -> Result<Self> {
        let page = MmapRegion::new(PAGE as usize).map_err(|e| Error::Argument(format!("the control page: {e}")))?;
        let this = Self { page, control: Mutex::default() };
        let mut control = this.lock();
        set_load(&mut control, Load::default());
        this.publish(&control);
        drop(control);
        Ok(this)
    }

    pub fn page(&self) -> &MmapRegion {
        &self.page
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        // The page has room for the structure, so this can't fail.
        let _ = self.page.as_volatile_slice().store(value, at, Ordering::SeqCst);
    }

    fn publish(&self, control: &Control) {
        self.store(at::CONTROL_EPOCH, control.epoch);
        self.store(at::CONTROL_IOPS, control.iops);
        self.store(at::CONTROL_READ_PERCENT, control.read_percent);
        self.store(at::CONTROL_DIRTY, control.dirty_pages_per_s);
        self.store(at::CONTROL_HEARTBEAT, control.heartbeat_us);
        self.store(at::CONTROL_WORKING_SET, control.working_set_pages);
        self.store(at::CONTROL_GAP, control.gap_generation);
        self.store(at::CONTROL_DRAIN, control.drain);
    }

    fn change<T>(&self, f: impl FnOnce(&mut Control) -> T) -> T {
        let mut control = self.lock();
        let result = f(&mut control);
        self.publish(&control);
        result
    }

    pub fn load(&self) -> Load {
        load_of(&self.lock())
    }

    pub fn set_load(&self, load: Load) -> Result<()> {
        load.check().map_err(|what| Error::Argument(what.into()))?;
        self.change(|c| set_load(c, load));
        Ok(())
    }

    /// A new incarnation; returns its number.
    pub fn next_epoch(&self) -> u32 {
        self.change(|c| {
            c.epoch = c.epoch.wrapping_add(1).max(1);
            c.epoch
        })
    }

    /// Asks the guest to submit no more; returns the number of the request. One that is under way stays.
    pub fn drain(&self) -> u32 {
        self.change(|c| {
            if c.drain == 0 {
                // Any number that was not used before; the generation is of 64 bits and never repeats here.
                c.gap_generation += 1;
                c.drain = (c.gap_generation as u32).max(1);
            }
            c.drain
        })
    }

    pub fn undrain(&self) {
        self.change(|c| c.drain = 0);
    }

    pub fn reset_gaps(&self) {
        self.change(|c| c.gap_generation += 1);
    }

    pub fn gap_generation(&self) -> u64 {
        self.lock().gap_generation
    }

    pub fn save(&self) -> Vec<u8> {
        let c = self.lock();
        let mut out = Vec::with_capacity(SECTION_BYTES);
        for word in [c.epoch, c.drain, c.iops, c.read_percent, c.dirty_pages_per_s, c.heartbeat_us] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&c.working_set_pages.to_le_bytes());
        out.extend_from_slice(&c.gap_generation.to_le_bytes());
        out
    }

    pub fn restore(&self, payload: &[u8]) -> std::result::Result<(), String> {
        let control = parse(payload).ok_or_else(|| format!("{} bytes", payload.len()))?;
        load_of(&control).check()?;
        self.change(|c| *c = control);
        Ok(())
    }
}

fn parse(payload: &[u8]) -> Option<Control> {
    if payload.len() != SECTION_BYTES {
        return None;
    }
    let u32_at = |at: usize| Some(u32::from_le_bytes(*payload.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(*payload.get(at..)?.first_chunk()?));
    Some(Control {
        epoch: u32_at(0)?,
        drain: u32_at(4)?,
        iops: u32_at(8)?,
        read_percent: u32_at(12)?,
        dirty_pages_per_s: u32_at(16)?,
        heartbeat_us: u32_at(20)?,
        working_set_pages: u64_at(24)?,
        // Requests and resets only ever count up by one.
        gap_generation: u64_at(32).filter(|g| *g < u64::MAX >> 1)?,
    })
}

fn load_of(c: &Control) -> Load {
    Load {
        iops: c.iops,
        read_percent: c.read_percent,
        dirty_pages_per_s: c.dirty_pages_per_s,
        working_set_pages: c.working_set_pages,
        heartbeat_us: c.heartbeat_us,
    }
}

fn set_load(c: &mut Control, load: Load) {
    c.iops = load.iops;
    c.read_percent = load.read_percent;
    c.dirty_pages_per_s = load.dirty_pages_per_s;
    c.working_set_pages = load.working_set_pages;
    c.heartbeat_us = load.heartbeat_us;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_survives_a_section_and_rubbish_is_refused() {
        let page = ControlPage::new().unwrap();
        page.set_load(Load { iops: 7, ..Load::default() }).unwrap();
        assert_eq!(page.next_epoch(), 1);
        let request = page.drain();
        assert_eq!(page.drain(), request);
        page.undrain();
        assert_ne!(page.drain(), request);
        let saved = page.save();
        let other = ControlPage::new().unwrap();
        other.restore(&saved).unwrap();
        assert_eq!((other.save(), other.next_epoch()), (saved.clone(), 2));
        for len in 0..saved.len() {
            assert!(other.restore(&saved[..len]).is_err());
        }
        assert!(other.restore(&[0xff; SECTION_BYTES]).is_err());
        let load = Load { heartbeat_us: 5, ..Load::default() };
        assert!(other.set_load(load).is_err());
    }
}
