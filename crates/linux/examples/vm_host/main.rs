//! Discovery, provisioning and NVMe passthrough on a real kernel, judged by lspci, nvme-cli and the kernel's own files.
//!
//! Needs a machine with QEMU's NVMe controller with SR-IOV at 0000:01:00.0 and igb at 0000:02:00.0, both bound to the kernel's
//! drivers, without VFs; the modules vfio-pci, igbvf and mtty. Run by `test/kernel`; prints TAP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cycle;
mod discovery;
mod mediated;
mod passthrough;
mod provision;
mod tap;
mod tools;
mod unprivileged;

use std::process::ExitCode;

use towline_linux::pci::{PciAddress, PciControl, PciFunction};
use towline_linux::sysfs::Sysfs;

/// The PFs.
const NVME: &str = "0000:01:00.0";
const IGB: &str = "0000:02:00.0";

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn control(text: &str) -> PciControl {
    PciControl::of(&Sysfs::default(), address(text)).unwrap()
}

fn function(text: &str) -> PciFunction {
    PciFunction::find(&Sysfs::default(), address(text)).unwrap()
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(unprivileged::ARGUMENT) {
        return unprivileged::child();
    }
    let mut tap = tap::Tap::new();
    let before = tap::descriptors();
    discovery::tests(&mut tap, "without VFs");
    passthrough::tests(&mut tap);
    provision::tests(&mut tap);
    discovery::tests(&mut tap, "with VFs");
    unprivileged::tests(&mut tap);
    cycle::tests(&mut tap);
    provision::undo(&mut tap);
    mediated::tests(&mut tap);
    discovery::tests(&mut tap, "after all");
    tap.test("no descriptor is left open", || assert_eq!(tap::descriptors(), before));
    tap.finish()
}
