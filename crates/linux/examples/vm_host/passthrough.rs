//! Admin commands by passthrough say what nvme-cli says.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use towline_linux::nvme::NvmePassthrough;
use towline_linux::sysfs::{HostErrorKind, Sysfs};
use towline_nvme::admin::{AdminClient, AdminTransport, Data, TransportError};
use towline_nvme::command::{AdminCommand, opcode};
use towline_nvme::resources::{Resource, VirtualizationAction as Action};
use towline_nvme::status::StatusCode;

use crate::tap::Tap;
use crate::tools::{json, run};
use crate::{NVME, address};

pub const DEVICE: &str = "/dev/nvme0";

pub fn open() -> NvmePassthrough {
    NvmePassthrough::open(Path::new(DEVICE), &Sysfs::default()).unwrap()
}

pub fn client() -> AdminClient {
    AdminClient::new(Arc::new(open()))
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {value}"))
}

/// Our list of secondary controllers in nvme-cli's words.
fn secondaries() -> Vec<(u16, u16, bool, u16, u16, u16)> {
    client()
        .secondary_controllers()
        .unwrap()
        .iter()
        .map(|s| (s.scid, s.pcid, s.online(), s.vfn, s.nvq, s.nvi))
        .collect()
}

pub fn same_secondaries() {
    let theirs = json("nvme", &["list-secondary", DEVICE, "-o", "json"]);
    let theirs: Vec<_> = theirs["secondary-controllers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| {
            let n = |name: &str| number(s, name) as u16;
            (
                n("secondary-controller-identifier"),
                n("primary-controller-identifier"),
                n("secondary-controller-state") & 1 == 1,
                n("virtual-function-number"),
                n("num-virtual-queues"),
                n("num-virtual-interrupts"),
            )
        })
        .collect();
    assert_eq!(secondaries(), theirs);
    assert_eq!(theirs.len(), 4);
}

fn same_capabilities() {
    let theirs = json("nvme", &["primary-ctrl-caps", DEVICE, "-o", "json"]);
    let ours = client().primary_capabilities().unwrap();
    let pairs = [
        ("cntlid", u64::from(ours.cntlid)),
        ("portid", u64::from(ours.portid)),
        ("crt", u64::from(ours.crt)),
        ("vqfrt", u64::from(ours.vqfrt)),
        ("vqrfa", u64::from(ours.vqrfa)),
        ("vqrfap", u64::from(ours.vqrfap)),
        ("vqprt", u64::from(ours.vqprt)),
        ("vqfrsm", u64::from(ours.vqfrsm)),
        ("vqgran", u64::from(ours.vqgran)),
        ("vifrt", u64::from(ours.vifrt)),
        ("virfa", u64::from(ours.virfa)),
        ("virfap", u64::from(ours.virfap)),
        ("viprt", u64::from(ours.viprt)),
        ("vifrsm", u64::from(ours.vifrsm)),
        ("vigran", u64::from(ours.vigran)),
    ];
    for (name, ours) in pairs {
        assert_eq!(ours, number(&theirs, name), "{name}");
    }
}

