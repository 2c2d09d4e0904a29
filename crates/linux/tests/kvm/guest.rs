//! A guest of some bytes: each vCPU picks pages of two slots at random and counts up the first word of each.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, kvm_enable_cap, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use towline_core::memory::MemoryRange;
use towline_linux::kvm::KvmSlot;
use towline_linux::memory::memfd;

pub const PAGE: u64 = 4096;
const CODE: u64 = 0x10000;
const TABLES: u64 = 0x1000;
/// `KVM_EXIT_DIRTY_RING_FULL`
const RING_FULL: u32 = 31;

// rdi, rsi: address and pages of the first slot; r8: address of the second; r9: pages of both; rbx: state of the random numbers (not
// 0); rcx: how many writes. Then an access to a port, by which the host gets to know.
std::arch::global_asm!(
    ".globl towline_test_guest",
    ".globl towline_test_guest_end",
    "towline_test_guest:",
    "mov rax, rbx",
    "shl rax, 13",
    "xor rbx, rax",
    "mov rax, rbx",
    "shr rax, 7",
    "xor rbx, rax",
    "mov rax, rbx",
    "shl rax, 17",
    "xor rbx, rax",
    "mov rax, rbx",
    "shr rax, 8",
    "xor edx, edx",
    "div r9",
    "cmp rdx, rsi",
    "jb 2f",
    "sub rdx, rsi",
    "shl rdx, 12",
    "add rdx, r8",
    "jmp 3f",
    "2: shl rdx, 12",
    "add rdx, rdi",
    "3: lock inc qword ptr [rdx]",
    "dec rcx",
    "jnz towline_test_guest",
    "out 0x10, al",
    "jmp towline_test_guest",
    "towline_test_guest_end:",
);

unsafe extern "C" {
    static towline_test_guest: u8;
    static towline_test_guest_end: u8;
}

/// Memory of one slot, mapped twice: KVM has one mapping, and the test reads by the other.
pub struct Memory {
    base: *mut u8,
    pub len: u64,
    _fd: OwnedFd,
}

// SAFETY: accessed by atomics and volatile copies only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(len: u64) -> Self {
        let fd = memfd("guest", len).unwrap();
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let base = unsafe { mmap(std::ptr::null_mut(), len as usize, prot, flags, fd.as_fd(), 0) }.unwrap();
        Self { base: base.cast(), len, _fd: fd }
    }

    pub fn address(&self) -> u64 {
        self.base as u64
    }

    /// The first word of a page.
    pub fn counter(&self, page: u64) -> &AtomicU64 {
        assert!(page * PAGE < self.len);
        // SAFETY: inside of the mapping, aligned, and accessed by atomics on this side.
        unsafe { AtomicU64::from_ptr(self.base.add((page * PAGE) as usize).cast()) }
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.len);
        // SAFETY: inside of the mapping; no vCPU runs yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(offset as usize), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; the VM is gone by then.
        let _ = unsafe { munmap(self.base.cast(), self.len as usize) };
    }
}

/// A slot and its memory.
#[derive(Clone)]
pub struct Slot {
    pub number: u32,
    pub gpa: u64,
    pub memory: Arc<Memory>,
}

impl Slot {
    pub fn kvm(&self) -> KvmSlot {
        let (gpa, len) = (self.gpa, self.memory.len);
        KvmSlot { slot: self.number, gpa, len, userspace_addr: self.memory.address(), flags: 0 }
    }

    pub fn range(&self) -> MemoryRange {
        MemoryRange { gpa: self.gpa, len: self.memory.len }
    }
}

pub struct Vm {
    pub fd: VmFd,
    vcpus: Vec<VcpuFd>,
    pub vcpu_fds: Vec<OwnedFd>,
    /// Tables and code, then the two that are written at random.
    pub slots: Vec<Slot>,
    pub ring_entries: Option<u32>,
}

impl Vm {
    /// With `ring`, the smallest rings that KVM takes.
    pub fn new(vcpus: u32, ring: bool) -> Self {
        let fd = Kvm::new().unwrap().create_vm().unwrap();
        let ring_entries = ring.then(|| smallest_ring(&fd));
        // The last chunk of the third one's log is neither a whole chunk nor a whole word.
        let sizes = [(0, 0, 0x20_0000), (1, 0x100_0000, 0x80_0000), (2, 0x400_0000, 0xc0_5000)];
        let slots: Vec<Slot> = sizes
            .into_iter()
            .map(|(number, gpa, len)| Slot { number, gpa, memory: Arc::new(Memory::new(len)) })
            .collect();
        let mut vm = Self { fd, vcpus: Vec::new(), vcpu_fds: Vec::new(), slots, ring_entries };
        for slot in vm.slots.clone() {
            vm.give(&slot, slot.memory.len);
        }
        vm.load();
        for index in 0..vcpus {
            let vcpu = vm.fd.create_vcpu(u64::from(index)).unwrap();
            vcpu.set_sregs(&long_mode(vcpu.get_sregs().unwrap())).unwrap();
            let [_, a, b] = &vm.slots[..] else { unreachable!() };
            let regs = kvm_regs {
                rip: CODE,
                rflags: 2,
                rdi: a.gpa,
                rsi: a.memory.len / PAGE,
                r8: b.gpa,
                r9: (a.memory.len + b.memory.len) / PAGE,
                rbx: 0x9e37_79b9_7f4a_7c15 ^ u64::from(index),
                ..Default::default()
            };
            vcpu.set_regs(&regs).unwrap();
            // SAFETY: open for as long as `vcpu` is.
            let borrowed = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
            vm.vcpu_fds.push(borrowed.try_clone_to_owned().unwrap());
            vm.vcpus.push(vcpu);
        }
        vm
    }

