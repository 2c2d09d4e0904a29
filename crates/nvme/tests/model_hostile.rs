//! A tenant that means harm: random entries, doorbells, registers and memory. Nothing panics, nothing hangs, nothing outside of
//! its memory and its namespace is touched, and after a reset the controller works.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Bars, DATA, Disk, Host, Interrupts, MEMORY, Memory, config};
use proptest::prelude::*;
use towline_core::bar::BarTarget;
use towline_nvme::admin::AdminClient;
use towline_nvme::command::SubmissionEntry;
use towline_nvme::migration::{FormatIndex, SuspendType};
use towline_nvme::model::{EmbeddedAdmin, Subsystem};
use towline_nvme::track::TrackRange;

const MIB: u64 = 1 << 20;

#[derive(Clone, Debug)]
enum Act {
    /// Entry bytes into a slot of queue 0 or 1.
    Entry {
        qid: u16,
        slot: u16,
        entry: [u32; 16],
        tame: bool,
    },
    /// A whole doorbell.
    Ring {
        index: u16,
        value: u32,
    },
    /// Registers, any width and place.
    Register {
        offset: u64,
        value: Vec<u8>,
    },
    Read {
        offset: u64,
        len: usize,
    },
    /// Bytes anywhere in guest memory: queues, lists, data.
    Poke {
        at: u64,
        value: u64,
    },
    /// Memory goes and comes.
    Memory {
        there: bool,
    },
    Reset,
    Pause,
    // What the controlling function does meanwhile.
    Suspend,
    Resume,
    Get,
    Set(Vec<u8>),
    Track,
    Receive,
}

fn opcode(admin: bool) -> impl Strategy<Value = u32> {
    if admin {
        prop_oneof![
            Just(0u32),
            Just(1),
            Just(2),
            Just(4),
            Just(5),
            Just(6),
            Just(8),
            Just(9),
            Just(10),
            Just(12),
            0u32..256
        ]
        .boxed()
    } else {
        prop_oneof![0u32..12, 0u32..256].boxed()
    }
}

fn dword() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..16, any::<u32>(), Just(u32::MAX), (0u32..2048).prop_map(|n| n << 12), Just(0x0003_0001)]
}

fn act() -> impl Strategy<Value = Act> {
    let entry = (0u16..3, 0u16..32, proptest::array::uniform16(dword()), any::<bool>());
    let entry = entry.prop_flat_map(|(qid, slot, entry, tame)| {
        opcode(qid == 0).prop_map(move |opcode| {
            let mut entry = entry;
            entry[0] = entry[0] & 0xffff_0000 | opcode;
            Act::Entry { qid, slot, entry, tame }
        })
    });
    prop_oneof![
        12 => entry,
        8 => (0u16..8, prop_oneof![0u32..40, any::<u32>()]).prop_map(|(index, value)| Act::Ring { index, value }),
        1 => (0u16..2000, any::<u32>()).prop_map(|(index, value)| Act::Ring { index, value }),
        1 => (0u64..0x1100, proptest::collection::vec(any::<u8>(), 0..9)).prop_map(|(offset, value)| Act::Register { offset, value }),
        1 => (any::<u64>(), 0usize..16).prop_map(|(offset, len)| Act::Read { offset, len }),
        2 => (0u64..0x3_0000, any::<u64>()).prop_map(|(at, value)| Act::Poke { at, value }),
        1 => any::<bool>().prop_map(|there| Act::Memory { there }),
        1 => Just(Act::Reset),
        1 => Just(Act::Pause),
        1 => Just(Act::Suspend),
        1 => Just(Act::Resume),
        1 => Just(Act::Get),
        1 => proptest::collection::vec(any::<u8>(), 1..200).prop_map(Act::Set),
        1 => Just(Act::Track),
        1 => Just(Act::Receive),
    ]
}

const FORMAT: FormatIndex = FormatIndex { version: 1, uuid: 1 };

