//! The embedded NVMe subsystem as an object of JavaScript.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use napi::Env;
use napi::bindgen_prelude::Object;
use napi_derive::napi;
use serde::Deserialize;
use serde_json::{Value, json};
use towline_core::channel::{ChannelError, ChannelErrorKind};
use towline_nvme::admin::AdminClient;
use towline_nvme::hmlm::FunctionReset;
use towline_nvme::model::{
    CONTROLLING_CNTLID, CommandSet, Controller, ControllerKind, EmbeddedAdmin, FaultAction, FaultId, FaultRule,
    InterruptSink, ModelError, NamespaceConfig, Rates, Subsystem, SubsystemConfig,
};
use towline_nvme::status::Status;
use towline_tenant::TenantInterrupts;
use uuid::Uuid;

use crate::admin::NativeAdmin;
use crate::fault::Fault;
use crate::memory::GuestMemory;
use crate::numbers::u64_of_json;
use crate::promise::run;
use crate::vfio_user::Exposed;

impl From<ModelError> for Fault {
    fn from(e: ModelError) -> Self {
        let errno = std::error::Error::source(&e)
            .and_then(|s| s.downcast_ref::<std::io::Error>())
            .and_then(std::io::Error::raw_os_error);
        let code = match &e {
            ModelError::Config { .. } => "ERR_TOWLINE_INVALID_ARGUMENT",
            _ if errno.is_some() => "ERR_TOWLINE_SYSTEM",
            _ => "ERR_TOWLINE_STATE",
        };
        Self { errno, ..Self::new(code, e.to_string()) }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigJson {
    uuid: Uuid,
    serial: String,
    namespaces: Vec<NamespaceJson>,
    further_pfs: u16,
    max_vfs: u16,
    max_siov: u16,
    flexible_vq: u32,
    flexible_vi: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamespaceJson {
    path: std::path::PathBuf,
    size_bytes: Value,
    lba_size_bytes: u32,
    nguid: Uuid,
    uuid: Uuid,
    shared: bool,
}

struct Raise(Arc<TenantInterrupts>);

impl InterruptSink for Raise {
    fn raise(&self, vector: u16) {
        self.0.raise(vector);
    }
}

/// FLR of a function of the model.
struct ModelReset {
    subsystem: Arc<Subsystem>,
    cntlid: u16,
}

impl FunctionReset for ModelReset {
    fn reset(&mut self) -> Result<(), ChannelError> {
        let controller = self.subsystem.controller(self.cntlid).ok_or_else(|| {
            ChannelError::new(ChannelErrorKind::Gone, format!("controller {} does not exist any more", self.cntlid))
        })?;
        controller.flr();
        Ok(())
    }
}

/// What a subsystem's object and the objects that came from it share; `None` once it is closed.
pub type SharedInner = Arc<Mutex<Option<Inner>>>;

pub struct Inner {
    pub subsystem: Arc<Subsystem>,
    /// Drivers of the controlling function, so that they can be stopped when a guest gets it.
    pub admins: Vec<Weak<EmbeddedAdmin>>,
    /// Controllers on vfio-user sockets, or about to be.
    pub exposed: HashMap<u16, Exposed>,
    interrupts: HashMap<u16, Arc<TenantInterrupts>>,
    /// Faults by the number that JavaScript knows; one for both queues is two rules.
    faults: HashMap<u32, Vec<FaultId>>,
    next_fault: u32,
}

/// Most faults of one subsystem: each is looked at for every command.
const MOST_FAULTS: usize = 1024;

impl Inner {
    /// Why a controller can't be had: a client of its socket has it.
    pub fn taken(&self, cntlid: u16) -> Option<Fault> {
        let server = self.exposed.get(&cntlid)?;
        let at = server.as_ref().map_or("a vfio-user socket".into(), |server| server.path().display().to_string());
        Some(Fault::new("ERR_TOWLINE_BUSY", format!("controller {cntlid} is exposed on {at}: hide it first")))
    }

    fn add(&mut self, fault: FaultJson) -> Result<u32, Fault> {
        if self.faults.len() >= MOST_FAULTS {
            return Err(Fault::new("ERR_TOWLINE_LIMIT", format!("at most {MOST_FAULTS} faults")));
        }
        let number = self.next_fault;
        self.next_fault = number
            .checked_add(1)
            .ok_or_else(|| Fault::new("ERR_TOWLINE_LIMIT", "no more numbers for faults: open the subsystem again"))?;
        let ids = fault.rules().into_iter().map(|rule| self.subsystem.faults().add(rule)).collect();
        self.faults.insert(number, ids);
        Ok(number)
    }
}

/// See `NativeSubsystem` in `ts/native/binding.ts`.
#[napi]
pub struct NativeSubsystem {
    inner: SharedInner,
}

/// Starts a subsystem; `config_json` is `EmbeddedConfig` of `ts/native/binding.ts`.
#[napi]
pub fn open_subsystem<'e>(env: &'e Env, config_json: String) -> napi::Result<Object<'e>> {
    let json: ConfigJson = serde_json::from_str(&config_json)
        .map_err(|e| Fault::argument(format!("the configuration has not its documented shape: {e}")))?;
    let namespaces = json
        .namespaces
        .into_iter()
        .map(|n| {
            Ok(NamespaceConfig {
                path: n.path,
                size_bytes: u64_of_json("sizeBytes", &n.size_bytes)?,
                lba_size_bytes: n.lba_size_bytes,
                nguid: n.nguid.into_bytes(),
                uuid: n.uuid.into_bytes(),
                shared: n.shared,
            })
        })
        .collect::<Result<Vec<_>, Fault>>()?;
    let config = SubsystemConfig {
        uuid: json.uuid.into_bytes(),
        serial: json.serial,
        namespaces,
        further_pfs: json.further_pfs,
        max_vfs: json.max_vfs,
        max_siov: json.max_siov,
        flexible_queues: json.flexible_vq,
        flexible_vectors: json.flexible_vi,
        ..SubsystemConfig::default()
    };
    run(env, "subsystem", move || {
        let subsystem = Subsystem::open(config)?;
        let inner = Inner {
            subsystem,
            admins: Vec::new(),
            exposed: HashMap::new(),
            interrupts: HashMap::new(),
            faults: HashMap::new(),
            next_fault: 0,
        };
        Ok(NativeSubsystem { inner: Arc::new(Mutex::new(Some(inner))) })
    })
}

pub fn cntlid_of(number: u32) -> Result<u16, Fault> {
    u16::try_from(number).map_err(|_| Fault::argument(format!("{number} is not a controller identifier (0 to 65535)")))
}

fn register(controller: &Arc<Controller>, offset: u64) -> u32 {
    let mut value = [0; 4];
    controller.synthesised_registers().read(offset, &mut value);
    u32::from_le_bytes(value)
}

pub const WHAT: &str = "the subsystem";

impl NativeSubsystem {
    pub fn shared(&self) -> SharedInner {
        self.inner.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Inner>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subsystem(&self) -> Result<Arc<Subsystem>, Fault> {
        Ok(self.lock().as_ref().ok_or_else(|| Fault::closed(WHAT))?.subsystem.clone())
    }

    pub fn controller(&self, cntlid: u32) -> Result<(Arc<Subsystem>, Arc<Controller>), Fault> {
        let subsystem = self.subsystem()?;
        let controller = subsystem
            .controller(cntlid_of(cntlid)?)
            .ok_or_else(|| Fault::new("ERR_TOWLINE_NOT_FOUND", format!("there is no controller {cntlid}")))?;
        Ok((subsystem, controller))
    }

    /// What a controller raises into; a tenant waits on it.
    pub fn interrupts(&self, cntlid: u32) -> Result<Arc<TenantInterrupts>, Fault> {
        let cntlid = cntlid_of(cntlid)?;
        let mut guard = self.lock();
        let inner = guard.as_mut().ok_or_else(|| Fault::closed(WHAT))?;
        Ok(inner.interrupts.entry(cntlid).or_insert_with(|| Arc::new(TenantInterrupts::new())).clone())
    }
}

#[napi]
impl NativeSubsystem {
    #[napi]
    pub fn controllers(&self) -> napi::Result<String> {
        let list: Vec<Value> = self
            .subsystem()?
            .controllers()
            .iter()
            .map(|c| {
                let kind = match c.kind() {
                    ControllerKind::Vf => "vf",
                    ControllerKind::Siov => "siov",
                    _ => "pf",
                };
                // CC.EN and CSTS.CFS, as any host reads them.
                let (cc, csts) = (register(c, 0x14), register(c, 0x1c));
                let (queues, vectors) = c.resources();
                json!({
                    "cntlid": c.cntlid(), "kind": kind, "controlling": c.cntlid() == CONTROLLING_CNTLID,
                    "vfNumber": c.virtual_function(), "online": c.online(), "enabled": cc & 1 != 0, "fatal": csts & 2 != 0,
                    "queues": queues, "vectors": vectors,
                })
            })
            .collect();
        Ok(Value::from(list).to_string())
    }

