//! MSI-X as the controller sees it: who is told, which vectors are masked, which are pending.

use std::sync::Arc;

/// Takes a controller's interrupts. Called from the controller's worker with the controller held: an implementation signals
/// (an eventfd, a channel, a condition variable) and returns, and calls nothing of the controller but its BAR.
pub trait InterruptSink: Send + Sync {
    /// Vector `vector` of the function fired.
    fn raise(&self, vector: u16);
}

/// The mask and pending bits of a function. Vectors start unmasked: whoever emulates the MSI-X capability masks them as the
/// guest's table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vectors {
    masked: Vec<bool>,
    pending: Vec<bool>,
}

impl Vectors {
    pub(crate) fn resize(&mut self, count: u16) {
        self.masked = vec![false; usize::from(count)];
        self.pending = vec![false; usize::from(count)];
    }

    /// Forgets what is pending. The mask bits are in the MSI-X table, which belongs to the function, not to the controller:
    /// a Controller Reset leaves it alone (PCI Base, MSI-X table; Base 2.1, 3.7.2).
    pub(crate) fn clear_pending(&mut self) {
        self.pending.fill(false);
    }

    /// What a function level reset does to the table.
    pub(crate) fn clear(&mut self) {
        self.masked.fill(false);
        self.clear_pending();
    }

    pub(crate) fn set_pending(&mut self, vector: u16) {
        if let Some(pending) = self.pending.get_mut(usize::from(vector)) {
            *pending = true;
        }
    }

    pub(crate) fn pending(&self, vector: u16) -> bool {
        self.pending.get(usize::from(vector)).copied().unwrap_or(false)
    }

    pub(crate) fn masked(&self, vector: u16) -> bool {
        self.masked.get(usize::from(vector)).copied().unwrap_or(false)
    }

    pub(crate) fn mask(&mut self, vector: u16, masked: bool) {
        if let Some(slot) = self.masked.get_mut(usize::from(vector)) {
            *slot = masked;
        }
    }

    /// Fires what is pending and not masked. Without a sink it stays pending.
    pub(crate) fn deliver(&mut self, sink: Option<&Arc<dyn InterruptSink>>) {
        let Some(sink) = sink else { return };
        for (vector, (pending, masked)) in self.pending.iter_mut().zip(&self.masked).enumerate() {
            if *pending && !*masked {
                *pending = false;
                if let Ok(vector) = u16::try_from(vector) {
                    sink.raise(vector);
                }
            }
        }
    }
}
