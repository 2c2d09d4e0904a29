//! A namespace in a file. Two processes that open the same file share it: there is no cache in between.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use super::config::{ModelError, NamespaceConfig};
use crate::status::StatusCode;

/// Largest piece of zeroes written at once.
const ZEROES: usize = 64 * 1024;

/// An open namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) nsid: u32,
    pub(crate) config: NamespaceConfig,
    file: File,
}

impl Namespace {
    pub(crate) fn open(nsid: u32, config: NamespaceConfig) -> Result<Self, ModelError> {
        let fail = |source: io::Error| ModelError::NamespaceFile { nsid, path: config.path.clone(), source };
        let file = OpenOptions::new().read(true).write(true).open(&config.path).map_err(fail)?;
        let actual_bytes = file.metadata().map_err(fail)?.len();
        if actual_bytes < config.size_bytes {
            let (path, size_bytes) = (config.path.clone(), config.size_bytes);
            return Err(ModelError::NamespaceShort { nsid, path, actual_bytes, size_bytes });
        }
        Ok(Self { nsid, config, file })
    }

    /// Size in logical blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.config.size_bytes / u64::from(self.config.lba_size_bytes)
    }

    /// log2 of the size of a logical block.
    pub(crate) fn lba_shift(&self) -> u32 {
        self.config.lba_size_bytes.trailing_zeros()
    }

    /// Byte offset and length of `blocks` blocks from `slba`.
    ///
    /// # Errors
    /// LBA Out of Range.
    pub(crate) fn extent(&self, slba: u64, blocks: u64) -> Result<(u64, u64), StatusCode> {
        match slba.checked_add(blocks) {
            Some(end) if end <= self.blocks() => Ok((slba << self.lba_shift(), blocks << self.lba_shift())),
            _ => Err(StatusCode::LbaOutOfRange),
        }
    }

    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), StatusCode> {
        self.file.read_exact_at(out, offset).map_err(|_| StatusCode::UnrecoveredReadError)
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), StatusCode> {
        self.file.write_all_at(data, offset).map_err(|_| StatusCode::WriteFault)
    }

    pub(crate) fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StatusCode> {
        let zeroes = vec![0u8; ZEROES.min(usize::try_from(len).unwrap_or(ZEROES))];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(zeroes.len() as u64);
            self.write(offset + done, zeroes.get(..now as usize).unwrap_or(&zeroes))?;
            done += now;
        }
        Ok(())
    }

    /// What was written before is on stable storage afterwards.
    pub(crate) fn flush(&self) -> Result<(), StatusCode> {
        self.file.sync_data().map_err(|_| StatusCode::WriteFault)
    }
}