    #[napi]
    pub fn set_num_vfs(&self, count: u32) -> napi::Result<()> {
        let count = u16::try_from(count).map_err(|_| Fault::argument(format!("{count} VFs; at most 65535")))?;
        Ok(self.subsystem()?.set_num_vfs(count).map_err(Fault::from)?)
    }

    #[napi]
    pub fn create_siov(&self) -> napi::Result<u32> {
        Ok(u32::from(self.subsystem()?.create_siov().map_err(Fault::from)?))
    }

    #[napi]
    pub fn remove_siov(&self, cntlid: u32) -> napi::Result<()> {
        Ok(self.subsystem()?.remove_siov(cntlid_of(cntlid)?).map_err(Fault::from)?)
    }

    #[napi]
    pub fn admin(&self) -> napi::Result<NativeAdmin> {
        // Held throughout: nobody else gets the controlling function meanwhile.
        let mut guard = self.lock();
        let inner = guard.as_mut().ok_or_else(|| Fault::closed(WHAT))?;
        if let Some(fault) = inner.taken(CONTROLLING_CNTLID) {
            return Err(Fault { code: "ERR_TOWLINE_GONE", ..fault }.into());
        }
        let subsystem = inner.subsystem.clone();
        let transport = EmbeddedAdmin::new(&subsystem)
            .map_err(|e| Fault::new("ERR_TOWLINE_DEVICE", format!("the controlling function: {e}")))?;
        let transport = Arc::new(transport);
        inner.admins.retain(|admin| admin.strong_count() > 0);
        inner.admins.push(Arc::downgrade(&transport));
        let resets = Arc::new(move |cntlid| -> Box<dyn FunctionReset> {
            Box::new(ModelReset { subsystem: subsystem.clone(), cntlid })
        });
        Ok(NativeAdmin::new(AdminClient::new(transport), resets))
    }

