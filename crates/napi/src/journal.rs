//! Journals, fences and recovery as objects of JavaScript.

use std::sync::{Arc, Mutex, PoisonError};

use napi::Env;
use napi::bindgen_prelude::Object;
use napi_derive::napi;
use serde_json::{Value, json};
use towline_engine::checkpoint;
use towline_engine::error::FenceError;
use towline_engine::fence::{Fence, Record, Role, check_append, epoch_of};
use towline_engine::journal::Journal;
use towline_engine::recover::{Verdict, ask, decide, declare_destination_dead, settle};
use uuid::Uuid;

use crate::bridge::BridgeInner;
use crate::fault::Fault;
use crate::link::NativeLink;
use crate::promise::run;

/// See `NativeFence` in `ts/native/binding.ts`.
#[napi]
pub struct NativeFence {
    fence: Mutex<Option<Arc<dyn Fence>>>,
}

impl NativeFence {
    pub fn new(fence: Arc<dyn Fence>) -> Self {
        Self { fence: Mutex::new(Some(fence)) }
    }

    pub fn of_bridge(bridge: Arc<BridgeInner>) -> Self {
        Self::new(Arc::new(JsFence { bridge }))
    }

    pub fn get(&self) -> Result<Arc<dyn Fence>, Fault> {
        self.fence.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| Fault::closed("the fence"))
    }
}

#[napi]
impl NativeFence {
    #[napi]
    pub fn close(&self) {
        *self.fence.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// See `NativeJournal` in `ts/native/binding.ts`.
#[napi]
pub struct NativeJournal {
    journal: Mutex<Option<Arc<Journal>>>,
}

fn session_of(text: &str) -> Result<Uuid, Fault> {
    text.parse().map_err(|_| Fault::argument(format!("{text} is not the UUID of a session")))
}

fn role_of(text: &str) -> Result<Role, Fault> {
    match text {
        "source" => Ok(Role::Source),
        "destination" => Ok(Role::Destination),
        _ => Err(Fault::argument(format!("{text} is no role: source, destination"))),
    }
}

/// Opens the journal in `directory`.
#[napi]
pub fn open_journal(directory: String) -> napi::Result<NativeJournal> {
    let journal = Journal::open(directory).map_err(Fault::from)?;
    Ok(NativeJournal { journal: Mutex::new(Some(Arc::new(journal))) })
}

#[napi]
impl NativeJournal {
    /// Every session on record: JSON list of {session, role, functions, epoch, state, verdict}.
    #[napi]
    pub fn sessions(&self) -> napi::Result<String> {
        let journal = self.get()?;
        let list = journal
            .sessions()
            .map_err(Fault::from)?
            .into_iter()
            .map(|(session, role)| {
                let records = match journal.records(session, role) {
                    // One file that can't be believed hides no other session.
                    Err(FenceError::Damaged { functions, .. }) => {
                        return Ok(json!({
                            "session": session.to_string(), "role": role, "functions": functions, "epoch": "0",
                            "state": "damaged", "verdict": Verdict::InDoubt,
                        }));
                    }
                    other => other?,
                };
                let functions = records.iter().find_map(|r| match r {
                    Record::Opened { functions, .. } => Some(functions.clone()),
                    _ => None,
                });
                let verdict = decide(role, &records, None);
                Ok(json!({
                    "session": session.to_string(), "role": role, "functions": functions.unwrap_or_default(),
                    "epoch": epoch_of(&records).unwrap_or(0).to_string(),
                    "state": records.last().map_or("unknown", Record::name), "verdict": verdict,
                }))
            })
            .collect::<Result<Vec<Value>, FenceError>>()
            .map_err(Fault::from)?;
        Ok(Value::from(list).to_string())
    }

    /// Settles one session, asking over `link` where it is in doubt: JSON {verdict, answer}.
    #[napi]
    pub fn recover<'e>(
        &self,
        env: &'e Env,
        session_id: String,
        role: String,
        link: Option<&NativeLink>,
    ) -> napi::Result<Object<'e>> {
        let journal = self.get()?;
        let (session, role) = (session_of(&session_id)?, role_of(&role)?);
        let mut link = link.map(NativeLink::take).transpose()?;
        run(env, "recover", move || {
            let records = match journal.records(session, role) {
                // Nothing is concluded, nor asked: a person decides, and the other sessions are not held up.
                Err(FenceError::Damaged { .. }) => {
                    return Ok(json!({ "verdict": Verdict::InDoubt, "answer": Value::Null }).to_string());
                }
                other => other?,
            };
            // A checkpoint has nobody who could be asked: its folder tells.
            if let Some((verdict, answer)) = checkpoint::recover(journal.as_ref(), session, role)? {
                return Ok(json!({ "verdict": verdict, "answer": answer }).to_string());
            }
            let mut answer = None;
            if decide(role, &records, None) == Verdict::InDoubt
                && let Some(link) = &mut link
            {
                let epoch = epoch_of(&records).unwrap_or(0);
                let functions = records.iter().find_map(|r| match r {
                    Record::Opened { functions, .. } => Some(functions.clone()),
                    _ => None,
                });
                answer = Some(ask(link.as_mut(), session, epoch, functions.unwrap_or_default())?);
            }
            let verdict = settle(journal.as_ref(), session, role, answer)?;
            Ok(json!({ "verdict": verdict, "answer": answer }).to_string())
        })
    }

