//! PCI functions on `vfio-pci`, by group and by their own nodes: an NVMe PF driven through its mapped BAR, with its interrupts, a VF
//! beside its PF's kernel driver, and the matrix of VF tokens. Needs an NVMe controller and another PF, both with SR-IOV, behind an
//! IOMMU, each bound to its kernel driver, to which it is given back. Run by `test/kernel`.
//!
//! `vm_vfio_pci NVME-ADDRESS OTHER-PF-ADDRESS` prints TAP; the exit code is 1 where anything failed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bars;
mod irqs;
mod nvme;
#[path = "../vm_support/rows.rs"]
mod rows;
#[path = "../vm_support/mod.rs"]
mod support;
mod sysfs;
mod tokens;

use std::process::ExitCode;

use rows::{Tap, row, skipped};
use support::descriptors;
use sysfs::{Bound, Vfs};
use towline_linux::vfio::OpenBy;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [nvme, other] = arguments.as_slice() else {
        eprintln!("usage: vm_vfio_pci NVME-ADDRESS OTHER-PF-ADDRESS");
        return ExitCode::from(2);
    };
    let mut tap = Tap::default();
    {
        let _bound = Bound::to(nvme, "vfio-pci");
        for by in [OpenBy::Group, OpenBy::Cdev] {
            let way = sysfs::way(by);
            if by == OpenBy::Cdev && !sysfs::has_node(nvme) {
                tap.run(&[skipped("cdev: the NVMe PF", "no CONFIG_VFIO_DEVICE_CDEV or no CONFIG_IOMMUFD")]);
                continue;
            }
            tap.run(&[
                row(format!("{way}: the PF has the regions and vectors that sysfs tells"), || {
                    bars::as_sysfs_tells(nvme, by)
                }),
                row(format!("{way}: the PF doesn't migrate, and says so"), || bars::without_migration(nvme, by)),
                row(format!("{way}: a register reads the same mapped and not, under a policy"), || {
                    bars::mapped(nvme, by)
                }),
                row(format!("{way}: MSI-X vectors arrive where they are wired, and holes stay holes"), || {
                    irqs::loopback(nvme, by)
                }),
                row(format!("{way}: the exposure's section puts back what a reset took"), || irqs::section(nvme, by)),
                row(format!("{way}: an admin command rung through the mapped BAR ends with an interrupt"), || {
                    nvme::identify(nvme, by);
                }),
            ]);
        }
    }
    {
        let vfs = Vfs::of(nvme, 1);
        let vf = vfs.address(0);
        let _bound = Bound::to(&vf, "vfio-pci");
        for by in [OpenBy::Group, OpenBy::Cdev] {
            let way = sysfs::way(by);
            if by == OpenBy::Cdev && !sysfs::has_node(&vf) {
                tap.run(&[skipped("cdev: the NVMe VF", "no CONFIG_VFIO_DEVICE_CDEV or no CONFIG_IOMMUFD")]);
                continue;
            }
            tap.run(&[
                row(format!("{way}: a VF has the regions and vectors that sysfs tells"), || {
                    bars::as_sysfs_tells(&vf, by)
                }),
                row(format!("{way}: a VF doesn't migrate, and says so"), || bars::without_migration(&vf, by)),
                row(format!("{way}: a VF's register reads the same mapped and not"), || bars::mapped(&vf, by)),
                row(format!("{way}: a VF takes no token while its PF is on another driver"), || {
                    tokens::none_taken(&vf, by)
                }),
            ]);
        }
    }
    {
        let _bound = Bound::to(other, "vfio-pci");
        sysfs::enable_sriov();
        let vfs = Vfs::of(other, 1);
        let vf = vfs.address(0);
        for by in [OpenBy::Group, OpenBy::Cdev] {
            let way = sysfs::way(by);
            if by == OpenBy::Cdev && !sysfs::has_node(&vf) {
                tap.run(&[skipped("cdev: VF tokens", "no CONFIG_VFIO_DEVICE_CDEV or no CONFIG_IOMMUFD")]);
                continue;
            }
            tap.run(&[
                row(format!("{way}: a VF needs its PF's token"), || tokens::vf_needs_it(other, &vf, by)),
                row(format!("{way}: the PF needs it while a VF is open, and sets it otherwise"), || {
                    tokens::pf_needs_it(other, &vf, by)
                }),
            ]);
        }
    }
    tap.finish()
}