fn play(acts: Vec<Act>) {
    let (disk, other) = (Disk::new(MIB), Disk::new(MIB));
    let mut config = config(&disk);
    config.namespaces.push(other.config(2, false));
    let subsystem = Subsystem::open(config).unwrap();
    let client = AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
    let controller = subsystem.controller(2).unwrap();
    let memory = Memory::new(MEMORY);
    // What a stray write would hit: memory that belongs to somebody else is not in the ranges at all, and whatever lies between.
    memory.add(0x1000_0000, 4096);
    let interrupts = Arc::new(Interrupts::default());
    controller.attach(memory.clone(), interrupts.clone());
    let mut host = Host::new(memory.clone(), Bars::of(&controller));
    host.enable();
    for qid in 1..=2 {
        host.create_pair(qid, 32, qid);
    }
    let mut last_state = None;
    let mut spare = None;
    for act in acts {
        match act {
            Act::Entry { qid, slot, mut entry, tame } => {
                if tame {
                    // Points where something is, so that it gets further.
                    (entry[1], entry[6], entry[7], entry[8], entry[9]) = (1, DATA as u32, 0, DATA as u32 + 4096, 0);
                    entry[0] &= 0xffff_00ff;
                }
                let raw: Vec<u8> = entry.iter().flat_map(|dword| dword.to_le_bytes()).collect();
                let base = if qid == 0 { 0 } else { 0x1_0000 * u64::from(qid) };
                if spare.is_none() {
                    memory.poke(base + u64::from(slot) * 64, &raw);
                }
                host.ring(qid * 2, u32::from(slot + 1) % 32);
            }
            Act::Ring { index, value } => host.ring(index, value),
            Act::Register { offset, value } => controller.write(offset, &value),
            Act::Read { offset, len } => controller.read(offset, &mut vec![0; len]),
            Act::Poke { at, value } => {
                if spare.is_none() {
                    memory.poke(at, &value.to_le_bytes());
                }
            }
            Act::Memory { there: true } => {
                if let Some(bytes) = spare.take() {
                    memory.put(0, bytes);
                }
            }
            Act::Memory { there: false } => spare = spare.or_else(|| memory.remove(0)),
            Act::Reset => {
                controller.write(0x14, &[0; 4]);
                controller.write(0x14, &(6u32 << 16 | 4 << 20 | 1).to_le_bytes());
            }
            Act::Pause => std::thread::sleep(Duration::from_micros(300)),
            Act::Suspend => drop(client.migration_suspend(2, SuspendType::Suspend)),
            Act::Resume => drop(client.migration_resume(2)),
            Act::Get => last_state = client.migration_get_state(2, FORMAT).ok().map(|(state, _)| state),
            Act::Set(noise) => {
                let mut state = last_state.clone().unwrap_or_default();
                for (n, byte) in noise.iter().enumerate() {
                    let at = (*byte as usize * 7 + n * 13) % state.len().max(1);
                    if let Some(slot) = state.get_mut(at) {
                        *slot ^= byte;
                    }
                }
                drop(client.migration_set_state(2, FORMAT, &state));
            }
            Act::Track => drop(client.track_memory_start(2, 0, &[TrackRange { address: 0, len: 1 << 20 }])),
            Act::Receive => drop(client.track_receive(2)),
        }
    }
    // The controlling function is unharmed, and so is this one after a reset.
    assert_eq!(client.identify_controller().unwrap().cntlid, 1);
    if let Some(bytes) = spare {
        memory.put(0, bytes);
    }
    controller.flr();
    host.others.clear();
    host.enable();
    host.create_pair(1, 32, 1);
    host.verified(1, 0, 2, 5);
    assert!(std::fs::read(&other.path).unwrap().iter().all(|byte| *byte == 0), "a namespace that is not attached");
    assert_eq!(std::fs::metadata(&disk.path).unwrap().len(), MIB, "the file does not grow");
    subsystem.close();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 64, ..ProptestConfig::default() })]
    #[test]
    fn nothing_a_tenant_does_harms(acts in proptest::collection::vec(act(), 1..160)) {
        play(acts);
    }
}

#[test]
fn a_tenant_that_rings_and_resets_from_many_threads() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let client = AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
    let controller = subsystem.controller(2).unwrap();
    let memory = Memory::new(MEMORY);
    controller.attach(memory.clone(), Arc::new(Interrupts::default()));
    let mut host = Host::new(memory, Bars::of(&controller));
    host.enable();
    host.create_pair(1, 32, 1);
    let read = SubmissionEntry { opcode: 2, nsid: 1, prp1: DATA, cdw12: 7, ..Default::default() };
    for _ in 0..32 {
        host.push(1, read);
    }
    let controller = &controller;
    std::thread::scope(|scope| {
        for thread in 0..3u32 {
            scope.spawn(move || {
                for n in 0..3000u32 {
                    match (n + thread) % 50 {
                        0 => controller.write(0x14, &[0; 4]),
                        1 => controller.write(0x14, &(6u32 << 16 | 4 << 20 | 1).to_le_bytes()),
                        2 => controller.flr(),
                        _ => controller.write(0x1008, &(n % 32).to_le_bytes()),
                    }
                }
            });
        }
        for _ in 0..60 {
            drop(client.migration_suspend(2, SuspendType::Suspend));
            drop(client.migration_get_state(2, FORMAT));
            drop(client.migration_resume(2));
        }
    });
    controller.flr();
    host.enable();
    host.create_pair(1, 32, 1);
    host.verified(1, 0, 1, 1);
}

/// The counterpart: were the other namespace reachable, the check at the end of `play` would see it.
#[test]
fn a_write_to_the_other_namespace_is_seen() {
    let (disk, other) = (Disk::new(MIB), Disk::new(MIB));
    let mut config = config(&disk);
    config.namespaces.push(other.config(2, false));
    let subsystem = Subsystem::open(config).unwrap();
    let client = AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
    let (mut host, ..) = common::pf_host(&subsystem, 1);
    host.memory.poke(DATA, &[9; 4096]);
    let write = SubmissionEntry { opcode: 1, nsid: 2, prp1: DATA, cdw12: 7, ..Default::default() };
    assert!(!host.run(1, write).status().is_success());
    assert!(std::fs::read(&other.path).unwrap().iter().all(|byte| *byte == 0));
    client.namespace_attach(2, &[2]).unwrap();
    assert!(host.run(1, write).status().is_success());
    assert!(!std::fs::read(&other.path).unwrap().iter().all(|byte| *byte == 0));
}
