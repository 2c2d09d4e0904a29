//! Forecasts as an object of JavaScript.

use std::sync::{Mutex, MutexGuard, PoisonError};

use napi_derive::napi;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use towline_core::forecast::{
    Convergence, Count, DeviceCost, Downtime, Estimate, Forecast, ForecastInput, Forecaster as Core, Hot, Limits,
    Obstacle, RoundObserved, Writer,
};

use crate::fault::Fault;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InputJson {
    memory_bytes: f64,
    working_set_bytes: Option<f64>,
    dirty_bytes_per_second: Vec<f64>,
    /// What devices dirty, on top.
    #[serde(default)]
    device_dirty_bytes_per_second: Vec<f64>,
    device_working_set_bytes: Option<f64>,
    /// Their hot pages only.
    #[serde(default)]
    hot: WriterJson,
    #[serde(default)]
    device_hot: WriterJson,
    bandwidth_bytes_per_second: Vec<f64>,
    state_bytes: f64,
    save_ms: f64,
    load_ms: f64,
    stop_ms: Vec<f64>,
    rtt_ms: f64,
    round_trips: u32,
    journal_sync_ms: f64,
    journal_syncs: u32,
    round_overhead_ms: f64,
    #[serde(default)]
    elapsed_ms: f64,
    max_downtime_ms: f64,
    max_rounds: u32,
    max_total_ms: f64,
}

impl InputJson {
    fn input(&self) -> ForecastInput {
        let device = |fixed_ms| DeviceCost { fixed_ms, bytes_per_s: None };
        ForecastInput {
            memory_bytes: self.memory_bytes as u64,
            working_set_bytes: self.working_set_bytes.map(|b| b as u64),
            dirty_bytes_per_s: Estimate::of_samples(&self.dirty_bytes_per_second),
            device_dirty_bytes_per_s: Estimate::of_samples(&self.device_dirty_bytes_per_second),
            device_working_set_bytes: self.device_working_set_bytes.map(|b| b as u64),
            hot: self.hot.hot(),
            device_hot: self.device_hot.hot(),
            bandwidth_bytes_per_s: Estimate::of_samples(&self.bandwidth_bytes_per_second),
            state_bytes: Estimate::exact(self.state_bytes),
            save: device(self.save_ms),
            load: device(self.load_ms),
            stop_ms: Estimate::of_next(&self.stop_ms),
            rtt_ms: self.rtt_ms,
            round_trips: self.round_trips,
            journal_sync_ms: self.journal_sync_ms,
            journal_syncs: self.journal_syncs,
            round_overhead_ms: self.round_overhead_ms,
            elapsed_ms: self.elapsed_ms,
            limits: Limits {
                max_downtime_ms: self.max_downtime_ms,
                max_rounds: self.max_rounds,
                max_total_ms: Some(self.max_total_ms),
            },
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RoundJson {
    bytes: f64,
    ms: f64,
    dirtied_bytes: f64,
    #[serde(default)]
    device_dirtied_bytes: f64,
    interval_ms: f64,
}

#[derive(Deserialize)]
struct CountJson {
    ms: f64,
    bytes: f64,
}

impl CountJson {
    fn count(&self) -> Count {
        Count { ms: self.ms, bytes: self.bytes }
    }
}

#[derive(Deserialize)]
struct PaceJson {
    others: CountJson,
    devices: CountJson,
}

#[derive(Deserialize, Serialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WriterJson {
    bytes_per_second: f64,
    working_set_bytes: Option<f64>,
    hot_bytes: f64,
    hot_bytes_per_second: f64,
}

impl WriterJson {
    fn of(writer: Writer) -> Self {
        Self {
            bytes_per_second: writer.bytes_per_s,
            working_set_bytes: writer.working_set_bytes.map(|b| b as f64),
            hot_bytes: writer.hot_bytes,
            hot_bytes_per_second: writer.hot_bytes_per_s,
        }
    }

    fn writer(&self) -> Writer {
        Writer {
            bytes_per_s: self.bytes_per_second,
            working_set_bytes: self.working_set_bytes.map(|b| b as u64),
            hot_bytes: self.hot_bytes,
            hot_bytes_per_s: self.hot_bytes_per_second,
        }
    }

    fn hot(&self) -> Hot {
        Hot { bytes: self.hot_bytes, bytes_per_s: self.hot_bytes_per_second }
    }
}

#[derive(Deserialize)]
struct WritersJson {
    others: WriterJson,
    devices: WriterJson,
    ms: f64,
}

fn shape(e: &serde_json::Error) -> Fault {
    Fault::argument(format!("the counts have not their documented shape: {e}"))
}

/// The writer that counts of different lengths show: `[{ms, bytes}]` ascending, to `{bytesPerSecond, workingSetBytes, hotBytes,
/// hotBytesPerSecond}`.
#[napi]
pub fn dirty_writer(counts_json: String) -> napi::Result<String> {
    let counts: Vec<CountJson> = serde_json::from_str(&counts_json).map_err(|e| shape(&e))?;
    let counts: Vec<Count> = counts.iter().map(CountJson::count).collect();
    Ok(json!(WriterJson::of(Writer::of_counts(&counts))).to_string())
}

fn downtime(d: Downtime) -> Value {
    json!({ "p50": d.p50, "p95": d.p95 })
}

fn obstacle(o: Obstacle) -> &'static str {
    match o {
        Obstacle::NoBandwidth => "no-bandwidth",
        Obstacle::StopCost => "stop-cost",
        Obstacle::RoundLimit => "round-limit",
        Obstacle::TimeLimit => "time-limit",
        _ => "dirty-rate",
    }
}

fn forecast_json(f: &Forecast) -> String {
    let (obstacle, needs) = match &f.convergence {
        Convergence::Converges => (Value::Null, Value::Null),
        Convergence::Fails { obstacle: o, needs } => (
            json!(obstacle(*o)),
            json!({
                "bandwidthBytesPerSecond": needs.bandwidth_bytes_per_s, "dirtyBytesPerSecond": needs.dirty_bytes_per_s,
                "maxDowntimeMs": needs.max_downtime_ms, "throttlePercent": needs.throttle_percent,
                "deviceDirtyBytesPerSecond": needs.device_dirty_bytes_per_s,
            }),
        ),
    };
    json!({
        "totalMs": f.total_ms, "downtimeMs": downtime(f.downtime_ms), "rounds": f.rounds, "memoryBytes": f.memory_bytes,
        "converges": f.convergence.converges(), "obstacle": obstacle, "needs": needs,
    })
    .to_string()
}

/// See `NativeForecaster` in `ts/native/binding.ts`.
#[napi]
pub struct Forecaster {
    core: Mutex<Core>,
}

impl Forecaster {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[napi]
impl Forecaster {
    #[napi(constructor)]
    pub fn new(input_json: String) -> napi::Result<Self> {
        let json: InputJson = serde_json::from_str(&input_json)
            .map_err(|e| Fault::argument(format!("the forecast's input has not its documented shape: {e}")))?;
        Ok(Self { core: Mutex::new(Core::new(json.input())) })
    }

