//! Guest memory that is passed: both sides map the same files, no page is sent, and nobody but the owner writes. Links that break and sides that
//! fail are in `failures.rs` and `kills.rs`, for both ways.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use towline_core::channel::{ChannelError, DirtySink, DirtySource};
use towline_core::dirty::MarkLog;
use towline_core::fsm::DeviceState;
use towline_core::memory::{GuestMemory, MemoryErrorKind, MemoryRange};
use towline_engine::cancel::Cancel;
use towline_engine::dialogue::{MAX_DESCRIPTORS, MAX_PASSED_REGIONS, MAX_SECTION_DESCRIPTORS, Mismatch};
use towline_engine::error::{EngineError, LinkError};
use towline_engine::link::{ByteSink, ByteSource, CallbackLink, Link};
use towline_engine::session::{DestinationSession, MemoryBy, NamedSource, SectionOut, SourceSession, Terms};
use towline_linux::memory::{MappedMemory, RegionOptions, memfd};
use uuid::Uuid;

/// Below and above a hole, out of three files; the third begins within its file.
const HOLES: &[(u64, u64)] = &[(0, 640 << 10), (1 << 20, 1 << 20), (1 << 32, 256 << 10)];
const DEVICES: &[(&str, u64)] = &[("a", 3), ("b", 7)];

fn hosts() -> (Host, Host) {
    let (here, there) = (Host::new(DEVICES, HOLES), Host::new(DEVICES, &[]));
    here.fill(0x42);
    (here, there)
}

/// Runs both sides over `links`; gives what the source, then the destination said, and what came.
fn run(
    here: &Host,
    there: &Host,
    links: (Box<dyn Link>, Box<dyn Link>),
) -> (Result<u64, EngineError>, Result<(), EngineError>, Passed) {
    let mut got = Passed::default();
    let log = Arc::new(MarkLog::new());
    let mut config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
    config.dirty_sources = vec![NamedSource { name: "never".into(), source: Box::new(Untouched) }];
    let (source, destination) = std::thread::scope(|scope| {
        let (config_b, target, got) = (there.destination(), there.target(), &mut got);
        let receiving = scope.spawn(move || run_passed_destination(config_b, target, links.1, got).0);
        let end = run_passing_source(config, here.memory.clone(), links.0);
        let sent = end.session.wire_bytes();
        drop(end.session);
        (end.result.map(|_| sent), receiving.join().unwrap())
    });
    (source, destination, got)
}

/// A dirty source that nobody may ask for anything.
struct Untouched;

impl DirtySource for Untouched {
    fn start(&mut self, _: &[MemoryRange], _: u64) -> Result<u64, ChannelError> {
        panic!("tracking was started");
    }

    fn harvest(&mut self, _: &mut dyn DirtySink) -> Result<(), ChannelError> {
        panic!("a harvest without tracking");
    }

    fn stop(&mut self) -> Result<(), ChannelError> {
        panic!("tracking was stopped");
    }
}

#[test]
fn the_destination_has_the_same_memory_and_no_page_was_sent() {
    let (here, there) = hosts();
    let (source, destination, got) = run(&here, &there, socket_pair());
    let sent = source.unwrap();
    destination.unwrap();
    assert_eq!((here.states(), there.states()), (vec![DeviceState::Stop; 2], vec![DeviceState::Running; 2]));
    let theirs = got.memory.unwrap();
    assert_eq!(theirs.ranges(), here.memory.ranges());
    assert_eq!(differing(here.memory.as_ref(), theirs.as_ref()), Vec::<u64>::new());
    // It is the same, not alike.
    for range in here.memory.ranges() {
        theirs.write(range.gpa + 77, b"by the new owner").unwrap();
        let mut out = [0; 16];
        here.memory.read(range.gpa + 77, &mut out).unwrap();
        assert_eq!(&out, b"by the new owner");
    }
    assert!(sent < 64 << 10, "{sent} bytes were sent for two devices of 5000 bytes each");
    for (a, b) in here.devices.iter().zip(&there.devices) {
        assert_eq!(a.1.lock().unwrap().registers, b.1.lock().unwrap().registers);
    }
    let sections: Vec<(&str, &[u8])> = got.sections.iter().map(|s| (s.name.as_str(), s.data.as_slice())).collect();
    assert_eq!(sections, SECTIONS);
    assert_eq!(got.descriptors.len(), 1);
    assert_eq!(got.descriptors[0].0, "file");
    assert_eq!(rustix::fs::fstat(&got.descriptors[0].1).unwrap().st_size, PAGE as i64);
}

