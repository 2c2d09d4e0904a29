//! `guest/layout.h` in Rust. A test compiles that file and compares.

use std::mem::offset_of;

use vm_memory::ByteValued;

pub const PAGE: u64 = 4096;
pub const PARAMETERS_GPA: u64 = 0x1000;
pub const STATUS_GPA: u64 = 0x2000;
pub const PAGE_TABLES_GPA: u64 = 0x4000;
pub const GDT_GPA: u64 = 0x5_0000;
pub const IDT_GPA: u64 = 0x5_1000;
pub const IMAGE_GPA: u64 = 0x10_0000;
pub const ARENA_GPA: u64 = 0x80_0000;
pub const HOLE_GPA: u64 = 0xc000_0000;
pub const BAR0_GPA: u64 = 0xd000_0000;
pub const BAR4_GPA: u64 = 0xd010_0000;
pub const CONFIG_GPA: u64 = 0xd011_0000;
pub const CONTROL_GPA: u64 = 0xd020_0000;

/// Most that the addresses above leave for BAR 0.
pub const BAR0_ROOM: u64 = BAR4_GPA - BAR0_GPA;
/// Most that they leave for BAR 4.
pub const BAR4_ROOM: u64 = CONFIG_GPA - BAR4_GPA;
/// RAM ends below: as far as the page tables reach.
pub const RAM_LIMIT: u64 = 64 << 30;

pub const MAX_VCPUS: usize = 2;
pub const MAX_RANGES: usize = 8;
pub const MAX_QUEUE_DEPTH: u32 = 63;
pub const MAX_UNITS_PER_COMMAND: u32 = 8;
pub const RECORDS_MAX: u32 = 512;
pub const RECORD_BYTES: usize = 64;

pub const PORT_GPA: u64 = 0xd021_0000;
/// Offsets from there.
pub const PORT_RECORDS: u64 = 0;
pub const PORT_FAILED: u64 = 4;
pub const PARAMETERS_MAGIC: u64 = 0x3130_4d56_574f_5454;

/// Where the stack of a vCPU begins, downwards.
pub fn stack_top(vcpu: usize) -> u64 {
    0x7_0000 + vcpu as u64 * 0x1_0000
}

/// Where its stack begins while it runs the kernel's part.
pub fn kernel_stack_top(vcpu: usize) -> u64 {
    0x5_8000 + vcpu as u64 * 0x4000
}

/// Where its task state segment is.
pub fn tss_gpa(vcpu: usize) -> u64 {
    GDT_GPA + 0x100 + vcpu as u64 * 0x80
}

