//! What an errno means for each file of a PCI function (`drivers/pci/iov.c`, `drivers/pci/pci-sysfs.c`, `drivers/base/bus.c`).

use rustix::io::Errno;

use crate::sysfs::HostErrorKind as Kind;
use crate::sysfs::Meaning;

pub(super) fn num_vfs(errno: Errno) -> Option<Meaning> {
    Some(match errno {
        Errno::RANGE => Meaning(Kind::Limit, "more VFs than the device has", "see sriov_totalvfs"),
        Errno::BUSY => Meaning(
            Kind::State,
            "the number of VFs can't be changed while there are some",
            "release the VFs and write 0 first; that removes every VF of this PF",
        ),
        Errno::NOENT => Meaning(
            Kind::Unsupported,
            "the PF is bound to no driver, or its driver does not make VFs",
            "bind it to its own driver; vfio-pci makes VFs with the module parameter enable_sriov=1",
        ),
        Errno::PERM => Meaning(
            Kind::Busy,
            "not permitted, or the driver refuses since VFs are in use",
            "run as root; end the guests that use its VFs",
        ),
        Errno::NOMEM => Meaning(
            Kind::Limit,
            "the kernel has no bus numbers, addresses or memory for the VFs",
            "dmesg tells which; the firmware's settings for SR-IOV and MMIO, or pci=realloc or pci=assign-busses, may help",
        ),
        Errno::NOSPC => Meaning(Kind::Limit, "no bus numbers or resources are left for the VFs", "look at dmesg"),
        Errno::INVAL => {
            Meaning(Kind::Device, "the driver of the PF does not accept this number of VFs", "look at dmesg")
        }
        Errno::IO => Meaning(Kind::Device, "SR-IOV could not be enabled", "look at dmesg"),
        _ => return None,
    })
}

pub(super) fn autoprobe(errno: Errno) -> Option<Meaning> {
    match errno {
        Errno::NOENT => Some(Meaning(Kind::Unsupported, "the function has no SR-IOV", "")),
        _ => None,
    }
}

pub(super) fn vf_msix(errno: Errno) -> Option<Meaning> {
    Some(match errno {
        Errno::BUSY => Meaning(Kind::Busy, "the VF is bound to a driver", "unbind it first"),
        Errno::NOENT | Errno::OPNOTSUPP => Meaning(
            Kind::Unsupported,
            "it is no VF, or the driver of its PF does not share out MSI-X vectors this way",
            "bind the PF to its own driver; of NVMe the controlling function sets them (Virtualization Management)",
        ),
        Errno::INVAL => {
            Meaning(Kind::Argument, "the PF's driver does not accept this count", "see sriov_vf_total_msix")
        }
        Errno::NOSPC | Errno::NOMEM => Meaning(Kind::Limit, "the PF has no vectors left", "take some from another VF"),
        _ => return None,
    })
}

pub(super) fn driver_override(errno: Errno) -> Option<Meaning> {
    match errno {
        Errno::INVAL => Some(Meaning(Kind::Argument, "the kernel does not accept this name", "")),
        _ => None,
    }
}

pub(super) fn unbind(errno: Errno) -> Option<Meaning> {
    match errno {
        Errno::NODEV => {
            Some(Meaning(Kind::State, "it is not bound to this driver (any more)", "look again what has it"))
        }
        _ => None,
    }
}

pub(super) fn probe(errno: Errno) -> Option<Meaning> {
    Some(match errno {
        Errno::NODEV | Errno::INVAL => {
            Meaning(Kind::Gone, "there is no such function on the bus", "list the functions again")
        }
        _ => return None,
    })
}

pub(super) fn reset(errno: Errno) -> Option<Meaning> {
    Some(match errno {
        Errno::NOENT => Meaning(
            Kind::Unsupported,
            "the kernel has no way to reset this function",
            "reset_method names the ways, where there are some; a driver of its own may have one",
        ),
        Errno::NOTTY => Meaning(Kind::Unsupported, "no way to reset this function works", "see reset_method"),
        Errno::AGAIN => Meaning(Kind::Busy, "somebody else holds the function or its bus right now", "try again"),
        Errno::TIMEDOUT => Meaning(Kind::Device, "the function did not come back after the reset", "look at dmesg"),
        _ => return None,
    })
}