#[test]
fn many_regions_go_in_several_messages() {
    let here = Host::new(DEVICES, &[]);
    let there = Host::new(DEVICES, &[]);
    let file = memfd("many", 600 * PAGE).unwrap();
    for i in 0..600u64 {
        // Every second page of the address space, in the file from back to front.
        here.memory.add_region(i * 2 * PAGE, file.as_fd(), (599 - i) * PAGE, PAGE).unwrap();
        here.memory.write(i * 2 * PAGE, &i.to_le_bytes()).unwrap();
    }
    let (source, destination, got) = run(&here, &there, socket_pair());
    source.unwrap();
    destination.unwrap();
    let theirs = got.memory.unwrap();
    assert_eq!(differing(here.memory.as_ref(), theirs.as_ref()), Vec::<u64>::new());
    let mut out = [0; 8];
    theirs.read(599 * 2 * PAGE, &mut out).unwrap();
    assert_eq!(u64::from_le_bytes(out), 599);
}

#[test]
fn too_many_regions_are_refused_before_anything() {
    let here = Host::new(DEVICES, &[]);
    let file = memfd("many", PAGE).unwrap();
    for i in 0..=MAX_PASSED_REGIONS as u64 {
        here.memory.add_region(i * PAGE, file.as_fd(), 0, PAGE).unwrap();
    }
    let log = Arc::new(MarkLog::new());
    let (a, _b) = socket_pair();
    let mut session = SourceSession::with_terms(here.source(Uuid::new_v4(), &log, &[]), PASSED, a).unwrap();
    assert!(matches!(session.set_passed_memory(here.memory.clone()), Err(EngineError::Limit { .. })));
    // And a session that was given nothing to pass does not begin.
    assert!(matches!(session.offer(serde_json::json!({})), Err(EngineError::Config { .. })));
    drop(session);
    assert!(here.states().iter().all(|s| *s == DeviceState::Running));
}

/// A link that changes what descriptors its user sends.
struct Meddler {
    inner: Box<dyn Link>,
    change: Box<dyn FnMut(Vec<OwnedFd>) -> Vec<OwnedFd> + Send>,
}

impl Link for Meddler {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, LinkError> {
        self.inner.read(out)
    }

