//! The default [`Fence`]: a directory with one append-only file a session and side.
//!
//! A record is one line: its CRC32C as eight hexadecimal digits, a space, JSON, a line feed. An append is written and
//! fsync'd before it returns; a new file's directory entry too. A line without its line feed at the end of a file was being
//! written when the power failed: nothing was concluded from it, and it is cut off. A complete line that does not fit its
//! checksum is damage, and then nothing is concluded at all.
//!
//! The directory is locked (flock) for as long as the journal is open, so that one process owns it.

mod lines;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::error::FenceError;
use crate::fence::{Fence, Record, Role, check_append};

/// The largest file of one session: records are few and small, anything beyond is not ours.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// See the module.
pub struct Journal {
    dir: PathBuf,
    inner: Mutex<Inner>,
    _lock: DirLock,
}

/// Holds the lock on the directory; released by the kernel when the process dies.
struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        // A process that was forked meanwhile would hold on to the lock until it executes something.
        let _ = self.0.unlock();
    }
}

struct Inner {
    dir: File,
    sessions: BTreeMap<(Uuid, Role), Session>,
}

struct Session {
    path: PathBuf,
    /// Open from the first append on.
    file: Option<File>,
    records: Vec<Record>,
    /// Bytes of whole records; what comes after was torn by a crash.
    good_bytes: u64,
    poisoned: bool,
    /// Why this file can't be believed; other sessions are not harmed by it.
    damaged: Option<(usize, String)>,
}

fn io_error(path: &Path, attempted: &'static str) -> impl Fn(io::Error) -> FenceError {
    move |source| FenceError::Io { path: path.display().to_string(), attempted, source }
}

impl Journal {
    /// Opens the journal in `dir`, which is made where it doesn't exist (mode 0700).
    ///
    /// # Errors
    /// [`FenceError::Owned`] where another process has it open; [`FenceError::Io`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, FenceError> {
        let dir = dir.into();
        make_dir(&dir)?;
        let lock_path = dir.join("lock");
        let lock_file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error(&lock_path, "open"))?;
        match lock_file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FenceError::Owned { path: dir.display().to_string() }),
            Err(TryLockError::Error(source)) => return Err(io_error(&lock_path, "lock")(source)),
        }
        let lock = DirLock(lock_file);
        let handle = File::open(&dir).map_err(io_error(&dir, "open"))?;
        let mut sessions = BTreeMap::new();
        for entry in std::fs::read_dir(&dir).map_err(io_error(&dir, "list"))? {
            let path = entry.map_err(io_error(&dir, "list"))?.path();
            let Some(key) = path.file_name().and_then(|n| n.to_str()).and_then(parse_name) else { continue };
            let session = match read_capped(&path)?.map(|bytes| lines::parse(&bytes)) {
                Err(too_large) => Session { damaged: Some((0, too_large)), ..Session::new(path) },
                Ok(Ok(parsed)) => Session::sound(path, key, parsed)?,
                Ok(Err(damage)) => Session {
                    records: damage.before,
                    damaged: Some((damage.record, damage.what)),
                    ..Session::new(path)
                },
            };
            sessions.insert(key, session);
        }
        Ok(Self { dir, inner: Mutex::new(Inner { dir: handle, sessions }), _lock: lock })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic between writing and noting leaves `poisoned` unset only before the write: the file stays the truth.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn highest_epoch(&self, functions: &[String]) -> u64 {
        let mut highest = 0;
        for record in self.sessions.values().flat_map(|s| &s.records) {
            if let Record::Opened { functions: opened, epoch, .. } = record
                && opened.iter().any(|f| functions.contains(f))
            {
                highest = highest.max(*epoch);
            }
        }
        highest
    }
}

