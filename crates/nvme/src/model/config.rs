//! What a subsystem is made of, and why it could not be made so.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

/// Most namespaces of a subsystem: what one Identify list page names, with room.
pub const MAX_NAMESPACES: usize = 128;
/// Most secondary controllers: what one CNS 15h page holds.
pub const MAX_SECONDARIES: usize = 127;
/// Most further PFs.
pub const MAX_FURTHER_PFS: u16 = 16;
/// Most queue pairs of one function, the admin queue included: the doorbells of 511 fit the page that a SIOV-like function has.
pub const MAX_QUEUES_PER_FUNCTION: u16 = 128;
/// Most MSI-X vectors of one function.
pub const MAX_VECTORS_PER_FUNCTION: u16 = 256;

/// One namespace: a disk in a file that may be open in several processes at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// Existing file of at least `size_bytes`; opened for reading and writing, never made longer.
    pub path: PathBuf,
    /// Size in bytes, a multiple of `lba_size_bytes`, not 0.
    pub size_bytes: u64,
    /// Size of a logical block in bytes: 512 or 4096.
    pub lba_size_bytes: u32,
    /// NGUID, not all zero. What makes two subsystems share the namespace, with `uuid`.
    pub nguid: [u8; 16],
    /// UUID of the namespace, not all zero.
    pub uuid: [u8; 16],
    /// Whether more than one controller may have it attached at once (NMIC bit 0).
    pub shared: bool,
}

/// What [`super::Subsystem::open`] makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemConfig {
    /// Identity of the subsystem, part of its NQN. Not all zero.
    pub uuid: [u8; 16],
    /// Serial number, 1 to 20 printable ASCII characters.
    pub serial: String,
    /// Namespaces; the first one is NSID 1. At most [`MAX_NAMESPACES`].
    pub namespaces: Vec<NamespaceConfig>,
    /// PFs beside the controlling one, at most [`MAX_FURTHER_PFS`].
    pub further_pfs: u16,
    /// VFs of the controlling PF; with `max_siov` at most [`MAX_SECONDARIES`].
    pub max_vfs: u16,
    /// SIOV-like functions that may exist at once.
    pub max_siov: u16,
    /// Queue pairs that every PF has for itself, the admin queue included; 2 to [`MAX_QUEUES_PER_FUNCTION`].
    pub pf_queues: u16,
    /// MSI-X vectors that every PF has for itself; 1 to [`MAX_VECTORS_PER_FUNCTION`].
    pub pf_vectors: u16,
    /// VQ resources (queue pairs, admin included) that can be assigned to secondary controllers or to the controlling PF.
    pub flexible_queues: u32,
    /// VI resources (MSI-X vectors), likewise.
    pub flexible_vectors: u32,
    /// Most VQ resources of one secondary controller; 2 to [`MAX_QUEUES_PER_FUNCTION`].
    pub max_queues_per_function: u16,
    /// Most VI resources of one secondary controller; 1 to [`MAX_VECTORS_PER_FUNCTION`].
    pub max_vectors_per_function: u16,
    /// Entries of the largest I/O queue, 2 to 4096 (CAP.MQES + 1).
    pub max_queue_entries: u16,
    /// Largest data transfer as 2^n pages of 4096 bytes, 1 to 8 (Identify MDTS).
    pub mdts: u8,
}

impl Default for SubsystemConfig {
    /// A controlling PF with four VFs and four SIOV-like functions of up to eight I/O queues, and no namespace. The identity is
    /// left empty, which [`super::Subsystem::open`] refuses.
    fn default() -> Self {
        Self {
            uuid: [0; 16],
            serial: String::from("TOWLINE"),
            namespaces: Vec::new(),
            further_pfs: 1,
            max_vfs: 4,
            max_siov: 4,
            pf_queues: 9,
            pf_vectors: 9,
            flexible_queues: 72,
            flexible_vectors: 72,
            max_queues_per_function: 9,
            max_vectors_per_function: 9,
            max_queue_entries: 1024,
            mdts: 7,
        }
    }
}

