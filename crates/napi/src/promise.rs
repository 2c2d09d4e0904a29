//! Blocking work on a thread of its own, as a promise. Not libuv's pool: a step of a migration may wait for its peer, and four
//! of them would stop every file access of the process.

use std::panic::{AssertUnwindSafe, catch_unwind};

use napi::bindgen_prelude::{Object, ToNapiValue};
use napi::{Env, JsDeferred};

use crate::fault::Fault;
use crate::workers::Workers;

type Resolver<T> = Box<dyn FnOnce(Env) -> napi::Result<T>>;

/// A panic is a bug, and still an answer: a promise that stays pending for ever would hang its caller.
fn guarded<T>(what: &str, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    // Nothing of `work` is used again after a panic but what is behind locks, whose owners decide about poison themselves.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Fault::new("ERR_TOWLINE_INTERNAL", format!("a bug in {what}: {words}")))
    })
}

static WORKERS: Workers = Workers::new();

/// Runs `work` on a thread of its own; the promise settles with its result.
pub fn run<'e, T, F>(env: &'e Env, what: &'static str, work: F) -> napi::Result<Object<'e>>
where
    T: ToNapiValue + Send + 'static,
    F: FnOnce() -> Result<T, Fault> + Send + 'static,
{
    let (deferred, promise): (JsDeferred<T, Resolver<T>>, Object<'e>) = env.create_deferred()?;
    WORKERS
        .run(move || match guarded(what, work) {
            Ok(value) => deferred.resolve(Box::new(move |_| Ok(value))),
            Err(fault) => deferred.reject(fault.into()),
        })
        .map_err(|e| Fault::new("ERR_TOWLINE_SYSTEM", format!("no thread could be started for {what}: {e}")))?;
    Ok(promise)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_answer() {
        let fault = guarded::<()>("a test", || panic!("on purpose")).expect_err("it has panicked");
        assert_eq!((fault.code, fault.message.as_str()), ("ERR_TOWLINE_INTERNAL", "a bug in a test: on purpose"));
        assert_eq!(guarded("a test", || Ok(1)).ok(), Some(1));
    }
}
