//! Files of sysfs below a root that tests can replace.
//!
//! Reading never fails: what is missing, unreadable, longer than a cap or not text is `None`, since discovery works on any kernel
//! and without root as far as that goes. Writing tells every failure as a [`HostError`].

mod error;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub(crate) use error::Meaning;
pub use error::{HostError, HostErrorKind};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// The longest attribute: sysfs gives at most one page. `resource` of a device with all its BARs is the longest that is read.
const MOST_ATTRIBUTE_BYTES: u64 = 4096;
/// The most entries of a directory that are looked at. A bus with 65536 functions is the largest there can be in a segment.
const MOST_ENTRIES: usize = 65536;

/// The root of sysfs, `/sys` on a host.
///
/// What else of the system belongs to it is beside it: `/dev`, `/proc`, `/lib/modules`. A test's tree has the same shape, so
/// `TREE/sys` goes with `TREE/dev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    /// That of this host.
    fn default() -> Self {
        Self::at("/sys")
    }
}

impl Sysfs {
    /// Sysfs at `root`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the root.
    pub(crate) fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// A path beside the root: `dev/iommu`.
    pub(crate) fn beside(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.parent().unwrap_or(Path::new("/")).join(name)
    }
}

/// A component of a path that is a plain name: nothing that leaves its directory, nothing hidden, nothing that a terminal acts on.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:@+,".contains(&b))
}

/// Opens a regular file; a FIFO or a device in its place would block.
fn open(path: &Path, flags: OFlags, write: bool) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(!write)
        .write(write)
        .custom_flags((flags | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(std::io::Error::from_raw_os_error(Errno::INVAL.raw_os_error()))
    }
}

/// The bytes of a file of at most `cap` bytes.
pub(crate) fn read_capped(path: &Path, cap: u64) -> Option<Vec<u8>> {
    let file = open(path, OFlags::empty(), false).ok()?;
    let mut bytes = Vec::new();
    // One more than the cap, to tell a file that ends there from a longer one.
    file.take(cap.checked_add(1)?).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= cap).then_some(bytes)
}

/// An attribute without the end of its line. `None` also where it has characters that a terminal acts on.
pub(crate) fn text(path: &Path) -> Option<String> {
    let bytes = read_capped(path, MOST_ATTRIBUTE_BYTES)?;
    let text = String::from_utf8(bytes).ok()?;
    let text = text.trim_end_matches(['\n', '\0', ' ']);
    text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t').then(|| text.to_owned())
}

/// A whole number in decimal, or in hexadecimal with `0x` before it.
pub(crate) fn number(path: &Path) -> Option<u64> {
    parse_number(text(path)?.trim())
}

pub(crate) fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        None => None,
    }
}

/// A number that fits a narrower type.
pub(crate) fn small<T: TryFrom<u64>>(path: &Path) -> Option<T> {
    T::try_from(number(path)?).ok()
}

/// `1` or `0`.
pub(crate) fn flag(path: &Path) -> Option<bool> {
    match number(path)? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// The last part of what a symbolic link points to, where it is a plain name. Links of sysfs point to directories of devices,
/// drivers and groups; only their names mean anything here.
pub(crate) fn link_name(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    let name = target.file_name()?.to_str()?;
    is_plain_name(name).then(|| name.to_owned())
}

/// The plain names in a directory, sorted; none where there is no such directory.
pub(crate) fn entries(path: &Path) -> Vec<String> {
    let Ok(directory) = std::fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<String> = directory
        .take(MOST_ENTRIES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_plain_name(name))
        .collect();
    names.sort_unstable();
    names
}

/// `N` of `PREFIXN`, where it is written without leading zeroes and fits.
pub(crate) fn index_of(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if plain { digits.parse().ok() } else { None }
}

/// Writes an attribute by one system call, as sysfs wants it. Blocks as long as the kernel does.
pub(crate) fn write(path: &Path, data: &[u8]) -> Result<(), Errno> {
    let errno = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
    // An attribute is never a link itself: one in its place leads elsewhere.
    let file = open(path, OFlags::NOFOLLOW, true).map_err(errno)?;
    let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, data))?;
    if written == data.len() { Ok(()) } else { Err(Errno::IO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn numbers_are_strict() {
        for (text, number) in
            [("0", 0), ("12", 12), ("0x10de", 0x10de), ("0XFF", 255), ("18446744073709551615", u64::MAX)]
        {
            assert_eq!(parse_number(text), Some(number), "{text}");
        }
        for text in ["", "-1", "+1", "0x", "0x+1", "1 2", "18446744073709551616", "١", "1e3"] {
            assert_eq!(parse_number(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_odd_reads_as_nothing() {
        let folder = folder();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("long"), vec![b'1'; MOST_ATTRIBUTE_BYTES as usize + 1]).unwrap();
        std::fs::write(at("longest"), vec![b'1'; MOST_ATTRIBUTE_BYTES as usize]).unwrap();
        std::fs::write(at("binary"), [0xff, 0xfe]).unwrap();
        std::fs::write(at("escape"), "\u{1b}[2Jgone").unwrap();
        std::fs::write(at("padded"), "LIVE  \n").unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for odd in ["long", "binary", "escape", "folder", "fifo", "missing"] {
            assert_eq!(text(&at(odd)), None, "{odd}");
        }
        assert_eq!(text(&at("longest")).unwrap().len(), MOST_ATTRIBUTE_BYTES as usize);
        assert_eq!(text(&at("padded")).as_deref(), Some("LIVE"));
    }

    #[test]
    fn links_and_names_are_plain() {
        let folder = folder();
        let link = |name: &str, to: &str| {
            std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
            link_name(&folder.path().join(name))
        };
        assert_eq!(link("a", "../../../bus/pci/drivers/nvme").as_deref(), Some("nvme"));
        assert_eq!(link("b", "../.."), None);
        assert_eq!(link("c", "/"), None);
        assert_eq!(link("d", "../x y"), None);
        assert_eq!(link("e", "../.hidden"), None);
        assert_eq!(link_name(folder.path()), None);
        assert_eq!(entries(folder.path()), ["a", "b", "c", "d", "e"]);
        assert_eq!(entries(&folder.path().join("a")), Vec::<String>::new());
        assert_eq!(index_of("virtfn12", "virtfn"), Some(12));
        for name in ["virtfn", "virtfn01", "virtfn-1", "virtfn99999999999", "virtfnx", "other0"] {
            assert_eq!(index_of(name, "virtfn"), None, "{name}");
        }
    }

    #[test]
    fn writing_makes_no_file_and_follows_no_link() {
        let folder = folder();
        let at = |name: &str| folder.path().join(name);
        assert_eq!(write(&at("missing"), b"1"), Err(Errno::NOENT));
        assert!(!at("missing").exists());
        std::fs::write(at("there"), "").unwrap();
        std::os::unix::fs::symlink(at("there"), at("link")).unwrap();
        assert_eq!(write(&at("link"), b"1"), Err(Errno::LOOP));
        assert_eq!(std::fs::read(at("there")).unwrap(), b"");
        assert_eq!(write(&at("there"), b"1"), Ok(()));
        assert_eq!(std::fs::read(at("there")).unwrap(), b"1");
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(write(&at("fifo"), b"1"), Err(Errno::NXIO));
    }
}
