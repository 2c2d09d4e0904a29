//! Functions that fail on purpose: what becomes of the server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use client::*;
use towline_core::memory::GuestMemory;
use towline_vfio_user::pci::PciFunction;
use towline_vfio_user::{Interrupts, ServerOptions, VfioUserServer};

/// BAR 0 panics at offset 0, and does not at others. A reset panics.
#[derive(Default)]
struct Broken {
    detached: AtomicUsize,
}

impl PciFunction for Broken {
    fn prepare(&self) {}

    fn region_bytes(&self, region: u32) -> u64 {
        if region == 0 { 4096 } else { 0 }
    }

    fn vectors(&self) -> u16 {
        1
    }

    fn attach(&self, _: Arc<dyn GuestMemory>, _: Arc<Interrupts>) {}

    fn detach(&self) {
        self.detached.fetch_add(1, Ordering::SeqCst);
    }

    fn read(&self, _: u32, offset: u64, out: &mut [u8]) {
        assert_ne!(offset, 0, "on purpose");
        out.fill(7);
    }

    fn write(&self, _: u32, _: u64, _: &[u8]) {}

    fn waits(&self, _: u32, _: u64, _: &[u8]) -> bool {
        false
    }

    fn reset(&self) {
        panic!("on purpose");
    }
}

/// A panic in either thread ends the connection, not the server.
#[test]
fn a_panic_ends_the_connection_only() {
    let path = std::env::temp_dir().join(format!("towline-vu-broken-{}.sock", std::process::id()));
    let function = Arc::new(Broken::default());
    let server = VfioUserServer::start(&path, function.clone(), ServerOptions::default()).unwrap();
    let connected = || Client::new(&path, None, DmaLayout::Specified);
    for round in 1..=3 {
        let client = connected();
        assert_eq!(client.read(0, 8, 4), Ok(vec![7; 4]));
        let asked = match round {
            // By the reader, by the worker, and by the worker with more behind it.
            1 => client.read(0, 0, 4).map(|_| ()),
            2 => client.call(RESET, &[], &[]).map(|_| ()),
            _ => {
                let read = message(901, READ, 0, &le(&[(8, 8), (0, 4), (4, 4)]));
                client.raw(&[message(900, RESET, 0, &[]), read].concat(), &[]);
                client.reply(901).map(|_| ())
            }
        };
        assert_eq!(asked, Err(u32::MAX), "the connection ends without an answer");
        client.wait_gone();
        eventually("the client is gone", || !server.status().connected);
        assert_eq!(function.detached.load(Ordering::SeqCst), round);
        assert!(server.status().last_error.unwrap().contains("panicked"));
    }
    assert_eq!(connected().read(0, 8, 4), Ok(vec![7; 4]));
    server.close();
    assert!(!path.exists());
}
