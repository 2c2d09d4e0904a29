//! The function of a rig on its way, and a tenant that goes along.
#![allow(dead_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use towline_core::channel::{ReadOutcome, StateChannel};
use towline_core::dirty::MarkLog;
use towline_core::fsm::DeviceState;
use towline_nvme::hmlm::HmlmChannel;
use towline_tenant::block::{self, Found};
use towline_tenant::{RunOptions, Tenant, TenantHandle, TenantInterrupts};

use crate::rig::{Rig, UNITS};
use crate::work::spec;

pub fn device_state(channel: &mut HmlmChannel) -> Vec<u8> {
    channel.set_state(DeviceState::StopCopy).unwrap();
    let (mut state, mut part) = (Vec::new(), vec![0; 1 << 16]);
    while let ReadOutcome::Bytes(n) = channel.read(&mut part).unwrap() {
        state.extend_from_slice(&part[..n]);
    }
    channel.set_state(DeviceState::Stop).unwrap();
    state
}

pub fn load(channel: &mut HmlmChannel, state: &[u8]) {
    channel.set_state(DeviceState::Resuming).unwrap();
    channel.write(state).unwrap();
    channel.set_state(DeviceState::Stop).unwrap();
}

pub struct Guest {
    pub tenant: TenantHandle,
    pub interrupts: Arc<TenantInterrupts>,
}

fn dev_null() -> OwnedFd {
    std::fs::File::options().write(true).open("/dev/null").unwrap().into()
}

pub fn run(tenant: Tenant, host_tag: u8) -> Guest {
    let interrupts = Arc::new(TenantInterrupts::new());
    let options = RunOptions { host_tag, flush_only: false };
    let tenant = tenant.run(dev_null(), Arc::new(MarkLog::new()), interrupts.clone(), options).unwrap();
    Guest { tenant, interrupts }
}

/// Nothing of the disk is what nobody wrote, and something is what the tenant wrote.
pub fn check_disk(rig: &Rig) {
    let bytes = std::fs::read(&rig.disk).unwrap();
    let units = bytes.as_chunks::<4096>().0.iter().zip(0..);
    let found: Vec<Found> = units.map(|(block, unit)| block::inspect(block, unit, spec().seed)).collect();
    assert_eq!(found.len() as u64, UNITS);
    assert!(found.iter().any(|found| matches!(found, Found::Version(_))));
    assert!(!found.iter().any(|found| matches!(found, Found::Invalid)));
}