    #[napi]
    pub fn declare_destination_dead(&self, session_id: String, reason: String) -> napi::Result<()> {
        let session = session_of(&session_id)?;
        Ok(declare_destination_dead(self.get()?.as_ref(), session, &reason).map_err(Fault::from)?)
    }

    #[napi]
    pub fn fence(&self) -> napi::Result<NativeFence> {
        Ok(NativeFence::new(self.get()?))
    }

    #[napi]
    pub fn close(&self) {
        *self.journal.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl NativeJournal {
    pub fn get(&self) -> Result<Arc<Journal>, Fault> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| Fault::closed("the journal"))
    }
}

/// A fence that is written in TypeScript. The rules are checked here, so that every fence has the same.
struct JsFence {
    bridge: Arc<BridgeInner>,
}

fn outside(fault: Fault) -> FenceError {
    FenceError::Outside { what: fault.message }
}

fn malformed(method: &str) -> FenceError {
    FenceError::Outside { what: format!("{method} answered something that is not its documented shape") }
}

impl Fence for JsFence {
    fn highest_epoch(&self, functions: &[String]) -> Result<u64, FenceError> {
        let (value, _) = self.bridge.call("highestEpoch", &json!({ "functions": functions }), &[]).map_err(outside)?;
        value.as_u64().ok_or_else(|| malformed("highestEpoch"))
    }

    fn append(&self, session: Uuid, role: Role, record: Record) -> Result<(), FenceError> {
        let records = self.records(session, role)?;
        let refuse = |why: &str| FenceError::Refused { session, refused: record.name(), why: why.to_owned() };
        check_append(role, &records, &record).map_err(refuse)?;
        if let Record::Opened { functions, epoch, .. } = &record
            && *epoch <= self.highest_epoch(functions)?
        {
            return Err(refuse("its epoch does not exceed one that was seen for its functions"));
        }
        let request = json!({
            "session": session.to_string(), "role": role, "record": record, "expected": records.len(),
        });
        match self.bridge.call("append", &request, &[]) {
            Ok(_) => Ok(()),
            Err(fault) if fault.details == Some(Value::from("ERR_TOWLINE_FENCED")) => Err(refuse(&fault.message)),
            Err(fault) => Err(outside(fault)),
        }
    }

    fn records(&self, session: Uuid, role: Role) -> Result<Vec<Record>, FenceError> {
        let request = json!({ "session": session.to_string(), "role": role });
        let (value, _) = self.bridge.call("records", &request, &[]).map_err(outside)?;
        serde_json::from_value(value).map_err(|_| malformed("records"))
    }

    fn sessions(&self) -> Result<Vec<(Uuid, Role)>, FenceError> {
        #[derive(serde::Deserialize)]
        struct Listed {
            session: Uuid,
            role: Role,
        }
        let (value, _) = self.bridge.call("sessions", &Value::Null, &[]).map_err(outside)?;
        let listed: Vec<Listed> = serde_json::from_value(value).map_err(|_| malformed("sessions"))?;
        Ok(listed.into_iter().map(|l| (l.session, l.role)).collect())
    }
}
