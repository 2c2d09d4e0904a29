//! Nothing runs while there is nothing to do, and nothing is left behind. One test, in a process of its own: it looks at the
//! process as a whole.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{DATA, Disk, Host, config, pf_host};
use towline_nvme::admin::AdminClient;
use towline_nvme::command::io_opcode;
use towline_nvme::migration::SuspendType;
use towline_nvme::model::{CommandSet, EmbeddedAdmin, FaultAction, FaultRule, Subsystem};
use towline_nvme::status::Status;

/// CPU time of the process in clock ticks of 10 ms (proc(5): utime and stime).
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn workers() -> usize {
    let comm = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.unwrap().path().join("comm"));
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| comm(task).ok()).filter(|name| name.starts_with("nvme-")).count()
}

fn open_files(disk: &Disk) -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    files.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|path| path == disk.path)).count()
}

#[test]
fn idle_costs_nothing_and_dropping_leaves_nothing() {
    let disk = Disk::new(1 << 20);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let client = AdminClient::new(std::sync::Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
    let (mut host, controller, interrupts) = pf_host(&subsystem, 1);
    host.verified(1, 0, 1, 1);
    let quiet = |what: &str| {
        let before = ticks();
        std::thread::sleep(Duration::from_millis(300));
        let used = ticks() - before;
        assert!(used <= 3, "{what}: {used} ticks of 10 ms in 300 ms");
    };
    quiet("running");
    // A command that is due while there is no memory: it waits, and is not lost.
    let action = FaultAction::DelayMs(20);
    let rule = FaultRule { cntlid: Some(2), set: CommandSet::Io, opcode: None, nth: 1, count: 1, action };
    let id = subsystem.faults().add(rule);
    let entry = host.transfer_entry(io_opcode::READ, 0, 1, DATA);
    let cid = host.submit(1, entry);
    Host::until("the delay", || subsystem.faults().hits(id) == Some(1));
    controller.detach();
    quiet("detached with a command that is due");
    controller.attach(host.memory.clone(), interrupts);
    assert_eq!(host.wait(1, cid).status(), Status::SUCCESS);
    client.migration_suspend(2, SuspendType::Suspend).unwrap();
    host.submit(1, entry);
    quiet("suspended with a command rung");
    // The counterpart: a busy thread is seen.
    let before = ticks();
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        std::hint::spin_loop();
    }
    assert!(ticks() - before > 3);

    // A thread has its name, and is gone, a moment later.
    let workers_are = |count: usize| Host::until(&format!("{count} workers"), || workers() == count);
    workers_are(6);
    assert_eq!(open_files(&disk), 1);
    let siov = subsystem.create_siov().unwrap();
    workers_are(7);
    subsystem.remove_siov(siov).unwrap();
    workers_are(6);
    drop(subsystem);
    workers_are(0);
    drop((client, controller, host));
    assert_eq!(open_files(&disk), 0);
}
