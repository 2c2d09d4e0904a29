//! Live migration by the controlling function over a real kernel: its admin commands go through Linux's own nvme driver, whose controller
//! is the embedded model behind a vfio-user socket. The state of a controller that the same kernel uses is moved to another one.
//!
//! Needs the controlling PF and two of its VFs as PCI functions, whose addresses are the arguments, the module nvme with `multipath=N`, and
//! a namespace that may be written. Run by `test/kernel`; prints TAP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "vm_host/tap.rs"]
mod tap;
#[path = "vm_host/tools.rs"]
mod tools;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tap::{Tap, descriptors};
use tools::{json, run};
use towline_core::channel::{ReadOutcome, StateChannel};
use towline_core::fsm::DeviceState;
use towline_linux::nvme::{NvmePassthrough, SecondaryReset};
use towline_linux::pci::{PciAddress, PciControl, PciFunction};
use towline_linux::sysfs::Sysfs;
use towline_nvme::admin::{AdminClient, AdminTransport};
use towline_nvme::hmlm::{HmlmChannel, HmlmConfig};
use towline_nvme::migration::FormatIndex;
use towline_nvme::resources::{Resource, VirtualizationAction as Action};
use towline_nvme::status::StatusCode;

/// Queue pairs of each controller, the admin queue's included, and vectors.
const QUEUES: u16 = 3;
/// Of the namespace, for each reading.
const BYTES: usize = 1 << 20;

/// One controller and its PCI function.
struct Function {
    address: PciAddress,
    cntlid: u16,
}

struct Rig {
    node: PathBuf,
    pf: PciAddress,
    client: AdminClient,
    source: Function,
    destination: Function,
}

fn nvme_of(address: PciAddress) -> Option<String> {
    PciFunction::find(&Sysfs::default(), address)?.nvme.filter(|n| n.state.as_deref() == Some("live")).map(|n| n.name)
}

fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..300 {
        if let Some(found) = condition() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("waited 30 s for {what}");
}

impl Rig {
    fn new() -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let [pf, source, destination] = arguments.as_slice() else { panic!("PF VF VF") };
        let [pf, source, destination]: [PciAddress; 3] = [pf, source, destination].map(|text| text.parse().unwrap());
        let name = wait("the controlling function's driver", || nvme_of(pf));
        let node = PathBuf::from(format!("/dev/{name}"));
        let client = AdminClient::new(Arc::new(NvmePassthrough::open(&node, &Sysfs::default()).unwrap()));
        let list = client.secondary_controllers().unwrap();
        let cntlid = |vfn: u16| list.iter().find(|s| s.vfn == vfn).unwrap().scid;
        let source = Function { address: source, cntlid: cntlid(1) };
        let destination = Function { address: destination, cntlid: cntlid(2) };
        Self { node, pf, client, source, destination }
    }

    fn channel(&self, function: &Function) -> HmlmChannel {
        let reset = SecondaryReset::new(self.client.clone(), Sysfs::default(), Some(self.pf), function.cntlid);
        HmlmChannel::open(self.client.clone(), HmlmConfig::new(function.cntlid), Box::new(reset)).unwrap()
    }

    /// The disk of the source.
    fn disk(&self) -> String {
        format!("/dev/{}n1", nvme_of(self.source.address).unwrap())
    }

    /// The I/O submission queues of a controller's state as nvme-cli reads them: QID, entries (0's-based), address.
    fn queues_by_cli(&self, function: &Function, dwords: u64) -> Vec<(u64, u64, u64)> {
        let (cntlid, numd) = (function.cntlid.to_string(), (dwords - 1).to_string());
        let node = self.node.to_str().unwrap();
        // The version index counts from 1, and no UUID asks for no vendor data.
        let state = json(
            "nvme",
            &[
                "lm",
                "migration-recv",
                node,
                "-s",
                "0",
                "-c",
                &cntlid,
                "-V",
                "1",
                "-n",
                &numd,
                "-o",
                "0",
                "--output-format=json",
            ],
        );
        let queues = &state["nvme controller state"]["io submission queue list"];
        let queues = queues.as_array().unwrap_or_else(|| panic!("{state}"));
        let number =
            |queue: &serde_json::Value, name: &str| queue[name].as_u64().unwrap_or_else(|| panic!("{name}: {queue}"));
        queues
            .iter()
            .map(|queue| {
                (
                    number(queue, "io submission queue identifier"),
                    number(queue, "io submission queue size"),
                    number(queue, "io submission prp entry 1"),
                )
            })
            .collect()
    }
}

