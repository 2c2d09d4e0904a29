//! The reset of a controlled controller, which its controlling function can't give as a command of its own.

use towline_core::channel::{ChannelError, ChannelErrorKind};
use towline_nvme::admin::AdminClient;
use towline_nvme::hmlm::FunctionReset;
use towline_nvme::resources::{Resource, SecondaryController, VirtualizationAction as Action};

use crate::pci::{PciAddress, PciControl, PciFunction, functions};
use crate::sysfs::{HostError, HostErrorKind, Sysfs};

/// Resets a secondary controller of a PF that the kernel's nvme driver has, by the first way that there is:
///
/// 1. FLR of its VF, where the PF has VFs here;
/// 2. FLR of a PCI function here that the nvme driver has and that is this controller by subsystem and CNTLID (a guest sees the
///    functions of one PF as unrelated ones);
/// 3. Virtualization Management: offline, the same resources assigned again, online. A SIOV-like function has no FLR.
///
/// A controller that is offline is as after a reset already.
#[derive(Clone, Debug)]
pub struct SecondaryReset {
    client: AdminClient,
    sysfs: Sysfs,
    pf: Option<PciAddress>,
    cntlid: u16,
}

impl SecondaryReset {
    /// That of controller `cntlid`, by the controlling function behind `client`; `pf` is its PCI function, where it is known.
    #[must_use]
    pub fn new(client: AdminClient, sysfs: Sysfs, pf: Option<PciAddress>, cntlid: u16) -> Self {
        Self { client, sysfs, pf, cntlid }
    }

    fn secondary(&self) -> Result<SecondaryController, ChannelError> {
        let list = self.client.secondary_controllers().map_err(|e| e.into_channel_error(None))?;
        list.into_iter().find(|s| s.scid == self.cntlid).ok_or_else(|| {
            let message = format!("controller {} is no secondary controller of this one", self.cntlid);
            ChannelError::new(ChannelErrorKind::Gone, message)
        })
    }

    /// The PCI function of the controller, where it has one here.
    fn function(&self, secondary: &SecondaryController) -> Option<PciAddress> {
        let pf = PciFunction::find(&self.sysfs, self.pf?)?;
        let vf = usize::from(secondary.vfn).checked_sub(1).and_then(|index| pf.virtfns.get(index));
        if let Some(vf) = vf {
            return Some(*vf);
        }
        let subsystem = pf.nvme.as_ref()?.subsystem_nqn.clone()?;
        let is_it = |function: &PciFunction| {
            function
                .nvme
                .as_ref()
                .is_some_and(|nvme| nvme.cntlid == Some(self.cntlid) && nvme.subsystem_nqn.as_ref() == Some(&subsystem))
        };
        functions(&self.sysfs).into_iter().find(is_it).map(|function| function.address)
    }

    fn by_command(&self, secondary: &SecondaryController) -> Result<(), ChannelError> {
        let manage = |action, resource, count| {
            self.client
                .virtualization_manage(action, self.cntlid, resource, count)
                .map_err(|e| e.into_channel_error(None))
        };
        // Offline takes every flexible resource away.
        manage(Action::Offline, Resource::Queues, 0)?;
        for (resource, count) in [(Resource::Queues, secondary.nvq), (Resource::Interrupts, secondary.nvi)] {
            let assigned = manage(Action::Assign, resource, count)?;
            if assigned != count {
                let message = format!(
                    "controller {} had {count} flexible resources ({resource:?}) before its reset and got {assigned}",
                    self.cntlid
                );
                return Err(ChannelError::new(ChannelErrorKind::Device, message));
            }
        }
        manage(Action::Online, Resource::Queues, 0).map(drop)
    }
}

impl FunctionReset for SecondaryReset {
    fn reset(&mut self) -> Result<(), ChannelError> {
        let secondary = self.secondary()?;
        if !secondary.online() {
            return Ok(());
        }
        match self.function(&secondary) {
            Some(address) => PciControl::of(&self.sysfs, address).and_then(|control| control.reset()).map_err(refused),
            None => self.by_command(&secondary),
        }
    }
}