    #[napi]
    pub fn attach_memory(&self, cntlid: u32, memory: &GuestMemory) -> napi::Result<()> {
        let interrupts = self.interrupts(cntlid)?;
        let (_, controller) = self.controller(cntlid)?;
        if let Some(fault) = self.lock().as_ref().and_then(|inner| inner.taken(controller.cntlid())) {
            return Err(fault.into());
        }
        controller.attach(memory.parts()?.memory, Arc::new(Raise(interrupts)));
        Ok(())
    }

    #[napi]
    pub fn detach_memory<'e>(&self, env: &'e Env, cntlid: u32) -> napi::Result<Object<'e>> {
        let (_, controller) = self.controller(cntlid)?;
        // What a client of its socket gave it is not the caller's to take away, and the caller's is gone already.
        let exposed = self.lock().as_ref().is_some_and(|inner| inner.taken(controller.cntlid()).is_some());
        run(env, "detach", move || {
            if !exposed {
                controller.detach();
            }
            Ok(())
        })
    }

    #[napi]
    pub fn flr<'e>(&self, env: &'e Env, cntlid: u32) -> napi::Result<Object<'e>> {
        let (_, controller) = self.controller(cntlid)?;
        run(env, "flr", move || {
            controller.flr();
            Ok(())
        })
    }

    #[napi]
    pub fn set_faults(&self, json: String) -> napi::Result<()> {
        let list: Vec<FaultJson> = serde_json::from_str(&json)
            .map_err(|e| Fault::argument(format!("the faults have not their documented shape: {e}")))?;
        let mut guard = self.lock();
        let inner = guard.as_mut().ok_or_else(|| Fault::closed(WHAT))?;
        inner.subsystem.faults().clear();
        inner.faults.clear();
        for fault in list {
            inner.add(fault)?;
        }
        Ok(())
    }

    #[napi]
    pub fn add_fault(&self, json: String) -> napi::Result<u32> {
        let fault: FaultJson = serde_json::from_str(&json)
            .map_err(|e| Fault::argument(format!("the fault has not its documented shape: {e}")))?;
        let mut guard = self.lock();
        Ok(guard.as_mut().ok_or_else(|| Fault::closed(WHAT))?.add(fault)?)
    }

    #[napi]
    pub fn remove_fault(&self, number: u32) -> napi::Result<()> {
        let mut guard = self.lock();
        let inner = guard.as_mut().ok_or_else(|| Fault::closed(WHAT))?;
        for id in inner.faults.remove(&number).unwrap_or_default() {
            inner.subsystem.faults().remove(id);
        }
        Ok(())
    }

    /// How many commands a fault has hit; 0 where it is gone. Exact below 2^53.
    #[napi]
    pub fn fault_hits(&self, number: u32) -> napi::Result<f64> {
        let guard = self.lock();
        let inner = guard.as_ref().ok_or_else(|| Fault::closed(WHAT))?;
        let ids = inner.faults.get(&number).map(Vec::as_slice).unwrap_or_default();
        let hits = ids.iter().filter_map(|id| inner.subsystem.faults().hits(*id)).fold(0u64, u64::saturating_add);
        Ok(hits as f64)
    }

    #[napi]
    pub fn set_rates(&self, json: String) -> napi::Result<()> {
        let rates: RatesJson = serde_json::from_str(&json)
            .map_err(|e| Fault::argument(format!("the rates have not their documented shape: {e}")))?;
        self.subsystem()?.faults().set_rates(Rates {
            save_bytes_per_s: rates.save_bytes_per_second.unwrap_or(0.0) as u64,
            load_bytes_per_s: rates.load_bytes_per_second.unwrap_or(0.0) as u64,
            save_latency_ms: rates.save_latency_ms.unwrap_or(0.0) as u32,
            load_latency_ms: rates.load_latency_ms.unwrap_or(0.0) as u32,
            io_latency_us: (rates.io_latency_ms.unwrap_or(0.0) * 1000.0) as u32,
        });
        Ok(())
    }

    #[napi]
    pub fn close<'e>(&self, env: &'e Env) -> napi::Result<Object<'e>> {
        let inner = self.lock().take();
        run(env, "subsystem-close", move || {
            if let Some(inner) = inner {
                inner.exposed.values().flatten().for_each(|server| server.close());
                inner.subsystem.close();
            }
            Ok(())
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RatesJson {
    save_bytes_per_second: Option<f64>,
    load_bytes_per_second: Option<f64>,
    save_latency_ms: Option<f64>,
    load_latency_ms: Option<f64>,
    io_latency_ms: Option<f64>,
}

#[derive(Deserialize, Clone, Copy)]
struct FaultJson {
    cntlid: Option<u16>,
    queue: Option<QueueJson>,
    opcode: Option<u8>,
    nth: Option<u32>,
    count: Option<u32>,
    action: ActionJson,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum QueueJson {
    Admin,
    Io,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum ActionJson {
    Status {
        sct: u8,
        sc: u8,
        #[serde(default)]
        dnr: bool,
    },
    Delay {
        ms: u32,
    },
    DropCompletion,
    Repeat,
    Hang,
}

impl FaultJson {
    fn rules(self) -> Vec<FaultRule> {
        let action = match self.action {
            ActionJson::Status { sct, sc, dnr } => FaultAction::Status(Status { sct, sc, dnr }),
            ActionJson::Delay { ms } => FaultAction::DelayMs(ms),
            ActionJson::DropCompletion => FaultAction::DropCompletion,
            ActionJson::Repeat => FaultAction::Repeat,
            ActionJson::Hang => FaultAction::Hang,
        };
        let rule = |set| FaultRule {
            cntlid: self.cntlid,
            set,
            opcode: self.opcode,
            nth: u64::from(self.nth.unwrap_or(1)),
            count: match self.count.unwrap_or(1) {
                0 => u64::MAX,
                n => u64::from(n),
            },
            action,
        };
        match self.queue {
            Some(QueueJson::Admin) => vec![rule(CommandSet::Admin)],
            Some(QueueJson::Io) => vec![rule(CommandSet::Io)],
            None => vec![rule(CommandSet::Admin), rule(CommandSet::Io)],
        }
    }
}
