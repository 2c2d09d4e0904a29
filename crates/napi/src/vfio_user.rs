//! Controllers of the embedded subsystem on vfio-user sockets, as objects of JavaScript.

use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use napi::Env;
use napi::bindgen_prelude::{Object, Uint8Array};
use napi_derive::napi;
use serde_json::json;
use towline_core::bar::Filter;
use towline_nvme::model::{CONTROLLING_CNTLID, Subsystem};
use towline_vfio_user::nvme::{NvmeFunction, NvmeFunctionError, NvmeFunctionOptions};
use towline_vfio_user::pci::PciFunction;
use towline_vfio_user::{
    Handover, HandoverError, MAX_HANDOVER_BYTES, MAX_HANDOVER_FDS, SectionError, ServerError, ServerOptions,
    VfioUserListener, VfioUserServer,
};

use crate::fault::Fault;
use crate::memory::GuestMemory;
use crate::promise::run;
use crate::subsystem::{NativeSubsystem, SharedInner, WHAT, cntlid_of};
use crate::vfio::duplicate;

impl From<ServerError> for Fault {
    fn from(e: ServerError) -> Self {
        let errno = std::error::Error::source(&e)
            .and_then(|s| s.downcast_ref::<std::io::Error>())
            .and_then(std::io::Error::raw_os_error);
        let code = match &e {
            ServerError::Exists { .. } => "ERR_TOWLINE_EXISTS",
            _ => "ERR_TOWLINE_SYSTEM",
        };
        Self { errno, ..Self::new(code, e.to_string()) }
    }
}

impl From<NvmeFunctionError> for Fault {
    fn from(e: NvmeFunctionError) -> Self {
        let code = match &e {
            NvmeFunctionError::NoController { .. } => "ERR_TOWLINE_NOT_FOUND",
            NvmeFunctionError::FilterSize { .. } => "ERR_TOWLINE_INVALID_ARGUMENT",
            NvmeFunctionError::MapDoorbells => "ERR_TOWLINE_UNSUPPORTED",
            _ => "ERR_TOWLINE_INTERNAL",
        };
        Self::new(code, e.to_string())
    }
}

impl From<SectionError> for Fault {
    fn from(e: SectionError) -> Self {
        let code = match &e {
            SectionError::Format(_) | SectionError::Mismatch(_) => "ERR_TOWLINE_BAD_STATE",
            SectionError::NotStopped(_) => "ERR_TOWLINE_STATE",
            SectionError::Busy(_) => "ERR_TOWLINE_BUSY",
            SectionError::Unsupported => "ERR_TOWLINE_UNSUPPORTED",
            _ => "ERR_TOWLINE_INTERNAL",
        };
        Self::new(code, e.to_string())
    }
}

impl From<HandoverError> for Fault {
    fn from(e: HandoverError) -> Self {
        let errno = match &e {
            HandoverError::System { source, .. } => source.raw_os_error(),
            _ => None,
        };
        let code = match &e {
            HandoverError::Closed => "ERR_TOWLINE_CLOSED",
            HandoverError::NotStopped(_) => "ERR_TOWLINE_STATE",
            HandoverError::Busy(_) => "ERR_TOWLINE_BUSY",
            HandoverError::Format(_) | HandoverError::Mismatch(_) => "ERR_TOWLINE_BAD_STATE",
            HandoverError::System { .. } => "ERR_TOWLINE_SYSTEM",
            _ => "ERR_TOWLINE_INTERNAL",
        };
        Self { errno, ..Self::new(code, e.to_string()) }
    }
}

/// A server on its way to another process; the descriptors are JavaScript's from here on.
#[napi(object)]
pub struct NativeHandover {
    pub fds: Vec<i32>,
    pub bytes: Uint8Array,
}

/// See `NativeVfioUserOptions` in `ts/native/host-binding.ts`.
#[napi(object)]
pub struct NativeVfioUserOptions {
    pub filter: Option<Uint8Array>,
    pub map_doorbells: Option<bool>,
    pub map_shrinkable: Option<bool>,
}

impl NativeVfioUserOptions {
    fn split(&self) -> Result<(NvmeFunctionOptions, ServerOptions), Fault> {
        let filter = match &self.filter {
            Some(bytes) => Some(Arc::new(Filter::from_bytes(bytes).map_err(|e| Fault::argument(e.to_string()))?)),
            None => None,
        };
        let function = NvmeFunctionOptions { filter, map_doorbells: self.map_doorbells.unwrap_or(false) };
        let allow_shrinkable = self.map_shrinkable.unwrap_or(false);
        Ok((function, ServerOptions { allow_shrinkable, ..ServerOptions::default() }))
    }
}

