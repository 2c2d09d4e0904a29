//! The handoff, explored: every interleaving of both sides' steps, of messages that are late or lost, of crashes and of
//! recoveries, over the very rules that the sessions use. And the journal that makes them durable.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeSet, HashSet, VecDeque};

use towline_engine::dialogue::AskOutcome;
use towline_engine::error::FenceError;
use towline_engine::fence::{Fence, Record, Role, check_append};
use towline_engine::journal::Journal;
use towline_engine::recover::{self, Verdict, decide};
use uuid::Uuid;

const EPOCH: u64 = 4;

fn opened(role: Role) -> Record {
    Record::Opened { session: Uuid::nil(), role, functions: vec!["f".into()], epoch: EPOCH, file: None }
}

fn aborted() -> Record {
    Record::Aborted { reason: String::new() }
}

fn refused() -> Record {
    Record::Refused { epoch: EPOCH, reason: String::new() }
}

/// What a process does in memory; lost by a crash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Process {
    Running,
    Stopped,
    /// Power failure: nothing runs until it recovers.
    Crashed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Message {
    Commit,
    Ask,
    Committed,
    Refused,
    Answer(u8),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    source: Process,
    destination: Process,
    source_log: Vec<Record>,
    destination_log: Vec<Record>,
    /// Messages may arrive in any order, at any time, or never.
    wire: BTreeSet<Message>,
}

/// The rules that are broken on purpose, one at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// COMMIT is sent before the intent is durable.
    CommitBeforeIntent,
    /// A refusal is answered without being durable.
    VolatileRefusal,
    /// A source in doubt resumes without asking.
    ImpatientSource,
    /// The destination runs before its commit is durable.
    RunBeforeDurable,
}

impl World {
    fn start() -> Self {
        Self {
            source: Process::Stopped,
            destination: Process::Stopped,
            source_log: vec![opened(Role::Source)],
            destination_log: vec![opened(Role::Destination)],
            wire: BTreeSet::new(),
        }
    }

    fn append(&mut self, role: Role, record: Record) -> bool {
        let log = if role == Role::Source { &mut self.source_log } else { &mut self.destination_log };
        let ok = check_append(role, log, &record).is_ok();
        if ok {
            log.push(record);
        }
        ok
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        change(&mut next);
        next
    }

    /// Every state that one step leads to.
    fn next(&self, broken: Broken) -> Vec<Self> {
        let mut out = vec![];
        let in_doubt = matches!(self.source_log.last(), Some(Record::Intent { .. }));
        let before_intent = self.source_log.len() == 1;
        if self.source == Process::Stopped && before_intent {
            // Commit, or give up.
            out.push(self.with(|w| {
                w.append(Role::Source, Record::Intent { epoch: EPOCH });
                w.wire.insert(Message::Commit);
            }));
            if broken == Broken::CommitBeforeIntent {
                out.push(self.with(|w| {
                    w.wire.insert(Message::Commit);
                }));
            }
            out.push(self.with(|w| {
                w.append(Role::Source, aborted());
                w.source = Process::Running;
            }));
        }
        if in_doubt {
            out.push(self.with(|w| {
                w.wire.insert(Message::Ask);
            }));
            if broken == Broken::ImpatientSource {
                out.push(self.with(|w| w.source = Process::Running));
            }
        }
        // Crashes, at any time; recovery by the journal and whatever the peer says.
        out.push(self.with(|w| w.source = Process::Crashed));
        out.push(self.with(|w| w.destination = Process::Crashed));
        if self.source == Process::Crashed {
            out.push(self.with(|w| w.recover_source(None)));
        }
        if self.destination == Process::Crashed {
            out.push(self.with(|w| match decide(Role::Destination, &w.destination_log, None) {
                Verdict::RunDestination => w.destination = Process::Running,
                _ => {
                    w.append(Role::Destination, refused());
                    w.destination = Process::Stopped;
                }
            }));
        }
        // The destination gives up by itself, before it has committed.
        if self.destination == Process::Stopped {
            out.push(self.with(|w| {
                if w.append(Role::Destination, aborted()) {
                    w.wire.insert(Message::Refused);
                }
            }));
        }
        for message in &self.wire {
            // Lost.
            out.push(self.with(|w| {
                w.wire.remove(message);
            }));
            out.extend(self.deliver(message, broken));
        }
        out
    }

