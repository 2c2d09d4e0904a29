//! Typed admin commands of an NVMe controlling function as an object of JavaScript, over any admin transport.

use std::sync::{Arc, Mutex, PoisonError};

use napi::Env;
use napi::bindgen_prelude::{BigInt, Object};
use napi_derive::napi;
use serde_json::{Value, json};
use towline_core::channel::{ChannelError, ChannelErrorKind, Pending, ReadOutcome, StateChannel};
use towline_core::fsm::{DeviceState, MigrationFlags};
use towline_nvme::admin::{AdminClient, AdminError, TransportError};
use towline_nvme::hmlm::{FunctionReset, HmlmChannel, HmlmConfig, TrackConfig, TrackReceiveSource};
use towline_nvme::identify::{NamespaceIds, oacs, trattr};
use towline_nvme::limit::RateLimit;
use towline_nvme::resources::{Resource, VirtualizationAction};
use uuid::Uuid;

use crate::channel::{NativeDirtySource, NativeStateChannel};
use crate::fault::Fault;
use crate::numbers::u64_of;
use crate::promise::run;

impl From<AdminError> for Fault {
    fn from(e: AdminError) -> Self {
        // EPERM and EACCES: passthrough needs CAP_SYS_ADMIN, and some features are the kernel's own.
        let (code, errno) = match &e {
            AdminError::Transport { source, .. } => match source {
                TransportError::Timeout { .. } => ("ERR_TOWLINE_TIMEOUT", None),
                TransportError::Io { errno: errno @ (1 | 13), .. } => ("ERR_TOWLINE_PERMISSION", Some(*errno)),
                TransportError::Io { errno, .. } => ("ERR_TOWLINE_SYSTEM", Some(*errno)),
                TransportError::Unsendable { .. } => ("ERR_TOWLINE_LIMIT", None),
                _ => ("ERR_TOWLINE_GONE", None),
            },
            AdminError::Request { .. } => ("ERR_TOWLINE_INVALID_ARGUMENT", None),
            _ => ("ERR_TOWLINE_DEVICE", None),
        };
        let status = e.status().map(|s| u16::from(s.sct) << 8 | u16::from(s.sc));
        Self { errno, nvme_status: status, ..Self::new(code, e.to_string()) }
    }
}

/// Makes the reset of a controlled function, which the transport can't give: FLR of the model, or of the OS.
pub type Resets = Arc<dyn Fn(u16) -> Box<dyn FunctionReset> + Send + Sync>;

/// Opening a channel asks the controlling function, which may take its time: not on the main thread, so at its first use.
struct OnFirstUse {
    client: AdminClient,
    config: HmlmConfig,
    reset: Option<Box<dyn FunctionReset>>,
    opened: Option<HmlmChannel>,
}

impl OnFirstUse {
    fn channel(&mut self) -> Result<&mut HmlmChannel, ChannelError> {
        if let Some(reset) = self.reset.take() {
            self.opened = Some(HmlmChannel::open(self.client.clone(), self.config.clone(), reset)?);
        }
        self.opened.as_mut().ok_or_else(|| {
            ChannelError::new(ChannelErrorKind::Unsupported, "the channel could not be opened before; make a new one")
        })
    }
}

impl StateChannel for OnFirstUse {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags(MigrationFlags::STOP_COPY)
    }
    fn state(&mut self) -> Result<DeviceState, ChannelError> {
        self.channel()?.state()
    }
    fn set_state(&mut self, to: DeviceState) -> Result<(), ChannelError> {
        self.channel()?.set_state(to)
    }
    fn read(&mut self, out: &mut [u8]) -> Result<ReadOutcome, ChannelError> {
        self.channel()?.read(out)
    }
    fn write(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        self.channel()?.write(data)
    }
    fn pending(&mut self) -> Result<Pending, ChannelError> {
        self.channel()?.pending()
    }
    fn reset(&mut self) -> Result<(), ChannelError> {
        self.channel()?.reset()
    }
}

/// See `NativeAdmin` in `ts/native/binding.ts`.
#[napi]
pub struct NativeAdmin {
    parts: Mutex<Option<(AdminClient, Resets)>>,
}

impl NativeAdmin {
    pub fn new(client: AdminClient, resets: Resets) -> Self {
        Self { parts: Mutex::new(Some((client, resets))) }
    }

    fn parts(&self) -> Result<(AdminClient, Resets), Fault> {
        self.parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or_else(|| Fault::closed("the controlling function"))
    }