pub fn tests(tap: &mut Tap) {
    tap.test("Identify Controller by passthrough is nvme id-ctrl", || {
        let theirs = json("nvme", &["id-ctrl", DEVICE, "-o", "json"]);
        let ours = client().identify_controller().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches(['\0', ' ']).to_owned();
        for (name, bytes) in [("sn", &ours.sn[..]), ("mn", &ours.mn), ("fr", &ours.fr), ("subnqn", &ours.subnqn)] {
            assert_eq!(text(bytes), theirs[name].as_str().unwrap().trim_end(), "{name}");
        }
        let pairs = [
            ("vid", u64::from(ours.vid)),
            ("ssvid", u64::from(ours.ssvid)),
            ("rab", u64::from(ours.rab)),
            ("cmic", u64::from(ours.cmic)),
            ("mdts", u64::from(ours.mdts)),
            ("cntlid", u64::from(ours.cntlid)),
            ("ver", u64::from(ours.ver)),
            ("oaes", u64::from(ours.oaes)),
            ("ctratt", u64::from(ours.ctratt)),
            ("cntrltype", u64::from(ours.cntrltype)),
            ("oacs", u64::from(ours.oacs)),
            ("acl", u64::from(ours.acl)),
            ("aerl", u64::from(ours.aerl)),
            ("lpa", u64::from(ours.lpa)),
            ("elpe", u64::from(ours.elpe)),
            ("wctemp", u64::from(ours.wctemp)),
            ("cctemp", u64::from(ours.cctemp)),
            ("sqes", u64::from(ours.sqes)),
            ("cqes", u64::from(ours.cqes)),
            ("nn", u64::from(ours.nn)),
            ("oncs", u64::from(ours.oncs)),
            ("vwc", u64::from(ours.vwc)),
            ("sgls", u64::from(ours.sgls)),
        ];
        for (name, ours) in pairs {
            assert_eq!(ours, number(&theirs, name), "{name}");
        }
        assert!(!ours.migrates_others(), "QEMU's controller has no host managed live migration");
    });
    tap.test("Primary Controller Capabilities are nvme primary-ctrl-caps", same_capabilities);
    tap.test("the list of secondary controllers is nvme list-secondary", same_secondaries);
    tap.test("namespaces and their identifiers are those of nvme-cli", || {
        let theirs = json("nvme", &["list-ns", DEVICE, "-o", "json"]);
        let theirs: Vec<u32> =
            theirs["nsid_list"].as_array().unwrap().iter().map(|n| number(n, "nsid") as u32).collect();
        assert_eq!(client().active_namespaces().unwrap(), theirs);
        let id = json("nvme", &["id-ns", DEVICE, "-n", "1", "-o", "json"]);
        let ours = client().identify_namespace(1).unwrap();
        assert_eq!(ours.nsze, number(&id, "nsze"));
        assert_eq!(ours.nmic, number(&id, "nmic") as u8);
        assert_eq!(ours.block_bytes(), Some(512));
    });
    tap.test("the longest transfer heeds MDTS and what the kernel's queue takes", || {
        let queue = |name: &str| -> u32 {
            run("sh", &["-c", &format!("cat /sys/class/nvme/nvme0/nvme0*n1/queue/{name}")]).trim().parse().unwrap()
        };
        let mdts = 4096 << client().identify_controller().unwrap().mdts;
        let expected = mdts.min(queue("max_hw_sectors_kb") * 1024).min((queue("max_segments") - 1) * 4096);
        let device = open();
        assert_eq!(device.max_transfer_bytes(), expected / 4096 * 4096);
        // The kernel takes that much, from memory that is not aligned to a page.
        let mut log = vec![0; expected as usize + 4];
        let dwords = expected / 4 - 1;
        let mut command = AdminCommand::new(opcode::GET_LOG_PAGE);
        (command.nsid, command.cdw10, command.cdw11) = (u32::MAX, (dwords & 0xffff) << 16 | 5, dwords >> 16);
        let done = device.submit(&command, Data::ToHost(&mut log[4..]), Duration::from_secs(60)).unwrap();
        assert!(done.status.is_success(), "{}", done.status);
        let mut longer = vec![0; expected as usize + 4096];
        let refused = device.submit(&command, Data::ToHost(&mut longer), Duration::from_secs(60));
        assert!(matches!(refused, Err(TransportError::Unsendable { .. })), "{refused:?}");
    });
    tap.test("a status of the controller is a completion, not an errno", || {
        let error = client().identify_namespace(0xffff_fff0).unwrap_err();
        assert!(error.is(StatusCode::InvalidNamespaceOrFormat), "{error}");
        let none = client().virtualization_manage(Action::Online, 99, Resource::Queues, 0).unwrap_err();
        assert!(none.is(StatusCode::InvalidControllerIdentifier), "{none}");
        let hmlm = client().state_formats().unwrap_err();
        assert!(hmlm.status().is_some(), "QEMU does not know CNS 20h: {hmlm}");
    });
    tap.test("data against the direction of the opcode is not sent", || {
        let mut bytes = [0; 4096];
        let identify = AdminCommand::new(opcode::IDENTIFY);
        let refused = open().submit(&identify, Data::FromHost(&bytes), Duration::from_secs(60));
        assert!(matches!(refused, Err(TransportError::Unsendable { .. })), "{refused:?}");
        let attach = AdminCommand::new(opcode::NAMESPACE_ATTACHMENT);
        let refused = open().submit(&attach, Data::ToHost(&mut bytes), Duration::from_secs(60));
        assert!(matches!(refused, Err(TransportError::Unsendable { .. })), "{refused:?}");
    });
    tap.test("a feature that is the driver's own is refused in words, also to root", || {
        let mut number_of_queues = AdminCommand::new(opcode::SET_FEATURES);
        number_of_queues.cdw10 = 7;
        let refused = open().submit(&number_of_queues, Data::None, Duration::from_secs(60)).unwrap_err();
        let TransportError::Io { errno: 13, message } = &refused else { panic!("{refused:?}") };
        assert!(message.contains("EACCES") && message.contains("CAP_SYS_ADMIN"), "{message}");
    });
    tap.test("what is no NVMe controller is told", || {
        let at = |path: &str| NvmePassthrough::open(Path::new(path), &Sysfs::default()).unwrap_err();
        assert_eq!(at("/dev/nvme77").kind, HostErrorKind::NotFound);
        assert_eq!(at("/dev/nvme0n1").kind, HostErrorKind::Argument);
        assert_eq!(at("/proc/self/exe").kind, HostErrorKind::Argument);
        let null = at("/dev/null");
        assert_eq!((null.kind, null.errno_name().as_deref()), (HostErrorKind::Unsupported, Some("ENOTTY")), "{null}");
    });
    tap.test("the PCI function behind /dev/nvme0", || {
        assert_eq!(NvmePassthrough::pci_address(Path::new(DEVICE), &Sysfs::default()), Some(address(NVME)));
        assert_eq!(NvmePassthrough::pci_address(Path::new("/dev/null"), &Sysfs::default()), None);
    });
    tap.test("a reset by ioctl leaves a controller that answers", || {
        open().reset().unwrap();
        for _ in 0..100 {
            if std::fs::read_to_string("/sys/class/nvme/nvme0/state").unwrap().trim() == "live" {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(client().identify_controller().unwrap().cntlid, 0);
    });
}