    fn recover_source(&mut self, answer: Option<AskOutcome>) {
        match decide(Role::Source, &self.source_log, answer) {
            Verdict::ResumeSource => {
                self.append(Role::Source, aborted());
                self.source = Process::Running;
            }
            Verdict::Released => {
                self.append(Role::Source, Record::Released);
                self.source = Process::Stopped;
            }
            _ => self.source = Process::Stopped,
        }
    }

    fn deliver(&self, message: &Message, broken: Broken) -> Option<Self> {
        let alive = match message {
            Message::Commit | Message::Ask => self.destination != Process::Crashed,
            _ => self.source != Process::Crashed,
        };
        alive.then(|| {
            self.with(|w| match message {
                Message::Commit => {
                    if broken == Broken::RunBeforeDurable {
                        w.destination = Process::Running;
                    } else if w.append(Role::Destination, Record::Committed { epoch: EPOCH }) {
                        w.destination = Process::Running;
                        w.wire.insert(Message::Committed);
                    } else if !matches!(w.destination_log.last(), Some(Record::Committed { .. })) {
                        w.wire.insert(Message::Refused);
                    }
                }
                Message::Ask => {
                    let committed = matches!(w.destination_log.last(), Some(Record::Committed { .. }));
                    if !committed && broken != Broken::VolatileRefusal {
                        w.append(Role::Destination, refused());
                    }
                    w.wire.insert(Message::Answer(u8::from(committed)));
                }
                Message::Committed | Message::Answer(1) => w.recover_source(Some(AskOutcome::Committed)),
                Message::Refused | Message::Answer(_) => w.recover_source(Some(AskOutcome::Refused)),
            })
        })
    }
}

struct Explored {
    states: usize,
    two_owners: bool,
    /// The source was in doubt with nothing left on the wire, and could not be freed by asking.
    stuck: bool,
    source_ran: bool,
    destination_ran: bool,
}

