//! 64-bit numbers between JavaScript and Rust, checked for sign and loss in one place.

use napi::bindgen_prelude::BigInt;

use crate::fault::Fault;

/// A `bigint` of 0 .. 2^64.
pub fn u64_of(name: &str, value: &BigInt) -> Result<u64, Fault> {
    let (negative, number, lossless) = value.get_u64();
    if (negative && number != 0) || !lossless {
        return Err(Fault::argument(format!("{name} has to be a bigint from 0n to 2n ** 64n - 1n")));
    }
    Ok(number)
}

/// A 64-bit number as a decimal string inside of JSON, or a JSON number that is exact.
pub fn u64_of_json(name: &str, value: &serde_json::Value) -> Result<u64, Fault> {
    value.as_u64().or_else(|| value.as_str().and_then(|s| s.parse().ok())).ok_or_else(|| {
        Fault::argument(format!("{name} has to be a whole number from 0 to 2^64 - 1, or a decimal string of one"))
    })
}
