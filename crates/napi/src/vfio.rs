//! VFIO devices as objects of JavaScript. See `NativeVfioDevice` in `ts/native/host-binding.ts`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use napi::Env;
use napi::bindgen_prelude::{BigInt, Object, Uint8Array};
use napi_derive::napi;
use serde::Deserialize;
use serde_json::{Value, json};
use towline_core::channel::ChannelError;
use towline_linux::vfio::{
    DirtyBy, ExposureSection, OpenBy, OpenedWay, VfToken, VfioChannel, VfioExposure, VfioFunction, VfioOptions, Wiring,
};

use crate::channel::{NativeDirtySource, NativeStateChannel};
use crate::fault::Fault;
use crate::memory::GuestMemory;
use crate::numbers::u64_of;
use crate::promise::run;

/// One read or write of a region is at most this long: it is a copy.
const MOST_REGION_BYTES: u32 = 16 << 20;
/// The most vectors of one call: MSI-X.
const MOST_VECTORS: usize = 2048;
/// The most indexes of regions, and of interrupts, that are described. PCI has 9 and 5, and few devices more.
const MOST_INDEXES: u32 = 64;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Options {
    name: String,
    by: Option<String>,
    token: Option<String>,
    dirty_tracking: Option<bool>,
}

/// A descriptor of the caller's, duplicated.
pub fn duplicate(fd: i32, what: &str) -> Result<OwnedFd, Fault> {
    if fd < 0 {
        return Err(Fault::argument(format!("{what} is {fd}; it is no descriptor")));
    }
    // SAFETY: the number is only used to duplicate it, at once; one that is not open fails.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map_err(|e| Fault {
        errno: e.raw_os_error(),
        ..Fault::new("ERR_TOWLINE_SYSTEM", format!("{what} can't be duplicated: {e}"))
    })
}

/// Opens a VFIO device.
#[napi]
pub fn open_vfio<'e>(env: &'e Env, options_json: String, device_fd: Option<i32>) -> napi::Result<Object<'e>> {
    let options: Options =
        serde_json::from_str(&options_json).map_err(|e| Fault::argument(format!("the options of openVfio: {e}")))?;
    let by = match options.by.as_deref() {
        None | Some("auto") => OpenBy::Auto,
        Some("group") => OpenBy::Group,
        Some("cdev") => OpenBy::Cdev,
        Some(other) => return Err(Fault::argument(format!("by is {other:?}: auto, group, cdev")).into()),
    };
    let token = options.token.as_deref().map(VfToken::parse).transpose().map_err(Fault::from)?;
    let how = VfioOptions { by, token, dirty_tracking: options.dirty_tracking.unwrap_or(true) };
    let fd = device_fd.map(|fd| duplicate(fd, "deviceFd")).transpose()?;
    run(env, "open-vfio", move || {
        let function = match fd {
            Some(fd) => VfioFunction::from_fd(fd, &options.name)?,
            None => VfioFunction::open(&options.name, &how)?,
        };
        let info = describe(&function)?.to_string();
        Ok(NativeVfioDevice { function: Mutex::new(Some(Arc::new(function))), info })
    })
}

fn describe(function: &VfioFunction) -> Result<Value, ChannelError> {
    let device = function.device();
    let regions = (0..device.region_count().min(MOST_INDEXES)).filter_map(|index| {
        // What a device doesn't have is an error for some indexes and a size of 0 for others.
        let region = device.region(index).ok().filter(|region| region.size > 0)?;
        let mmap: Vec<Value> = region
            .mappable
            .iter()
            .map(|run| json!({ "offset": run.offset.to_string(), "sizeBytes": run.len.to_string() }))
            .collect();
        Some(json!({
            "index": index, "sizeBytes": region.size.to_string(), "offset": region.offset.to_string(),
            "read": region.is_readable(), "write": region.is_writable(), "mmap": mmap,
        }))
    });
    let irqs = (0..device.irq_index_count().min(MOST_INDEXES)).filter_map(|index| {
        let irq = device.irq_info(index).ok().filter(|irq| irq.count > 0)?;
        Some(json!({ "index": index, "count": irq.count, "flags": irq.flags }))
    });
    Ok(json!({
        "name": device.name(),
        "by": match device.opened_way() {
            OpenedWay::Group => "group",
            OpenedWay::Cdev => "cdev",
            OpenedWay::Fd => "fd",
        },
        "flags": device.flags(),
        "regions": regions.collect::<Vec<_>>(),
        "irqs": irqs.collect::<Vec<_>>(),
        "migration": device.migration_flags()? & 7,
        "features": device.features()?.numbers().collect::<Vec<_>>(),
        "dirty": match function.dirty_by() {
            DirtyBy::Device => "device",
            DirtyBy::Iommufd => "iommufd",
            DirtyBy::Type1 => "type1",
            DirtyBy::Nobody => "none",
        },
        "format": device.format(),
    }))
}

/// See `NativeVfioDevice` in `ts/native/host-binding.ts`.
#[napi]
pub struct NativeVfioDevice {
    function: Mutex<Option<Arc<VfioFunction>>>,
    info: String,
}

impl NativeVfioDevice {
    fn function(&self) -> Result<Arc<VfioFunction>, Fault> {
        let function = self.function.lock().unwrap_or_else(PoisonError::into_inner);
        function.clone().ok_or_else(|| Fault::closed("the VFIO device"))
    }

