//! A VM without a device: sections, and what is refused. Where there is no KVM, a line says so and nothing else is tested.

use std::fs::File;
use std::os::fd::FromRawFd;

use super::*;
use crate::machine;

const MIB: u64 = 1 << 20;

fn memfd(len: u64) -> File {
    // SAFETY: a name that ends with a zero; the result is checked.
    let fd = unsafe { libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: fresh, and owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).unwrap();
    file
}

fn missing() -> bool {
    let why = machine::unavailable();
    if let Some(why) = &why {
        eprintln!("skipped: {why}");
    }
    why.is_some()
}

fn vm(file: &File) -> Vm {
    let range = RangeSpec { gpa: 0, len: 64 * MIB, fd: file.as_raw_fd(), fd_offset: 0 };
    Vm::new(&VmSpec { vcpus: 2, memory: vec![range], dirty_ring_entries: 0, log_fd: None, host_tag: 0 }).unwrap()
}

#[test]
fn sections_move_to_another_vm_and_damaged_ones_are_refused() {
    if missing() {
        return;
    }
    let ram = memfd(64 * MIB);
    let source = vm(&ram);
    // HLT at the first byte: no guest, but a vCPU in 64-bit mode with its own registers.
    source.boot(&[0xf4], &Wanted::default()).unwrap();
    let saved = source.save().unwrap();
    let target = vm(&ram);
    target.restore(&saved).unwrap();
    for ((name, bytes), (_, again)) in saved.iter().zip(&target.save().unwrap()) {
        // Clocks go on.
        if !name.ends_with("tsc") && name != "clock" && !name.ends_with("lapic") && !name.ends_with("msrs") {
            assert_eq!(again, bytes, "{name}");
        }
    }
    for n in 0..saved.len() {
        let name = saved[n].0.as_str();
        let with = |bytes: Vec<u8>| {
            let mut damaged = saved.clone();
            damaged[n].1 = bytes;
            vm(&ram).restore(&damaged)
        };
        let whole = &saved[n].1;
        assert!(with(whole[..whole.len() - 1].to_vec()).is_err(), "{name} cut");
        assert!(with(Vec::new()).is_err(), "{name} empty");
        let mut other = whole.clone();
        other[4] ^= 2;
        assert!(with(other).is_err(), "{name} of another version");
        let mut missing = saved.clone();
        missing.remove(n);
        assert!(vm(&ram).restore(&missing).is_err(), "{name} missing");
    }
    let mut more = saved.clone();
    more.push(("vcpu2.regs".into(), Vec::new()));
    assert!(vm(&ram).restore(&more).is_err());
}

#[test]
fn registers_that_no_processor_has_are_refused() {
    if missing() {
        return;
    }
    let ram = memfd(64 * MIB);
    let source = vm(&ram);
    source.boot(&[0xf4], &Wanted::default()).unwrap();
    for (name, from) in [("vcpu0.xsave", 16 + 512), ("vcpu1.sregs", 16), ("vcpu0.xcrs", 16)] {
        let mut saved = source.save().unwrap();
        let bytes = &mut saved.iter_mut().find(|(n, _)| n == name).unwrap().1;
        bytes[from..].fill(0xff);
        assert!(vm(&ram).restore(&saved).is_err(), "{name}");
    }
}

#[test]
fn calls_out_of_order_are_refused_and_closing_ends_everything() {
    if missing() {
        return;
    }
    let ram = memfd(64 * MIB);
    let vm = vm(&ram);
    assert!(vm.run().is_err(), "no guest");
    assert!(vm.boot(&[], &Wanted::default()).is_err());
    vm.boot(&[0xf4], &Wanted::default()).unwrap();
    vm.run().unwrap();
    vm.run().unwrap();
    assert!(vm.save().is_err(), "runs");
    vm.pause().unwrap();
    vm.pause().unwrap();
    assert!(vm.restore(&vm.save().unwrap()).is_err(), "it ran");
    assert!(vm.set_throttle(100).is_err());
    vm.set_throttle(50).unwrap();
    vm.run().unwrap();
    vm.close();
    vm.close();
    assert!(vm.run().is_err() && vm.pause().is_err());
}