/// Marks a controller as about to be exposed: from here on nobody else may have it.
fn take(inner: &SharedInner, cntlid: u16) -> Result<Arc<Subsystem>, Fault> {
    let mut guard = inner.lock().unwrap_or_else(PoisonError::into_inner);
    let open = guard.as_mut().ok_or_else(|| Fault::closed(WHAT))?;
    if let Some(fault) = open.taken(cntlid) {
        return Err(fault);
    }
    open.exposed.insert(cntlid, None);
    Ok(open.subsystem.clone())
}

/// A controller that is, or is about to be, on a socket.
pub type Exposed = Option<Arc<VfioUserServer>>;

/// See `NativeVfioUserServer` in `ts/native/host-binding.ts`.
#[napi]
pub struct NativeVfioUserServer {
    server: Arc<VfioUserServer>,
    cntlid: u16,
    inner: SharedInner,
}

/// Takes the mark away that a controller is exposed, unless it is another server's by now.
fn forget(inner: &SharedInner, cntlid: u16, server: Option<&Arc<VfioUserServer>>) {
    let mut guard = inner.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(inner) = guard.as_mut() else { return };
    let own = match (inner.exposed.get(&cntlid), server) {
        (Some(Some(there)), Some(server)) => Arc::ptr_eq(there, server),
        (Some(None), None) => true,
        _ => false,
    };
    if own {
        inner.exposed.remove(&cntlid);
    }
}

#[napi]
impl NativeSubsystem {
    #[napi]
    pub fn expose_vfio_user<'e>(
        &self,
        env: &'e Env,
        cntlid: u32,
        path: String,
        options: NativeVfioUserOptions,
    ) -> napi::Result<Object<'e>> {
        let cntlid = cntlid_of(cntlid)?;
        let (function_options, server_options) = options.split()?;
        let inner = self.shared();
        run(env, "vfio-user", move || {
            let subsystem = take(&inner, cntlid)?;
            let start = || -> Result<Arc<VfioUserServer>, Fault> {
                // Everything that can be refused, before anything is taken: the reset of the controlling function takes every other down.
                NvmeFunction::check(&subsystem, cntlid, &function_options)?;
                let listener = VfioUserListener::bind(&PathBuf::from(&path))?;
                if cntlid == CONTROLLING_CNTLID {
                    let mut guard = inner.lock().unwrap_or_else(PoisonError::into_inner);
                    let open = guard.as_mut().ok_or_else(|| Fault::closed(WHAT))?;
                    let admins = std::mem::take(&mut open.admins);
                    drop(guard);
                    // Before its registers are the guest's.
                    admins.iter().filter_map(std::sync::Weak::upgrade).for_each(|admin| admin.revoke());
                }
                let function = NvmeFunction::new(&subsystem, cntlid, &function_options)?;
                let server = listener.serve(Arc::new(function), server_options)?;
                let server = Arc::new(server);
                let mut guard = inner.lock().unwrap_or_else(PoisonError::into_inner);
                let open = guard.as_mut().ok_or_else(|| Fault::closed(WHAT))?;
                open.exposed.insert(cntlid, Some(server.clone()));
                Ok(server)
            };
            let server = start().inspect_err(|_| forget(&inner, cntlid, None))?;
            Ok(NativeVfioUserServer { server, cntlid, inner })
        })
    }
}

#[napi]
impl NativeSubsystem {
    #[napi]
    pub fn await_vfio_user<'e>(
        &self,
        env: &'e Env,
        cntlid: u32,
        options: NativeVfioUserOptions,
    ) -> napi::Result<Object<'e>> {
        let cntlid = cntlid_of(cntlid)?;
        if cntlid == CONTROLLING_CNTLID {
            let message = "a controlling function is not handed over: it is never migrated";
            return Err(Fault::new("ERR_TOWLINE_UNSUPPORTED", message).into());
        }
        let (function_options, options) = options.split()?;
        let inner = self.shared();
        run(env, "vfio-user-await", move || {
            let subsystem = take(&inner, cntlid)?;
            let function = NvmeFunction::new(&subsystem, cntlid, &function_options)
                .inspect_err(|_| forget(&inner, cntlid, None))?;
            Ok(NativeVfioUserVacancy { function: Arc::new(function), options, cntlid, inner })
        })
    }
}

