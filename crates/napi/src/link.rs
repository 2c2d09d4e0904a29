//! Links and listeners as objects of JavaScript.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::Object;
use napi_derive::napi;
use serde_json::Value;
use towline_engine::cancel::Cancel;
use towline_engine::link::{
    Address, ByteSink, ByteSource, CallbackLink, Link, LinkOptions, Listener, connect as connect_to,
};

use crate::bridge::BridgeInner;
use crate::fault::Fault;
use crate::promise::run;

/// See `NativeLink` in `ts/native/binding.ts`.
#[napi]
pub struct NativeLink {
    link: Mutex<Option<Box<dyn Link>>>,
    peer: String,
}

impl NativeLink {
    fn new(link: Box<dyn Link>) -> Self {
        Self { peer: link.peer().to_owned(), link: Mutex::new(Some(link)) }
    }

    pub fn of_bridge(bridge: Arc<BridgeInner>) -> Self {
        let source = JsSource { bridge: bridge.clone(), under_way: None, rest: Vec::new() };
        let link = CallbackLink::new(
            Box::new(source),
            Box::new(JsSink { bridge }),
            "the caller's byte stream".into(),
            &LinkOptions::default(),
        );
        Self::new(Box::new(link))
    }

    /// For a session, once.
    pub fn take(&self) -> Result<Box<dyn Link>, Fault> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(|| Fault::closed("the link"))
    }
}

#[napi]
impl NativeLink {
    #[napi]
    pub fn peer(&self) -> String {
        self.peer.clone()
    }

    #[napi]
    pub fn close(&self) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn options(timeout_ms: u32, allow_remote_plaintext: bool) -> LinkOptions {
    let mut options = LinkOptions { allow_remote_plaintext, ..LinkOptions::default() };
    if timeout_ms > 0 {
        options.idle_timeout = Duration::from_millis(u64::from(timeout_ms));
        options.connect_timeout = options.connect_timeout.min(options.idle_timeout);
    }
    options
}

#[napi]
pub fn connect<'e>(env: &'e Env, address: String, timeout_ms: u32) -> napi::Result<Object<'e>> {
    let address: Address = address.parse().map_err(Fault::from)?;
    run(env, "connect", move || {
        let link = connect_to(&address, &options(timeout_ms, false), &Cancel::new())?;
        Ok(NativeLink::new(Box::new(link)))
    })
}

/// See `NativeListener` in `ts/native/binding.ts`.
#[napi]
pub struct NativeListener {
    listener: Arc<Mutex<Option<Arc<Listener>>>>,
    address: String,
    cancel: Cancel,
}

/// Where no limit is given: longer than any process lives.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[napi]
pub fn listen(address: String, allow_remote_plaintext: bool, idle_timeout_ms: u32) -> napi::Result<NativeListener> {
    let address: Address = address.parse().map_err(Fault::from)?;
    let listener = Listener::bind(&address, options(idle_timeout_ms, allow_remote_plaintext)).map_err(Fault::from)?;
    Ok(NativeListener {
        address: listener.address().to_string(),
        listener: Arc::new(Mutex::new(Some(Arc::new(listener)))),
        cancel: Cancel::new(),
    })
}

#[napi]
impl NativeListener {
    #[napi]
    pub fn address(&self) -> String {
        self.address.clone()
    }

    #[napi]
    pub fn accept<'e>(&self, env: &'e Env, timeout_ms: u32) -> napi::Result<Object<'e>> {
        let listener = self
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or_else(|| Fault::closed("the listener"))?;
        let cancel = self.cancel.clone();
        let timeout = if timeout_ms == 0 { FOREVER } else { Duration::from_millis(u64::from(timeout_ms)) };
        run(env, "accept", move || Ok(NativeLink::new(Box::new(listener.accept(timeout, &cancel)?))))
    }

    #[napi]
    pub fn close(&self) {
        self.cancel.cancel();
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

type Piece = Result<Vec<u8>, Fault>;

/// Receives from a stream of JavaScript. The promise there can't be given up, so a read that timed out here is taken up by the
/// next one.
struct JsSource {
    bridge: Arc<BridgeInner>,
    under_way: Option<Receiver<Piece>>,
    rest: Vec<u8>,
}

fn js_error(fault: Fault) -> io::Error {
    io::Error::other(fault.message)
}

impl ByteSource for JsSource {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            let receiver = match self.under_way.take() {
                Some(receiver) => receiver,
                None => {
                    let (sender, receiver) = sync_channel(1);
                    let bridge = self.bridge.clone();
                    let most = out.len().min(1 << 20);
                    std::thread::Builder::new().name("towline-js-read".into()).spawn(move || {
                        let piece = bridge.call("receive", &Value::from(most), &[]).map(|(_, bytes)| bytes);
                        // Nobody waits any more where the session has ended.
                        let _ = sender.send(piece);
                    })?;
                    receiver
                }
            };
            match receiver.recv_timeout(Duration::from_millis(50)) {
                Ok(Ok(bytes)) if bytes.is_empty() => return Ok(0),
                Ok(Ok(bytes)) => self.rest = bytes,
                Ok(Err(fault)) => return Err(js_error(fault)),
                Err(RecvTimeoutError::Timeout) => {
                    self.under_way = Some(receiver);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        let n = self.rest.len().min(out.len());
        for (to, from) in out.iter_mut().zip(self.rest.drain(..n)) {
            *to = from;
        }
        Ok(n)
    }
}

struct JsSink {
    bridge: Arc<BridgeInner>,
}

impl ByteSink for JsSink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let piece = data.get(..data.len().min(1 << 20)).unwrap_or(data);
        self.bridge.call("send", &Value::Null, piece).map_err(js_error)?;
        Ok(piece.len())
    }
}

impl Drop for JsSink {
    fn drop(&mut self) {
        // The stream's end. Not on this thread: it may be the one that JavaScript runs on.
        let bridge = self.bridge.clone();
        let end = move || drop(bridge.call("close", &Value::Null, &[]));
        let _ = std::thread::Builder::new().name("towline-js-close".into()).spawn(end);
    }
}
