//! The MSI-X table (PCI Express Base 5.0, 7.7.2), which is the VMM's, and the way of an interrupt: the device writes an eventfd, which KVM turns into
//! the message that the table has for it.
//!
//! The eventfd of a masked vector is not given to KVM: it keeps what the device signals, and KVM looks when it gets it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};

pub const ENTRY_BYTES: usize = 16;
/// Of the device's 2048 at most; the table's room in BAR 4 is what limits it.
pub const MAX_VECTORS: usize = 256;
/// GSIs of the I/O APIC come before.
const FIRST_GSI: u32 = 24;
const MASKED: u32 = 1;
const VECTOR_CONTROL: usize = 12;

struct Vector {
    /// Address, address high, data, vector control: little-endian, as the guest wrote them.
    entry: [u8; ENTRY_BYTES],
    event: EventFd,
    /// KVM has the eventfd.
    assigned: bool,
}

impl Vector {
    fn word(&self, at: usize) -> u32 {
        self.entry.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
    }

    fn masked(&self) -> bool {
        self.word(VECTOR_CONTROL) & MASKED != 0
    }
}

#[derive(Default)]
struct State {
    vectors: Vec<Vector>,
    armed: bool,
}

/// See the module.
pub struct Msix {
    vm: Arc<VmFd>,
    state: Mutex<State>,
}

const RESET_ENTRY: [u8; ENTRY_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];

impl Msix {
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the table of a device that was connected: all masked, as after a reset. Returns the eventfds for it.
    pub fn connect(&self, vectors: usize) -> Result<Vec<RawFd>> {
        if vectors == 0 || vectors > MAX_VECTORS {
            return Err(Error::Device(format!("it has {vectors} MSI-X vectors, 1 to {MAX_VECTORS} are supported")));
        }
        let mut state = self.lock();
        if !state.vectors.is_empty() {
            return Err(Error::State("a device is connected already"));
        }
        for _ in 0..vectors {
            let event = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(Error::system("eventfd"))?;
            state.vectors.push(Vector { entry: RESET_ENTRY, event, assigned: false });
        }
        Ok(state.vectors.iter().map(|v| v.event.as_raw_fd()).collect())
    }

    /// Takes everything back from KVM.
    pub fn disconnect(&self) {
        let mut state = self.lock();
        for n in 0..state.vectors.len() {
            self.assign(&mut state, n, false);
        }
        *state = State::default();
    }

    /// Bytes of the table.
    pub fn table_bytes(&self) -> u64 {
        (self.lock().vectors.len() * ENTRY_BYTES) as u64
    }

    /// The guest reads the table: 4 or 8 aligned bytes, else ones.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        out.fill(0xff);
        let state = self.lock();
        let Some((n, at)) = place(offset, out.len()) else { return };
        if let Some(from) = state.vectors.get(n).and_then(|v| v.entry.get(at..at + out.len())) {
            out.copy_from_slice(from);
        }
    }

    /// The guest writes the table: 4 or 8 aligned bytes.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.lock();
        let Some((n, at)) = place(offset, data.len()) else { return Ok(()) };
        let Some(to) = state.vectors.get_mut(n).and_then(|v| v.entry.get_mut(at..at + data.len())) else {
            return Ok(());
        };
        to.copy_from_slice(data);
        self.apply(&mut state)
    }

    /// Gives KVM the routes and the eventfds of what is not masked. Idempotent.
    pub fn arm(&self) -> Result<()> {
        let mut state = self.lock();
        state.armed = true;
        self.apply(&mut state)
    }

    pub fn armed(&self) -> bool {
        self.lock().armed
    }

    /// The table, for the section `msix`.
    pub fn save(&self) -> Vec<u8> {
        self.lock().vectors.iter().flat_map(|v| v.entry).collect()
    }

    /// Puts a table in place.
    pub fn restore(&self, table: &[u8]) -> std::result::Result<(), String> {
        let mut state = self.lock();
        let (entries, rest) = table.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() || entries.len() != state.vectors.len() {
            return Err(format!("{} bytes for {} vectors", table.len(), state.vectors.len()));
        }
        for (vector, entry) in state.vectors.iter_mut().zip(entries) {
            vector.entry = *entry;
        }
        self.apply(&mut state).map_err(|e| e.to_string())
    }

    fn apply(&self, state: &mut State) -> Result<()> {
        if !state.armed {
            return Ok(());
        }
        // First what is to hold its interrupts back, then the routes, then what is let through.
        for n in 0..state.vectors.len() {
            if state.vectors.get(n).is_some_and(Vector::masked) {
                self.assign(state, n, false);
            }
        }
        self.route(state)?;
        for n in 0..state.vectors.len() {
            if !state.vectors.get(n).is_some_and(Vector::masked) && !self.assign(state, n, true) {
                return Err(Error::last("KVM_IRQFD"));
            }
        }
        Ok(())
    }

    fn route(&self, state: &State) -> Result<()> {
        let routes: Vec<kvm_irq_routing_entry> = state
            .vectors
            .iter()
            .enumerate()
            .filter(|(_, v)| !v.masked())
            .map(|(n, v)| kvm_irq_routing_entry {
                gsi: FIRST_GSI + n as u32,
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 {
                    msi: kvm_irq_routing_msi {
                        address_lo: v.word(0),
                        address_hi: v.word(4),
                        data: v.word(8),
                        __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
                    },
                },
                ..Default::default()
            })
            .collect();
        let routing =
            KvmIrqRouting::from_entries(&routes).map_err(|_| Error::Device("too many interrupt routes".into()))?;
        self.vm.set_gsi_routing(&routing).map_err(Error::kvm("KVM_SET_GSI_ROUTING"))
    }

    /// `false` where KVM refuses.
    fn assign(&self, state: &mut State, n: usize, wanted: bool) -> bool {
        let Some(vector) = state.vectors.get_mut(n) else { return true };
        if vector.assigned == wanted {
            return true;
        }
        let gsi = FIRST_GSI + n as u32;
        let done = if wanted {
            self.vm.register_irqfd(&vector.event, gsi).is_ok()
        } else {
            self.vm.unregister_irqfd(&vector.event, gsi).is_ok()
        };
        if done {
            vector.assigned = wanted;
        }
        done
    }
}

/// Entry and byte in it of an access, where it is one that the specification allows.
fn place(offset: u64, len: usize) -> Option<(usize, usize)> {
    if !matches!(len, 4 | 8) || !offset.is_multiple_of(len as u64) {
        return None;
    }
    let offset = usize::try_from(offset).ok()?;
    Some((offset / ENTRY_BYTES, offset % ENTRY_BYTES))
}
