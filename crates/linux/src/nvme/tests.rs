use std::path::Path;

use super::*;
use crate::sysfs::Sysfs;

fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Sysfs) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join("sys").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let sysfs = Sysfs::at(folder.path().join("sys"));
    (folder, sysfs)
}

#[test]
fn the_longest_transfer_is_what_the_queue_of_a_namespace_takes() {
    let queue = |kib: &str, segments: &str| {
        let (_folder, sysfs) = tree(&[
            ("class/nvme/nvme0/nvme0n1/queue/max_hw_sectors_kb", kib),
            ("class/nvme/nvme0/nvme0n1/queue/max_segments", segments),
        ]);
        queue_limit(&sysfs, "nvme0")
    };
    assert_eq!(queue("128\n", "33\n"), 128 << 10);
    assert_eq!(queue("1024\n", "33\n"), 128 << 10, "one segment less, for a buffer that is not aligned");
    assert_eq!(queue("64\n", "128\n"), 64 << 10);
    assert_eq!(queue("0\n", "1\n"), 126 * 4096, "what can't be is not heeded");
    assert_eq!(queue("1\n", "2\n"), 4096, "a page at least");
    assert_eq!(queue("4294967295\n", "4294967295\n"), 8 << 20);
    assert_eq!(queue("-5\n", "many\n"), 126 * 4096);
    let (_folder, none) = tree(&[]);
    assert_eq!(queue_limit(&none, "nvme0"), 126 * 4096);
}

#[test]
fn data_goes_the_way_of_the_opcode() {
    let (host, controller) = (Data::FromHost(&[1]), Data::ToHost(&mut [0]));
    for (opcode, from_host, to_host) in [
        (0x06, false, true),
        (0x41, true, false),
        (0x42, false, true),
        (0x3d, true, false),
        (0x1c, false, false),
        (0x03, false, false),
    ] {
        assert_eq!((fits(opcode, &host), fits(opcode, &controller)), (from_host, to_host), "{opcode:#x}");
        assert!(fits(opcode, &Data::None));
    }
}

/// A transport on a file that is no NVMe controller: the kernel refuses every ioctl.
fn on_nothing() -> NvmePassthrough {
    let device = std::fs::File::open("/dev/null").unwrap();
    NvmePassthrough { device, path: "/dev/nvme0".into(), max_transfer_bytes: 4096 }
}

#[test]
fn what_cannot_be_carried_is_not_sent() {
    let minute = Duration::from_secs(60);
    let mut long = [0; 4100];
    let identify = AdminCommand::new(6);
    let sent = |data: Data<'_>| on_nothing().submit(&identify, data, minute);
    assert!(matches!(sent(Data::ToHost(&mut long)), Err(TransportError::Unsendable { .. })));
    assert!(matches!(sent(Data::FromHost(&[0; 16])), Err(TransportError::Unsendable { .. })));
    let refused = sent(Data::ToHost(&mut [0; 4096])).unwrap_err();
    assert!(matches!(&refused, TransportError::Io { errno: 25, message } if message.contains("ENOTTY")), "{refused}");
    let reset = on_nothing().reset().unwrap_err();
    assert_eq!((reset.kind, reset.errno), (Kind::Unsupported, Some(25)), "{reset}");
}

#[test]
fn the_command_in_the_ioctl() {
    let cmd = AdminCommand {
        opcode: 0x41,
        nsid: 1,
        cdw2: 2,
        cdw3: 3,
        cdw10: 10,
        cdw11: 11,
        cdw12: 12,
        cdw13: 13,
        cdw14: 14,
        cdw15: 15,
    };
    let call = PassthruCmd64::new(&cmd, 600_000);
    assert_eq!((call.opcode, call.flags, call.nsid, call.cdw2, call.cdw3), (0x41, 0, 1, 2, 3));
    assert_eq!([call.cdw10, call.cdw11, call.cdw12, call.cdw13, call.cdw14, call.cdw15], [10, 11, 12, 13, 14, 15]);
    assert_eq!((call.timeout_ms, call.addr, call.data_len, call.result), (600_000, 0, 0, 0));
}

#[test]
fn a_command_that_the_kernel_cancelled_ran_out_of_time_or_the_controller_was_reset() {
    let failed = |errno, took| on_nothing().failed(0x41, errno, 60_000, Duration::from_secs(took));
    assert_eq!(failed(Errno::INTR, 61), TransportError::Timeout { opcode: 0x41, timeout_ms: 60_000 });
    assert!(matches!(failed(Errno::INTR, 3), TransportError::Gone { message } if message.contains("reset")));
    assert!(matches!(failed(Errno::NODEV, 3), TransportError::Gone { .. }));
    for errno in [Errno::ACCESS, Errno::PERM] {
        let TransportError::Io { message, .. } = failed(errno, 0) else { panic!("{errno}") };
        assert!(message.contains("CAP_SYS_ADMIN"), "{message}");
    }
}

#[test]
fn what_is_no_controller_is_refused_in_words() {
    let sysfs = Sysfs::default();
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &Path| NvmePassthrough::open(path, &sysfs).unwrap_err();
    assert_eq!(at(&folder.path().join("nvme0")).kind, Kind::NotFound);
    assert_eq!(at(folder.path()).kind, Kind::Argument);
    assert!(at(Path::new("/dev/null")).to_string().contains("ENOTTY"));
    // A FIFO does not block, and is no device.
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(at(&fifo).kind, Kind::Argument);
}

#[test]
fn the_pci_function_behind_a_node() {
    let (folder, sysfs) = tree(&[("class/nvme/nvme0/cntlid", "0\n"), ("class/nvme/nvme1/cntlid", "0\n")]);
    let class = folder.path().join("sys/class/nvme");
    std::os::unix::fs::symlink("../../../0000:01:00.0", class.join("nvme0/device")).unwrap();
    std::os::unix::fs::symlink("../../../fabrics", class.join("nvme1/device")).unwrap();
    let of = |path: &str| NvmePassthrough::pci_address(Path::new(path), &sysfs).map(|address| address.to_string());
    assert_eq!(of("/dev/nvme0").as_deref(), Some("0000:01:00.0"));
    for path in ["/dev/nvme1", "/dev/nvme2", "/dev/nvme0n1", "/dev/null", "/"] {
        assert_eq!(of(path), None, "{path}");
    }
}