/// Why a subsystem could not be made, or an operation on it was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A field of the configuration is out of its range.
    #[error("{field}: {value} is not acceptable: {wants}")]
    Config {
        /// Name of the field.
        field: &'static str,
        /// Its value, as text.
        value: String,
        /// What it has to be.
        wants: &'static str,
    },
    /// The file of a namespace could not be opened, or its length not be told.
    #[error("namespace {nsid}: {path}: {source}")]
    NamespaceFile {
        /// The namespace.
        nsid: u32,
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file of a namespace is shorter than the namespace.
    #[error("namespace {nsid}: {path} has {actual_bytes} bytes, the namespace {size_bytes}")]
    NamespaceShort {
        /// The namespace.
        nsid: u32,
        /// Its file.
        path: PathBuf,
        /// Bytes that the file has.
        actual_bytes: u64,
        /// Bytes that it needs.
        size_bytes: u64,
    },
    /// A thread could not be started.
    #[error("cannot start the worker of controller {cntlid}: {source}")]
    Thread {
        /// The controller.
        cntlid: u16,
        /// What the system said.
        source: io::Error,
    },
    /// More VFs than the controlling PF has.
    #[error("{wanted} VFs asked, the controlling function has {max}")]
    TooManyVfs {
        /// Asked.
        wanted: u16,
        /// The most.
        max: u16,
    },
    /// The number of VFs can change only from and to 0, as in sysfs.
    #[error("{enabled} VFs are enabled: set 0 before another number")]
    VfsEnabled {
        /// Enabled now.
        enabled: u16,
    },
    /// Every SIOV-like function is in use.
    #[error("all {max} SIOV-like functions exist already")]
    TooManySiov {
        /// The most.
        max: u16,
    },
    /// There is no such controller, or it is of another kind.
    #[error("controller {cntlid} {why}")]
    Controller {
        /// The controller.
        cntlid: u16,
        /// What is wrong.
        why: &'static str,
    },
    /// The subsystem was closed.
    #[error("the subsystem is closed")]
    Closed,
}

fn range(field: &'static str, value: u64, low: u64, high: u64, wants: &'static str) -> Result<(), ModelError> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(ModelError::Config { field, value: value.to_string(), wants })
    }
}

impl SubsystemConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`ModelError::Config`] names the first field that is out of range.
    pub fn validate(&self) -> Result<(), ModelError> {
        let bad = |field, value: String, wants| Err(ModelError::Config { field, value, wants });
        if self.uuid == [0; 16] {
            return bad("uuid", String::from("all zero"), "an identity that is not all zero");
        }
        let printable = self.serial.bytes().all(|b| (0x20..0x7f).contains(&b));
        if self.serial.is_empty() || self.serial.len() > 20 || !printable {
            return bad("serial", format!("{:?}", self.serial), "1 to 20 printable ASCII characters");
        }
        range("further_pfs", self.further_pfs.into(), 0, MAX_FURTHER_PFS.into(), "at most 16")?;
        let secondaries = u64::from(self.max_vfs) + u64::from(self.max_siov);
        range("max_vfs + max_siov", secondaries, 0, MAX_SECONDARIES as u64, "at most 127 secondary controllers")?;
        let (most_q, most_v) = (u64::from(MAX_QUEUES_PER_FUNCTION), u64::from(MAX_VECTORS_PER_FUNCTION));
        range("pf_queues", self.pf_queues.into(), 2, most_q, "2 to 128")?;
        range("pf_vectors", self.pf_vectors.into(), 1, most_v, "1 to 256")?;
        range("flexible_queues", self.flexible_queues.into(), 0, 0xffff, "at most 65535")?;
        range("flexible_vectors", self.flexible_vectors.into(), 0, 0xffff, "at most 65535")?;
        range("max_queues_per_function", self.max_queues_per_function.into(), 2, most_q, "2 to 128")?;
        range("max_vectors_per_function", self.max_vectors_per_function.into(), 1, most_v, "1 to 256")?;
        range("max_queue_entries", self.max_queue_entries.into(), 2, 4096, "2 to 4096")?;
        range("mdts", self.mdts.into(), 1, 8, "1 to 8")?;
        range("namespaces", self.namespaces.len() as u64, 0, MAX_NAMESPACES as u64, "at most 128")?;
        let (mut nguids, mut uuids) = (BTreeSet::new(), BTreeSet::new());
        for namespace in &self.namespaces {
            namespace.validate()?;
            if !nguids.insert(namespace.nguid) || !uuids.insert(namespace.uuid) {
                return bad("namespaces", format!("{:02x?}", namespace.nguid), "an NGUID and a UUID of its own each");
            }
        }
        Ok(())
    }
}

impl NamespaceConfig {
    fn validate(&self) -> Result<(), ModelError> {
        let bad = |field, value: String, wants| Err(ModelError::Config { field, value, wants });
        if self.lba_size_bytes != 512 && self.lba_size_bytes != 4096 {
            return bad("lba_size_bytes", self.lba_size_bytes.to_string(), "512 or 4096");
        }
        let whole = self.size_bytes.is_multiple_of(u64::from(self.lba_size_bytes));
        if self.size_bytes == 0 || !whole || self.size_bytes > i64::MAX as u64 {
            return bad(
                "size_bytes",
                self.size_bytes.to_string(),
                "whole logical blocks, not 0, at most 2^63 - 1 bytes",
            );
        }
        if self.nguid == [0; 16] {
            return bad("nguid", String::from("all zero"), "an NGUID that is not all zero");
        }
        if self.uuid == [0; 16] {
            return bad("uuid", String::from("all zero"), "a UUID that is not all zero");
        }
        Ok(())
    }
}