/// Where the status page of a vCPU is.
pub fn status_gpa(vcpu: usize) -> u64 {
    STATUS_GPA + vcpu as u64 * PAGE
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Range {
    pub gpa: u64,
    pub len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Parameters {
    pub magic: u64,
    pub seed: u64,
    pub units: u64,
    pub queue_depth: u32,
    pub max_units: u32,
    pub nsid: u32,
    pub vcpus: u32,
    pub warm: u32,
    pub shadow_doorbells: u32,
    pub tsc_khz: u32,
    pub ranges: u32,
    pub range: [Range; MAX_RANGES],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    pub drain: u32,
    pub epoch: u32,
    pub iops: u32,
    pub read_percent: u32,
    pub dirty_pages_per_s: u32,
    pub heartbeat_us: u32,
    pub working_set_pages: u64,
    pub gap_generation: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    pub phase: u32,
    pub failure: u32,
    pub heartbeats: u64,
    pub last_tsc: u64,
    pub largest_gap: u64,
    pub gap_generation: u64,
    pub writes: u64,
    pub reads: u64,
    pub flushes: u64,
    pub in_flight: u64,
    pub duplicates: u64,
    pub errors: u64,
    pub mismatches: u64,
    pub memory_errors: u64,
    pub state_errors: u64,
    pub tsc_errors: u64,
    pub interrupts: u64,
    pub lost_interrupts: u64,
    pub pages_written: u64,
    pub doorbells: u64,
    pub drained: u64,
    pub next_seq: u64,
    pub working_set_limit: u64,
    pub shadow_gpa: u64,
    pub records_gpa: u64,
    pub exception: u64,
    pub exception_code: u64,
    pub exception_rip: u64,
    pub exception_rsp: u64,
    pub exception_flags: u64,
    pub exception_rax: u64,
    pub exception_cr2: u64,
}

// SAFETY: integers only, without padding (the test against layout.h compares every offset), so any bytes are a value.
unsafe impl ByteValued for Parameters {}
// SAFETY: as for `Parameters`.
unsafe impl ByteValued for Control {}
// SAFETY: as for `Parameters`.
unsafe impl ByteValued for Status {}

pub const PHASE_OFF: u32 = 0;
pub const PHASE_BOOTING: u32 = 1;
pub const PHASE_RUNNING: u32 = 2;
pub const PHASE_DRAINED: u32 = 3;
pub const PHASE_FAILED: u32 = 5;

impl Status {
    /// Why the program can't go on; `None` while it can.
    pub fn failure_words(&self) -> Option<String> {
        if self.phase != PHASE_FAILED {
            return None;
        }
        let words = failure_words(self.failure);
        if self.failure != FAIL_EXCEPTION {
            return Some(words.into());
        }
        let code = match self.exception_code {
            u64::MAX => String::new(),
            code => format!(", error code {code:#x}"),
        };
        Some(format!(
            "{words}: vector {}{code}, RIP {:#x}, RSP {:#x}, RFLAGS {:#x}, RAX {:#x}, CR2 {:#x}",
            self.exception,
            self.exception_rip,
            self.exception_rsp,
            self.exception_flags,
            self.exception_rax,
            self.exception_cr2
        ))
    }
}

const FAIL_EXCEPTION: u32 = 10;

/// What a `FAIL_` code says.
fn failure_words(code: u32) -> &'static str {
    match code {
        1 => "the parameters are none, or impossible",
        2 => "no device answers",
        3 => "no MSI-X capability, or too few vectors",
        4 => "the controller's queues are too short, or its doorbells or pages of another size",
        5 => "the controller did not get ready",
        6 => "an admin command failed or was not answered",
        7 => "fewer I/O queue pairs granted than vCPUs",
        8 => "the namespace has too few units, or other blocks",
        9 => "RAM has no room for a working set",
        FAIL_EXCEPTION => "a processor exception",
        _ => "an unknown failure",
    }
}

/// Offsets of single fields, for code that reads just these.
pub mod at {
    use super::{Control, Status, offset_of};

    pub const STATUS_NEXT_SEQ: u64 = offset_of!(Status, next_seq) as u64;
    pub const STATUS_SHADOW: u64 = offset_of!(Status, shadow_gpa) as u64;
    pub const STATUS_RECORDS: u64 = offset_of!(Status, records_gpa) as u64;
    pub const CONTROL_DRAIN: usize = offset_of!(Control, drain);
    pub const CONTROL_EPOCH: usize = offset_of!(Control, epoch);
    pub const CONTROL_IOPS: usize = offset_of!(Control, iops);
    pub const CONTROL_READ_PERCENT: usize = offset_of!(Control, read_percent);
    pub const CONTROL_DIRTY: usize = offset_of!(Control, dirty_pages_per_s);
    pub const CONTROL_HEARTBEAT: usize = offset_of!(Control, heartbeat_us);
    pub const CONTROL_WORKING_SET: usize = offset_of!(Control, working_set_pages);
    pub const CONTROL_GAP: usize = offset_of!(Control, gap_generation);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    macro_rules! check {
        ($c:literal, $type:ident { $($field:ident),* $(,)? }) => {
            vec![
                $((
                    format!("offsetof(struct {}, {})", $c, stringify!($field)),
                    offset_of!($type, $field) as u64,
                ),)*
                (format!("sizeof(struct {})", $c), size_of::<$type>() as u64),
            ]
        };
    }

    #[test]
    fn the_guest_has_the_same_layout() {
        let mut expected: Vec<(String, u64)> = [
            ("PARAMETERS_GPA", PARAMETERS_GPA),
            ("STATUS_GPA", STATUS_GPA),
            ("PAGE_TABLES_GPA", PAGE_TABLES_GPA),
            ("GDT_GPA", GDT_GPA),
            ("IDT_GPA", IDT_GPA),
            ("IMAGE_GPA", IMAGE_GPA),
            ("TSS_GPA(1)", tss_gpa(1)),
            ("KERNEL_STACK_TOP_GPA(1)", kernel_stack_top(1)),
            ("ARENA_GPA", ARENA_GPA),
            ("HOLE_GPA", HOLE_GPA),
            ("BAR0_GPA", BAR0_GPA),
            ("BAR4_GPA", BAR4_GPA),
            ("CONFIG_GPA", CONFIG_GPA),
            ("CONTROL_GPA", CONTROL_GPA),
            ("STACK_TOP_GPA(1)", stack_top(1)),
            ("MAX_VCPUS", MAX_VCPUS as u64),
            ("MAX_RANGES", MAX_RANGES as u64),
            ("MAX_QUEUE_DEPTH", MAX_QUEUE_DEPTH.into()),
            ("RECORDS_MAX", RECORDS_MAX.into()),
            ("PORT_RECORDS_GPA", PORT_GPA + PORT_RECORDS),
            ("PORT_FAILED_GPA", PORT_GPA + PORT_FAILED),
            ("PARAMETERS_MAGIC", PARAMETERS_MAGIC),
            ("FAIL_EXCEPTION", FAIL_EXCEPTION.into()),
            ("PHASE_BOOTING", PHASE_BOOTING.into()),
            ("PHASE_RUNNING", PHASE_RUNNING.into()),
            ("PHASE_DRAINED", PHASE_DRAINED.into()),
            ("PHASE_FAILED", PHASE_FAILED.into()),
            ("sizeof(struct record)", RECORD_BYTES as u64),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        expected.extend(check!(
            "parameters",
            Parameters {
                magic,
                seed,
                units,
                queue_depth,
                max_units,
                nsid,
                vcpus,
                warm,
                shadow_doorbells,
                tsc_khz,
                ranges,
                range
            }
        ));
        expected.extend(check!(
            "control",
            Control {
                drain,
                epoch,
                iops,
                read_percent,
                dirty_pages_per_s,
                heartbeat_us,
                working_set_pages,
                gap_generation
            }
        ));
        expected.extend(check!(
            "status",
            Status {
                phase,
                failure,
                heartbeats,
                last_tsc,
                largest_gap,
                gap_generation,
                writes,
                reads,
                flushes,
                in_flight,
                duplicates,
                errors,
                mismatches,
                memory_errors,
                state_errors,
                tsc_errors,
                interrupts,
                lost_interrupts,
                pages_written,
                doorbells,
                drained,
                next_seq,
                working_set_limit,
                shadow_gpa,
                records_gpa,
                exception,
                exception_code,
                exception_rip,
                exception_rsp,
                exception_flags,
                exception_rax,
                exception_cr2
            }
        ));
        let folder = std::env::temp_dir().join(format!("microvm-layout-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let prints: String =
            expected.iter().map(|(name, _)| format!("printf(\"%llx\\n\", (unsigned long long)({name}));\n")).collect();
        let source = format!("#include <stdio.h>\n#include \"layout.h\"\nint main(void) {{\n{prints}}}\n");
        std::fs::write(folder.join("layout.c"), source).unwrap();
        let guest = concat!(env!("CARGO_MANIFEST_DIR"), "/guest");
        let program = folder.join("layout");
        let mut compiler = Command::new("cc");
        compiler.arg("-I").arg(guest).arg("-o").arg(&program).arg(folder.join("layout.c"));
        assert!(compiler.status().unwrap().success());
        let out = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();
        for ((name, value), line) in expected.iter().zip(out.lines()) {
            assert_eq!(u64::from_str_radix(line, 16).unwrap(), *value, "{name}");
        }
        assert_eq!(out.lines().count(), expected.len());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