impl Session {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, records: Vec::new(), good_bytes: 0, poisoned: false, damaged: None }
    }

    fn sound(path: PathBuf, (session, role): (Uuid, Role), parsed: lines::Parsed) -> Result<Self, FenceError> {
        // Records that this code would never have written are not believed: a file that was copied or put together.
        for (i, record) in parsed.records.iter().enumerate() {
            let before = parsed.records.get(..i).unwrap_or_default();
            let foreign = matches!(record, Record::Opened { session: s, .. } if *s != session);
            if let Err(why) =
                check_append(role, before, record).and(if foreign { Err("of another session") } else { Ok(()) })
            {
                return Ok(Self { damaged: Some((i, why.to_owned())), records: parsed.records, ..Self::new(path) });
            }
        }
        let mut good_bytes = parsed.good_bytes;
        if parsed.lacks_line_feed {
            let file = OpenOptions::new().write(true).open(&path).map_err(io_error(&path, "open"))?;
            std::os::unix::fs::FileExt::write_all_at(&file, b"\n", good_bytes)
                .map_err(io_error(&path, "end a record"))?;
            file.sync_data().map_err(io_error(&path, "fsync"))?;
            good_bytes += 1;
        }
        Ok(Self { records: parsed.records, good_bytes, ..Self::new(path) })
    }

    fn check_sound(&self) -> Result<(), FenceError> {
        if let Some((record, what)) = &self.damaged {
            return Err(FenceError::Damaged {
                path: self.path.display().to_string(),
                record: *record,
                what: what.clone(),
                functions: self.functions(),
            });
        }
        if self.poisoned {
            return Err(FenceError::Poisoned { path: self.path.display().to_string() });
        }
        Ok(())
    }

    fn functions(&self) -> Vec<String> {
        let opened = self.records.iter().find_map(|r| match r {
            Record::Opened { functions, .. } => Some(functions.clone()),
            _ => None,
        });
        opened.unwrap_or_default()
    }

    /// Writes one record and makes it durable.
    fn write(&mut self, dir: &File, record: &Record) -> Result<(), FenceError> {
        let line = lines::encode(record).map_err(io_error(&self.path, "encode"))?;
        // Until the fsync has returned nobody knows what is on the disk.
        self.poisoned = true;
        if self.file.is_none() {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&self.path)
                .map_err(io_error(&self.path, "open"))?;
            file.set_len(self.good_bytes).map_err(io_error(&self.path, "cut a torn record off"))?;
            dir.sync_all().map_err(io_error(&self.path, "fsync the directory"))?;
            self.file = Some(file);
        }
        if let Some(file) = &mut self.file {
            io::Seek::seek(file, io::SeekFrom::Start(self.good_bytes)).map_err(io_error(&self.path, "seek"))?;
            file.write_all(&line).map_err(io_error(&self.path, "append"))?;
            file.sync_data().map_err(io_error(&self.path, "fsync"))?;
        }
        self.good_bytes += line.len() as u64;
        self.records.push(record.clone());
        self.poisoned = false;
        Ok(())
    }
}

impl Fence for Journal {
    fn highest_epoch(&self, functions: &[String]) -> Result<u64, FenceError> {
        Ok(self.lock().highest_epoch(functions))
    }

    fn append(&self, session: Uuid, role: Role, record: Record) -> Result<(), FenceError> {
        let mut inner = self.lock();
        let refuse = |why: String| FenceError::Refused { session, refused: record.name(), why };
        let known = inner.sessions.get(&(session, role));
        if let Some(known) = known {
            known.check_sound()?;
        }
        check_append(role, known.map_or(&[], |s| s.records.as_slice()), &record).map_err(|why| refuse(why.into()))?;
        if let Record::Opened { functions, epoch, .. } = &record {
            let highest = inner.highest_epoch(functions);
            if *epoch <= highest {
                return Err(refuse(format!("epoch {epoch} is not above {highest}, which was seen already")));
            }
        }
        let path = self.dir.join(format!("{session}.{}.journal", role.name()));
        let Inner { dir, sessions } = &mut *inner;
        let entry = sessions.entry((session, role)).or_insert_with(|| Session::new(path));
        entry.write(dir, &record)
    }

    fn records(&self, session: Uuid, role: Role) -> Result<Vec<Record>, FenceError> {
        match self.lock().sessions.get(&(session, role)) {
            None => Ok(Vec::new()),
            Some(known) => known.check_sound().map(|()| known.records.clone()),
        }
    }

    fn sessions(&self) -> Result<Vec<(Uuid, Role)>, FenceError> {
        Ok(self.lock().sessions.keys().copied().collect())
    }
}

fn make_dir(dir: &Path) -> Result<(), FenceError> {
    use std::os::unix::fs::DirBuilderExt;
    if !dir.is_dir() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error(dir, "make"))?;
        // The new directory itself has to survive a power failure too.
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(parent).and_then(|p| p.sync_all()).map_err(io_error(parent, "fsync the directory"))?;
        }
    }
    Ok(())
}

fn parse_name(name: &str) -> Option<(Uuid, Role)> {
    let (session, role) = name.strip_suffix(".journal")?.split_once('.')?;
    let role = [Role::Source, Role::Destination].into_iter().find(|r| r.name() == role)?;
    Some((Uuid::try_parse(session).ok()?, role))
}

/// The bytes of a file, or why they are not worth reading: that is the damage of one session, not of all.
fn read_capped(path: &Path) -> Result<Result<Vec<u8>, String>, FenceError> {
    let length = std::fs::metadata(path).map_err(io_error(path, "look at"))?.len();
    if length > MAX_FILE_BYTES {
        return Ok(Err(format!("the file has {length} bytes, the limit is {MAX_FILE_BYTES}")));
    }
    std::fs::read(path).map(Ok).map_err(io_error(path, "read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_journal_is_free_also_where_a_forked_process_still_has_its_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        // What a fork leaves to the child until it executes something.
        let inherited = journal._lock.0.try_clone().unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(FenceError::Owned { .. })));
        drop(journal);
        Journal::open(dir.path()).unwrap();
        drop(inherited);
    }
}
