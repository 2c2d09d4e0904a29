//! Devlink for JavaScript.

use napi::Env;
use napi::bindgen_prelude::Object;
use napi_derive::napi;
use serde::Deserialize;
use serde_json::{Value, json};
use towline_linux::devlink::{
    Devlink, EswitchMode, Flavour, FunctionChange, Handle, NewPort, OperationalState, Port, PortState,
};

use crate::fault::Fault;
use crate::promise::run;

fn hex(address: &[u8]) -> String {
    address.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

/// `00:11:22:33:44:55`
fn hw_addr(text: &str) -> Result<Vec<u8>, Fault> {
    let byte = |digits: &str| {
        let plain = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        plain.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.split(':').take(32).map(byte).collect();
    bytes.ok_or_else(|| Fault::argument(format!("{text:?} is not a hardware address, as 00:11:22:33:44:55 is one")))
}

fn port_json(port: &Port) -> Value {
    let function = port.function.as_ref().map(|f| {
        json!({
            "hwAddr": f.hw_addr.as_deref().map(hex),
            "state": f.state.map(|s| if s == PortState::Active { "active" } else { "inactive" }),
            "opstate": f.opstate.map(|s| if s == OperationalState::Attached { "attached" } else { "detached" }),
            "migratable": f.migratable,
            "roce": f.roce,
        })
    });
    json!({
        "bus": port.device.bus(),
        "device": port.device.device(),
        "index": port.index,
        "flavour": port.flavour.name(),
        "netdev": port.netdev,
        "controller": port.controller,
        "pf": port.pf,
        "vf": port.vf,
        "sf": port.sf,
        "function": function,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ChangeJson {
    hw_addr: Option<String>,
    state: Option<String>,
    migratable: Option<bool>,
    roce: Option<bool>,
}

impl ChangeJson {
    fn change(self) -> Result<FunctionChange, Fault> {
        let state = match self.state.as_deref() {
            None => None,
            Some("active") => Some(PortState::Active),
            Some("inactive") => Some(PortState::Inactive),
            Some(other) => return Err(Fault::argument(format!("{other:?} is no state: active, inactive"))),
        };
        let hw_addr = self.hw_addr.as_deref().map(hw_addr).transpose()?;
        Ok(FunctionChange { hw_addr, migratable: self.migratable, roce: self.roce, state })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPortJson {
    flavour: String,
    pf: u16,
    sf: Option<u32>,
    controller: Option<u32>,
}

fn shape(e: serde_json::Error) -> Fault {
    Fault::argument(format!("the argument has not its documented shape: {e}"))
}

#[napi]
pub fn devlink_ports<'e>(env: &'e Env) -> napi::Result<Object<'e>> {
    run(env, "devlink-ports", || Ok(Devlink::open()?.ports()?.iter().map(port_json).collect::<Value>().to_string()))
}

#[napi]
pub fn devlink_devices<'e>(env: &'e Env) -> napi::Result<Object<'e>> {
    run(env, "devlink-devices", || {
        let devices = Devlink::open()?.devices()?;
        Ok(devices.iter().map(|d| json!({ "bus": d.bus(), "device": d.device() })).collect::<Value>().to_string())
    })
}

#[napi]
pub fn devlink_set_port<'e>(
    env: &'e Env,
    bus: String,
    device: String,
    index: u32,
    function_json: String,
) -> napi::Result<Object<'e>> {
    run(env, "devlink-set-port", move || {
        let change = serde_json::from_str::<ChangeJson>(&function_json).map_err(shape)?.change()?;
        Ok(Devlink::open()?.set_port(&Handle::new(&bus, &device)?, index, &change)?)
    })
}

#[napi]
pub fn devlink_new_port<'e>(env: &'e Env, bus: String, device: String, port: String) -> napi::Result<Object<'e>> {
    run(env, "devlink-new-port", move || {
        let json: NewPortJson = serde_json::from_str(&port).map_err(shape)?;
        if json.flavour != "pci-sf" {
            return Err(Fault::argument(format!("a port of flavour {:?} can't be made, only pci-sf", json.flavour)));
        }
        let new = NewPort { flavour: Flavour::PciSf, pf: json.pf, sf: json.sf, controller: json.controller };
        Ok(port_json(&Devlink::open()?.new_port(&Handle::new(&bus, &device)?, &new)?).to_string())
    })
}

#[napi]
pub fn devlink_delete_port<'e>(env: &'e Env, bus: String, device: String, index: u32) -> napi::Result<Object<'e>> {
    run(env, "devlink-delete-port", move || Ok(Devlink::open()?.delete_port(&Handle::new(&bus, &device)?, index)?))
}

#[napi]
pub fn devlink_eswitch_mode<'e>(env: &'e Env, bus: String, device: String) -> napi::Result<Object<'e>> {
    run(env, "devlink-eswitch", move || {
        let mode = Devlink::open()?.eswitch_mode(&Handle::new(&bus, &device)?)?;
        Ok(match mode {
            EswitchMode::Legacy => "legacy".to_owned(),
            EswitchMode::Switchdev => "switchdev".to_owned(),
            EswitchMode::SwitchdevInactive => "switchdev_inactive".to_owned(),
            other => format!("{other:?}"),
        })
    })
}

#[napi]
pub fn devlink_set_eswitch_mode<'e>(
    env: &'e Env,
    bus: String,
    device: String,
    mode: String,
) -> napi::Result<Object<'e>> {
    let mode = match mode.as_str() {
        "legacy" => EswitchMode::Legacy,
        "switchdev" => EswitchMode::Switchdev,
        _ => return Err(Fault::argument(format!("{mode:?} is no eswitch mode: legacy, switchdev")).into()),
    };
    run(env, "devlink-set-eswitch", move || Ok(Devlink::open()?.set_eswitch_mode(&Handle::new(&bus, &device)?, mode)?))
}