    fn ask<'e, F>(&self, env: &'e Env, what: &'static str, work: F) -> napi::Result<Object<'e>>
    where
        F: FnOnce(&AdminClient) -> Result<Value, Fault> + Send + 'static,
    {
        let (client, _) = self.parts()?;
        run(env, what, move || Ok(work(&client)?.to_string()))
    }
}

fn cntlid_of(number: u32) -> Result<u16, Fault> {
    u16::try_from(number).map_err(|_| Fault::argument(format!("{number} is not a controller identifier (0 to 65535)")))
}

fn text(padded: &[u8]) -> String {
    String::from_utf8_lossy(padded).trim_matches(|c: char| c == ' ' || c == '\0').to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[napi]
impl NativeAdmin {
    #[napi]
    pub fn identify<'e>(&self, env: &'e Env, _cntlid: Option<u32>) -> napi::Result<Object<'e>> {
        self.ask(env, "identify", |client| {
            let id = client.identify_controller()?;
            let (major, minor, tertiary) = (id.ver >> 16, id.ver >> 8 & 0xff, id.ver & 0xff);
            Ok(json!({
                "cntlid": id.cntlid,
                "subnqn": text(&id.subnqn),
                "serialNumber": text(&id.sn),
                "modelNumber": text(&id.mn),
                "firmwareRevision": text(&id.fr),
                "version": format!("{major}.{minor}.{tertiary}"),
                "mdtsBytes": id.max_transfer_bytes(client.max_transfer_bytes()),
                "hmlms": id.migrates_others(),
                "virtualizationManagement": id.oacs & oacs::VIRTUALIZATION_MANAGEMENT != 0,
                "namespaceManagement": id.oacs & oacs::NAMESPACE_MANAGEMENT != 0,
                "trackMemory": id.trattr & trattr::HOST_MEMORY_CHANGES != 0,
                "maxNamespaces": id.nn,
            }))
        })
    }

    #[napi]
    pub fn primary_caps<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.ask(env, "primary-caps", |client| {
            let c = client.primary_capabilities()?;
            let resource = |total: u32, assigned: u32, primary: u16, private: u16, most: u16, granularity: u16| {
                json!({
                    "flexibleTotal": total, "flexibleAssigned": assigned, "flexibleToPrimary": primary,
                    "privateToPrimary": private, "maxPerSecondary": most, "granularity": granularity,
                })
            };
            Ok(json!({
                "vq": resource(c.vqfrt, c.vqrfa, c.vqrfap, c.vqprt, c.vqfrsm, c.vqgran),
                "vi": resource(c.vifrt, c.virfa, c.virfap, c.viprt, c.vifrsm, c.vigran),
            }))
        })
    }

    #[napi]
    pub fn secondary_list<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.ask(env, "secondary-list", |client| {
            let list = client.secondary_controllers()?;
            Ok(list
                .iter()
                .map(|s| {
                    json!({
                        "cntlid": s.scid, "primaryCntlid": s.pcid, "online": s.online(), "vfNumber": s.vfn,
                        "vq": s.nvq, "vi": s.nvi,
                    })
                })
                .collect())
        })
    }

    #[napi]
    pub fn state_formats<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.ask(env, "state-formats", |client| {
            let formats = client.state_formats()?;
            let uuids: Vec<String> = formats.uuids.iter().map(|u| Uuid::from_bytes(*u).to_string()).collect();
            Ok(json!({ "versions": formats.versions, "uuids": uuids }))
        })
    }

    #[napi]
    pub fn namespaces<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        self.ask(env, "namespaces", |client| {
            let active = client.active_namespaces()?;
            client
                .allocated_namespaces()?
                .into_iter()
                .map(|nsid| {
                    let ns = client.identify_allocated_namespace(nsid)?;
                    // Of one that is private to another controller only what is above can be asked here: its NGUID, and no UUID.
                    let ids =
                        if active.contains(&nsid) { client.namespace_ids(nsid)? } else { NamespaceIds::default() };
                    let block = ns.block_bytes().unwrap_or(0);
                    Ok(json!({
                        "nsid": nsid,
                        "sizeBytes": (u128::from(ns.nsze) * u128::from(block)).to_string(),
                        "lbaSizeBytes": block,
                        "nguid": hex(&ids.nguid.unwrap_or(ns.nguid)),
                        "uuid": ids.uuid.map(|u| Uuid::from_bytes(u).to_string()).unwrap_or_default(),
                        "shared": ns.nmic & 1 != 0,
                        "attached": client.attached_controllers(nsid)?,
                    }))
                })
                .collect::<Result<Value, Fault>>()
        })
    }

    #[napi]
    pub fn virtualization_manage<'e>(
        &self,
        env: &'e Env,
        action: String,
        cntlid: u32,
        resource: String,
        count: u32,
    ) -> napi::Result<Object<'e>> {
        let action = match action.as_str() {
            "primary" => VirtualizationAction::AllocatePrimary,
            "offline" => VirtualizationAction::Offline,
            "assign" => VirtualizationAction::Assign,
            "online" => VirtualizationAction::Online,
            _ => return Err(Fault::argument(format!("{action} is no action: primary, offline, assign, online")).into()),
        };
        let resource = match resource.as_str() {
            "vq" => Resource::Queues,
            "vi" => Resource::Interrupts,
            _ => return Err(Fault::argument(format!("{resource} is no resource: vq, vi")).into()),
        };
        let cntlid = cntlid_of(cntlid)?;
        let count = u16::try_from(count).map_err(|_| Fault::argument(format!("count is {count}; at most 65535")))?;
        let (client, _) = self.parts()?;
        run(env, "virtualization", move || {
            Ok(u32::from(client.virtualization_manage(action, cntlid, resource, count)?))
        })
    }

    #[napi]
    pub fn attach_namespace<'e>(&self, env: &'e Env, nsid: u32, cntlids: Vec<u32>) -> napi::Result<Object<'e>> {
        let cntlids = cntlids.into_iter().map(cntlid_of).collect::<Result<Vec<_>, _>>()?;
        let (client, _) = self.parts()?;
        run(env, "namespace-attach", move || Ok(client.namespace_attach(nsid, &cntlids)?))
    }

    #[napi]
    pub fn detach_namespace<'e>(&self, env: &'e Env, nsid: u32, cntlids: Vec<u32>) -> napi::Result<Object<'e>> {
        let cntlids = cntlids.into_iter().map(cntlid_of).collect::<Result<Vec<_>, _>>()?;
        let (client, _) = self.parts()?;
        run(env, "namespace-detach", move || Ok(client.namespace_detach(nsid, &cntlids)?))
    }

    /// Whether the device has the vendor specific feature that limits rates.
    #[napi]
    pub fn has_rate_limit<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let (client, _) = self.parts()?;
        run(env, "rate-limit", move || Ok(client.has_rate_limit()?))
    }

    /// 0 for no limit.
    #[napi]
    pub fn set_rate_limit<'e>(
        &self,
        env: &'e Env,
        cntlid: u32,
        bytes_per_second: BigInt,
        commands_per_second: u32,
    ) -> napi::Result<Object<'e>> {
        let cntlid = cntlid_of(cntlid)?;
        let bytes_per_s = u64_of("bytesPerSecond", &bytes_per_second)?;
        let limit = RateLimit { bytes_per_s, commands_per_s: commands_per_second };
        let (client, _) = self.parts()?;
        run(env, "rate-limit", move || Ok(client.set_rate_limit(cntlid, limit)?))
    }

    /// `{bytesPerSecond (decimal), commandsPerSecond}`; 0 for no limit.
    #[napi]
    pub fn rate_limit<'e>(&self, env: &'e Env, cntlid: u32) -> napi::Result<Object<'e>> {
        let cntlid = cntlid_of(cntlid)?;
        self.ask(env, "rate-limit", move |client| {
            let limit = client.rate_limit(cntlid)?;
            Ok(json!({
                "bytesPerSecond": limit.bytes_per_s.to_string(), "commandsPerSecond": limit.commands_per_s,
            }))
        })
    }

    #[napi]
    pub fn state_channel(&self, cntlid: u32) -> napi::Result<NativeStateChannel> {
        let cntlid = cntlid_of(cntlid)?;
        let (client, resets) = self.parts()?;
        let (opened, reset) = (None, Some(resets(cntlid)));
        Ok(NativeStateChannel::new(Box::new(OnFirstUse { client, config: HmlmConfig::new(cntlid), reset, opened })))
    }

    #[napi]
    pub fn dirty_source(&self, cntlid: u32) -> napi::Result<NativeDirtySource> {
        let (client, _) = self.parts()?;
        Ok(NativeDirtySource::new(Box::new(TrackReceiveSource::new(client, TrackConfig::new(cntlid_of(cntlid)?)))))
    }

    #[napi]
    pub fn close(&self) {
        *self.parts.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
