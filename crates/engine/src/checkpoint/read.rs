//! The file while it is read: locked, of a size that is known, and still the same one at its end.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;

use super::place::{file_error, is_name_of, problem};
use crate::cancel::Cancel;
use crate::error::{CheckpointProblem, EngineError, LinkError};
use crate::link::Link;

/// A checkpoint that was opened to be restored.
pub(crate) struct OpenCheckpoint {
    pub path: PathBuf,
    pub file: Arc<File>,
    pub bytes: u64,
}

impl OpenCheckpoint {
    /// Opens the file at `path`, without waiting for anything: who finds a pipe there would wait for ever.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => problem(path, CheckpointProblem::Missing),
            _ => file_error(path)(error),
        })?;
        let about = file.metadata().map_err(file_error(path))?;
        if !about.is_file() {
            return Err(problem(path, CheckpointProblem::Unusable("it is no regular file")));
        }
        Ok(Self { path: path.to_owned(), file: Arc::new(file), bytes: about.len() })
    }

    /// Keeps others from it until this is dropped; others that restore a copy do not disturb each other.
    pub fn lock(&self, exclusive: bool) -> Result<(), EngineError> {
        let locked = if exclusive { self.file.try_lock() } else { self.file.try_lock_shared() };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(problem(&self.path, CheckpointProblem::Busy)),
            Err(TryLockError::Error(error)) => return Err(file_error(&self.path)(error)),
        }
        // Between opening and locking it another process may have claimed it.
        if !is_name_of(&self.path, &self.file).map_err(file_error(&self.path))? {
            return Err(problem(&self.path, CheckpointProblem::Busy));
        }
        Ok(())
    }

    /// A file with two names could be claimed twice.
    pub fn check_single_name(&self) -> Result<(), EngineError> {
        if self.file.metadata().map_err(file_error(&self.path))?.nlink() != 1 {
            let why = "it has more than one name (hard links): a checkpoint that is restorable once has one";
            return Err(problem(&self.path, CheckpointProblem::Unusable(why)));
        }
        Ok(())
    }

    /// Whether it still has the size that it had when it was opened.
    pub fn check_size(&self) -> Result<(), EngineError> {
        if self.file.metadata().map_err(file_error(&self.path))?.len() != self.bytes {
            return Err(problem(&self.path, CheckpointProblem::Changed));
        }
        Ok(())
    }

    /// Its bytes as a stream, from the beginning.
    pub fn link(&self) -> FileReader {
        FileReader {
            file: Arc::clone(&self.file),
            at: 0,
            bytes: self.bytes,
            path: self.path.display().to_string(),
            cancel: None,
        }
    }
}

impl Drop for OpenCheckpoint {
    fn drop(&mut self) {
        // A process that was forked meanwhile would hold on to the lock until it executes something.
        let _ = self.file.unlock();
    }
}

/// A one-way link out of a file.
pub(crate) struct FileReader {
    file: Arc<File>,
    at: u64,
    bytes: u64,
    path: String,
    cancel: Option<Cancel>,
}

impl Link for FileReader {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, LinkError> {
        if self.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            return Err(LinkError::Cancelled);
        }
        let left = usize::try_from(self.bytes.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = out.len().min(left);
        let part = out.get_mut(..most).unwrap_or_default();
        let ended = |path: &str| LinkError::File {
            path: path.to_owned(),
            attempted: "read",
            source: io::Error::new(io::ErrorKind::UnexpectedEof, "the file has ended before its stream"),
        };
        if part.is_empty() {
            return Err(ended(&self.path));
        }
        loop {
            match self.file.read_at(part, self.at) {
                Ok(0) => return Err(ended(&self.path)),
                Ok(n) => {
                    self.at = self.at.saturating_add(n as u64);
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(LinkError::File { path: self.path.clone(), attempted: "read", source });
                }
            }
        }
    }

    fn write_all(&mut self, _: &mut [IoSlice<'_>]) -> Result<(), LinkError> {
        Err(LinkError::Closed { peer: self.path.clone() })
    }

    fn arm(&mut self, cancel: &Cancel) {
        self.cancel = Some(cancel.clone());
    }

    fn disarm(&mut self) {
        self.cancel = None;
    }

    fn idle_timeout(&self) -> Duration {
        Duration::MAX
    }

    fn set_idle_timeout(&mut self, _: Duration) {}

    fn peer(&self) -> &str {
        &self.path
    }
}
