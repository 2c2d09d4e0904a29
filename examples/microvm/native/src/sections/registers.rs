//! Model-specific registers: those that KVM lists and that can be written back.
//!
//! Payload: for each register u64 index, u64 value, ascending by index.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::error::{Error, Result};

/// `IA32_TIME_STAMP_COUNTER` has a section of its own.
pub const TSC: u32 = 0x10;
/// The most that KVM takes in one call is 255 (`MAX_IO_MSRS` in arch/x86/kvm/x86.c).
const MOST_AT_ONCE: usize = 255;
/// The most registers of a section.
const MOST: usize = 1024;
const ENTRY: usize = 16;

/// Which registers can be saved and restored: each one is read and written back once, on a vCPU that has not run.
pub fn list(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<u32>> {
    let all = kvm.get_msr_index_list().map_err(Error::kvm("KVM_GET_MSR_INDEX_LIST"))?;
    let mut list: Vec<u32> =
        all.as_slice().iter().copied().filter(|index| *index != TSC && works(vcpu, *index)).collect();
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

fn works(vcpu: &VcpuFd, index: u32) -> bool {
    get(vcpu, index).is_some_and(|value| set(vcpu, index, value))
}

/// Reads one.
pub fn get(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).ok()?;
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().map(|m| m.data),
        _ => None,
    }
}

/// Writes one; `false` where KVM refuses.
pub fn set(vcpu: &VcpuFd, index: u32, data: u64) -> bool {
    let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]);
    msrs.is_ok_and(|msrs| matches!(vcpu.set_msrs(&msrs), Ok(1)))
}

/// The payload.
pub fn save(vcpu: &VcpuFd, list: &[u32]) -> std::result::Result<Vec<u8>, String> {
    let entries: Vec<_> = list.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
    let mut msrs = Msrs::from_entries(&entries).map_err(|_| "too many registers".to_owned())?;
    let count = vcpu.get_msrs(&mut msrs).map_err(|e| e.to_string())?;
    if count != list.len() {
        return Err(format!("register {:#x} can't be read", list.get(count).copied().unwrap_or(0)));
    }
    Ok(msrs.as_slice().iter().flat_map(|m| [u64::from(m.index), m.data]).flat_map(u64::to_le_bytes).collect())
}

/// Reads a payload.
pub fn parse(payload: &[u8]) -> std::result::Result<Vec<(u32, u64)>, String> {
    let (entries, rest) = payload.as_chunks::<ENTRY>();
    if !rest.is_empty() || entries.len() > MOST {
        return Err(format!("{} bytes of registers", payload.len()));
    }
    let mut out: Vec<(u32, u64)> = Vec::with_capacity(entries.len());
    for entry in entries {
        let mut words = entry.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
        let (index, value) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        let index = u32::try_from(index).map_err(|_| format!("a register {index:#x}"))?;
        if index == TSC || out.last().is_some_and(|(last, _)| *last >= index) {
            return Err(format!("register {index:#x} does not belong there"));
        }
        out.push((index, value));
    }
    Ok(out)
}

/// Writes them. One that this machine does not list is an error, unless it is zero: then nothing is lost.
pub fn restore(vcpu: &VcpuFd, list: &[u32], registers: &[(u32, u64)]) -> std::result::Result<(), String> {
    let known = |index: &u32| list.binary_search(index).is_ok();
    if let Some((index, _)) = registers.iter().find(|(index, value)| *value != 0 && !known(index)) {
        return Err(format!("register {index:#x} is not known here"));
    }
    let entries: Vec<_> = registers
        .iter()
        .filter(|(index, _)| known(index))
        .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
        .collect();
    // In few calls: a guest stands still meanwhile.
    for some in entries.chunks(MOST_AT_ONCE) {
        let msrs = Msrs::from_entries(some).map_err(|_| "too many registers".to_owned())?;
        let written = vcpu.set_msrs(&msrs).map_err(|e| e.to_string())?;
        if let Some(refused) = some.get(written) {
            return Err(format!("register {:#x} can't be {:#x} here", refused.index, refused.data));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_that_cannot_be_are_refused() {
        let bytes = |list: &[(u64, u64)]| -> Vec<u8> {
            list.iter().flat_map(|(i, v)| [*i, *v]).flat_map(u64::to_le_bytes).collect()
        };
        assert_eq!(parse(&bytes(&[(1, 2), (3, 4)])), Ok(vec![(1, 2), (3, 4)]));
        for bad in [vec![(3, 4), (1, 2)], vec![(1, 2), (1, 2)], vec![(TSC.into(), 0)], vec![(1 << 32, 0)]] {
            assert!(parse(&bytes(&bad)).is_err());
        }
        assert!(parse(&bytes(&[(1, 2)])[..15]).is_err());
        assert!(parse(&vec![0; ENTRY * (MOST + 1)]).is_err());
    }
}
