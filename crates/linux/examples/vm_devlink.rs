//! Devlink on a real kernel with its netdevsim, judged by the `devlink` tool of iproute2.
//!
//! Needs root and the module netdevsim. Run by `test/kernel`; prints TAP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "vm_host/tap.rs"]
mod tap;
#[path = "vm_host/tools.rs"]
mod tools;

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Value, json};
use tap::{Tap, descriptors};
use tools::{json as tool, refused, run};
use towline_linux::devlink::{Devlink, EswitchMode, Flavour, FunctionChange, Handle, NewPort, Port, PortState};
use towline_linux::sysfs::{HostError, HostErrorKind as Kind};

const DEVICE: &str = "netdevsim/netdevsim7";

fn handle() -> Handle {
    Handle::new("netdevsim", "netdevsim7").unwrap()
}

fn write(path: &str, value: &str) {
    std::fs::write(path, value).unwrap_or_else(|e| panic!("{value} > {path}: {e}"));
}

/// A port in the tool's words, those that we read too.
fn in_words(port: &Port) -> (String, Value) {
    let mut words = json!({ "flavour": port.flavour.name().replace('-', "") });
    let mut add = |name: &str, value: Option<Value>| {
        if let (Some(value), Some(map)) = (value, words.as_object_mut()) {
            map.insert(name.into(), value);
        }
    };
    add("netdev", port.netdev.clone().map(Value::from));
    add("controller", port.controller.map(Value::from));
    add("pfnum", port.pf.map(Value::from));
    add("vfnum", port.vf.map(Value::from));
    add("sfnum", port.sf.map(Value::from));
    add("function", port.function.as_ref().map(|f| Value::from(format!("{f:?}"))));
    (format!("{}/{}", port.device, port.index), words)
}

fn tools_ports() -> BTreeMap<String, Value> {
    let kept = ["flavour", "netdev", "controller", "pfnum", "vfnum", "sfnum", "function"];
    let all = tool("devlink", &["port", "show", "-j"]);
    let ports = all["port"].as_object().unwrap();
    let only = |port: &Value| -> Value {
        port.as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| kept.contains(&name.as_str()))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect()
    };
    ports.iter().map(|(name, port)| (name.clone(), only(port))).collect()
}

fn same_ports() -> usize {
    let ours: BTreeMap<String, Value> = Devlink::open().unwrap().ports().unwrap().iter().map(in_words).collect();
    let theirs = tools_ports();
    assert_eq!(ours, theirs);
    ours.len()
}

fn told(error: &HostError, kind: Kind, errno: &str, kernel: Option<&str>) {
    println!("# {error}");
    assert_eq!((error.kind, error.errno_name().as_deref()), (kind, Some(errno)), "{error}");
    assert_eq!(error.kernel.as_deref(), kernel, "{error}");
}