fn refused(error: HostError) -> ChannelError {
    let kind = match error.kind {
        HostErrorKind::Unsupported => ChannelErrorKind::Unsupported,
        HostErrorKind::Gone | HostErrorKind::NotFound => ChannelErrorKind::Gone,
        _ => ChannelErrorKind::Device,
    };
    ChannelError { errno: error.errno, ..ChannelError::new(kind, error.to_string()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use towline_core::channel::StateChannel;
    use towline_core::fsm::DeviceState;
    use towline_nvme::hmlm::{HmlmChannel, HmlmConfig};
    use towline_nvme::model::{EmbeddedAdmin, Subsystem, SubsystemConfig};
    use towline_nvme::status::StatusCode;

    use super::*;

    /// A subsystem with a SIOV-like function that is online with three queues and two vectors.
    fn siov() -> (Arc<Subsystem>, AdminClient, u16) {
        let subsystem = Subsystem::open(SubsystemConfig { uuid: [7; 16], ..SubsystemConfig::default() }).unwrap();
        let client = AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
        let cntlid = subsystem.create_siov().unwrap();
        let manage = |action, resource, count| client.virtualization_manage(action, cntlid, resource, count).unwrap();
        manage(Action::Assign, Resource::Queues, 3);
        manage(Action::Assign, Resource::Interrupts, 2);
        manage(Action::Online, Resource::Queues, 0);
        (subsystem, client, cntlid)
    }

    fn reset(client: &AdminClient, cntlid: u16) -> SecondaryReset {
        SecondaryReset::new(client.clone(), Sysfs::at("/nonexistent/sys"), None, cntlid)
    }

    #[test]
    fn a_function_without_flr_is_reset_by_its_controlling_function_and_keeps_its_resources() {
        let (_subsystem, client, cntlid) = siov();
        let before = client.secondary_controllers().unwrap();
        let channel = || {
            let reset = Box::new(reset(&client, cntlid));
            HmlmChannel::open(client.clone(), HmlmConfig::new(cntlid), reset).unwrap()
        };
        let mut suspended = channel();
        suspended.set_state(DeviceState::Stop).unwrap();
        drop(suspended);
        let mut again = channel();
        assert_eq!(again.state().unwrap(), DeviceState::Stop, "it stays suspended without a reset");
        again.reset().unwrap();
        assert_eq!(again.state().unwrap(), DeviceState::Running);
        assert_eq!(channel().state().unwrap(), DeviceState::Running);
        assert_eq!(client.secondary_controllers().unwrap(), before);
        let resumed = client.migration_resume(cntlid).unwrap_err();
        assert!(resumed.is(StatusCode::ControllerNotSuspended), "{resumed}");
    }

    #[test]
    fn a_controller_that_is_offline_stays_so_and_a_foreign_one_is_refused() {
        let (_subsystem, client, cntlid) = siov();
        client.virtualization_manage(Action::Offline, cntlid, Resource::Queues, 0).unwrap();
        reset(&client, cntlid).reset().unwrap();
        let list = client.secondary_controllers().unwrap();
        assert!(list.iter().all(|s| !s.online()));
        assert_eq!(reset(&client, 999).reset().unwrap_err().kind, ChannelErrorKind::Gone);
    }

    /// PF and secondary are found in a tree; the reset goes to the file of the right function.
    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Sysfs) {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join("sys/bus/pci/devices").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let sysfs = Sysfs::at(folder.path().join("sys"));
        (folder, sysfs)
    }

    #[test]
    fn a_function_of_the_same_subsystem_is_reset_by_flr() {
        let (_subsystem, client, cntlid) = siov();
        let id = cntlid.to_string();
        let (folder, sysfs) = tree(&[
            ("0000:01:00.0/vendor", "0x1"),
            ("0000:01:00.0/device", "0x1"),
            ("0000:01:00.0/nvme/nvme0/cntlid", "1"),
            ("0000:01:00.0/nvme/nvme0/subsysnqn", "nqn.a"),
            ("0000:02:00.0/vendor", "0x1"),
            ("0000:02:00.0/device", "0x1"),
            ("0000:02:00.0/nvme/nvme1/cntlid", &id),
            ("0000:02:00.0/nvme/nvme1/subsysnqn", "nqn.of.another"),
            ("0000:02:00.0/reset", ""),
            ("0000:03:00.0/vendor", "0x1"),
            ("0000:03:00.0/device", "0x1"),
            ("0000:03:00.0/nvme/nvme2/cntlid", &id),
            ("0000:03:00.0/nvme/nvme2/subsysnqn", "nqn.a"),
            ("0000:03:00.0/reset", ""),
        ]);
        let pf = Some("0000:01:00.0".parse().unwrap());
        SecondaryReset::new(client, sysfs, pf, cntlid).reset().unwrap();
        let written = |address: &str| {
            std::fs::read_to_string(folder.path().join("sys/bus/pci/devices").join(address).join("reset")).unwrap()
        };
        assert_eq!((written("0000:02:00.0").as_str(), written("0000:03:00.0").as_str()), ("", "1"));
    }

    #[test]
    fn a_vf_is_reset_by_its_index_and_a_refusal_is_told() {
        let subsystem = Subsystem::open(SubsystemConfig { uuid: [7; 16], ..SubsystemConfig::default() }).unwrap();
        let client = AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
        subsystem.set_num_vfs(2).unwrap();
        let second = client.secondary_controllers().unwrap().iter().find(|s| s.vfn == 2).unwrap().scid;
        let manage = |action, resource, count| client.virtualization_manage(action, second, resource, count).unwrap();
        manage(Action::Assign, Resource::Queues, 2);
        manage(Action::Assign, Resource::Interrupts, 1);
        manage(Action::Online, Resource::Queues, 0);
        let (folder, sysfs) = tree(&[
            ("0000:01:00.0/vendor", "0x1"),
            ("0000:01:00.0/device", "0x1"),
            ("0000:01:00.1/reset", ""),
            ("0000:01:00.2/reset", ""),
        ]);
        let devices = folder.path().join("sys/bus/pci/devices");
        for index in [0, 1] {
            let link = devices.join(format!("0000:01:00.0/virtfn{index}"));
            std::os::unix::fs::symlink(format!("../0000:01:00.{}", index + 1), link).unwrap();
        }
        let pf = Some("0000:01:00.0".parse().unwrap());
        let mut reset = SecondaryReset::new(client, sysfs, pf, second);
        reset.reset().unwrap();
        let written = |n: u8| std::fs::read_to_string(devices.join(format!("0000:01:00.{n}/reset"))).unwrap();
        assert_eq!((written(1).as_str(), written(2).as_str()), ("", "1"));
        std::fs::remove_file(devices.join("0000:01:00.2/reset")).unwrap();
        let refused = reset.reset().unwrap_err();
        assert_eq!((refused.kind, refused.errno), (ChannelErrorKind::Unsupported, Some(2)), "{refused}");
    }
}
