//! BAR policies as JavaScript gives them, compiled to the flat layout that anybody can evaluate.

use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;
use serde::Deserialize;
use serde_json::json;
use towline_core::bar::{Access, Action, DefaultAction, Fill, Filter, Pattern, Policy, Rule};

use crate::fault::Fault;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PolicyJson {
    bar_bytes: String,
    default_read: DefaultJson,
    default_write: DefaultJson,
    rules: Vec<RuleJson>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum DefaultJson {
    Pass,
    DenyOnes,
    DenyZeros,
    Trap,
}

#[derive(Deserialize)]
struct RuleJson {
    name: String,
    offset: String,
    length: String,
    access: AccessJson,
    action: ActionJson,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum AccessJson {
    Read,
    Write,
    Both,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum FillJson {
    Ones,
    Zeros,
}

#[derive(Deserialize)]
struct PatternJson {
    bytes: u8,
    value: String,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum ActionJson {
    Pass,
    Deny { fill: FillJson },
    Trap,
    Bits { and: PatternJson, or: PatternJson },
    WriteOneToClear { initial: PatternJson },
    Hide,
    Truncate,
}

fn number(name: &str, text: &str) -> Result<u64, Fault> {
    text.parse()
        .map_err(|_| Fault::argument(format!("{name} is {text}; it has to be a decimal number from 0 to 2^64 - 1")))
}

fn fill(fill: FillJson) -> Fill {
    match fill {
        FillJson::Ones => Fill::Ones,
        FillJson::Zeros => Fill::Zeros,
    }
}

fn default_action(action: DefaultJson) -> DefaultAction {
    match action {
        DefaultJson::Pass => DefaultAction::Pass,
        DefaultJson::DenyOnes => DefaultAction::Deny(Fill::Ones),
        DefaultJson::DenyZeros => DefaultAction::Deny(Fill::Zeros),
        DefaultJson::Trap => DefaultAction::Trap,
    }
}

fn pattern(json: &PatternJson) -> Result<Pattern, Fault> {
    let value = number("a pattern", &json.value)?;
    let bad = || Fault::argument(format!("a pattern of {} bytes can't be {value}; 1, 2, 4 or 8 bytes", json.bytes));
    Ok(match json.bytes {
        1 => Pattern::u8(value.try_into().map_err(|_| bad())?),
        2 => Pattern::u16(value.try_into().map_err(|_| bad())?),
        4 => Pattern::u32(value.try_into().map_err(|_| bad())?),
        8 => Pattern::u64(value),
        _ => return Err(bad()),
    })
}

fn rule(json: RuleJson) -> Result<Rule, Fault> {
    let access = match json.access {
        AccessJson::Read => Access::Read,
        AccessJson::Write => Access::Write,
        AccessJson::Both => Access::Both,
    };
    let action = match &json.action {
        ActionJson::Pass => Action::Pass,
        ActionJson::Deny { fill: f } => Action::Deny(fill(*f)),
        ActionJson::Trap => Action::Trap,
        ActionJson::Bits { and, or } => Action::Bits { and: pattern(and)?, or: pattern(or)? },
        ActionJson::WriteOneToClear { initial } => Action::WriteOneToClear { initial: pattern(initial)? },
        ActionJson::Hide => Action::Hide,
        ActionJson::Truncate => Action::Truncate,
    };
    let (offset, len) = (number("an offset", &json.offset)?, number("a length", &json.length)?);
    Ok(Rule { name: json.name, offset, len, access, action })
}

/// Compiles a policy to its flat layout.
#[napi]
pub fn compile_bar_policy(policy_json: String) -> napi::Result<Uint8Array> {
    let json: PolicyJson = serde_json::from_str(&policy_json)
        .map_err(|e| Fault::argument(format!("the policy has not its documented shape: {e}")))?;
    let policy = Policy {
        bar_bytes: number("barBytes", &json.bar_bytes)?,
        default_read: default_action(json.default_read),
        default_write: default_action(json.default_write),
        rules: json.rules.into_iter().map(rule).collect::<Result<_, _>>()?,
    };
    let filter = policy.compile().map_err(|e| Fault::new("ERR_TOWLINE_POLICY", e.to_string()))?;
    Ok(Uint8Array::new(filter.as_bytes().to_vec()))
}

/// The largest runs that may be mapped straight through.
#[napi]
pub fn bar_mmap_plan(filter: &[u8], page_size_bytes: u32) -> napi::Result<String> {
    let filter = Filter::from_bytes(filter).map_err(|e| Fault::argument(e.to_string()))?;
    let plan = filter.mmap_plan(u64::from(page_size_bytes)).map_err(|e| Fault::argument(e.to_string()))?;
    let runs: Vec<_> =
        plan.iter().map(|r| json!({ "offset": r.offset.to_string(), "len": r.len.to_string() })).collect();
    Ok(serde_json::Value::from(runs).to_string())
}

/// CRC32C; `seed` is 0 or the CRC of what comes before.
#[napi(js_name = "crc32c")]
pub fn crc32c(seed: u32, data: &[u8]) -> u32 {
    towline_core::crc::crc32c(seed, data)
}
