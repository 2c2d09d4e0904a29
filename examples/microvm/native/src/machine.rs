//! The virtual machine as KVM has it: interrupt controllers, memory slots, vCPUs.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_HALT_POLL, KVM_CAP_SREGS2, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::MmapRegion;

use crate::error::{Error, Result};
use crate::layout::{CONTROL_GPA, PAGE};
use crate::ram::Ram;
use crate::sections::{plain, registers};

/// Three pages for KVM's own use below the 4 GiB, and the page before them.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Slot of the control page: out of the way of RAM's.
pub const CONTROL_SLOT: u32 = 511;
const KVM_API: i32 = 12;
/// `KVM_DIRTY_LOG_PAGE_OFFSET`, and bytes of an entry (include/uapi/linux/kvm.h).
const RING_ENTRY_BYTES: u32 = 16;
const MOST_RING_ENTRIES: u32 = 65_536;
const LEAST_RING_ENTRIES: u32 = 1024;

/// See the module.
pub struct Machine {
    pub vm: Arc<VmFd>,
    /// Registers that sections hold.
    pub msrs: Vec<u32>,
    pub sregs: plain::Pair,
    pub tsc_khz: u32,
}

/// Why no VM can run here.
pub fn unavailable() -> Option<String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Some("only Linux on x86-64 has what is needed".into());
    }
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => return Some(format!("/dev/kvm: {}", std::io::Error::from_raw_os_error(e.errno()))),
    };
    if kvm.get_api_version() != KVM_API {
        return Some("KVM has another API".into());
    }
    let needed = [
        (Cap::Irqchip, "in-kernel interrupt controllers"),
        (Cap::Irqfd, "irqfd"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::IrqRouting, "interrupt routing"),
        (Cap::ImmediateExit, "immediate exit"),
        (Cap::ReadonlyMem, "read-only memory slots"),
        (Cap::Xcrs, "XCRS"),
    ];
    needed.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, what)| format!("KVM has no {what}"))
}

fn enable(vm: &VmFd, cap: u32, arg: u64, what: &'static str) -> Result<()> {
    let cap = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&cap).map_err(Error::kvm(what))
}

impl Machine {
    /// Creates it, with `vcpus` vCPUs and rings of `ring_entries` entries; 0 is none.
    pub fn new(vcpus: usize, ring_entries: u32, ram: &Ram, control: &MmapRegion) -> Result<(Self, Vec<VcpuFd>)> {
        let kvm = Kvm::new().map_err(Error::kvm("/dev/kvm"))?;
        let vm = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(Error::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        // A halted vCPU gives its processor back at once: there may be as few as vCPUs. Kernels without the capability poll a little.
        let _ = enable(&vm, KVM_CAP_HALT_POLL, 0, "KVM_CAP_HALT_POLL");
        if ring_entries != 0 {
            if !ring_entries.is_power_of_two() || !(LEAST_RING_ENTRIES..=MOST_RING_ENTRIES).contains(&ring_entries) {
                return Err(Error::Argument(format!("dirtyRingEntries is {ring_entries}")));
            }
            enable(&vm, KVM_CAP_DIRTY_LOG_RING, u64::from(ring_entries * RING_ENTRY_BYTES), "KVM_CAP_DIRTY_LOG_RING")?;
        }
        for (n, range) in ram.ranges().iter().enumerate() {
            set_slot(&vm, n as u32, range.gpa, range.len, range.host, 0)?;
        }
        set_slot(&vm, CONTROL_SLOT, CONTROL_GPA, PAGE, control.as_ptr() as u64, KVM_MEM_READONLY)?;

        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let mut fds = Vec::new();
        for id in 0..vcpus as u32 {
            let fd = vm.create_vcpu(u64::from(id)).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
            let mut cpuid = cpuid.clone();
            for entry in cpuid.as_mut_slice() {
                match entry.function {
                    // The initial APIC identifier, and the x2APIC identifier.
                    1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
                    0xb | 0x1f => entry.edx = id,
                    _ => {}
                }
            }
            fd.set_cpuid2(&cpuid).map_err(Error::kvm("KVM_SET_CPUID2"))?;
            fds.push(fd);
        }
        let first = fds.first().ok_or(Error::State("a machine without vCPUs"))?;
        let tsc_khz = first.get_tsc_khz().map_err(Error::kvm("KVM_GET_TSC_KHZ"))?;
        let has_sregs2 = kvm.check_extension_raw(KVM_CAP_SREGS2.into()) > 0;
        let machine = Self {
            msrs: registers::list(&kvm, first)?,
            sregs: if has_sregs2 { plain::SREGS2 } else { plain::SREGS },
            tsc_khz,
            vm: Arc::new(vm),
        };
        Ok((machine, fds))
    }
}

fn set_slot(vm: &VmFd, slot: u32, gpa: u64, len: u64, host: u64, flags: u32) -> Result<()> {
    let region =
        kvm_userspace_memory_region { slot, flags, guest_phys_addr: gpa, memory_size: len, userspace_addr: host };
    // SAFETY: the mapping outlives the VM: `Vm` drops it after the descriptors.
    unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))
}