fn tests(tap: &mut Tap) {
    let mut devlink = Devlink::open().unwrap();
    tap.test("devices as by devlink dev show", || {
        let ours: Vec<String> = devlink.devices().unwrap().iter().map(ToString::to_string).collect();
        let theirs = tool("devlink", &["dev", "show", "-j"]);
        let theirs: Vec<String> = theirs["dev"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(ours, theirs);
        assert!(ours.iter().any(|device| device == DEVICE));
    });
    tap.test("ports as by devlink port show, in legacy mode", || assert_eq!(same_ports(), 2));
    tap.test("the eswitch goes to switchdev and makes a port a VF", || {
        let tools_mode = || tool("devlink", &["dev", "eswitch", "show", DEVICE, "-j"])["dev"][DEVICE]["mode"].clone();
        assert_eq!(devlink.eswitch_mode(&handle()).unwrap(), EswitchMode::Legacy);
        assert_eq!(tools_mode(), "legacy");
        write("/sys/bus/netdevsim/devices/netdevsim7/sriov_numvfs", "4");
        devlink.set_eswitch_mode(&handle(), EswitchMode::Switchdev).unwrap();
        assert_eq!(devlink.eswitch_mode(&handle()).unwrap(), EswitchMode::Switchdev);
        assert_eq!(tools_mode(), "switchdev");
    });
    tap.test("ports as by devlink port show, with VFs", || {
        assert_eq!(same_ports(), 6);
        let ports = devlink.ports().unwrap();
        let vfs: Vec<u16> = ports.iter().filter(|p| p.flavour == Flavour::PciVf).filter_map(|p| p.vf).collect();
        assert_eq!(vfs, [0, 1, 2, 3]);
    });
    tap.test("one port by its index", || {
        let all = devlink.ports().unwrap();
        for port in all {
            assert_eq!(devlink.port(&handle(), port.index).unwrap(), port);
        }
        told(&devlink.port(&handle(), 99).unwrap_err(), Kind::NotFound, "ENODEV", None);
        let none = Handle::new("netdevsim", "netdevsim99").unwrap();
        told(&devlink.port(&none, 0).unwrap_err(), Kind::NotFound, "ENODEV", None);
    });
    tap.test(
        "functions of ports that can't be configured: EOPNOTSUPP, in the kernel's words, as the tool says",
        || {
            let vf = 128;
            let changes = [
                (
                    "hw_addr",
                    FunctionChange { hw_addr: Some(vec![0, 0x11, 0x22, 0x33, 0x44, 0x55]), ..Default::default() },
                    "00:11:22:33:44:55",
                ),
                ("migratable", FunctionChange { migratable: Some(true), ..Default::default() }, "enable"),
                ("roce", FunctionChange { roce: Some(false), ..Default::default() }, "disable"),
                ("state", FunctionChange { state: Some(PortState::Active), ..Default::default() }, "active"),
            ];
            for (name, change, value) in changes {
                let theirs = refused("devlink", &["port", "function", "set", &format!("{DEVICE}/{vf}"), name, value]);
                assert!(theirs.starts_with("Error: ") && theirs.contains("not supported"), "{theirs}");
                let error = devlink.set_port(&handle(), vf, &change).unwrap_err();
                told(
                    &error,
                    Kind::Unsupported,
                    "EOPNOTSUPP",
                    theirs.lines().next().unwrap().strip_prefix("Error: ").map(|line| line.trim_end_matches('.')),
                );
                assert!(error.what.contains(name), "{error}");
            }
        },
    );
    tap.test("a change of nothing changes nothing", || {
        devlink.set_port(&handle(), 128, &FunctionChange::default()).unwrap();
    });
    tap.test("ports can't be made or deleted here: EOPNOTSUPP", || {
        let new = NewPort { flavour: Flavour::PciSf, pf: 0, sf: Some(1), controller: None };
        told(&devlink.new_port(&handle(), &new).unwrap_err(), Kind::Unsupported, "EOPNOTSUPP", None);
        told(&devlink.delete_port(&handle(), 128).unwrap_err(), Kind::Unsupported, "EOPNOTSUPP", None);
        assert_eq!(same_ports(), 6);
    });
    tap.test("back to legacy, and the VFs' ports are gone", || {
        devlink.set_eswitch_mode(&handle(), EswitchMode::Legacy).unwrap();
        assert_eq!(same_ports(), 2);
        let unknown = devlink.set_eswitch_mode(&handle(), EswitchMode::Other(77)).unwrap_err();
        println!("# {unknown}");
        assert!(unknown.errno.is_some());
    });
    tap.test("listing while devices come and go is whole each time", || {
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Also where an assertion fails: the scope waits for its threads.
            let _ends = Ends(&stop);
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    write("/sys/bus/netdevsim/new_device", "8 2");
                    write("/sys/bus/netdevsim/del_device", "8");
                }
            });
            for _ in 0..100 {
                match devlink.ports() {
                    Ok(ports) => assert_eq!(ports.iter().filter(|p| p.device == handle()).count(), 2),
                    Err(e) => assert_eq!(e.kind, Kind::State, "{e}"),
                }
            }
        });
        assert_eq!(same_ports(), 2);
    });
    tap.test("without CAP_NET_ADMIN: reading works, changes are refused: EPERM", || {
        use std::os::unix::process::CommandExt;
        let out = std::process::Command::new("/proc/self/exe").arg("as-nobody").uid(65534).gid(65534).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        println!("# {}", text.trim());
        assert!(out.status.success(), "{text} {}", String::from_utf8_lossy(&out.stderr));
    });
}

/// Tells a thread to end when it is dropped.
struct Ends<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Without root.
fn child() {
    let mut devlink = Devlink::open().unwrap();
    assert_eq!(devlink.ports().unwrap().iter().filter(|p| p.device == handle()).count(), 2);
    let refused = devlink.set_eswitch_mode(&handle(), EswitchMode::Switchdev).unwrap_err();
    assert_eq!((refused.kind, refused.errno_name().as_deref()), (Kind::Permission, Some("EPERM")));
    assert!(refused.to_string().contains("CAP_NET_ADMIN"));
    println!("{refused}");
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("as-nobody") {
        child();
        return ExitCode::SUCCESS;
    }
    let mut tap = Tap::new();
    run("modprobe", &["netdevsim"]);
    write("/sys/bus/netdevsim/new_device", "7 2");
    let before = descriptors();
    tests(&mut tap);
    tap.test("no descriptor is left open", || assert_eq!(descriptors(), before));
    write("/sys/bus/netdevsim/del_device", "7");
    tap.finish()
}
