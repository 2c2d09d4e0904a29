//! An NVMe controller driven by hand: its registers through the mapped BAR, its queues in guest memory, its completion by interrupt.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use towline_core::bar::{Access, BarTarget, Fill, FilteredBar, NoTraps, Policy, Rule};
use towline_core::memory::GuestMemory;
use towline_linux::memory::{MappedMemory, memfd};
use towline_linux::vfio::{OpenBy, VfioBar};

use super::bars::enable;
use super::irqs::{count, event};
use super::sysfs::{config, open};

/// Where guest memory is, for the guest and by that for the device: the submission queue, the completion queue, data.
const MEMORY: u64 = 0x1000_0000;
const COMPLETIONS: u64 = MEMORY + 0x1000;
const DATA: u64 = MEMORY + 0x2000;
/// Registers (NVM Express Base 2.1, 3.1.4).
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const NSSR: u64 = 0x20;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const SQ0_TAIL: u64 = 0x1000;

fn read_u32(bar: &dyn BarTarget, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    bar.read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn wait_ready(bar: &dyn BarTarget, ready: bool) {
    let begun = Instant::now();
    while read_u32(bar, CSTS) & 1 != u32::from(ready) {
        assert!(begun.elapsed() < Duration::from_secs(20), "CSTS is {:#x}", read_u32(bar, CSTS));
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn identify(address: &str, by: OpenBy) {
    let function = open(address, by);
    let device = function.device();
    let memory = MappedMemory::new();
    let file = memfd("guest", 1 << 20).unwrap();
    memory.add_region(MEMORY, file.as_fd(), 0, 1 << 20).unwrap();
    function.map_memory(&memory).unwrap();
    enable(device);

    // A guest must not reset the whole subsystem: writes of NSSR are dropped. The doorbells pass, so they are mapped.
    let mut bar = VfioBar::open(device, 0).unwrap();
    let policy = Policy::new(bar.region().size).rule(Rule::deny("NSSR", NSSR, 4, Fill::Zeros).on(Access::Write));
    let filter = Arc::new(policy.compile().unwrap());
    let plan = bar.region().mmap_plan(&filter, 4096).unwrap();
    assert!(plan.iter().any(|run| run.offset <= SQ0_TAIL && SQ0_TAIL < run.offset + run.len), "{plan:x?}");
    bar.map(&plan).unwrap();
    let target = Arc::new(bar);
    let bar = FilteredBar::new(filter, Arc::clone(&target) as Arc<dyn BarTarget>, Arc::new(NoTraps));
    let write_u32 = |offset: u64, value: u32| bar.write(offset, &value.to_le_bytes());

    let done = event();
    device.wire_irqs(2, 0, &[Some(done.as_fd())]).unwrap();
    write_u32(CC, 0);
    wait_ready(&bar, false);
    write_u32(AQA, 15 << 16 | 15);
    bar.write(ASQ, &MEMORY.to_le_bytes());
    bar.write(ACQ, &COMPLETIONS.to_le_bytes());
    write_u32(CC, 4 << 20 | 6 << 16 | 1);
    wait_ready(&bar, true);
    assert_eq!(count(&done), 0);

    // Identify, controller (5.1.13): opcode 6, command identifier 0x77, one page of data.
    let mut command = [0u8; 64];
    command[..4].copy_from_slice(&(0x77u32 << 16 | 6).to_le_bytes());
    command[24..32].copy_from_slice(&DATA.to_le_bytes());
    command[40] = 1;
    memory.write(MEMORY, &command).unwrap();
    write_u32(SQ0_TAIL, 1);
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&done, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "no interrupt within 20 s; CSTS is {:#x}", read_u32(&bar, CSTS));
    assert_eq!(count(&done), 1);
    let mut completion = [0; 16];
    memory.read(COMPLETIONS, &mut completion).unwrap();
    assert_eq!(completion[12..], [0x77, 0, 1, 0], "command identifier, phase 1, status 0");
    let mut data = [0; 64];
    memory.read(DATA, &mut data).unwrap();
    assert_eq!(data[..2], config(address)[..2], "the vendor of Identify is that of configuration space");
    println!("# serial number {:?}", String::from_utf8_lossy(&data[4..24]).trim());
    assert_eq!(target.failures(), 0);

    // A reset of the function takes the controller down, and it can be used anew.
    device.reset().unwrap();
    enable(device);
    assert_eq!(read_u32(&bar, CC) & 1, 0);
    write_u32(SQ0_TAIL, 2);
    assert_eq!(count(&done), 0);
}
