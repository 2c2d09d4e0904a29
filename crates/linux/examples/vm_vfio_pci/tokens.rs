//! The matrix of VF tokens: what a VF and its PF take, need and refuse (`vfio_pci_validate_vf_token` in the kernel).

use rustix::io::Errno;
use towline_linux::vfio::{OpenBy, VfToken};

use super::sysfs::{open, try_open};

const RIGHT: VfToken = VfToken::new([0xa5; 16]);
const WRONG: VfToken = VfToken::new([0x5a; 16]);

fn refused(address: &str, by: OpenBy, token: Option<VfToken>, errno: Errno) {
    let error = try_open(address, by, token).expect_err("it was opened");
    assert_eq!(error.errno, Some(errno.raw_os_error()), "{error}");
    println!("# {error}");
    assert!(!error.message.contains("a5a5") && !error.message.contains("5a5a"), "the token is in the message");
}

pub fn none_taken(vf: &str, by: OpenBy) {
    drop(open(vf, by));
    refused(vf, by, Some(RIGHT), Errno::INVAL);
    drop(open(vf, by));
}

pub fn vf_needs_it(pf: &str, vf: &str, by: OpenBy) {
    // Set by the PF's user, by opening with it and by the feature.
    for by_feature in [false, true] {
        let holder = if by_feature {
            let holder = open(pf, by);
            holder.device().set_vf_token(&RIGHT).unwrap();
            holder
        } else {
            try_open(pf, by, Some(RIGHT)).unwrap()
        };
        refused(vf, by, None, Errno::ACCESS);
        refused(vf, by, Some(WRONG), Errno::ACCESS);
        let user = try_open(vf, by, Some(RIGHT)).unwrap();
        assert!(user.device().region(0).unwrap().size > 0);
        drop(user);
        holder.device().set_vf_token(&WRONG).unwrap();
        refused(vf, by, Some(RIGHT), Errno::ACCESS);
        drop(try_open(vf, by, Some(WRONG)).unwrap());
    }
    // The token stays when its setter goes.
    refused(vf, by, None, Errno::ACCESS);
    drop(try_open(vf, by, Some(WRONG)).unwrap());
}

pub fn pf_needs_it(pf: &str, vf: &str, by: OpenBy) {
    drop(open(pf, by));
    drop(try_open(pf, by, Some(WRONG)).unwrap());
    // Without a user of a VF, opening with a token sets it.
    drop(try_open(pf, by, Some(RIGHT)).unwrap());
    let user = try_open(vf, by, Some(RIGHT)).unwrap();
    refused(pf, by, None, Errno::ACCESS);
    refused(pf, by, Some(WRONG), Errno::ACCESS);
    drop(try_open(pf, by, Some(RIGHT)).unwrap());
    drop(user);
    drop(open(pf, by));
}
