//! What a reader accepts at most.

/// Caps that hold before anything is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes of one frame. 16 MiB by default.
    pub max_frame_bytes: u32,
    /// Sections in one stream, closed ones included. 4096 by default.
    pub max_sections: u32,
    /// Bytes of a section's name, at most 255. 255 by default.
    pub max_name_bytes: u8,
    /// Runs in one PAGES frame. 65536 by default.
    pub max_runs: u32,
    /// Whether DIALOGUE frames may follow STREAM_END: on a connection, where the commit comes after the state. Not in a
    /// file. False by default.
    pub dialogue_after_end: bool,
    /// Checksums are computed and not compared. Shows that the tests would notice.
    #[cfg(test)]
    pub(crate) ignore_checksums: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_frame_bytes: 16 << 20,
            max_sections: 4096,
            max_name_bytes: 255,
            max_runs: 65536,
            dialogue_after_end: false,
            #[cfg(test)]
            ignore_checksums: false,
        }
    }
}

impl Limits {
    /// The defaults for a connection: DIALOGUE may follow STREAM_END.
    #[must_use]
    pub fn connection() -> Self {
        Self { dialogue_after_end: true, ..Self::default() }
    }

    /// Whether a checksum is right.
    pub(super) fn same(&self, found: u32, computed: u32) -> bool {
        #[cfg(test)]
        if self.ignore_checksums {
            return true;
        }
        found == computed
    }
}
