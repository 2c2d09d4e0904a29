//! Guest memory of known contents.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use towline_core::memory::GuestMemory;
use towline_linux::memory::{MappedMemory, memfd};

pub const PAGE: u64 = 4096;

/// The same numbers in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        // xorshift64 (Marsaglia 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

pub struct Guest {
    pub memory: Arc<MappedMemory>,
    pub bytes: u64,
}

/// The file of a guest's memory.
pub fn file(bytes: u64) -> OwnedFd {
    memfd("bench", bytes).unwrap()
}

impl Guest {
    /// Maps the file.
    pub fn map(file: impl AsFd, bytes: u64) -> Self {
        let memory = Arc::new(MappedMemory::new());
        memory.add_region(0, file.as_fd(), 0, bytes).unwrap();
        Self { memory, bytes }
    }

    pub fn pages(&self) -> u64 {
        self.bytes / PAGE
    }

    /// Writes every page, so that nobody pays for page faults later.
    pub fn fill(&self, random: &mut Random) {
        let mut page = [0; PAGE as usize];
        for gpa in (0..self.bytes).step_by(PAGE as usize) {
            for word in page.as_chunks_mut::<8>().0 {
                *word = random.next().to_le_bytes();
            }
            self.memory.write(gpa, &page).unwrap();
        }
    }

    pub fn clear(&self, page: u64) {
        self.memory.write(page * PAGE, &[0; PAGE as usize]).unwrap();
    }

    /// Changes a few bytes of a page.
    pub fn touch(&self, page: u64, random: &mut Random) {
        let at = page * PAGE + random.next() % (PAGE / 8) * 8;
        self.memory.write(at, &(random.next() | 1).to_le_bytes()).unwrap();
    }

    /// The contents of `pages`, one after another.
    pub fn gather(&self, pages: &[u64], out: &mut Vec<u8>) {
        out.resize(pages.len() * PAGE as usize, 0);
        for (page, out) in pages.iter().zip(out.chunks_mut(PAGE as usize)) {
            self.memory.read(page * PAGE, out).unwrap();
        }
    }

    /// Stops the bench where two guests differ.
    pub fn assert_same(&self, other: &Self) {
        let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        for gpa in (0..self.bytes).step_by(a.len()) {
            self.memory.read(gpa, &mut a).unwrap();
            other.memory.read(gpa, &mut b).unwrap();
            assert!(a == b, "the destination's memory differs from the source's near {gpa:#x}");
        }
    }
}
