//! Blocking work on a thread of its own, as a promise. Not libuv's pool: a step of a migration may wait for its peer, and four
//! of them would stop every file access of the process.

use napi::bindgen_prelude::{Object, ToNapiValue};
use napi::{Env, JsDeferred};

use crate::fault::Fault;

type Resolver<T> = Box<dyn FnOnce(Env) -> napi::Result<T>>;

/// Runs `work` on a new thread; the promise settles with its result.
pub fn run<'e, T, F>(env: &'e Env, what: &'static str, work: F) -> napi::Result<Object<'e>>
where
    T: ToNapiValue + Send + 'static,
    F: FnOnce() -> Result<T, Fault> + Send + 'static,
{
    let (deferred, promise): (JsDeferred<T, Resolver<T>>, Object<'e>) = env.create_deferred()?;
    std::thread::Builder::new()
        .name(format!("towline-{what}"))
        .spawn(move || match work() {
            Ok(value) => deferred.resolve(Box::new(move |_| Ok(value))),
            Err(fault) => deferred.reject(fault.into()),
        })
        .map_err(|e| Fault::new("ERR_TOWLINE_SYSTEM", format!("no thread could be started for {what}: {e}")))?;
    Ok(promise)
}