/// See `NativeVfioUserVacancy` in `ts/native/host-binding.ts`.
#[napi]
pub struct NativeVfioUserVacancy {
    function: Arc<NvmeFunction>,
    options: ServerOptions,
    cntlid: u16,
    inner: SharedInner,
}

#[napi]
impl NativeVfioUserVacancy {
    #[napi]
    pub fn section_format(&self) -> Option<String> {
        self.function.section_format()
    }

    #[napi]
    pub fn adopt<'e>(&self, env: &'e Env, fds: Vec<i32>, bytes: Uint8Array) -> napi::Result<Object<'e>> {
        if fds.len() > MAX_HANDOVER_FDS || bytes.len() > MAX_HANDOVER_BYTES {
            let message = format!("a hand-over of {} descriptors and {} bytes", fds.len(), bytes.len());
            return Err(Fault::new("ERR_TOWLINE_LIMIT", message).into());
        }
        let fds = fds.into_iter().map(|fd| duplicate(fd, "a descriptor")).collect::<Result<Vec<_>, _>>()?;
        let handover = Handover { fds, bytes: bytes.to_vec() };
        let (function, options, cntlid, inner) = (self.function.clone(), self.options, self.cntlid, self.inner.clone());
        run(env, "vfio-user-adopt", move || {
            // Held throughout: two would have one function.
            let mut guard = inner.lock().unwrap_or_else(PoisonError::into_inner);
            let open = guard.as_mut().ok_or_else(|| Fault::closed(WHAT))?;
            if !matches!(open.exposed.get(&cntlid), Some(None)) {
                let message = "it awaits no connection: it has one, or was hidden";
                return Err(Fault::new("ERR_TOWLINE_STATE", message));
            }
            let server = Arc::new(VfioUserServer::adopt(handover, function, options)?);
            open.exposed.insert(cntlid, Some(server.clone()));
            drop(guard);
            Ok(NativeVfioUserServer { server, cntlid, inner })
        })
    }

    /// Nothing waits any more, unless a connection came. Idempotent.
    #[napi]
    pub fn close(&self) {
        forget(&self.inner, self.cntlid, None);
    }
}

#[napi]
impl NativeVfioUserServer {
    #[napi]
    pub fn detach<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let server = self.server.clone();
        run(env, "vfio-user-detach", move || {
            let Handover { fds, bytes } = server.detach()?;
            let fds = fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
            Ok(NativeHandover { fds, bytes: Uint8Array::new(bytes) })
        })
    }

    #[napi]
    pub fn resume<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let server = self.server.clone();
        run(env, "vfio-user-resume", move || Ok(server.resume()?))
    }

    #[napi]
    pub fn surrender<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let (server, cntlid, inner) = (self.server.clone(), self.cntlid, self.inner.clone());
        run(env, "vfio-user-surrender", move || {
            server.surrender()?;
            forget(&inner, cntlid, Some(&server));
            Ok(())
        })
    }

    #[napi]
    pub fn status(&self) -> String {
        let status = self.server.status();
        json!({
            "path": self.server.path(),
            "connected": status.connected,
            "clients": status.clients,
            "dmaRegions": status.mapped_ranges + status.message_ranges,
            "messageRegions": status.message_ranges,
            "interrupts": status.interrupts,
            "messages": status.messages,
            "lastError": status.last_error,
        })
        .to_string()
    }

    #[napi]
    pub fn memory(&self) -> Option<GuestMemory> {
        self.server.memory().map(|memory| GuestMemory::of(memory.mapped()))
    }

    #[napi]
    pub fn section_format(&self) -> Option<String> {
        self.server.section_format()
    }

    #[napi]
    pub fn save_section<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let server = self.server.clone();
        run(env, "vfio-user-save", move || Ok(Uint8Array::new(server.save_section()?)))
    }

    #[napi]
    pub fn restore_section<'e>(&self, env: &'e Env, section: Uint8Array) -> napi::Result<Object<'e>> {
        let (server, section) = (self.server.clone(), section.to_vec());
        run(env, "vfio-user-restore", move || Ok(server.restore_section(&section)?))
    }

    #[napi]
    pub fn forget_section<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let server = self.server.clone();
        run(env, "vfio-user-forget", move || {
            server.forget_section();
            Ok(())
        })
    }

    #[napi]
    pub fn close<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let (server, cntlid, inner) = (self.server.clone(), self.cntlid, self.inner.clone());
        run(env, "vfio-user-close", move || {
            server.close();
            forget(&inner, cntlid, Some(&server));
            Ok(())
        })
    }
}
