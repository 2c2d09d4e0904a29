//! This host's devices for JavaScript: PCI and mediated devices in sysfs, and NVMe controllers by passthrough.

use std::path::PathBuf;
use std::sync::Arc;

use napi::Env;
use napi::bindgen_prelude::Object;
use napi_derive::napi;
use serde_json::{Value, json};
use towline_linux::host::HostKernel;
use towline_linux::mdev::{self, MdevParent};
use towline_linux::nvme::{NvmePassthrough, SecondaryReset};
use towline_linux::pci::{PciAddress, PciControl, PciFunction, functions};
use towline_linux::sysfs::{HostError, HostErrorKind, Sysfs};
use towline_nvme::admin::AdminClient;
use towline_nvme::hmlm::FunctionReset;

use crate::admin::NativeAdmin;
use crate::fault::Fault;
use crate::promise::run;

impl From<HostError> for Fault {
    fn from(e: HostError) -> Self {
        let code = match e.kind {
            HostErrorKind::Argument => "ERR_TOWLINE_INVALID_ARGUMENT",
            HostErrorKind::Permission => "ERR_TOWLINE_PERMISSION",
            HostErrorKind::State => "ERR_TOWLINE_STATE",
            HostErrorKind::Busy => "ERR_TOWLINE_BUSY",
            HostErrorKind::Limit => "ERR_TOWLINE_NO_RESOURCES",
            HostErrorKind::Exists => "ERR_TOWLINE_EXISTS",
            HostErrorKind::NotFound => "ERR_TOWLINE_NOT_FOUND",
            HostErrorKind::Gone => "ERR_TOWLINE_GONE",
            HostErrorKind::Unsupported => "ERR_TOWLINE_UNSUPPORTED",
            HostErrorKind::Device => "ERR_TOWLINE_DEVICE",
            // The enum is non-exhaustive: what is new there is a failure of the system until it has a code of its own.
            _ => "ERR_TOWLINE_SYSTEM",
        };
        let details = json!({
            "what": e.what, "errnoName": e.errno_name(), "meaning": e.meaning, "mend": e.mend, "kernel": e.kernel,
        });
        Self { errno: e.errno, details: Some(details), ..Self::new(code, e.to_string()) }
    }
}

fn sysfs_at(root: Option<String>) -> Sysfs {
    root.map_or_else(Sysfs::default, Sysfs::at)
}

fn kernel_json(kernel: &HostKernel) -> Value {
    let aliases: Vec<Value> = kernel
        .vfio_aliases
        .iter()
        .map(|alias| json!({ "pattern": alias.pattern, "module": alias.module, "driver": alias.driver }))
        .collect();
    json!({
        "release": kernel.release,
        "iommu": kernel.iommu,
        "container": kernel.container,
        "cdev": kernel.cdev,
        "iommufd": kernel.iommufd,
        "pciDrivers": kernel.pci_drivers,
        "mdev": kernel.mdev,
        "vfioDebugfs": kernel.vfio_debugfs,
        "vfioAliases": aliases,
    })
}

fn function_json(function: &PciFunction) -> Value {
    let address = |address: &PciAddress| address.to_string();
    let sriov = function.sriov.as_ref().map(|s| {
        json!({
            "totalVfs": s.total_vfs, "numVfs": s.num_vfs, "driversAutoprobe": s.drivers_autoprobe, "offset": s.offset,
            "stride": s.stride, "vfDevice": s.vf_device, "vfTotalMsix": s.vf_total_msix,
        })
    });
    let bars: Vec<Value> = function
        .bars
        .iter()
        .map(|bar| json!({ "index": bar.index, "sizeBytes": bar.size_bytes.to_string(), "flags": bar.flags }))
        .collect();
    let nvme = function.nvme.as_ref().map(|nvme| {
        json!({ "name": nvme.name, "cntlid": nvme.cntlid, "subsystemNqn": nvme.subsystem_nqn, "state": nvme.state })
    });
    json!({
        "address": address(&function.address),
        "vendor": function.vendor,
        "device": function.device,
        "subsystemVendor": function.subsystem_vendor,
        "subsystemDevice": function.subsystem_device,
        "class": function.class,
        "revision": function.revision,
        "modalias": function.modalias,
        "driver": function.driver,
        "driverOverride": function.driver_override,
        "iommuGroup": function.iommu_group,
        "numaNode": function.numa_node,
        "sriov": sriov,
        "virtfns": function.virtfns.iter().map(address).collect::<Vec<_>>(),
        "physfn": function.physfn.as_ref().map(address),
        "vfIndex": function.vf_index,
        "vfMsixCount": function.vf_msix_count,
        "resetMethods": function.reset_methods,
        "vfioDevice": function.vfio_device,
        "bars": bars,
        "nvme": nvme,
        "vfioState": function.vfio_state,
    })
}

fn parent_json(parent: &MdevParent) -> Value {
    let types: Vec<Value> = parent
        .types
        .iter()
        .map(|t| {
            json!({
                "id": t.id, "name": t.name, "deviceApi": t.device_api, "availableInstances": t.available_instances,
                "description": t.description,
            })
        })
        .collect();
    let devices: Vec<Value> = parent
        .devices
        .iter()
        .map(|d| {
            json!({
                "uuid": d.uuid, "type": d.type_id, "driver": d.driver, "iommuGroup": d.iommu_group,
                "vfioDevice": d.vfio_device, "vfioState": d.vfio_state,
            })
        })
        .collect();
    json!({ "path": parent.path, "name": parent.name, "types": types, "devices": devices })
}