fn explore(broken: Broken) -> Explored {
    let mut seen = HashSet::from([World::start()]);
    let mut queue = VecDeque::from([World::start()]);
    let mut result = Explored { states: 0, two_owners: false, stuck: false, source_ran: false, destination_ran: false };
    while let Some(world) = queue.pop_front() {
        result.states += 1;
        result.source_ran |= world.source == Process::Running;
        result.destination_ran |= world.destination == Process::Running;
        result.two_owners |= world.source == Process::Running && world.destination == Process::Running;
        // Also who would own after the next recovery counts: a crash must not hide a second owner.
        let would_run = |p: &Process, v: Verdict, own: Verdict| *p == Process::Running || v == own;
        let source = would_run(&world.source, decide(Role::Source, &world.source_log, None), Verdict::ResumeSource);
        let destination = decide(Role::Destination, &world.destination_log, None) == Verdict::RunDestination;
        result.two_owners |= source && destination;
        if matches!(world.source_log.last(), Some(Record::Intent { .. })) {
            let answer = match world.destination_log.last() {
                Some(Record::Committed { .. }) => AskOutcome::Committed,
                _ => AskOutcome::Refused,
            };
            result.stuck |= decide(Role::Source, &world.source_log, Some(answer)) == Verdict::InDoubt;
        }
        for next in world.next(broken) {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    result
}

#[test]
fn never_two_owners_whatever_crashes_and_gets_lost() {
    let explored = explore(Broken::Nothing);
    assert!(!explored.two_owners && !explored.stuck);
    assert!(explored.source_ran && explored.destination_ran && explored.states > 100, "{} states", explored.states);
}

#[test]
fn each_broken_rule_gives_two_owners() {
    use Broken::{CommitBeforeIntent, ImpatientSource, RunBeforeDurable, VolatileRefusal};
    for broken in [CommitBeforeIntent, VolatileRefusal, ImpatientSource, RunBeforeDurable] {
        assert!(explore(broken).two_owners, "{broken:?} was not noticed");
    }
}

/// Every pair of prefixes that can be on the disks after a crash, and what recovery makes of it.
#[test]
fn recovery_of_every_prefix() {
    let source = [opened(Role::Source), Record::Intent { epoch: EPOCH }, Record::Released];
    let destination = [opened(Role::Destination), Record::Committed { epoch: EPOCH }];
    for s in 0..=source.len() {
        for d in 0..=destination.len() {
            // The destination commits only after the intent, the source releases only after the commit.
            if (d == 2 && s < 2) || (s == 3 && d < 2) {
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            let (a, b) = (Journal::open(dir.path().join("a")).unwrap(), Journal::open(dir.path().join("b")).unwrap());
            let session = Uuid::nil();
            for record in &source[..s] {
                a.append(session, Role::Source, record.clone()).unwrap();
            }
            for record in &destination[..d] {
                b.append(session, Role::Destination, record.clone()).unwrap();
            }
            let alone = recover::settle(&a, session, Role::Source, None).unwrap();
            let expected = match (s, d) {
                (0 | 1, _) => Verdict::ResumeSource,
                (2, _) => Verdict::InDoubt,
                _ => Verdict::Released,
            };
            assert_eq!(alone, expected, "{s} {d}");
            let unknown = recover::settle(&a, session, Role::Source, Some(AskOutcome::Unknown)).unwrap();
            assert_eq!(unknown, expected);
            let answer = recover::answer_ask(&b, session, EPOCH).unwrap();
            assert_eq!(answer, if d == 2 { AskOutcome::Committed } else { AskOutcome::Refused });
            let verdict = recover::settle(&a, session, Role::Source, Some(answer)).unwrap();
            let there = recover::settle(&b, session, Role::Destination, None).unwrap();
            let owners = usize::from(verdict == Verdict::ResumeSource) + usize::from(there == Verdict::RunDestination);
            assert_eq!(owners, 1, "{s} {d}: {verdict:?} {there:?}");
            if d < 2 && s > 0 {
                // Refused is refused for ever, after a restart too.
                drop(b);
                let b = Journal::open(dir.path().join("b")).unwrap();
                let late = b.append(session, Role::Destination, Record::Committed { epoch: EPOCH });
                assert!(matches!(late, Err(FenceError::Refused { .. })), "{s} {d}");
                assert!(b.append(session, Role::Destination, opened(Role::Destination)).is_err());
            }
        }
    }
}

#[test]
fn a_person_frees_a_source_only_when_it_is_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let session = Uuid::nil();
    journal.append(session, Role::Source, opened(Role::Source)).unwrap();
    assert!(recover::declare_destination_dead(&journal, session, "me").is_err());
    journal.append(session, Role::Source, Record::Intent { epoch: EPOCH }).unwrap();
    recover::declare_destination_dead(&journal, session, "me").unwrap();
    assert_eq!(recover::settle(&journal, session, Role::Source, None).unwrap(), Verdict::ResumeSource);
    let records = journal.records(session, Role::Source).unwrap();
    assert_eq!(records.last(), Some(&Record::DeclaredDead { reason: "me".into() }));
    assert!(journal.append(session, Role::Source, Record::Released).is_err());
}

#[test]
fn the_journal_survives_and_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let session = Uuid::new_v4();
    let open =
        Record::Opened { session, role: Role::Source, functions: vec!["f".into(), "g".into()], epoch: 9, file: None };
    let journal = Journal::open(dir.path()).unwrap();
    assert!(matches!(Journal::open(dir.path()), Err(FenceError::Owned { .. })));
    journal.append(session, Role::Source, open.clone()).unwrap();
    journal.append(session, Role::Source, Record::Intent { epoch: 9 }).unwrap();
    drop(journal);
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.records(session, Role::Source).unwrap(), [open, Record::Intent { epoch: 9 }]);
    assert_eq!(journal.sessions().unwrap(), [(session, Role::Source)]);
    let highest = |f: &str| journal.highest_epoch(&[f.to_owned()]).unwrap();
    assert_eq!((highest("f"), highest("g"), highest("h")), (9, 9, 0));
    // An epoch that was seen is never taken again, for any of its functions.
    let other = Uuid::new_v4();
    let again = |epoch, function: &str| {
        let functions = vec!["x".to_owned(), function.to_owned()];
        journal.append(
            other,
            Role::Source,
            Record::Opened { session: other, role: Role::Source, functions, epoch, file: None },
        )
    };
    assert!(matches!(again(9, "g"), Err(FenceError::Refused { .. })));
    again(10, "g").unwrap();
}