fn read_all(channel: &mut HmlmChannel) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), [0; 1000]);
    loop {
        match channel.read(&mut piece).unwrap() {
            ReadOutcome::Bytes(n) => all.extend_from_slice(&piece[..n]),
            ReadOutcome::End => return all,
            ReadOutcome::EmptyForNow => panic!("a stopped controller has everything"),
        }
    }
}

fn dd(disk: &str) -> Command {
    let mut dd = Command::new("dd");
    dd.args([&format!("if={disk}"), "of=/dev/null", "iflag=direct", &format!("bs={BYTES}"), "count=1"]);
    dd.stderr(Stdio::null());
    dd
}

fn tests(tap: &mut Tap, rig: &Rig) {
    let Rig { client, source, destination, .. } = rig;
    tap.test("the controlling function says by nvme-cli too that it migrates others", || {
        let id = json("nvme", &["id-ctrl", rig.node.to_str().unwrap(), "-o", "json"]);
        assert_eq!(id["oacs"].as_u64().unwrap() >> 11 & 1, 1);
        assert!(client.identify_controller().unwrap().migrates_others());
        assert!(client.state_formats().unwrap().versions.contains(&0));
    });
    tap.test(
        "two secondary controllers are provisioned through the kernel's driver, as nvme list-secondary sees it",
        || {
            for function in [source, destination] {
                let manage = |action, resource, count| {
                    client.virtualization_manage(action, function.cntlid, resource, count).unwrap();
                };
                manage(Action::Offline, Resource::Queues, 0);
                manage(Action::Assign, Resource::Queues, QUEUES);
                manage(Action::Assign, Resource::Interrupts, QUEUES);
                client.namespace_attach(1, &[function.cntlid]).unwrap();
                manage(Action::Online, Resource::Queues, 0);
            }
            let list = json("nvme", &["list-secondary", rig.node.to_str().unwrap(), "-o", "json"]);
            let online: Vec<u64> = list["secondary-controllers"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|s| s["secondary-controller-state"] == 1 && s["num-virtual-queues"] == u64::from(QUEUES))
                .map(|s| s["secondary-controller-identifier"].as_u64().unwrap())
                .collect();
            assert_eq!(online, [u64::from(source.cntlid), u64::from(destination.cntlid)]);
        },
    );
    tap.test("the kernel takes the source into use", || {
        let control = PciControl::of(&Sysfs::default(), source.address).unwrap();
        assert_eq!(control.probe().unwrap(), "nvme");
        wait("the source's driver", || nvme_of(source.address));
        run(
            "sh",
            &["-c", &format!("dd if=/dev/urandom of={} oflag=direct bs={BYTES} count=1 2>/dev/null", rig.disk())],
        );
    });
    let mut payload = Vec::new();
    let mut size = 0;
    tap.test("a suspended controller does nothing until it is resumed: reading waits, and then has all", || {
        let before = run(
            "sh",
            &["-c", &format!("dd if={} iflag=direct bs={BYTES} count=1 2>/dev/null | sha256sum", rig.disk())],
        );
        let mut channel = rig.channel(source);
        channel.set_state(DeviceState::Stop).unwrap();
        let mut reading = dd(&rig.disk()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(2));
        let waits = reading.try_wait().unwrap().is_none();
        let not_twice = client.migration_resume(destination.cntlid).unwrap_err();
        assert!(not_twice.is(StatusCode::ControllerNotSuspended), "{not_twice}");
        channel.set_state(DeviceState::Running).unwrap();
        assert!(reading.wait().unwrap().success());
        assert!(waits, "it was read while the controller was suspended");
        let after = run(
            "sh",
            &["-c", &format!("dd if={} iflag=direct bs={BYTES} count=1 2>/dev/null | sha256sum", rig.disk())],
        );
        assert_eq!(before, after);
    });
    tap.test("the state has the queues that the kernel made, and nvme-cli reads the same", || {
        let mut channel = rig.channel(source);
        channel.set_state(DeviceState::Stop).unwrap();
        channel.set_state(DeviceState::StopCopy).unwrap();
        payload = read_all(&mut channel);
        let (header, suspended) =
            client.migration_get_state_header(source.cntlid, FormatIndex { version: 1, uuid: 0 }).unwrap();
        assert!(suspended && header.suspended());
        let (state, _) = client.migration_get_state(source.cntlid, FormatIndex { version: 1, uuid: 0 }).unwrap();
        size = state.len() as u64;
        let parsed = towline_nvme::state::ControllerState::decode(&state).unwrap();
        let ours: Vec<(u64, u64, u64)> =
            parsed.submission_queues.iter().map(|q| (q.qid.into(), q.size.into(), q.prp1)).collect();
        assert_eq!(ours, rig.queues_by_cli(source, size / 4));
        let name = nvme_of(source.address).unwrap();
        let by_kernel: usize = run("cat", &[&format!("/sys/class/nvme/{name}/queue_count")]).trim().parse().unwrap();
        assert_eq!(ours.len() + 1, by_kernel);
        println!("# {} bytes of payload, {} of them state, {} I/O queues", payload.len(), size, ours.len());
    });
    tap.test("the other controller takes the state, and nvme-cli reads the same queues there", || {
        let mut channel = rig.channel(destination);
        channel.set_state(DeviceState::Stop).unwrap();
        channel.set_state(DeviceState::Resuming).unwrap();
        payload.chunks(777).for_each(|piece| channel.write(piece).unwrap());
        channel.set_state(DeviceState::Stop).unwrap();
        assert_eq!(rig.queues_by_cli(destination, size / 4), rig.queues_by_cli(source, size / 4));
        channel.set_state(DeviceState::StopCopy).unwrap();
        let again = read_all(&mut channel);
        assert_eq!(again.len(), payload.len());
    });
    tap.test("damaged state is refused, and a reset makes the controller whole again", || {
        let mut channel = rig.channel(destination);
        channel.reset().unwrap();
        channel.set_state(DeviceState::Stop).unwrap();
        channel.set_state(DeviceState::Resuming).unwrap();
        let mut damaged = payload.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x40;
        let refused = damaged
            .chunks(4096)
            .try_for_each(|piece| channel.write(piece))
            .and_then(|()| channel.set_state(DeviceState::Stop));
        println!("# {}", refused.unwrap_err());
        channel.reset().unwrap();
        assert_eq!(channel.state().unwrap(), DeviceState::Running);
        let list = client.secondary_controllers().unwrap();
        let secondary = list.iter().find(|s| s.scid == destination.cntlid).unwrap();
        assert_eq!((secondary.online(), secondary.nvq, secondary.nvi), (true, QUEUES, QUEUES));
    });
    tap.test("the source goes on where it was, and its driver has noticed nothing", || {
        rig.channel(source).set_state(DeviceState::Running).unwrap();
        assert!(dd(&rig.disk()).status().unwrap().success());
        for address in [rig.pf, source.address] {
            assert!(nvme_of(address).is_some(), "{address} is live");
        }
        let log = run("dmesg", &[]);
        let complaints: Vec<&str> =
            log.lines().filter(|l| l.contains("nvme") && (l.contains("timeout") || l.contains("resetting"))).collect();
        assert_eq!(complaints, Vec::<&str>::new());
    });
    tap.test("parts of a state are as long as a passthrough command carries", || {
        let device = NvmePassthrough::open(&rig.node, &Sysfs::default()).unwrap();
        assert!(device.max_transfer_bytes() >= 4096);
        println!("# {} bytes a command", device.max_transfer_bytes());
        let mut small = vec![0; 4096];
        let version = FormatIndex { version: 1, uuid: 0 };
        rig.channel(source).set_state(DeviceState::Stop).unwrap();
        let (whole, _) = client.migration_get_state(source.cntlid, version).unwrap();
        client.migration_get_state_part(source.cntlid, version, 4, &mut small[..whole.len().min(4096) - 4]).unwrap();
        assert_eq!(small[..whole.len().min(4096) - 4], whole[4..whole.len().min(4096)]);
        rig.channel(source).set_state(DeviceState::Running).unwrap();
    });
}

fn main() -> ExitCode {
    let mut tap = Tap::new();
    let rig = Rig::new();
    let before = descriptors();
    tests(&mut tap, &rig);
    tap.test("no descriptor is left open", || assert_eq!(descriptors(), before));
    tap.finish()
}
