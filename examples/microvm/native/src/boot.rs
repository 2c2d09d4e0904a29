//! How the guest is started: straight in 64-bit mode, with an identity map, at the first byte of its image.

use kvm_bindings::{kvm_mp_state, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use crate::error::{Error, Result};
use crate::layout::{
    ARENA_GPA, BAR0_GPA, GDT_GPA, IDT_GPA, IMAGE_GPA, MAX_QUEUE_DEPTH, MAX_UNITS_PER_COMMAND, MAX_VCPUS, PAGE,
    PAGE_TABLES_GPA, PARAMETERS_GPA, PARAMETERS_MAGIC, Parameters, Range, kernel_stack_top, stack_top, tss_gpa,
};
use crate::ram::Ram;

/// Present, writable, for every privilege.
const PRESENT_WRITABLE: u64 = 7;
const LARGE: u64 = 1 << 7;
const LARGE_BYTES: u64 = 2 << 20;
const ENTRIES: u64 = 512;
const GIB: u64 = 1 << 30;
/// PG, AM, WP, NE, ET, MP, PE
const CR0: u64 = 0x8005_0033;
/// PAE, OSFXSR, OSXMMEXCPT
const CR4: u64 = 0x620;
/// LME, LMA
const EFER: u64 = 0x500;
/// IF, and the bit that is always set: interrupts come once the program has enabled its local APIC.
const FLAGS: u64 = 0x202;
/// Null, code and data of the kernel's part, data and code of the program; as SYSCALL would want them. Then the task segment,
/// which is never loaded from here.
const GDT: [u64; 5] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
const USER_DATA: u16 = 0x1b;
const USER_CODE: u16 = 0x23;
const TASK: u16 = 0x28;
const MOST_UNITS: u64 = 1 << 24;

/// What the caller says about the guest.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub seed: u64,
    pub units: u64,
    pub queue_depth: u32,
    pub max_units: u32,
    pub nsid: u32,
    pub warm: bool,
    pub shadow_doorbells: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { seed: 1, units: 8192, queue_depth: 32, max_units: 4, nsid: 1, warm: true, shadow_doorbells: false }
    }
}

fn check(wanted: &Wanted) -> Result<()> {
    let bad = |what: &str| Err(Error::Argument(what.into()));
    if !(MAX_VCPUS as u64..=MOST_UNITS).contains(&wanted.units) {
        return bad("units is not in 2..=2^24");
    }
    if !(1..=MAX_QUEUE_DEPTH).contains(&wanted.queue_depth) {
        return bad("queueDepth is not in 1..=63");
    }
    if !(1..=MAX_UNITS_PER_COMMAND).contains(&wanted.max_units) {
        return bad("maxUnits is not in 1..=8");
    }
    if wanted.nsid == 0 || wanted.nsid == u32::MAX {
        return bad("nsid is not that of one namespace");
    }
    Ok(())
}

/// Writes image, parameters and page tables into RAM.
pub fn load(ram: &Ram, image: &[u8], wanted: &Wanted, vcpus: usize, tsc_khz: u32) -> Result<()> {
    check(wanted)?;
    if image.is_empty() || image.len() as u64 > ARENA_GPA - IMAGE_GPA {
        return Err(Error::Argument(format!("an image of {} bytes", image.len())));
    }
    let not_ram = || Error::State("the first range of RAM is too small");
    // What a program expects to be zero is, whatever was in RAM before.
    let zero = vec![0; (ARENA_GPA - PAGE) as usize];
    let mut parameters = Parameters {
        magic: PARAMETERS_MAGIC,
        seed: wanted.seed,
        units: wanted.units,
        queue_depth: wanted.queue_depth,
        max_units: wanted.max_units,
        nsid: wanted.nsid,
        vcpus: vcpus as u32,
        warm: wanted.warm.into(),
        shadow_doorbells: wanted.shadow_doorbells.into(),
        tsc_khz,
        ranges: ram.ranges().len() as u32,
        ..Parameters::default()
    };
    for (to, from) in parameters.range.iter_mut().zip(ram.ranges()) {
        *to = Range { gpa: from.gpa, len: from.len };
    }
    let done = ram.write(PAGE, &zero)
        && ram.write(IMAGE_GPA, image)
        && ram.write_obj(PARAMETERS_GPA, parameters)
        && page_tables(ram)
        && tables(ram, vcpus);
    done.then_some(()).ok_or_else(not_ram)
}

/// Maps everything up to the end of RAM, and the first 4 GiB at least, to itself, by pages of 2 MiB.
fn page_tables(ram: &Ram) -> bool {
    let end = ram.ranges().last().map_or(0, |r| r.gpa + r.len).max(4 * GIB);
    let directories = end.div_ceil(GIB);
    let pointers = PAGE_TABLES_GPA + PAGE;
    let directory = |n: u64| pointers + (1 + n) * PAGE;
    let mut done = ram.write_obj(PAGE_TABLES_GPA, pointers | PRESENT_WRITABLE);
    for n in 0..directories {
        done &= ram.write_obj(pointers + 8 * n, directory(n) | PRESENT_WRITABLE);
        let mut page = Vec::with_capacity(PAGE as usize);
        for entry in 0..ENTRIES {
            page.extend_from_slice(&((n * GIB + entry * LARGE_BYTES) | PRESENT_WRITABLE | LARGE).to_le_bytes());
        }
        done &= ram.write(directory(n), &page);
    }
    done
}

/// Puts a vCPU at the start of the image, at the lowest privilege: that is where the program mostly is. A KVM that has no hardware help runs only that
/// part natively, and emulates the rest.
pub fn start(vcpu: &VcpuFd, index: usize) -> Result<()> {
    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: USER_DATA,
        type_: 3,
        present: 1,
        dpl: 3,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment { selector: USER_CODE, type_: 11, db: 0, l: 1, ..data };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    let base = tss_gpa(index);
    sregs.tr = kvm_segment { base, limit: 0x67, selector: TASK, type_: 11, present: 1, ..Default::default() };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT_GPA, (GDT.len() * 8 - 1) as u16);
    (sregs.idt.base, sregs.idt.limit) = (IDT_GPA, PAGE as u16 - 1);
    sregs.cr0 = CR0;
    sregs.cr3 = PAGE_TABLES_GPA;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
    vcpu.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: IMAGE_GPA,
        // As after a call: the return address would be there.
        rsp: stack_top(index) - 8,
        rdi: index as u64,
        rflags: FLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))?;
    let runnable = kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE };
    vcpu.set_mp_state(runnable).map_err(Error::kvm("KVM_SET_MP_STATE"))
}

/// Descriptors, and for each vCPU where its stack is when it enters the kernel's part.
fn tables(ram: &Ram, vcpus: usize) -> bool {
    let mut done = true;
    for (n, descriptor) in GDT.iter().enumerate() {
        done &= ram.write_obj(GDT_GPA + 8 * n as u64, *descriptor);
    }
    for vcpu in 0..vcpus {
        // RSP0; the field is not aligned (Intel SDM volume 3, figure 8-11).
        done &= ram.write(tss_gpa(vcpu) + 4, &kernel_stack_top(vcpu).to_le_bytes());
    }
    done
}

// What is written at boot ends where the driver's memory begins, and RAM below the device.
const _: () = assert!(ARENA_GPA < BAR0_GPA && PAGE_TABLES_GPA > PARAMETERS_GPA);
const _: () = assert!(PAGE_TABLES_GPA + 66 * PAGE <= GDT_GPA);
