//! Saves and restores the sections of a machine that stands still.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::sections::tsc::{Moment, Now};
use crate::sections::{Id, Kind, plain, registers};
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// `KVM_IRQCHIP_IOAPIC`, the chip of the section `ioapic`.
const IOAPIC: u32 = 2;
/// Of struct kvm_clock_data, what is the guest's: its clock. The rest is about the host that it was read on.
const CLOCK_GUEST_BYTES: usize = 8;

/// All of them, by name.
pub fn save(vm: &Vm) -> Result<Vec<(String, Vec<u8>)>> {
    let one = |id: Id| {
        let payload = match id.vcpu {
            None => save_machine(vm, id)?,
            Some(n) => save_vcpu(vm, id, vcpu(vm, n)?)?,
        };
        Ok((id.name(), id.wrap(&payload)))
    };
    Id::all(vm.vcpus.len()).into_iter().map(one).collect()
}

fn vcpu(vm: &Vm, n: usize) -> Result<&Vcpu> {
    vm.vcpus.get(n).map(|v| &**v).ok_or(Error::State("there is no such vCPU"))
}

fn save_machine(vm: &Vm, id: Id) -> Result<Vec<u8>> {
    let fd = vm.vm_fd();
    let failed = |e: std::io::Error| id.error(e.to_string());
    match id.kind {
        Kind::Control => Ok(vm.control.save()),
        Kind::Msix => Ok(vm.bus.msix.save()),
        Kind::Ioapic => plain::get(fd, plain::IRQCHIP, &IOAPIC.to_le_bytes()).map_err(failed),
        Kind::Clock => {
            let mut clock = plain::get(fd, plain::CLOCK, &[]).map_err(failed)?;
            clock.iter_mut().skip(CLOCK_GUEST_BYTES).for_each(|b| *b = 0);
            Ok(clock)
        }
        _ => Err(id.error("is none of the machine")),
    }
}

fn save_vcpu(vm: &Vm, id: Id, vcpu: &Vcpu) -> Result<Vec<u8>> {
    let fd = vcpu.fd();
    match id.kind {
        Kind::Msrs => registers::save(&fd, &vm.machine.msrs).map_err(|what| id.error(what)),
        Kind::Tsc => {
            let moment = Moment::of(&fd, vm.machine.tsc_khz).ok_or_else(|| id.error("the counter can't be read"))?;
            Ok(moment.encode())
        }
        kind => {
            let pair = plain::of(kind, vm.machine.sregs).ok_or_else(|| id.error("is none of a vCPU"))?;
            plain::get(vcpu.raw_fd(), pair, &[]).map_err(|e| id.error(e.to_string()))
        }
    }
}

/// All of them. Everything is checked before anything is changed, as far as lengths and headers tell.
pub fn restore(vm: &Vm, sections: &[(String, Vec<u8>)]) -> Result<()> {
    let given: HashMap<&str, &[u8]> = sections.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let all = Id::all(vm.vcpus.len());
    if let Some(stranger) = given.keys().find(|name| !all.iter().any(|id| id.name() == **name)) {
        return Err(Error::Argument(format!("there is no section {stranger}")));
    }
    let mut payloads = Vec::new();
    for id in all {
        let bytes = given.get(id.name().as_str()).ok_or_else(|| id.error("is missing"))?;
        let payload = id.unwrap(bytes)?;
        check(vm, id, payload)?;
        payloads.push((id, payload));
    }
    let now = Now::read();
    for (id, payload) in payloads {
        match id.vcpu {
            None => restore_machine(vm, id, payload)?,
            Some(n) => restore_vcpu(vm, id, vcpu(vm, n)?, payload, now)?,
        }
    }
    Ok(())
}

fn check(vm: &Vm, id: Id, payload: &[u8]) -> Result<()> {
    let wanted = match id.kind {
        Kind::Ioapic => plain::IRQCHIP.bytes,
        Kind::Clock => plain::CLOCK.bytes,
        Kind::Msrs => return registers::parse(payload).map(drop).map_err(|what| id.error(what)),
        Kind::Tsc => return Moment::decode(payload).map(drop).map_err(|what| id.error(what)),
        Kind::Sregs => {
            // Of a kernel with or without SREGS2; the one with can be given what the other has only where both have it.
            vm.machine.sregs.bytes
        }
        kind => match plain::of(kind, vm.machine.sregs) {
            Some(pair) => pair.bytes,
            None => return Ok(()),
        },
    };
    if payload.len() == wanted {
        return Ok(());
    }
    Err(id.error(format!("has {} bytes, {wanted} are wanted here", payload.len())))
}

fn restore_machine(vm: &Vm, id: Id, payload: &[u8]) -> Result<()> {
    let fd = vm.vm_fd();
    let failed = |e: std::io::Error| id.error(e.to_string());
    match id.kind {
        Kind::Control => vm.control.restore(payload).map_err(|what| id.error(what)),
        Kind::Msix => vm.bus.msix.restore(payload).map_err(|what| id.error(what)),
        Kind::Clock => plain::set(fd, plain::CLOCK, payload).map_err(failed),
        Kind::Ioapic => {
            if payload.first_chunk() != Some(&IOAPIC.to_le_bytes()) {
                return Err(id.error("is another interrupt controller"));
            }
            plain::set(fd, plain::IRQCHIP, payload).map_err(failed)
        }
        _ => Err(id.error("is none of the machine")),
    }
}

fn restore_vcpu(vm: &Vm, id: Id, vcpu: &Vcpu, payload: &[u8], now: Now) -> Result<()> {
    let fd = vcpu.fd();
    let failed = |what: String| id.error(what);
    match id.kind {
        Kind::Msrs => {
            let list = registers::parse(payload).map_err(failed)?;
            registers::restore(&fd, &vm.machine.msrs, &list).map_err(failed)
        }
        Kind::Tsc => {
            let moment = Moment::decode(payload).map_err(failed)?;
            moment.restore(&fd, vm.machine.tsc_khz, now).map_err(failed)
        }
        kind => {
            let pair = plain::of(kind, vm.machine.sregs).ok_or_else(|| id.error("is none of a vCPU"))?;
            plain::set(vcpu.raw_fd(), pair, payload).map_err(|e| id.error(e.to_string()))
        }
    }
}