    #[napi]
    pub fn observe_round(&self, round_json: String) -> napi::Result<()> {
        let r: RoundJson = serde_json::from_str(&round_json)
            .map_err(|e| Fault::argument(format!("the round has not its documented shape: {e}")))?;
        self.lock().observe_round(RoundObserved {
            bytes: r.bytes as u64,
            ms: r.ms,
            dirtied_bytes: r.dirtied_bytes as u64,
            device_dirtied_bytes: r.device_dirtied_bytes as u64,
            interval_ms: r.interval_ms,
        });
        Ok(())
    }

    /// They are these from now on: `{others, devices, ms}`.
    #[napi]
    pub fn observe_writers(&self, json: String) -> napi::Result<()> {
        let w: WritersJson = serde_json::from_str(&json).map_err(|e| shape(&e))?;
        self.lock().observe_writers(w.others.writer(), w.devices.writer(), w.ms);
        Ok(())
    }

    /// The same writers at the pace of `{others, devices}`, each `{ms, bytes}`.
    #[napi]
    pub fn observe_pace(&self, json: String) -> napi::Result<()> {
        let p: PaceJson = serde_json::from_str(&json).map_err(|e| shape(&e))?;
        self.lock().observe_pace(p.others.count(), p.devices.count());
        Ok(())
    }

    /// The writers as known now: `{others, devices}`.
    #[napi]
    pub fn writers(&self) -> String {
        let (others, devices) = self.lock().writers();
        json!({ "others": WriterJson::of(others), "devices": WriterJson::of(devices) }).to_string()
    }

    /// The forecast of another attempt from the start.
    #[napi]
    pub fn forecast_again(&self) -> String {
        forecast_json(&self.lock().forecast_again())
    }

    /// So many bytes are to be sent next.
    #[napi]
    pub fn observe_pending(&self, bytes: f64) {
        self.lock().observe_pending(bytes as u64);
    }

    #[napi]
    pub fn observe_state_bytes(&self, bytes: f64) {
        self.lock().observe_state_size(bytes as u64);
    }

    #[napi]
    pub fn forecast(&self) -> String {
        forecast_json(&self.lock().forecast())
    }

    #[napi]
    pub fn downtime_now(&self) -> String {
        downtime(self.lock().downtime_now()).to_string()
    }
}