    fn work<'e, T, F>(&self, env: &'e Env, what: &'static str, work: F) -> napi::Result<Object<'e>>
    where
        T: napi::bindgen_prelude::ToNapiValue + Send + 'static,
        F: FnOnce(&VfioFunction) -> Result<T, Fault> + Send + 'static,
    {
        let function = self.function()?;
        run(env, what, move || work(&function))
    }
}

fn checked_length(length: u32) -> Result<usize, Fault> {
    if length > MOST_REGION_BYTES {
        let message = format!("{length} bytes of a region at once; at most {MOST_REGION_BYTES}");
        return Err(Fault::new("ERR_TOWLINE_LIMIT", message));
    }
    Ok(length as usize)
}

/// The caller may close its own before the kernel has them; -1 is none.
fn eventfds_of(fds: &[i32]) -> Result<Vec<Option<OwnedFd>>, Fault> {
    fds.iter().map(|fd| if *fd == -1 { Ok(None) } else { duplicate(*fd, "an eventfd").map(Some) }).collect()
}

#[napi]
impl NativeVfioDevice {
    #[napi]
    pub fn info(&self) -> String {
        self.info.clone()
    }

    #[napi]
    pub fn map_memory<'e>(&self, env: &'e Env, memory: &GuestMemory) -> napi::Result<Object<'e>> {
        let memory = memory.parts()?.memory;
        self.work(env, "vfio-map", move |function| Ok(function.map_memory(&memory)?))
    }

    #[napi]
    pub fn unmap_memory<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.work(env, "vfio-unmap", |function| Ok(function.unmap_memory()?))
    }

    #[napi]
    pub fn state_channel(&self) -> napi::Result<NativeStateChannel> {
        let channel = VfioChannel::open(self.function()?.device()).map_err(Fault::from)?;
        Ok(NativeStateChannel::new(Box::new(channel)))
    }

    #[napi]
    pub fn dirty_source(&self) -> napi::Result<Option<NativeDirtySource>> {
        let source = self.function()?.dirty_source().map_err(Fault::from)?;
        Ok(source.map(NativeDirtySource::new))
    }

    #[napi]
    pub fn read_region<'e>(&self, env: &'e Env, index: u32, offset: BigInt, length: u32) -> napi::Result<Object<'e>> {
        let (offset, length) = (u64_of("offset", &offset)?, checked_length(length)?);
        self.work(env, "vfio-read", move |function| {
            let device = function.device();
            let mut out = vec![0; length];
            device.read_region(&device.region(index)?, offset, &mut out)?;
            Ok(Uint8Array::new(out))
        })
    }

    #[napi]
    pub fn write_region<'e>(
        &self,
        env: &'e Env,
        index: u32,
        offset: BigInt,
        data: Uint8Array,
    ) -> napi::Result<Object<'e>> {
        let offset = u64_of("offset", &offset)?;
        checked_length(u32::try_from(data.len()).unwrap_or(u32::MAX))?;
        let data = data.to_vec();
        self.work(env, "vfio-write", move |function| {
            let device = function.device();
            Ok(device.write_region(&device.region(index)?, offset, &data)?)
        })
    }

    #[napi]
    pub fn set_irqs<'e>(&self, env: &'e Env, index: u32, start: u32, eventfds: Vec<i32>) -> napi::Result<Object<'e>> {
        if eventfds.len() > MOST_VECTORS {
            let message = format!("{} vectors at once; at most {MOST_VECTORS}", eventfds.len());
            return Err(Fault::new("ERR_TOWLINE_LIMIT", message).into());
        }
        let own = eventfds_of(&eventfds)?;
        self.work(env, "vfio-irqs", move |function| {
            let device = function.device();
            if own.is_empty() {
                return Ok(device.disable_irqs(index)?);
            }
            let fds: Vec<Option<BorrowedFd<'_>>> = own.iter().map(|fd| fd.as_ref().map(OwnedFd::as_fd)).collect();
            Ok(device.wire_irqs(index, start, &fds)?)
        })
    }

    #[napi]
    pub fn save_exposure<'e>(&self, env: &'e Env, index: Option<u32>, wired: Vec<bool>) -> napi::Result<Object<'e>> {
        let wiring = index.map(|index| Wiring { index, vectors: wired });
        self.work(env, "vfio-save-exposure", move |function| {
            let port = VfioExposure::new(function.device(), None)?;
            Ok(Uint8Array::new(ExposureSection::save(&port, wiring)?.encode()))
        })
    }

    #[napi]
    pub fn restore_exposure<'e>(
        &self,
        env: &'e Env,
        section: Uint8Array,
        index: Option<u32>,
        eventfds: Vec<i32>,
    ) -> napi::Result<Object<'e>> {
        let section = ExposureSection::decode(&section).map_err(Fault::from)?;
        if eventfds.len() > MOST_VECTORS {
            let message = format!("{} eventfds; at most {MOST_VECTORS}", eventfds.len());
            return Err(Fault::new("ERR_TOWLINE_LIMIT", message).into());
        }
        let own = eventfds_of(&eventfds)?;
        self.work(env, "vfio-restore-exposure", move |function| {
            Ok(section.restore(&VfioExposure::new(function.device(), index.map(|index| (index, own)))?)?)
        })
    }

    #[napi]
    pub fn reset<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.work(env, "vfio-reset", |function| Ok(function.device().reset()?))
    }

    /// On the caller's thread, although the kernel may reset the device meanwhile: once it has returned, others can open it.
    #[napi]
    pub fn close(&self) {
        drop(self.function.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