#[napi]
pub fn host_kernel<'e>(env: &'e Env, sysfs: Option<String>) -> napi::Result<Object<'e>> {
    run(env, "host-kernel", move || Ok(kernel_json(&HostKernel::read(&sysfs_at(sysfs))).to_string()))
}

#[napi]
pub fn host_pci<'e>(env: &'e Env, sysfs: Option<String>, all: bool) -> napi::Result<Object<'e>> {
    run(env, "host-pci", move || {
        let mut found = functions(&sysfs_at(sysfs));
        found.retain(|function| all || function.is_of_interest());
        Ok(found.iter().map(function_json).collect::<Value>().to_string())
    })
}

/// `null` where there is no function at this address.
#[napi]
pub fn host_pci_function<'e>(env: &'e Env, sysfs: Option<String>, address: String) -> napi::Result<Object<'e>> {
    run(env, "host-pci-function", move || {
        let found = PciFunction::find(&sysfs_at(sysfs), address.parse()?);
        Ok(found.as_ref().map_or(Value::Null, function_json).to_string())
    })
}

#[napi]
pub fn host_mdev<'e>(env: &'e Env, sysfs: Option<String>) -> napi::Result<Object<'e>> {
    run(env, "host-mdev", move || {
        Ok(mdev::parents(&sysfs_at(sysfs)).iter().map(parent_json).collect::<Value>().to_string())
    })
}

/// Changes one PCI function.
fn change<'e, F>(
    env: &'e Env,
    what: &'static str,
    sysfs: Option<String>,
    address: String,
    work: F,
) -> napi::Result<Object<'e>>
where
    F: FnOnce(&PciControl) -> Result<(), HostError> + Send + 'static,
{
    run(env, what, move || {
        let control = PciControl::of(&sysfs_at(sysfs), address.parse()?)?;
        Ok(work(&control)?)
    })
}

#[napi]
pub fn pci_set_num_vfs<'e>(
    env: &'e Env,
    sysfs: Option<String>,
    address: String,
    count: u32,
) -> napi::Result<Object<'e>> {
    let count = u16::try_from(count).map_err(|_| Fault::argument(format!("{count} VFs; at most 65535")))?;
    change(env, "num-vfs", sysfs, address, move |control| control.set_num_vfs(count))
}

#[napi]
pub fn pci_set_autoprobe<'e>(
    env: &'e Env,
    sysfs: Option<String>,
    address: String,
    on: bool,
) -> napi::Result<Object<'e>> {
    change(env, "autoprobe", sysfs, address, move |control| control.set_autoprobe(on))
}

#[napi]
pub fn pci_set_vf_msix<'e>(
    env: &'e Env,
    sysfs: Option<String>,
    address: String,
    count: u32,
) -> napi::Result<Object<'e>> {
    change(env, "vf-msix", sysfs, address, move |control| control.set_vf_msix(count))
}

#[napi]
pub fn pci_set_driver_override<'e>(
    env: &'e Env,
    sysfs: Option<String>,
    address: String,
    driver: Option<String>,
) -> napi::Result<Object<'e>> {
    change(env, "driver-override", sysfs, address, move |control| control.set_driver_override(driver.as_deref()))
}

#[napi]
pub fn pci_unbind<'e>(env: &'e Env, sysfs: Option<String>, address: String) -> napi::Result<Object<'e>> {
    change(env, "unbind", sysfs, address, PciControl::unbind)
}

#[napi]
pub fn pci_probe<'e>(env: &'e Env, sysfs: Option<String>, address: String) -> napi::Result<Object<'e>> {
    change(env, "probe", sysfs, address, |control| control.probe().map(drop))
}

#[napi]
pub fn pci_reset<'e>(env: &'e Env, sysfs: Option<String>, address: String) -> napi::Result<Object<'e>> {
    change(env, "pci-reset", sysfs, address, PciControl::reset)
}

#[napi]
pub fn mdev_create<'e>(
    env: &'e Env,
    sysfs: Option<String>,
    parent_path: String,
    type_id: String,
    uuid: String,
) -> napi::Result<Object<'e>> {
    run(env, "mdev-create", move || Ok(mdev::create(&sysfs_at(sysfs), &parent_path, &type_id, &uuid)?))
}

#[napi]
pub fn mdev_remove<'e>(env: &'e Env, sysfs: Option<String>, uuid: String) -> napi::Result<Object<'e>> {
    run(env, "mdev-remove", move || Ok(mdev::remove(&sysfs_at(sysfs), &uuid)?))
}

#[napi]
pub fn open_nvme<'e>(env: &'e Env, path: String) -> napi::Result<Object<'e>> {
    run(env, "open-nvme", move || {
        let (path, sysfs) = (PathBuf::from(path), Sysfs::default());
        let client = AdminClient::new(Arc::new(NvmePassthrough::open(&path, &sysfs)?));
        let pf = NvmePassthrough::pci_address(&path, &sysfs);
        let resetting = client.clone();
        let resets = Arc::new(move |cntlid| -> Box<dyn FunctionReset> {
            Box::new(SecondaryReset::new(resetting.clone(), sysfs.clone(), pf, cntlid))
        });
        Ok(NativeAdmin::new(client, resets))
    })
}
