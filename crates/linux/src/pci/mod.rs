//! PCI functions as sysfs shows them (`Documentation/ABI/testing/sysfs-bus-pci`): what is there, and the few files by which a PF's
//! VFs come into being and drivers are changed. Discovery reads only, opens no device, and works without root as far as that goes.

mod address;
mod alias;
mod control;
mod function;
mod meaning;
#[cfg(test)]
mod tests;

pub use address::PciAddress;
pub use alias::{VfioAlias, matches_alias, variant_driver, vfio_aliases};
pub use control::PciControl;
pub use function::{Bar, NvmeClass, PciFunction, Sriov, functions};
pub(crate) use function::{vfio_device, vfio_state};
