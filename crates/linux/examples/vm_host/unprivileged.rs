//! The same looks without root, and refusals in words.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use towline_linux::nvme::NvmePassthrough;
use towline_linux::pci::{PciFunction, functions};
use towline_linux::sysfs::{HostErrorKind as Kind, Sysfs};

use crate::tap::Tap;
use crate::{NVME, control};

pub const ARGUMENT: &str = "as-nobody";

/// What everybody may see: debugfs is root's.
fn seen(mut all: Vec<PciFunction>) -> String {
    for function in &mut all {
        function.vfio_state = None;
    }
    format!("{all:#?}")
}

/// Prints what is seen, then what was refused, one a line.
pub fn child() -> ExitCode {
    println!("{}", seen(functions(&Sysfs::default())));
    let write = control(NVME).set_num_vfs(0).unwrap_err();
    let unbind = control(NVME).unbind().unwrap_err();
    let open = NvmePassthrough::open(Path::new("/dev/nvme0"), &Sysfs::default()).unwrap_err();
    for error in [write, unbind, open] {
        let permission = error.kind == Kind::Permission && error.errno == Some(13);
        println!("refused {permission}: {error}");
    }
    ExitCode::SUCCESS
}

pub fn tests(tap: &mut Tap) {
    let out = Command::new("/proc/self/exe").arg(ARGUMENT).uid(65534).gid(65534).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let (functions_seen, refusals) = text.split_at(text.find("refused").unwrap_or(text.len()));
    tap.test("without root the same functions are found", || {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(functions_seen.trim(), seen(functions(&Sysfs::default())));
    });
    tap.test("without root changes and passthrough are refused as a matter of permission", || {
        let lines: Vec<&str> = refusals.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        for line in lines {
            println!("# {line}");
            assert!(line.starts_with("refused true: ") && line.contains("EACCES") && line.contains("root"), "{line}");
        }
    });
}