    fn write_all(&mut self, bufs: &mut [IoSlice<'_>]) -> Result<(), LinkError> {
        self.write_all_with(bufs, &[])
    }

    fn arm(&mut self, cancel: &Cancel) {
        self.inner.arm(cancel);
    }

    fn disarm(&mut self) {
        self.inner.disarm();
    }

    fn idle_timeout(&self) -> Duration {
        self.inner.idle_timeout()
    }

    fn set_idle_timeout(&mut self, timeout: Duration) {
        self.inner.set_idle_timeout(timeout);
    }

    fn peer(&self) -> &str {
        self.inner.peer()
    }

    fn why_no_descriptors(&self) -> Option<String> {
        None
    }

    fn write_all_with(&mut self, bufs: &mut [IoSlice<'_>], with: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let fds: Vec<OwnedFd> = with.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
        let fds = (self.change)(fds);
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.inner.write_all_with(bufs, &fds)
    }
}

/// Runs with meddling; both sides have to fail, the source before it stopped anything.
fn refused(change: impl FnMut(Vec<OwnedFd>) -> Vec<OwnedFd> + Send + 'static) -> String {
    let (here, there) = hosts();
    let (a, b) = socket_pair();
    let a = Box::new(Meddler { inner: a, change: Box::new(change) });
    let (source, destination, got) = run(&here, &there, (a, b));
    let error = source.unwrap_err();
    assert_eq!(error.code(), "ERR_TOWLINE_PEER_ABORTED", "{error}, {destination:?}");
    for (_, device, _) in &here.devices {
        let device = device.lock().unwrap();
        assert!(device.state == DeviceState::Running && !device.history.contains(&DeviceState::Stop));
    }
    assert!(got.memory.is_none());
    let error = destination.unwrap_err();
    assert_eq!(error.code(), "ERR_TOWLINE_PROTOCOL", "{error}");
    error.to_string()
}

#[test]
fn what_is_not_offered_or_no_memory_is_refused_before_anything_stops() {
    let too_few = refused(|mut fds| {
        fds.pop();
        fds
    });
    assert!(too_few.contains("2 descriptors came for 3 regions"), "{too_few}");
    let none = refused(|_| vec![]);
    assert!(none.contains("0 descriptors"), "{none}");
    let too_many = refused(|mut fds| {
        if !fds.is_empty() {
            fds.push(memfd("one more", PAGE).unwrap());
        }
        fds
    });
    assert!(too_many.contains("more of them came"), "{too_many}");
    // With a message that names none, after the offer.
    let mut writes = 0;
    let unasked = refused(move |fds| {
        writes += 1;
        if fds.is_empty() && writes > 1 { vec![memfd("unasked", PAGE).unwrap()] } else { fds }
    });
    assert!(unasked.contains("more of them came"), "{unasked}");

    let with_last = |make: fn() -> OwnedFd| {
        move |mut fds: Vec<OwnedFd>| {
            if let Some(last) = fds.last_mut() {
                *last = make();
            }
            fds
        }
    };
    let pipe = refused(with_last(|| rustix::pipe::pipe().unwrap().0));
    assert!(pipe.contains("no file that memory lies in"), "{pipe}");
    let socket = refused(with_last(|| UnixStream::pair().unwrap().0.into()));
    assert!(socket.contains("no file that memory lies in"), "{socket}");
    let device = refused(with_last(|| std::fs::File::open("/dev/zero").unwrap().into()));
    assert!(device.contains("no file that memory lies in"), "{device}");
    let folder = refused(with_last(|| std::fs::File::open("/tmp").unwrap().into()));
    assert!(folder.contains("no file that memory lies in"), "{folder}");
    let short = refused(with_last(|| memfd("short", PAGE).unwrap()));
    assert!(short.contains("ends before"), "{short}");
    let unsealed = refused(with_last(|| {
        let fd = memfd_create("unsealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, 4 << 20).unwrap();
        fd
    }));
    assert!(unsealed.contains("not sealed against shrinking") && unsealed.contains("shrinkable"), "{unsealed}");
}

#[test]
fn nothing_that_was_refused_stays_open() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = Arc::new(std::sync::Mutex::new(Some(OwnedFd::from(theirs))));
    refused(move |mut fds| {
        if !fds.is_empty() {
            let canary = theirs.lock().unwrap().take().unwrap();
            fds[1] = canary;
        }
        fds
    });
    // Whoever held it last has closed it.
    assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_file_that_could_shrink_is_taken_where_that_was_said() {
    let fd = memfd_create("unsealed", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 16 * PAGE).unwrap();
    let here = Host::new(DEVICES, &[]);
    let there = Host::new(DEVICES, &[]);
    let options = RegionOptions { allow_shrinkable: true, ..RegionOptions::default() };
    here.memory.add_region_with(0, fd.as_fd(), 0, 16 * PAGE, options).unwrap();
    let log = Arc::new(MarkLog::new());
    let (a, b) = socket_pair();
    std::thread::scope(|scope| {
        let config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
        let memory = here.memory.clone();
        let source = scope.spawn(move || run_passing_source(config, memory, a).result);
        let mut session = DestinationSession::with_terms(there.destination(), PASSED, b).unwrap();
        session.read_offer().unwrap();
        session.answer(there.target(), vec![]).unwrap();
        let memory = session.receive_memory(true).unwrap();
        assert_eq!(memory.ranges(), here.memory.ranges());
        session.abort("that was all").unwrap();
        source.join().unwrap().unwrap_err();
        assert_eq!(memory.write(0, b"x").unwrap_err().kind, MemoryErrorKind::NotOurs);
    });
}

/// The mismatches of an offer by `source` terms to a destination of `destination` terms.
fn mismatches(source: Terms, destination: Terms, links: (Box<dyn Link>, Box<dyn Link>)) -> Vec<Mismatch> {
    let (here, there) = (Host::new(DEVICES, HOLES), Host::new(DEVICES, HOLES));
    let log = Arc::new(MarkLog::new());
    let found = std::thread::scope(|scope| {
        let (config, target) = (there.destination(), there.target());
        scope.spawn(move || {
            let mut session = DestinationSession::with_terms(config, destination, links.1).unwrap();
            session.read_offer().unwrap();
            if session.answer(target, vec![]).unwrap().accepted {
                // A source that finds something by itself gives up.
                let error = if destination.memory == MemoryBy::Passed {
                    session.receive_memory(false).map(drop).unwrap_err()
                } else {
                    session.receive(&mut |_| {}).unwrap_err()
                };
                assert!(matches!(error, EngineError::PeerAborted { .. } | EngineError::Link(_)), "{error}");
            }
        });
        let config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
        let mut session = SourceSession::with_terms(config, source, links.0).unwrap();
        if source.memory == MemoryBy::Passed {
            session.set_passed_memory(here.memory.clone()).unwrap();
        }
        session.offer(serde_json::json!({})).unwrap().mismatches
    });
    assert!(here.states().iter().all(|s| *s == DeviceState::Running));
    assert!(here.devices.iter().all(|(_, d, _)| d.lock().unwrap().history.is_empty()));
    found
}

fn codes(found: &[Mismatch]) -> Vec<&str> {
    found.iter().map(|m| m.code.as_str()).collect()
}

/// A caller's own stream over one socket: a read and a write half.
struct Half(UnixStream);

impl ByteSource for Half {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(out)
    }
}

impl ByteSink for Half {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        std::io::Write::write(&mut self.0, data)
    }
}

fn caller_stream(socket: UnixStream) -> Box<dyn Link> {
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let source = Half(socket.try_clone().unwrap());
    Box::new(CallbackLink::new(Box::new(source), Box::new(Half(socket)), "a caller's stream".into(), &options()))
}

#[test]
fn who_cannot_pass_says_so_before_anything_stops() {
    let memory_only = Terms { descriptors: false, ..PASSED };
    let found = mismatches(PASSED, PASSED, link_pair("tcp://127.0.0.1:0"));
    assert_eq!(codes(&found), ["memory-passing", "descriptor-passing"]);
    assert!(found[0].message.contains("no UNIX socket") && found[0].mend.contains("unix://"), "{found:?}");

    let (a, b) = UnixStream::pair().unwrap();
    let found = mismatches(memory_only, memory_only, (caller_stream(a), caller_stream(b)));
    assert_eq!(codes(&found), ["memory-passing"]);

    // Only one side has a UNIX socket, and somebody in between forwards bytes.
    for source_is_socket in [true, false] {
        let (a, b) = UnixStream::pair().unwrap();
        let socket = |s: UnixStream| -> Box<dyn Link> {
            Box::new(towline_engine::link::SocketLink::from_fd(s.into(), &options()).unwrap())
        };
        let links = if source_is_socket { (socket(a), caller_stream(b)) } else { (caller_stream(a), socket(b)) };
        assert_eq!(codes(&mismatches(memory_only, memory_only, links)), ["memory-passing"], "{source_is_socket}");
    }
}

#[test]
fn both_sides_say_that_memory_is_passed() {
    let copied = Terms::default();
    assert_eq!(codes(&mismatches(PASSED, copied, socket_pair())), ["terms"]);
    assert_eq!(codes(&mismatches(copied, Terms { descriptors: false, ..PASSED }, socket_pair())), ["terms"]);
    // Descriptors of sections have to be wanted, and need not come.
    let with_descriptors = Terms { descriptors: true, ..copied };
    assert_eq!(codes(&mismatches(with_descriptors, copied, socket_pair())), ["terms"]);
}

#[test]
fn a_destination_that_builds_for_long_is_waited_for() {
    let (here, there) = hosts();
    let log = Arc::new(MarkLog::new());
    let (mut a, mut b) = socket_pair();
    a.set_idle_timeout(Duration::from_millis(300));
    b.set_idle_timeout(Duration::from_millis(300));
    std::thread::scope(|scope| {
        let config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
        let memory = here.memory.clone();
        let source = scope.spawn(move || run_passing_source(config, memory, a).result);
        let mut session = DestinationSession::with_terms(there.destination(), PASSED, b).unwrap();
        session.read_offer().unwrap();
        session.answer(there.target(), vec![]).unwrap();
        assert!(matches!(session.receive(&mut |_| {}), Err(EngineError::Misuse { .. })));
        session.receive_memory(false).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        assert!(here.states().iter().all(|s| *s == DeviceState::Running), "the source went on");
        assert!(matches!(session.receive(&mut |_| {}), Err(EngineError::Misuse { .. })));
        session.memory_taken().unwrap();
        session.receive(&mut |_| {}).unwrap();
        session.prepared().unwrap();
        session.wait_commit().unwrap();
        session.resume().unwrap();
        session.running().unwrap();
        source.join().unwrap().unwrap();
    });
}

#[test]
fn memory_that_came_later_is_not_left_behind() {
    let (here, there) = hosts();
    let log = Arc::new(MarkLog::new());
    let (a, b) = socket_pair();
    std::thread::scope(|scope| {
        let (config, target) = (there.destination(), there.target());
        scope.spawn(move || run_passed_destination(config, target, b, &mut Passed::default()).0.unwrap_err());
        let config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
        let mut session = SourceSession::with_terms(config, PASSED, a).unwrap();
        session.set_passed_memory(here.memory.clone()).unwrap();
        session.offer(serde_json::json!({})).unwrap();
        session.start_tracking().unwrap();
        assert!(matches!(session.memory_pass(&mut |_| {}), Err(EngineError::Misuse { .. })));
        assert!(matches!(session.harvest(), Err(EngineError::Misuse { .. })));
        session.measure(Duration::from_millis(4)).unwrap();
        session.stop().unwrap();
        assert!(matches!(session.final_pass(), Err(EngineError::Misuse { .. })));
        let fd = memfd("late", PAGE).unwrap();
        here.memory.add_region(1 << 40, fd.as_fd(), 0, PAGE).unwrap();
        let error = session.save_state().unwrap_err();
        assert!(matches!(&error, EngineError::Config { what } if what.contains("ranges")), "{error}");
        session.abort("the test is over").unwrap();
    });
    assert!(here.states().iter().all(|s| *s == DeviceState::Running));
}

/// Both sides up to a source that may send sections; `there` receives and gives its session once everything is loaded.
fn sections(
    names: &[&str],
    send: impl FnOnce(&mut SourceSession),
    take: impl FnOnce(Result<(), EngineError>, &mut DestinationSession) + Send,
) {
    let (here, there) = hosts();
    let log = Arc::new(MarkLog::new());
    let (a, b) = socket_pair();
    // Memory is copied: descriptors of sections do not depend on how it goes.
    let terms = Terms { descriptors: true, ..Terms::default() };
    std::thread::scope(|scope| {
        let config = there.destination();
        let target = towline_engine::session::DestinationTarget { functions: there.functions(), memory: memory(HOLES) };
        scope.spawn(move || {
            let mut session = DestinationSession::with_terms(config, terms, b).unwrap();
            session.read_offer().unwrap();
            session.answer(target, vec![]).unwrap();
            let result = session.receive(&mut |_| {});
            take(result, &mut session);
        });
        let config = here.source(Uuid::new_v4(), &log, names);
        let mut session = SourceSession::with_terms(config, terms, a).unwrap();
        session.offer(serde_json::json!({})).unwrap();
        session.start_tracking().unwrap();
        session.precopy_state().unwrap();
        session.stop().unwrap();
        session.final_pass().unwrap();
        send(&mut session);
    });
}

#[test]
fn descriptors_of_sections_are_taken_by_name_or_closed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (left, forgotten) = UnixStream::pair().unwrap();
    sections(
        SECTION_NAMES,
        |session| {
            session
                .send_section_with(
                    "vcpu",
                    b"x",
                    &[("b", theirs.as_fd()), ("a", forgotten.as_fd()), ("c", theirs.as_fd())],
                )
                .unwrap();
            session.send_section("empty", b"").unwrap();
            // The destination gives up; it says so.
            session.prepare().unwrap_err();
        },
        |result, session| {
            result.unwrap();
            assert_eq!(session.section_descriptor_names("vcpu"), ["b", "a", "c"]);
            assert!(session.section_descriptor_names("empty").is_empty());
            assert!(session.take_section_descriptors("empty").unwrap().is_empty());
            let mut taken = session.take_section_descriptors("vcpu").unwrap();
            assert_eq!(taken.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["b", "a", "c"]);
            assert!(session.take_section_descriptors("vcpu").unwrap().is_empty());
            let (_, socket) = taken.remove(0);
            std::io::Write::write_all(&mut UnixStream::from(socket), b"hello").unwrap();
            session.abort("that was all").unwrap();
        },
    );
    drop((theirs, forgotten));
    let mut heard = String::new();
    (&ours).read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "hello");
    assert_eq!((&left).read(&mut [0]).unwrap(), 0);
}

