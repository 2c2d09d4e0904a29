//! What the kernel's `mtty` sample devices say to `towline_linux::vfio`, by group and by their own nodes, with VFIO's debugfs beside
//! it, and what the kernel has to refuse. Needs mediated devices, two of type `mtty-2` and one of `mtty-1`, and a PCI function
//! on `vfio-pci`. Run by `test/kernel`.
//!
//! `vm_mtty UUID UUID UUID … PCI-ADDRESS` prints TAP; the exit code is 1 where anything failed. What a kernel lacks (nodes of
//! devices, debugfs) is skipped and said.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod arcs;
mod dirty;
mod moves;
mod mtty;
mod opening;
#[path = "../vm_support/rows.rs"]
mod rows;
mod streams;
#[path = "../vm_support/mod.rs"]
mod support;

use std::process::ExitCode;

use mtty::{Mtty, Way};
use rows::{Row, Tap, row, skipped};
use support::descriptors;

/// Rows about devices that were opened one way.
fn rows<'a>(way: Way, a: &'a Mtty, b: &'a Mtty, other: &'a Mtty) -> Vec<Row<'a>> {
    let named = |name: &str| format!("{way}: {name}");
    let debugfs = a.debugfs_state().is_some();
    let mut rows = vec![
        row(named("a device tells its features, its format, and how it was opened"), move || opening::tells(a, way)),
        row(named("state moves from one device to the other, with pre-copy"), move || moves::with_pre_copy(a, b)),
        row(named("state moves back, without pre-copy"), move || moves::without_pre_copy(b, a)),
        row(named("pre-copy can be given up and begun anew"), move || moves::given_up(a)),
        row(named("MIG_DATA_SIZE in every state"), move || moves::data_size(a, b)),
        row(named("calls that don't fit the state are refused"), move || arcs::out_of_state(a)),
        row(named("the kernel goes every way that core knows and no other"), move || arcs::every_way(a)),
        row(named("a reset leads out of every state, and ends the session"), move || arcs::reset_anywhere(a)),
        row(named("a reset by somebody else ends the session and is noticed"), move || arcs::reset_cuts(a)),
        row(named("state that lacks bytes is refused at every length"), move || streams::cut(a, b)),
        row(named("a header with any bit flipped is refused"), move || streams::flipped(a, b)),
        row(named("a state that is too long is refused"), move || streams::too_long(a, b)),
        row(named("the state of another model is refused"), move || streams::foreign(a, other)),
        row(
            named("the calls of the log of DMA are taken (mtty's is always clean), or can't be and that is told"),
            move || dirty::log(a),
        ),
        row(named("regions and interrupts"), move || opening::parts(a)),
    ];
    if debugfs {
        rows.push(row(named("debugfs tells the state that the channel tells, on every way"), move || {
            arcs::by_debugfs(a)
        }));
    } else {
        rows.push(skipped(named("debugfs tells the state that the channel tells"), "no CONFIG_VFIO_DEBUGFS"));
    }
    rows
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [a, b, other, .., address] = arguments.as_slice() else {
        eprintln!("usage: vm_mtty UUID UUID UUID … PCI-ADDRESS");
        return ExitCode::from(2);
    };
    let mut tap = Tap::default();
    for way in [Way::Group, Way::Cdev] {
        if way == Way::Cdev && !mtty::has_nodes(a) {
            tap.run(&[skipped("cdev: all of it", "no CONFIG_VFIO_DEVICE_CDEV or no CONFIG_IOMMUFD")]);
            continue;
        }
        {
            // Closed again before the rows that open for themselves, as a device is open once.
            let (a, b, other) = (Mtty::open(a, way), Mtty::open(b, way), Mtty::open(other, way));
            tap.run(&rows(way, &a, &b, &other));
        }
        tap.run(&[
            row(format!("{way}: PRECOPY_INFO, version 1 and version 2"), || moves::precopy_info(a, way)),
            row(format!("{way}: state survives a close"), || opening::survives(a, way)),
            row(format!("{way}: a device is open once, by group or by node"), || opening::once(a, way)),
            row(format!("{way}: a function with its address space maps guest memory"), || opening::function(a, way)),
        ]);
    }
    tap.run(&[row("a function on vfio-pci has no migration, and says so", || opening::without_migration(address))]);
    tap.finish()
}
