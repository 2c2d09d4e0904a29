//! What the engine itself finds against an offer, all of it at once.

use towline_core::memory::MemoryRange;

use super::DestinationTarget;
use crate::dialogue::{DIALOGUE_VERSION, Mismatch, Offer};
use crate::link::Link;
use crate::session::terms::cannot_pass;
use crate::session::{MemoryBy, Terms};

/// What the sides leave to their callers has to be the same. Over a one-way link the source can't be told which epochs were
/// seen here, so that its own has to exceed them already.
pub(super) fn compare_terms(offer: &Offer, terms: Terms, link: &dyn Link, epoch_seen: u64) -> Vec<Mismatch> {
    let mut found = cannot_pass(offer.terms, link);
    // Who takes descriptors is content without any.
    let alike = Terms { descriptors: offer.terms.descriptors && terms.descriptors, ..terms };
    if offer.terms != alike {
        found.push(Mismatch {
            code: "terms".into(),
            message: format!("the session's terms differ: offered {:?}; here {:?}", offer.terms, terms),
            mend: "say the same on both sides about memory, commit and stream".into(),
        });
    }
    // What a checkpoint may have been overtaken by is told from the records of its session.
    if !terms.duplex && terms.checkpoint.is_none() && offer.epoch <= epoch_seen {
        found.push(Mismatch {
            code: "epoch-stale".into(),
            message: format!("epoch {} is offered, {epoch_seen} was seen here for these functions", offer.epoch),
            mend: format!("offer again with an epoch of at least {}", epoch_seen.saturating_add(1)),
        });
    }
    found
}

/// Identities, capabilities and the layout of memory.
pub(super) fn compare(offer: &Offer, target: &DestinationTarget, terms: Terms) -> Vec<Mismatch> {
    let mut found = Vec::new();
    let mut add = |code: &str, message: String, mend: &str| {
        found.push(Mismatch { code: code.into(), message, mend: mend.into() });
    };
    if offer.version != DIALOGUE_VERSION {
        let message =
            format!("the source speaks version {} of the dialogue, this side {DIALOGUE_VERSION}", offer.version);
        add("version", message, "run the same release on both sides");
    }
    for offered in &offer.functions {
        match target.functions.iter().find(|f| f.id == offered.id) {
            None => {
                add("function-missing", format!("function {} does not exist here", offered.id), "provision it first")
            }
            Some(here) if !here.channel.flags().can_migrate() => {
                add(
                    "function-not-migratable",
                    format!("function {} can't take device state", offered.id),
                    "enable migration on it",
                );
            }
            Some(_) => {}
        }
    }
    for function in &target.functions {
        if !offer.functions.iter().any(|o| o.id == function.id) {
            add("function-extra", format!("function {} is not part of the offer", function.id), "leave it out");
        }
    }
    if terms.memory != MemoryBy::Engine {
        return found;
    }
    let mut offered: Vec<MemoryRange> = offer.memory.iter().map(|r| MemoryRange { gpa: r.gpa, len: r.len }).collect();
    offered.sort_unstable();
    let mut here = target.memory.ranges();
    here.sort_unstable();
    if offered != here {
        let text = |ranges: &[MemoryRange]| {
            let parts: Vec<String> = ranges.iter().take(8).map(|r| format!("{:#x}+{:#x}", r.gpa, r.len)).collect();
            format!("{} ranges: {}", ranges.len(), parts.join(", "))
        };
        let message = format!("guest memory differs: offered {}; here {}", text(&offered), text(&here));
        add("memory-layout", message, "give the guest the same memory ranges on both sides");
    }
    found
}
