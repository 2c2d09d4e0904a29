//! The most memory that the two processes of a migration have beyond the guest's own.

use crate::Size;
use crate::device::Timing;
use crate::guest::{PAGE, Random};
use crate::machine::Footprint;
use crate::report::Case;
use crate::sessions::Pair;

const GOAL_BYTES: u64 = 64 << 20;

pub fn run(size: Size) {
    let mut random = Random::new(0x5EED_0FBE_EF00_0001);
    // Raw TCP would keep a copy of the guest.
    let pair = Pair::new(size.guest_bytes, 0, Timing::default());
    pair.guest.fill(&mut random);
    let (mut session, log) = pair.session(Timing::default());
    session.memory_pass(&mut |_| {}).unwrap();
    for _ in 0..2 {
        for page in 0..pair.guest.pages() {
            if random.next().is_multiple_of(10) {
                log.mark(page * PAGE, PAGE);
            }
        }
        session.memory_pass(&mut |_| {}).unwrap();
    }
    session.stop().unwrap();
    session.final_pass().unwrap();
    session.prepare().unwrap();
    let sides = [("source", std::process::id()), ("destination", pair.child.id())];
    let sides = sides.map(|(side, pid)| (side, Footprint::of(pid).beyond_guest()));
    session.abort("the bench has its figures").unwrap();
    // After the figures, as it takes memory.
    pair.guest.assert_same(&pair.other_guest());
    // One of what is dirty, with its summary, and one of what was written at the destination.
    let bitmaps = 3 * pair.guest.pages() / 8;
    for (side, bytes) in sides {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let case = Case {
            name: &format!("memory beyond the guest's {} MiB, {side}", size.guest_bytes >> 20),
            unit: "MiB",
            peer: "64 MiB + bitmaps",
            goal: "ratio <= 1",
            ours: vec![mib(bytes)],
            theirs: vec![mib(GOAL_BYTES + bitmaps)],
        };
        case.print(|_, _, ratio| ratio <= 1.0);
    }
}
