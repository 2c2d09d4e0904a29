//! The pages that the vCPUs of a KVM virtual machine wrote (Documentation/virt/kvm/api.rst).
//!
//! KVM's ioctls work only in the process that made the VM (`kvm_vm_ioctl` compares its `mm`), so all of this runs inside of a VMM,
//! which owns its slots and vCPUs and lends their descriptors. What crosses to an engine in another process is what a harvest gives.

mod abi;
mod bits;
mod ring;
mod slot;
mod source;
mod tracker;
mod vm;

pub use slot::KvmSlot;
pub use source::{KvmDirty, KvmHandle, KvmMode, KvmOptions};
