//! The dirty source of a KVM virtual machine against a real guest on real vCPUs. Without `/dev/kvm` everything is ignored, with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(target_arch = "x86_64")]
mod cases;
#[cfg(target_arch = "x86_64")]
mod guest;
#[path = "../harness/mod.rs"]
mod harness;
#[cfg(target_arch = "x86_64")]
mod oracle;

#[cfg(target_arch = "x86_64")]
fn main() -> std::process::ExitCode {
    if let Some(code) = cases::as_another_process() {
        return code;
    }
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let reason = opened.err().map(|error| format!("/dev/kvm: {error}"));
    harness::run(cases::CASES, |_| reason.clone())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> std::process::ExitCode {
    harness::run(&[("kvm", || ())], |_| Some("the guest of these tests is x86-64 code".into()))
}
