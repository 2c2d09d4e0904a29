//! The names of a checkpoint in its folder, and how they become durable.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use uuid::Uuid;

use crate::error::{CheckpointProblem, EngineError};

/// The longest name, in bytes: what is added to it has to fit into the 255 that file systems take.
const MAX_NAME_BYTES: usize = 160;

const PARTIAL: &str = ".partial";
const CLAIMED: &str = ".claimed";
const RESTORED: &str = ".restored";

/// Where a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    folder: PathBuf,
    name: String,
}

pub(super) fn file_error(path: &Path) -> impl Fn(io::Error) -> EngineError {
    move |source| EngineError::File { path: path.display().to_string(), source }
}

pub(super) fn problem(path: &Path, problem: CheckpointProblem) -> EngineError {
    EngineError::Checkpoint { path: path.display().to_string(), problem }
}

impl Place {
    /// The place at `path`. Where that is a symbolic link, the place is what it points to: the name that is claimed has to be the file's
    /// own.
    pub fn of(path: &Path) -> Result<Self, EngineError> {
        let resolved = match path.canonicalize() {
            Ok(resolved) => resolved,
            // Its folder has to be there; the file need not be.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let folder = folder.canonicalize().map_err(file_error(folder))?;
                folder.join(path.file_name().unwrap_or_default())
            }
            Err(error) => return Err(file_error(path)(error)),
        };
        let unusable = |why| problem(path, CheckpointProblem::Unusable(why));
        let name = resolved.file_name().and_then(|n| n.to_str()).filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| unusable("it has no name, or one that is not UTF-8"))?.to_owned();
        if name.len() > MAX_NAME_BYTES {
            return Err(unusable("its name has more than 160 bytes"));
        }
        let folder = resolved.parent().map(Path::to_path_buf).unwrap_or_default();
        if folder.to_str().is_none() {
            return Err(unusable("its folder has a name that is not UTF-8"));
        }
        Ok(Self { folder, name })
    }

    /// The place that a claim was made at.
    pub fn of_claim(claim: &Path) -> Option<Self> {
        let name = claim.file_name()?.to_str()?.strip_suffix(CLAIMED)?;
        let (name, token) = name.rsplit_once('.')?;
        let (name, session) = name.rsplit_once('.')?;
        Uuid::try_parse(token).ok().zip(Uuid::try_parse(session).ok())?;
        Some(Self { folder: claim.parent()?.to_path_buf(), name: name.to_owned() })
    }

    pub fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    pub fn partial(&self, session: Uuid) -> PathBuf {
        self.folder.join(format!("{}.{session}{PARTIAL}", self.name))
    }

    pub fn claimed(&self, session: Uuid, token: Uuid) -> PathBuf {
        self.folder.join(format!("{}.{session}.{token}{CLAIMED}", self.name))
    }

    pub fn restored(&self, session: Uuid) -> PathBuf {
        self.folder.join(format!("{}.{session}{RESTORED}", self.name))
    }

    /// Claims of the checkpoint with this name, of `session` or of any.
    pub fn claims(&self, session: Option<Uuid>) -> Result<Vec<(Uuid, PathBuf)>, EngineError> {
        let mut found = Vec::new();
        for (rest, path) in self.beside()? {
            let Some((of, token)) = rest.strip_suffix(CLAIMED).and_then(|r| r.split_once('.')) else { continue };
            let (Ok(of), Ok(_)) = (Uuid::try_parse(of), Uuid::try_parse(token)) else { continue };
            if session.is_none_or(|s| s == of) {
                found.push((of, path));
            }
        }
        Ok(found)
    }

    /// Whether a checkpoint with this name was restored from here, and which.
    pub fn restored_session(&self) -> Result<Option<Uuid>, EngineError> {
        let found = self.beside()?.into_iter();
        Ok(found.filter_map(|(rest, _)| Uuid::try_parse(rest.strip_suffix(RESTORED)?).ok()).next())
    }

    /// Files whose names begin with this one and a dot, each with what follows.
    fn beside(&self) -> Result<Vec<(String, PathBuf)>, EngineError> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(file_error(&self.folder))? {
            let entry = entry.map_err(file_error(&self.folder))?;
            let rest = entry
                .file_name()
                .to_str()
                .and_then(|n| n.strip_prefix(self.name.as_str()).and_then(|n| n.strip_prefix('.')).map(str::to_owned));
            found.extend(rest.map(|rest| (rest, entry.path())));
        }
        Ok(found)
    }

    /// Makes durable what was renamed or removed in the folder.
    pub fn sync(&self) -> Result<(), EngineError> {
        File::open(&self.folder).and_then(|f| f.sync_all()).map_err(file_error(&self.folder))
    }
}

/// Renames, unless something is at `to`.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without it: a second name, which can't replace anything, then the first one goes.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        other => other.map_err(io::Error::from),
    }
}

/// Whether `path` is a name of `file`.
pub(super) fn is_name_of(path: &Path, file: &File) -> io::Result<bool> {
    let here = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    Ok(same(&here, &file.metadata()?))
}

pub(super) fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::of(&folder.path().join("a.b")).unwrap();
        let (session, token) = (Uuid::new_v4(), Uuid::new_v4());
        let claim = place.claimed(session, token);
        assert_eq!(Place::of_claim(&claim), Some(place.clone()));
        assert_eq!(Place::of_claim(&place.path()), None);
        for path in [claim.clone(), place.partial(session), place.path(), place.claimed(Uuid::nil(), token)] {
            std::fs::write(path, b"").unwrap();
        }
        assert_eq!(place.claims(Some(session)).unwrap(), [(session, claim)]);
        assert_eq!(place.claims(None).unwrap().len(), 2);
        assert_eq!(place.restored_session().unwrap(), None);
        std::fs::write(place.restored(session), b"").unwrap();
        assert_eq!(place.restored_session().unwrap(), Some(session));
    }

    #[test]
    fn a_link_is_followed_and_long_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("real"), b"").unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        assert_eq!(Place::of(&folder.path().join("link")).unwrap(), Place::of(&folder.path().join("real")).unwrap());
        assert!(Place::of(&folder.path().join("x".repeat(161))).is_err());
        assert!(Place::of(Path::new("/")).is_err());
        assert!(Place::of(&folder.path().join("none/x")).is_err());
    }

    #[test]
    fn a_rename_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&a, b"a").unwrap();
        std::fs::write(&b, b"b").unwrap();
        assert_eq!(rename_new(&a, &b).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&b).unwrap(), b"b");
        std::fs::remove_file(&b).unwrap();
        rename_new(&a, &b).unwrap();
        assert!(!a.exists() && b.exists());
    }
}
