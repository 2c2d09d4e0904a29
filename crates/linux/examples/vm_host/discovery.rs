//! What is found is what lspci and the kernel's links say.

use towline_linux::host::HostKernel;
use towline_linux::pci::functions;
use towline_linux::sysfs::Sysfs;

use crate::tap::Tap;
use crate::tools::{link, run};

pub fn tests(tap: &mut Tap, when: &str) {
    tap.test(&format!("{when}: every function, its IDs, class and revision as by lspci -Dn"), || {
        let ours: Vec<String> = functions(&Sysfs::default())
            .iter()
            .map(|f| {
                let revision = if f.revision == 0 { String::new() } else { format!(" (rev {:02x})", f.revision) };
                format!("{} {:04x}: {:04x}:{:04x}{revision}", f.address, f.class >> 8, f.vendor, f.device)
            })
            .collect();
        let lspci = run("lspci", &["-Dn"]);
        let theirs: Vec<&str> = lspci.lines().map(|line| line.split(" (prog-if").next().unwrap()).collect();
        assert_eq!(ours, theirs);
    });
    tap.test(&format!("{when}: drivers, groups, PFs and VFs as by readlink"), || {
        let all = functions(&Sysfs::default());
        for f in &all {
            let at = |name: &str| format!("/sys/bus/pci/devices/{}/{name}", f.address);
            assert_eq!(f.driver, link(&at("driver")), "{}", f.address);
            assert_eq!(f.iommu_group.map(|n| n.to_string()), link(&at("iommu_group")), "{}", f.address);
            assert_eq!(f.physfn.map(|n| n.to_string()), link(&at("physfn")), "{}", f.address);
            for (index, vf) in f.virtfns.iter().enumerate() {
                assert_eq!(link(&at(&format!("virtfn{index}"))), Some(vf.to_string()));
                let vf = all.iter().find(|other| other.address == *vf).unwrap();
                assert_eq!((vf.physfn, vf.vf_index), (Some(f.address), Some(index as u32)));
            }
            assert_eq!(link(&at(&format!("virtfn{}", f.virtfns.len()))), None);
            assert_eq!(f.virtfns.len(), f.sriov.as_ref().map_or(0, |s| usize::from(s.num_vfs)));
        }
        assert_eq!(all.iter().filter(|f| f.sriov.is_some()).count(), 2, "nvme and igb");
    });
    tap.test(&format!("{when}: sizes of BARs as by lspci -v"), || {
        for f in functions(&Sysfs::default()) {
            let shown = run("lspci", &["-D", "-v", "-s", &f.address.to_string()]);
            let theirs: Vec<String> = shown
                .lines()
                .filter(|line| line.contains("emory at"))
                .filter_map(|line| Some(line.rsplit_once("[size=")?.1.split(']').next()?.to_owned()))
                .collect();
            let memory = |bar: &&towline_linux::pci::Bar| bar.flags & 0x200 != 0;
            let ours: Vec<String> = f.bars.iter().filter(memory).map(|bar| size(bar.size_bytes)).collect();
            assert_eq!(ours, theirs, "{}: {shown}", f.address);
        }
    });
    tap.test(&format!("{when}: NVMe controllers as in /sys/class/nvme"), || {
        let mut ours: Vec<String> = functions(&Sysfs::default())
            .iter()
            .filter_map(|f| {
                let nvme = f.nvme.as_ref()?;
                let (cntlid, state) = (nvme.cntlid.unwrap(), nvme.state.as_deref().unwrap());
                Some(format!("{} {} {cntlid} {} {state}", nvme.name, f.address, nvme.subsystem_nqn.as_deref().unwrap()))
            })
            .collect();
        let script = "for n in /sys/class/nvme/*; do echo $(basename $n) $(cat $n/address $n/cntlid $n/subsysnqn $n/state); done";
        let shell = run("sh", &["-c", script]);
        let mut theirs: Vec<&str> = shell.lines().collect();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
        assert!(!ours.is_empty());
    });
    tap.test(&format!("{when}: what the kernel has"), || {
        let kernel = HostKernel::read(&Sysfs::default());
        let there = |path: &str| std::path::Path::new(path).exists();
        assert_eq!(kernel.release, run("uname", &["-r"]).trim());
        assert!(kernel.iommu);
        assert_eq!(kernel.container, there("/dev/vfio/vfio"));
        assert_eq!(kernel.iommufd, there("/dev/iommu"));
        assert_eq!(kernel.cdev, there("/dev/vfio/devices"));
        assert_eq!(kernel.mdev, there("/sys/bus/mdev"));
        assert_eq!(kernel.vfio_debugfs, there("/sys/kernel/debug/vfio"));
        let drivers = run("ls", &["/sys/bus/pci/drivers"]);
        assert_eq!(
            kernel.pci_drivers.iter().filter(|name| drivers.lines().any(|line| line == *name)).count(),
            drivers.lines().count()
        );
        let grep = format!("grep -c '^alias vfio_pci:' /lib/modules/{}/modules.alias || true", kernel.release);
        assert!(kernel.vfio_aliases.len() >= run("sh", &["-c", &grep]).trim().parse().unwrap());
    });
}

/// As lspci writes sizes.
fn size(bytes: u64) -> String {
    let units = ["", "K", "M", "G", "T"];
    let mut value = bytes;
    let mut unit = 0;
    while value.is_multiple_of(1024) && value > 0 && unit < 4 {
        value /= 1024;
        unit += 1;
    }
    format!("{value}{}", units[unit])
}
