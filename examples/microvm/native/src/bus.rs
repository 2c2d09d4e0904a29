//! What a vCPU's exits lead to: the device's BARs and config space, and the ports of the guest's program.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::counters::Counters;
use crate::device::CONFIG_REGION;
use crate::device::bar::{Bar0, DOORBELLS};
use crate::device::client::Client;
use crate::device::msix::Msix;
use crate::layout::{
    BAR0_GPA, BAR0_ROOM, BAR4_GPA, BAR4_ROOM, CONFIG_GPA, MAX_VCPUS, PAGE, PORT_FAILED, PORT_GPA, PORT_RECORDS, Status,
    at, status_gpa,
};
use crate::ram::Ram;
use crate::records::RecordLog;

/// The device as far as exits reach it.
#[derive(Clone)]
pub struct Attached {
    pub client: Arc<Client>,
    pub bar0: Arc<Bar0>,
}

/// See the module. Shared by the vCPUs' threads.
pub struct Bus {
    pub ram: Arc<Ram>,
    pub msix: Arc<Msix>,
    pub log: RecordLog,
    pub counters: Counters,
    device: RwLock<Option<Attached>>,
    failure: Mutex<Option<String>>,
}

/// Offset in a window of guest-physical memory.
fn within(address: u64, base: u64, len: u64) -> Option<u64> {
    address.checked_sub(base).filter(|offset| *offset < len)
}

impl Bus {
    pub fn new(ram: Arc<Ram>, msix: Arc<Msix>, log: RecordLog) -> Self {
        Self { ram, msix, log, counters: Counters::default(), device: RwLock::new(None), failure: Mutex::new(None) }
    }

    pub fn set_device(&self, device: Option<Attached>) {
        *self.device.write().unwrap_or_else(PoisonError::into_inner) = device;
    }

    pub fn device(&self) -> Option<Attached> {
        self.device.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the first reason for which the machine can't go on.
    pub fn fail(&self, why: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn mmio_read(&self, address: u64, out: &mut [u8]) {
        self.counters.mmio_read.fetch_add(1, Ordering::Relaxed);
        out.fill(0xff);
        let Some(device) = self.device() else { return };
        if let Some(offset) = within(address, BAR0_GPA, BAR0_ROOM) {
            if offset < device.bar0.bytes() {
                device.bar0.read(offset, out);
            }
        } else if let Some(offset) = within(address, BAR4_GPA, BAR4_ROOM) {
            if offset < self.msix.table_bytes() {
                self.msix.read(offset, out);
            } else if device.client.read(4, offset, out).is_err() {
                out.fill(0xff);
            }
        } else if let Some(offset) = within(address, CONFIG_GPA, PAGE)
            && device.client.read(CONFIG_REGION, offset, out).is_err()
        {
            out.fill(0xff);
        }
    }

    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        self.counters.mmio_write.fetch_add(1, Ordering::Relaxed);
        if let Some(port) = within(address, PORT_GPA, PAGE) {
            return self.port_write(port, data);
        }
        let Some(device) = self.device() else { return };
        if let Some(offset) = within(address, BAR0_GPA, BAR0_ROOM) {
            if offset >= DOORBELLS {
                self.counters.doorbells.fetch_add(1, Ordering::Relaxed);
            }
            if offset < device.bar0.bytes() {
                device.bar0.write(offset, data);
            }
        } else if let Some(offset) = within(address, BAR4_GPA, BAR4_ROOM) {
            if offset < self.msix.table_bytes()
                && let Err(e) = self.msix.write(offset, data)
            {
                self.fail(e.to_string());
            }
        } else if let Some(offset) = within(address, CONFIG_GPA, PAGE) {
            // A device that is gone takes no writes; the client keeps why.
            let _ = device.client.write(CONFIG_REGION, offset, data);
        }
    }

    /// What the program left in memory about why it can't go on.
    pub fn guest_failure(&self) -> Option<String> {
        let words = |vcpu| self.ram.read_obj::<Status>(status_gpa(vcpu)).and_then(|s| s.failure_words());
        (0..MAX_VCPUS).find_map(|vcpu| words(vcpu).map(|words| format!("vCPU {vcpu} of the guest: {words}")))
    }

    /// A word from the program to the VMM.
    fn port_write(&self, port: u64, data: &[u8]) {
        let Some(value) = data.first_chunk().map(|b| u32::from_le_bytes(*b)) else { return };
        match port {
            PORT_RECORDS => {
                let (count, vcpu) = (value >> 8, (value & 0xff) as usize);
                if vcpu >= MAX_VCPUS {
                    return;
                }
                let gpa = self.ram.load::<u64>(status_gpa(vcpu) + at::STATUS_RECORDS).unwrap_or(0);
                if let Err(e) = self.log.take(&self.ram, gpa, count) {
                    self.fail(format!("records: {e}"));
                }
            }
            PORT_FAILED => self.fail(self.guest_failure().unwrap_or_else(|| format!("the guest failed ({value})"))),
            _ => {}
        }
    }
}