#[test]
fn a_torn_record_is_forgotten_and_a_damaged_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let session = Uuid::new_v4();
    let open = Record::Opened { session, role: Role::Destination, functions: vec!["f".into()], epoch: 1, file: None };
    let journal = Journal::open(dir.path()).unwrap();
    journal.append(session, Role::Destination, open.clone()).unwrap();
    let path = dir.path().join(format!("{session}.destination.journal"));
    let first = std::fs::metadata(&path).unwrap().len();
    journal.append(session, Role::Destination, Record::Committed { epoch: 1 }).unwrap();
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    for cut in first..whole.len() as u64 {
        std::fs::write(&path, &whole[..cut as usize]).unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let records = journal.records(session, Role::Destination).unwrap();
        if cut + 1 == whole.len() as u64 {
            assert_eq!(records.len(), 2, "only the line feed is missing");
            assert!(journal.append(session, Role::Destination, aborted()).is_err());
        } else {
            assert_eq!(records, std::slice::from_ref(&open));
            // What is appended next replaces the torn part.
            journal.append(session, Role::Destination, aborted()).unwrap();
            drop(journal);
            let journal = Journal::open(dir.path()).unwrap();
            assert_eq!(journal.records(session, Role::Destination).unwrap().len(), 2);
        }
    }
    let mut damaged = whole.clone();
    damaged[first as usize + 12] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert!(matches!(journal.records(session, Role::Destination), Err(FenceError::Damaged { record: 1, .. })));
    assert!(matches!(journal.append(session, Role::Destination, aborted()), Err(FenceError::Damaged { .. })));
    assert!(recover::answer_ask(&journal, session, 1).is_err());
    drop(journal);
    // Another session's file under this name.
    let foreign = dir.path().join(format!("{}.destination.journal", Uuid::new_v4()));
    std::fs::write(&foreign, &whole).unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let key = journal.sessions().unwrap().into_iter().find(|k| k.0 != session).unwrap();
    assert!(matches!(journal.records(key.0, key.1), Err(FenceError::Damaged { .. })));
}

#[test]
fn asking_over_a_link_is_answered_durably() {
    use std::sync::Arc;
    use towline_engine::cancel::Cancel;
    use towline_engine::link::{Link, LinkOptions, SocketLink};
    use towline_engine::session::{DestinationConfig, DestinationSession, Incoming};
    // A thousand records, which needn't survive a power failure of this machine.
    let shm = std::path::Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    let journal = Arc::new(Journal::open(dir.path()).unwrap());
    let session = Uuid::new_v4();
    let ask_about = |session, epoch, function: &str| {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut link = SocketLink::from_fd(a.into(), &LinkOptions::default()).unwrap();
        let peer: Box<dyn Link> = Box::new(SocketLink::from_fd(b.into(), &LinkOptions::default()).unwrap());
        let config = DestinationConfig {
            fence: journal.clone(),
            expected: vec!["f".into()],
            cancel: Cancel::new(),
            points: Arc::default(),
            max_section_bytes: 0,
        };
        let asked = std::thread::spawn(move || DestinationSession::new(config, peer).unwrap().read_offer().unwrap());
        let outcome = recover::ask(&mut link, session, epoch, vec![function.into()]).unwrap();
        assert_eq!(asked.join().unwrap(), Incoming::Asked { session, epoch, outcome });
        outcome
    };
    let ask = |epoch| ask_about(session, epoch, "f");
    // Never heard of: refused, and for good.
    assert_eq!(ask(3), AskOutcome::Refused);
    let records = journal.records(session, Role::Destination).unwrap();
    assert!(matches!(records.as_slice(), [Record::Refused { epoch: 3, .. }]));
    assert_eq!(ask(3), AskOutcome::Refused);
    assert_eq!(ask(4), AskOutcome::Unknown, "another epoch of the same session");

    // Who asks about functions that nobody expects here leaves no trace.
    let stranger = Uuid::new_v4();
    assert_eq!(ask_about(stranger, 3, "g"), AskOutcome::Unknown);
    assert!(journal.records(stranger, Role::Destination).unwrap().is_empty());
    // Nor does who asks too often.
    for n in 1..1024 {
        let refused = Record::Refused { epoch: 3, reason: "asked".into() };
        journal.append(Uuid::from_u128(n), Role::Destination, refused).unwrap();
    }
    assert_eq!(ask_about(stranger, 3, "f"), AskOutcome::Unknown);
    assert_eq!(ask(3), AskOutcome::Refused, "what was answered stays answered");
}
