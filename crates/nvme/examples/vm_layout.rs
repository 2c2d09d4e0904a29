//! Compares the layouts, opcodes and command dwords of this crate with libnvme's headers, as a C program prints them that is
//! compiled here (`test/kernel/guest/libnvme-offsets.c`). Run by `test/kernel`; prints TAP.
//!
//! `vm_layout PATH-OF-THE-C-PROGRAM`, or `vm_layout --ours` to print our reading only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};

use towline_nvme::command::{AdminCommand, opcode};
use towline_nvme::identify::{IdentifyController, IdentifyNamespace, cns, oacs};
use towline_nvme::migration::{FormatIndex, MigrationReceive, MigrationSend, Sequence, SuspendType};
use towline_nvme::resources::{PrimaryCapabilities, SecondaryController};
use towline_nvme::state::{CqState, NvmeStateHeader, SqState, StateHeader};
use towline_nvme::track::TrackSend;
use towline_nvme::wire::FieldInfo;

/// The arguments of the commands, as in the C program.
const CNTLID: u16 = 0x1234;
const FORMAT: FormatIndex = FormatIndex { version: 0x56, uuid: 0x78 };
const UUID_PARAMETER: u8 = 0x9a;
const QUEUE: u16 = 0x4321;

fn layout(lines: &mut Vec<String>, name: &str, size: usize, fields: &[FieldInfo]) {
    lines.push(format!("{name} {size}"));
    lines.extend(fields.iter().map(|field| format!("{name}.{} {} {}", field.name, field.offset, field.len)));
}

fn commands(lines: &mut Vec<String>) {
    let mut command = |name: &str, cmd: AdminCommand| {
        lines.push(format!("command {name} {:#x} {:#x}", cmd.cdw10, cmd.cdw11));
    };
    let suspend = |kind, delete_queue| MigrationSend::Suspend { cntlid: CNTLID, kind, delete_queue }.encode().unwrap();
    command("suspend_notification", suspend(SuspendType::Notification, false));
    command("suspend", suspend(SuspendType::Suspend, false));
    command("suspend_delete_queue", suspend(SuspendType::Suspend, true));
    command("resume", MigrationSend::Resume { cntlid: CNTLID }.encode().unwrap());
    for (name, sequence) in [
        ("set_state_middle", Sequence::Middle),
        ("set_state_first", Sequence::First),
        ("set_state_last", Sequence::Last),
        ("set_state_only", Sequence::Only),
    ] {
        let (cntlid, format, uuid_index) = (CNTLID, FORMAT, 0);
        let set = MigrationSend::SetState { cntlid, sequence, format, offset: 0, data_bytes: 4096, uuid_index };
        command(name, set.encode().unwrap());
    }
    let get = MigrationReceive {
        cntlid: CNTLID,
        format: FORMAT,
        uuid_parameter: UUID_PARAMETER,
        offset: 0,
        data_bytes: 4096,
        uuid_index: 0,
    };
    command("get_state", get.encode().unwrap());
    command("log_user_data", TrackSend::LogUserData { start: true, cdqid: QUEUE }.encode());
}

