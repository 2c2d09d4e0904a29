//! The file while it is written: under a temporary name, locked, and gone again unless it was published.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::place::{Place, file_error, is_name_of, problem, rename_new};
use crate::cancel::Cancel;
use crate::error::{CheckpointProblem, EngineError, LinkError};
use crate::link::Link;

/// A checkpoint that is being written. Dropped before it was published it leaves nothing behind.
pub struct CheckpointFile {
    place: Place,
    partial: PathBuf,
    /// Locked for as long as it is open, so that nobody restores from it or sweeps it away.
    file: Arc<File>,
    overwrite: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Partial,
    Named,
    /// It stays, whatever becomes of this object.
    Kept,
}

impl CheckpointFile {
    /// Makes the file for `session` beside `path`, mode 0600.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] where something is at `path` and `overwrite` is not set, or what is there is no regular file;
    /// [`EngineError::File`].
    pub fn create(path: &Path, session: Uuid, overwrite: bool) -> Result<Self, EngineError> {
        let place = Place::of(path)?;
        match place.path().symlink_metadata() {
            Ok(there) if !there.is_file() => {
                return Err(problem(path, CheckpointProblem::Unusable("there is something that is no regular file")));
            }
            Ok(_) if !overwrite => return Err(problem(path, CheckpointProblem::Exists)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file_error(path)(error)),
            _ => {}
        }
        let partial = place.partial(session);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
        let file = file.map_err(file_error(&partial))?;
        let made = Self { place, partial, file: Arc::new(file), overwrite, stage: Stage::Partial };
        made.file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => problem(path, CheckpointProblem::Busy),
            TryLockError::Error(error) => file_error(&made.partial)(error),
        })?;
        Ok(made)
    }

    /// The name that the file gets, absolute.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.place.path()
    }

    /// As bytes of a stream go into it.
    #[must_use]
    pub fn link(&self) -> Box<dyn Link> {
        Box::new(FileWriter { file: Arc::clone(&self.file), path: self.path().display().to_string(), cancel: None })
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self) -> Result<(), EngineError> {
        self.file.sync_all().map_err(file_error(&self.path()))
    }

    /// Gives the file its name. Not durable before [`CheckpointFile::sync_folder`].
    pub(crate) fn publish(&mut self) -> Result<(), EngineError> {
        let path = self.path();
        if self.overwrite {
            self.replace(&path)?;
        } else {
            rename_new(&self.partial, &path).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => problem(&path, CheckpointProblem::Exists),
                _ => file_error(&path)(error),
            })?;
        }
        self.stage = Stage::Named;
        Ok(())
    }

    fn replace(&self, path: &Path) -> Result<(), EngineError> {
        // Whoever restores from the old one holds its lock.
        let _old = match File::open(path) {
            Ok(old) => match old.try_lock() {
                Ok(()) => Some(old),
                Err(TryLockError::WouldBlock) => return Err(problem(path, CheckpointProblem::Busy)),
                Err(TryLockError::Error(error)) => return Err(file_error(path)(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(file_error(path)(error)),
        };
        std::fs::rename(&self.partial, path).map_err(file_error(path))
    }

    /// Makes the name durable.
    pub(crate) fn sync_folder(&self) -> Result<(), EngineError> {
        self.place.sync()
    }

    /// The file stays as it is, under whatever name it has.
    pub(crate) fn keep(&mut self) {
        self.stage = Stage::Kept;
    }

    /// Takes the commit back, durably: after that nobody can ever restore the file. Nobody could so far either, since it is locked. What is
    /// left is an empty file under the temporary name, by which who recovers knows it, until this is dropped.
    pub(crate) fn withdraw(&mut self) -> Result<(), EngineError> {
        let name = match self.stage {
            Stage::Kept => return Ok(()),
            Stage::Partial => self.partial.clone(),
            Stage::Named => self.path(),
        };
        if !is_name_of(&name, &self.file).map_err(file_error(&name))? {
            return Err(problem(&name, CheckpointProblem::Changed));
        }
        self.file.set_len(0).and_then(|()| self.file.sync_all()).map_err(file_error(&name))?;
        if self.stage == Stage::Named {
            std::fs::rename(&name, &self.partial).map_err(file_error(&name))?;
        }
        self.place.sync()?;
        self.stage = Stage::Partial;
        Ok(())
    }
}

impl Drop for CheckpointFile {
    fn drop(&mut self) {
        // One that has its name, and is dropped by a panic, is for who recovers to decide about.
        if self.stage == Stage::Partial && is_name_of(&self.partial, &self.file).unwrap_or(false) {
            let _ = std::fs::remove_file(&self.partial);
        }
        // A process that was forked meanwhile would hold on to the lock until it executes something.
        let _ = self.file.unlock();
    }
}

struct FileWriter {
    file: Arc<File>,
    path: String,
    cancel: Option<Cancel>,
}

impl Link for FileWriter {
    fn read(&mut self, _: &mut [u8]) -> Result<usize, LinkError> {
        Err(LinkError::Closed { peer: self.path.clone() })
    }

    fn write_all(&mut self, mut bufs: &mut [IoSlice<'_>]) -> Result<(), LinkError> {
        IoSlice::advance_slices(&mut bufs, 0);
        while !bufs.is_empty() {
            if self.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
                return Err(LinkError::Cancelled);
            }
            let failed = |source| LinkError::File { path: self.path.clone(), attempted: "write", source };
            match (&*self.file).write_vectored(bufs) {
                Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
                Ok(n) => IoSlice::advance_slices(&mut bufs, n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
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