#[test]
fn what_nobody_takes_is_closed_with_the_session() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    sections(
        SECTION_NAMES,
        |session| {
            session.send_section_with("vcpu", b"x", &[("a", theirs.as_fd())]).unwrap();
            session.send_section("empty", b"").unwrap();
            session.prepare().unwrap_err();
        },
        |result, session| {
            result.unwrap();
            session.abort("they are not wanted").unwrap();
            assert!(matches!(session.take_section_descriptors("vcpu"), Err(EngineError::Misuse { .. })));
        },
    );
    drop(theirs);
    assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
}

#[test]
fn descriptors_have_limits_at_the_source() {
    let fd = memfd("one", PAGE).unwrap();
    sections(
        SECTION_NAMES,
        |session| {
            let names: Vec<String> = (0..=MAX_SECTION_DESCRIPTORS).map(|i| format!("n{i}")).collect();
            let many: Vec<(&str, BorrowedFd<'_>)> = names.iter().map(|n| (n.as_str(), fd.as_fd())).collect();
            let twice = [("a", fd.as_fd()), ("a", fd.as_fd())];
            for wrong in [&many[..], &twice[..], &[("", fd.as_fd())][..]] {
                let refused = session.send_section_with("vcpu", b"x", wrong);
                assert!(matches!(refused, Err(EngineError::Config { .. })), "{refused:?}");
            }
            // Nothing has changed. Of several, those before a wrong one go.
            let of = |name, descriptors| SectionOut { name, data: b"x", descriptors };
            let refused = session.send_sections(&[of("vcpu", &many[1..]), of("stranger", &[])]);
            assert!(matches!(refused, Err(EngineError::Config { .. })), "{refused:?}");
            session.send_section("empty", b"").unwrap();
            session.prepare().unwrap_err();
        },
        |result, session| {
            result.unwrap();
            assert_eq!(session.take_section_descriptors("vcpu").unwrap().len(), MAX_SECTION_DESCRIPTORS);
            session.abort("that was all").unwrap();
        },
    );
}

#[test]
fn all_sections_together_have_a_limit_too() {
    let fd = memfd("one", PAGE).unwrap();
    let full = MAX_DESCRIPTORS / MAX_SECTION_DESCRIPTORS;
    let sections_of: Vec<String> = (0..=full).map(|i| format!("s{i}")).collect();
    let offered: Vec<&str> = sections_of.iter().map(String::as_str).collect();
    let names: Vec<String> = (0..MAX_SECTION_DESCRIPTORS).map(|i| format!("n{i}")).collect();
    let fds: Vec<(&str, BorrowedFd<'_>)> = names.iter().map(|n| (n.as_str(), fd.as_fd())).collect();
    sections(
        &offered,
        |session| {
            for section in &offered[..full] {
                session.send_section_with(section, b"", &fds).unwrap();
            }
            let one_more = session.send_section_with(offered[full], b"", &fds[..1]);
            assert!(matches!(one_more, Err(EngineError::Limit { value: 1025, limit: 1024, .. })), "{one_more:?}");
            session.send_section(offered[full], b"").unwrap();
            session.prepare().unwrap_err();
        },
        |result, session| {
            result.unwrap();
            for section in &sections_of[..full] {
                assert_eq!(session.section_descriptor_names(section).len(), MAX_SECTION_DESCRIPTORS);
            }
            session.abort("that was all").unwrap();
        },
    );
}

#[test]
fn a_section_without_leave_has_no_descriptors() {
    let (here, there) = (Host::new(DEVICES, HOLES), Host::new(DEVICES, HOLES));
    let log = Arc::new(MarkLog::new());
    let (a, b) = socket_pair();
    let fd = memfd("one", PAGE).unwrap();
    std::thread::scope(|scope| {
        let (config, target) = (there.destination(), there.target());
        scope.spawn(move || drop(run_destination(config, target, b)));
        let mut session = SourceSession::new(here.source(Uuid::new_v4(), &log, SECTION_NAMES), a).unwrap();
        session.offer(serde_json::json!({})).unwrap();
        session.start_tracking().unwrap();
        session.stop().unwrap();
        session.final_pass().unwrap();
        let refused = session.send_section_with("vcpu", b"x", &[("a", fd.as_fd())]);
        assert!(matches!(refused, Err(EngineError::Config { .. })), "{refused:?}");
        session.abort("the test is over").unwrap();
    });
}

/// Memory out of huge pages, where the machine has some; the reason otherwise.
fn huge(pages: u64) -> Result<(OwnedFd, u64), String> {
    const HUGE: u64 = 2 << 20;
    let fd = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)
        .map_err(|e| format!("memfd_create(MFD_HUGETLB): {e}"))?;
    ftruncate(&fd, pages * HUGE).map_err(|e| format!("ftruncate: {e}"))?;
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    match free.ok().and_then(|n| n.trim().parse::<u64>().ok()) {
        Some(free) if free >= pages => Ok((fd, pages * HUGE)),
        free => Err(format!("{pages} free huge pages of 2 MiB are needed, there are {}", free.unwrap_or(0))),
    }
}

#[test]
fn huge_pages_are_passed_and_copied() {
    let (fd, len) = match huge(4) {
        Ok(there) => there,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let options = RegionOptions { allow_shrinkable: true, ..RegionOptions::default() };
    let of = |fd: &OwnedFd, from: u64| {
        let memory = MappedMemory::new();
        memory.add_region_with(0, fd.as_fd(), from, len / 4, options).unwrap();
        memory.add_region_with(1 << 32, fd.as_fd(), from + len / 4, len / 4, options).unwrap();
        Arc::new(memory)
    };
    let (mut here, there) = (Host::new(DEVICES, &[]), Host::new(DEVICES, &[]));
    here.memory = of(&fd, 0);
    here.fill(9);
    // Copied, into the other half of the file.
    let mut copy = Host::new(DEVICES, &[]);
    copy.memory = of(&fd, len / 2);
    let log = Arc::new(MarkLog::new());
    let (a, b) = socket_pair();
    std::thread::scope(|scope| {
        let (config, target) = (copy.destination(), copy.target());
        let receiving = scope.spawn(move || run_destination(config, target, b).0.map(drop));
        let config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
        run_source(config, a, &mut || {}, &mut || {}).result.unwrap();
        receiving.join().unwrap().unwrap();
    });
    assert_eq!(differing(here.memory.as_ref(), copy.memory.as_ref()), Vec::<u64>::new());
    // And passed, by a host that has not given these functions away.
    let memory = here.memory.clone();
    here = Host::new(DEVICES, &[]);
    here.memory = memory;
    here.fill(9);
    let (a, b) = socket_pair();
    std::thread::scope(|scope| {
        let config = here.source(Uuid::new_v4(), &log, SECTION_NAMES);
        let memory = here.memory.clone();
        let source = scope.spawn(move || run_passing_source(config, memory, a).result);
        let mut session = DestinationSession::with_terms(there.destination(), PASSED, b).unwrap();
        session.read_offer().unwrap();
        session.answer(there.target(), vec![]).unwrap();
        let memory = session.receive_memory(true).unwrap();
        assert_eq!(differing(here.memory.as_ref(), memory.as_ref()), Vec::<u64>::new());
        session.abort("that was all").unwrap();
        source.join().unwrap().unwrap_err();
    });
}