    /// Gives a slot to KVM, or takes it away with a length of 0.
    pub fn give(&self, slot: &Slot, len: u64) {
        let region = kvm_userspace_memory_region {
            slot: slot.number,
            flags: 0,
            guest_phys_addr: slot.gpa,
            memory_size: len,
            userspace_addr: slot.memory.address(),
        };
        // SAFETY: the memory is mapped for as long as the VM lives: vCPUs and VM go before the slots' memory, by order of fields or by `stop`.
        unsafe { self.fd.set_user_memory_region(region) }.unwrap();
    }

    fn load(&self) {
        let low = &self.slots[0].memory;
        let entry = |at: u64, value: u64| low.store(at, &value.to_le_bytes());
        // One table a level, and 1 GiB in pages of 2 MiB, where each address is its own.
        entry(TABLES, (TABLES + PAGE) | 3);
        entry(TABLES + PAGE, (TABLES + 2 * PAGE) | 3);
        (0..512).for_each(|n| entry(TABLES + 2 * PAGE + n * 8, (n << 21) | 0x83));
        // SAFETY: the two labels are around the code that was assembled above, in this order.
        let code = unsafe {
            let (start, end) = (&raw const towline_test_guest, &raw const towline_test_guest_end);
            std::slice::from_raw_parts(start, end as usize - start as usize)
        };
        low.store(CODE, code);
    }

    pub fn vm_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open for as long as `self.fd` is.
        unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) }
    }

    /// Starts the vCPUs, each in bursts of `burst` writes. `full` is told when a ring is.
    pub fn run(&mut self, burst: u64, full: Option<OwnedFd>) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let fulls = Arc::new(AtomicU64::new(0));
        let full = Arc::new(full);
        let threads = self.vcpus.drain(..).map(|vcpu| {
            let (stop, fulls, full) = (Arc::clone(&stop), Arc::clone(&fulls), Arc::clone(&full));
            std::thread::spawn(move || run_vcpu(vcpu, burst, &stop, &fulls, full.as_ref().as_ref()))
        });
        Running { threads: threads.collect(), stop, fulls }
    }

    pub fn stop(&mut self, running: Running) -> u64 {
        running.stop.store(true, Ordering::SeqCst);
        self.vcpus.extend(running.threads.into_iter().map(|thread| thread.join().unwrap()));
        running.fulls.load(Ordering::SeqCst)
    }
}

pub struct Running {
    threads: Vec<JoinHandle<VcpuFd>>,
    stop: Arc<AtomicBool>,
    fulls: Arc<AtomicU64>,
}

fn run_vcpu(mut vcpu: VcpuFd, burst: u64, stop: &AtomicBool, fulls: &AtomicU64, full: Option<&OwnedFd>) -> VcpuFd {
    let mut regs = vcpu.get_regs().unwrap();
    regs.rcx = burst;
    vcpu.set_regs(&regs).unwrap();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(0x10, _)) => {
                if stop.load(Ordering::SeqCst) {
                    // The access to the port is complete only with the next entry.
                    vcpu.set_kvm_immediate_exit(1);
                    assert!(vcpu.run().is_err());
                    vcpu.set_kvm_immediate_exit(0);
                    return vcpu;
                }
                let mut regs = vcpu.get_regs().unwrap();
                regs.rcx = burst;
                vcpu.set_regs(&regs).unwrap();
            }
            Ok(VcpuExit::Unsupported(RING_FULL)) => {
                fulls.fetch_add(1, Ordering::SeqCst);
                let full = full.expect("a ring is full, and nobody to tell");
                rustix::io::write(full, &1_u64.to_ne_bytes()).unwrap();
                std::thread::yield_now();
            }
            Ok(other) => panic!("the guest ended with {other:?}"),
            Err(error) if error.errno() == 4 => {}
            Err(error) => panic!("KVM_RUN: {error}"),
        }
    }
}

fn smallest_ring(vm: &VmFd) -> u32 {
    for entries in [256, 512, 1024, 2048, 4096] {
        let cap = KVM_CAP_DIRTY_LOG_RING;
        let enable = kvm_enable_cap { cap, args: [u64::from(entries) * 16, 0, 0, 0], ..Default::default() };
        if vm.enable_cap(&enable).is_ok() {
            return entries;
        }
    }
    panic!("KVM takes no dirty ring");
}

fn long_mode(mut sregs: kvm_sregs) -> kvm_sregs {
    let code = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, db: 1, l: 0, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr0 = 0x8005_0033;
    sregs.cr3 = TABLES;
    sregs.cr4 = 0x20;
    sregs.efer = 0x500;
    sregs
}
