//! The destination's process: takes one session after another, until it is killed.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use towline_core::fsm::DeviceState;
use towline_engine::cancel::Cancel;
use towline_engine::error::EngineError;
use towline_engine::fence::Fence;
use towline_engine::link::{Address, LinkOptions, Listener, SocketLink};
use towline_engine::session::{DestinationConfig, DestinationSession, DestinationTarget};
use towline_linux::clock::monotonic_ns;

use crate::device::{Stretches, Timing};
use crate::guest::{Guest, PAGE, Random};
use crate::machine::{Side, pin};
use crate::sessions::{Order, Reach, Resumed, fence, function};

/// The guest's memory is the standard input; reports go to the standard output, one a line.
pub fn run(folder: &Path) {
    pin(Side::Destination);
    let order: Order = serde_json::from_slice(&std::fs::read(folder.join("order")).unwrap()).unwrap();
    let guest = Guest::map(std::io::stdin().as_fd(), order.guest_bytes);
    if order.is_prefaulted {
        guest.fill(&mut Random::new(2));
    }
    let timing =
        Timing { state_bytes: order.state_bytes, save: Duration::ZERO, load: Duration::from_micros(order.load_us) };
    let busy = Stretches::default();
    let fence = fence(&folder.join("destination"), &busy);
    let listener = Listener::bind(&"tcp://127.0.0.1:0".parse::<Address>().unwrap(), LinkOptions::default()).unwrap();
    let raw = crate::raw::serve(order.raw_bytes);
    say(&Reach { engine: listener.address().to_string(), raw });
    loop {
        let link = listener.accept(Duration::from_secs(3600), &Cancel::new()).unwrap();
        busy.lock().unwrap().clear();
        match session(link, &guest, timing, &fence, &busy) {
            Ok(at_ns) => say(&Resumed { at_ns, busy: busy.lock().unwrap().clone() }),
            // The source has measured what it wanted.
            Err(EngineError::PeerAborted { .. }) => {}
            Err(error) => panic!("the destination failed: {error}"),
        }
    }
}

fn say(what: &impl serde::Serialize) {
    println!("{}", serde_json::to_string(what).unwrap());
}

/// Returns when the function ran.
fn session(
    link: SocketLink,
    guest: &Guest,
    timing: Timing,
    fence: &Arc<dyn Fence>,
    busy: &Stretches,
) -> Result<u64, EngineError> {
    let config = DestinationConfig {
        fence: fence.clone(),
        expected: Vec::new(),
        cancel: Cancel::new(),
        points: Arc::default(),
        max_section_bytes: PAGE,
    };
    let mut session = DestinationSession::new(config, Box::new(link))?;
    session.read_offer()?;
    let functions = vec![function(timing, DeviceState::Running, busy)];
    session.answer(DestinationTarget { functions, memory: guest.memory.clone() }, vec![])?;
    session.receive(&mut |_| {})?;
    session.prepared()?;
    session.wait_commit()?;
    session.resume()?;
    let at_ns = monotonic_ns();
    session.running()?;
    Ok(at_ns)
}