/// Our reading, in the lines that the C program prints.
fn ours() -> Vec<String> {
    let mut lines = Vec::new();
    macro_rules! layouts {
        ($($name:ident),*) => { $( layout(&mut lines, stringify!($name), $name::SIZE, $name::LAYOUT); )* };
    }
    layouts!(
        IdentifyController,
        IdentifyNamespace,
        PrimaryCapabilities,
        SecondaryController,
        StateHeader,
        NvmeStateHeader,
        SqState,
        CqState
    );
    for (name, number) in [
        ("identify", u32::from(opcode::IDENTIFY)),
        ("get_log_page", opcode::GET_LOG_PAGE.into()),
        ("set_features", opcode::SET_FEATURES.into()),
        ("get_features", opcode::GET_FEATURES.into()),
        ("namespace_attachment", opcode::NAMESPACE_ATTACHMENT.into()),
        ("virtualization_management", opcode::VIRTUALIZATION_MANAGEMENT.into()),
        ("track_send", opcode::TRACK_SEND.into()),
        ("track_receive", opcode::TRACK_RECEIVE.into()),
        ("migration_send", opcode::MIGRATION_SEND.into()),
        ("migration_receive", opcode::MIGRATION_RECEIVE.into()),
        ("controller_data_queue", opcode::CONTROLLER_DATA_QUEUE.into()),
        ("cns_primary_capabilities", cns::PRIMARY_CAPABILITIES.into()),
        ("cns_secondary_controllers", cns::SECONDARY_CONTROLLERS.into()),
        ("cns_controller_state_formats", cns::CONTROLLER_STATE_FORMATS.into()),
        ("oacs_virtualization_management", oacs::VIRTUALIZATION_MANAGEMENT.into()),
        ("oacs_live_migration", oacs::HOST_MANAGED_LIVE_MIGRATION.into()),
    ] {
        lines.push(format!("opcode {name} {number:#x}"));
    }
    commands(&mut lines);
    lines.push(format!("slot_0_phase {:#x}", CqState::SLOT_0_PHASE));
    lines.push(format!(
        "vector {:#x}",
        u32::from(CqState { attributes: u32::MAX, ..Default::default() }.vector()) << 16
    ));
    lines.push(format!("state_suspended {:#x}", MigrationReceive::RESULT_SUSPENDED));
    lines
}

/// Every difference between two readings, either way. Nothing at all is no agreement.
fn differences(ours: &[String], theirs: &[String]) -> Vec<String> {
    let [a, b]: [BTreeSet<&String>; 2] = [ours.iter().collect(), theirs.iter().collect()];
    let mut found: Vec<String> = a.difference(&b).map(|line| format!("ours: {line}")).collect();
    found.extend(b.difference(&a).map(|line| format!("libnvme: {line}")));
    if ours.len() < 100 || theirs.len() != ours.len() {
        found.push(format!("{} lines of ours, {} of libnvme", ours.len(), theirs.len()));
    }
    found
}

/// What the C program prints.
fn compiled(source: &str) -> Vec<String> {
    let program = std::env::temp_dir().join(format!("libnvme-offsets-{}", std::process::id()));
    let gcc = Command::new("gcc")
        .env("PATH", "/usr/bin:/bin")
        .args(["-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg(source)
        .output()
        .unwrap();
    assert!(gcc.status.success(), "gcc: {}", String::from_utf8_lossy(&gcc.stderr));
    let out = Command::new(&program).output().unwrap();
    std::fs::remove_file(&program).unwrap();
    assert!(out.status.success());
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A line with one of its numbers off by one.
fn sabotaged(line: &str) -> Vec<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |word: &str| match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    };
    (0..words.len())
        .filter_map(|n| {
            let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let off = number(words.get(n)?)? + 1;
            words[n] = if line.contains("0x") { format!("{off:#x}") } else { off.to_string() };
            Some(words.join(" "))
        })
        .collect()
}

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).expect("the path of the C program, or --ours");
    let ours = ours();
    if argument == "--ours" {
        ours.iter().for_each(|line| println!("{line}"));
        return ExitCode::SUCCESS;
    }
    let theirs = compiled(&argument);
    let found = differences(&ours, &theirs);
    found.iter().for_each(|line| println!("# {line}"));
    println!(
        "{}ok 1 - {} layouts, opcodes and command dwords are libnvme's",
        if found.is_empty() { "" } else { "not " },
        ours.len()
    );

    // The comparison finds every single mistake: each number of each line off by one, and each line missing.
    let mut missed = 0;
    let mut tried = 0;
    for n in 0..ours.len() {
        let mut readings: Vec<Vec<String>> = Vec::new();
        for wrong in sabotaged(&ours[n]) {
            let mut reading = ours.clone();
            reading[n] = wrong;
            readings.push(reading);
        }
        let mut reading = ours.clone();
        reading.remove(n);
        readings.push(reading);
        tried += readings.len();
        missed += readings.iter().filter(|reading| differences(reading, &theirs).is_empty()).count();
    }
    println!("{}ok 2 - each of {tried} mistakes made on purpose is found", if missed == 0 { "" } else { "not " });
    println!("1..2");
    if found.is_empty() && missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
