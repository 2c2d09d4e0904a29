//! Every way and every driver arc of the four capability sets, against the answers of the kernel's own function.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use serde_json::Value;
use towline_core::fsm::{DeviceState, MigrationFlags, driver_arcs, opens_data_fd, path};

fn recorded() -> Value {
    serde_json::from_str(include_str!("data/vfio-fsm-paths.json")).unwrap()
}

fn state(name: &str) -> DeviceState {
    DeviceState::ALL.into_iter().find(|s| s.name() == name).unwrap_or_else(|| panic!("no state {name}"))
}

fn arc(text: &str) -> (DeviceState, DeviceState) {
    let (from, to) = text.split_once("->").unwrap();
    (state(from), state(to))
}

/// Compares `ask` with every recorded way and returns how many were compared and the differences.
fn compare(ask: impl Fn(MigrationFlags, DeviceState, DeviceState) -> Option<Vec<DeviceState>>) -> (usize, Vec<String>) {
    let (mut compared, mut different) = (0, Vec::new());
    for (set, record) in recorded().as_object().unwrap() {
        let flags = MigrationFlags(record["flags"].as_u64().unwrap());
        for (name, expected) in record["paths"].as_object().unwrap() {
            let (from, to) = arc(name);
            let expected =
                expected.as_array().map(|a| a.iter().map(|s| state(s.as_str().unwrap())).collect::<Vec<_>>());
            compared += 1;
            let got = ask(flags, from, to);
            if got != expected {
                different.push(format!("{set}: {name}: {got:?} instead of {expected:?}"));
            }
        }
    }
    (compared, different)
}

fn ours(flags: MigrationFlags, from: DeviceState, to: DeviceState) -> Option<Vec<DeviceState>> {
    path(flags, from, to).map(|p| p.states().to_vec())
}

#[test]
fn every_recorded_way() {
    let (compared, different) = compare(ours);
    assert_eq!(compared, 16 + 25 + 25 + 49);
    assert!(different.is_empty(), "{different:#?}");
}

#[test]
fn the_comparison_notices_one_wrong_way() {
    let (_, different) = compare(|flags, from, to| match (from, to) {
        (DeviceState::StopCopy, DeviceState::PreCopy) => Some(vec![from, to]),
        _ => ours(flags, from, to),
    });
    assert_eq!(different.len(), 2, "blocked for both sets with pre-copy: {different:#?}");
}

#[test]
fn states_beyond_a_capability_set_have_no_way() {
    let record = recorded();
    let by_flags = |flags: u64| record.as_object().unwrap().values().find(|r| r["flags"] == flags).cloned();
    for flags in 0..16u64 {
        for from in DeviceState::ALL {
            for to in DeviceState::ALL {
                // Bits above PRE_COPY mean nothing here.
                let known = by_flags(flags & 7).is_some_and(|r| r["paths"].get(format!("{from}->{to}")).is_some());
                if !known {
                    assert_eq!(path(MigrationFlags(flags), from, to), None, "flags {flags}: {from} to {to}");
                }
            }
        }
    }
}

#[test]
fn every_recorded_driver_arc() {
    for (set, record) in recorded().as_object().unwrap() {
        let flags = MigrationFlags(record["flags"].as_u64().unwrap());
        let expected: BTreeSet<_> =
            record["driver_arcs"].as_array().unwrap().iter().map(|a| arc(a.as_str().unwrap())).collect();
        let got: BTreeSet<_> = driver_arcs(flags).collect();
        assert_eq!(got, expected, "{set}");
    }
    assert_eq!(driver_arcs(MigrationFlags(0)).count(), 0);
    assert_eq!(driver_arcs(MigrationFlags(6)).count(), 0);
}

#[test]
fn every_way_takes_driver_arcs_only_and_visits_nothing_twice() {
    for flags in [1, 3, 5, 7].map(MigrationFlags) {
        let arcs: BTreeSet<_> = driver_arcs(flags).collect();
        for from in DeviceState::ALL {
            for to in DeviceState::ALL {
                let Some(way) = path(flags, from, to) else { continue };
                assert!(way.arcs().all(|a| arcs.contains(&a)), "{way}");
                let unique: BTreeSet<_> = way.states().iter().collect();
                assert_eq!(unique.len(), way.states().len(), "{way}");
                assert_eq!(way.steps().len() + 1, way.states().len());
            }
        }
    }
}

#[test]
fn data_fds_open_on_four_arcs() {
    let all = MigrationFlags(7);
    let opening: Vec<String> =
        driver_arcs(all).filter(|&(a, b)| opens_data_fd(a, b)).map(|(a, b)| format!("{a}->{b}")).collect();
    assert_eq!(
        opening,
        ["STOP->STOP_COPY", "STOP->RESUMING", "RUNNING->PRE_COPY", "RUNNING_P2P->PRE_COPY_P2P"],
        "an arc from pre-copy to STOP_COPY keeps the open one"
    );
    let saving = path(all, DeviceState::Running, DeviceState::StopCopy).unwrap();
    assert_eq!(saving.arcs().filter(|&(a, b)| opens_data_fd(a, b)).count(), 1);
}

#[test]
fn numbers_and_names() {
    for (number, state) in DeviceState::ALL.into_iter().enumerate() {
        let number = u32::try_from(number).unwrap();
        assert_eq!(u32::from(state), number);
        assert_eq!(DeviceState::try_from(number), Ok(state));
        assert_eq!(state.to_string(), state.name());
    }
    assert_eq!(DeviceState::PreCopyP2p.to_string(), "PRE_COPY_P2P");
    for number in [8, 9, u32::MAX] {
        assert!(DeviceState::try_from(number).unwrap_err().to_string().contains(&number.to_string()));
    }
    assert_eq!(MigrationFlags(7).to_string(), "STOP_COPY|P2P|PRE_COPY");
    assert_eq!(MigrationFlags(0).to_string(), "none");
    let longest = path(MigrationFlags(7), DeviceState::Resuming, DeviceState::PreCopy).unwrap();
    assert_eq!(longest.to_string(), "RESUMING -> STOP -> RUNNING_P2P -> RUNNING -> PRE_COPY");
}
