//! Devices and ports.

use std::fmt;

use super::attribute::{Attributes, Bitfield, put};
use super::uapi;
use crate::sysfs::{HostError, is_plain_name};

/// An Ethernet address has 6 bytes, that of InfiniBand 20.
const HW_ADDR_BYTES: std::ops::RangeInclusive<usize> = 6..=20;

/// Which device: bus and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle {
    bus: String,
    device: String,
}

impl Handle {
    /// `pci` and `0000:01:00.0`.
    ///
    /// # Errors
    /// What can't be names in sysfs.
    pub fn new(bus: &str, device: &str) -> Result<Self, HostError> {
        for name in [bus, device] {
            if !is_plain_name(name) || name.len() > 64 {
                let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
                return Err(HostError::argument(format!("{shown:?}"), "this is not the name of a bus or device"));
            }
        }
        Ok(Self { bus: bus.into(), device: device.into() })
    }

    /// The bus: `pci`, `auxiliary`, `netdevsim`.
    #[must_use]
    pub fn bus(&self) -> &str {
        &self.bus
    }

    /// The name of the device on it.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    pub(super) fn read(what: &str, attributes: &Attributes<'_>) -> Result<Self, HostError> {
        let bus = attributes.required("the bus", attributes.text(uapi::ATTR_BUS_NAME)?)?;
        let device = attributes.required("the device", attributes.text(uapi::ATTR_DEV_NAME)?)?;
        Self::new(&bus, &device).map_err(|e| super::attribute::damaged(what, &e.to_string()))
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bus, self.device)
    }
}

/// `enum devlink_port_flavour`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flavour {
    /// Faces the network.
    Physical,
    /// Of a switch chip, towards the processor.
    Cpu,
    /// Between switch chips.
    Dsa,
    /// Represents a PF.
    PciPf,
    /// Represents a VF.
    PciVf,
    /// Of no physical port.
    Virtual,
    /// Not connected.
    Unused,
    /// Represents a subfunction.
    PciSf,
    /// One that we don't know.
    Other(u16),
}

impl Flavour {
    const KNOWN: [(Self, &'static str); 8] = [
        (Self::Physical, "physical"),
        (Self::Cpu, "cpu"),
        (Self::Dsa, "dsa"),
        (Self::PciPf, "pci-pf"),
        (Self::PciVf, "pci-vf"),
        (Self::Virtual, "virtual"),
        (Self::Unused, "unused"),
        (Self::PciSf, "pci-sf"),
    ];

    pub(super) fn from_number(number: u16) -> Self {
        Self::KNOWN.get(usize::from(number)).map_or(Self::Other(number), |(flavour, _)| *flavour)
    }

    pub(super) fn number(self) -> u16 {
        match self {
            Self::Other(number) => number,
            // Eight of them.
            known => Self::KNOWN.iter().position(|(flavour, _)| *flavour == known).unwrap_or(0) as u16,
        }
    }

    /// `pci-vf`; `other` for one that we don't know.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::KNOWN.iter().find(|(flavour, _)| *flavour == self).map_or("other", |(_, name)| name)
    }
}

/// Whether the function may be used: `enum devlink_port_fn_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Not yet, or no more.
    Inactive,
    /// It may.
    Active,
}

/// Whether a driver has the function: `enum devlink_port_fn_opstate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationalState {
    /// None.
    Detached,
    /// One has; after the state was set to inactive, until that driver lets go.
    Attached,
}

/// The function that a port represents; what the driver does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortFunction {
    /// Its hardware address.
    pub hw_addr: Option<Vec<u8>>,
    /// Whether it may be used.
    pub state: Option<PortState>,
    /// Whether a driver has it.
    pub opstate: Option<OperationalState>,
    /// Whether it can be migrated.
    pub migratable: Option<bool>,
    /// Whether it has RoCE.
    pub roce: Option<bool>,
}

impl PortFunction {
    fn read(attributes: &Attributes<'_>) -> Result<Option<Self>, HostError> {
        if attributes.is_empty() {
            return Ok(None);
        }
        let caps = attributes.bitfield(uapi::FN_ATTR_CAPS)?;
        let bit = |bit| caps.and_then(|caps: Bitfield| caps.told(bit));
        Ok(Some(Self {
            hw_addr: attributes
                .bytes(uapi::FN_ATTR_HW_ADDR)
                .filter(|address| HW_ADDR_BYTES.contains(&address.len()))
                .map(<[u8]>::to_vec),
            state: attributes.u8(uapi::FN_ATTR_STATE)?.and_then(|state| match state {
                0 => Some(PortState::Inactive),
                1 => Some(PortState::Active),
                _ => None,
            }),
            opstate: attributes.u8(uapi::FN_ATTR_OPSTATE)?.and_then(|state| match state {
                0 => Some(OperationalState::Detached),
                1 => Some(OperationalState::Attached),
                _ => None,
            }),
            migratable: bit(uapi::FN_CAP_MIGRATABLE),
            roce: bit(uapi::FN_CAP_ROCE),
        }))
    }
}

/// One port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its device.
    pub device: Handle,
    /// Its index there.
    pub index: u32,
    /// What it is; [`Flavour::Other`] also where the driver does not tell.
    pub flavour: Flavour,
    /// Its network interface.
    pub netdev: Option<String>,
    /// The controller, for a device that serves several hosts.
    pub controller: Option<u32>,
    /// Number of the PF.
    pub pf: Option<u16>,
    /// Number of the VF, from 0.
    pub vf: Option<u16>,
    /// Number of the subfunction.
    pub sf: Option<u32>,
    /// The function that it represents, where the driver tells anything of it.
    pub function: Option<PortFunction>,
}

impl Port {
    pub(super) fn read(what: &str, attributes: &Attributes<'_>) -> Result<Self, HostError> {
        let function = attributes.nested(uapi::ATTR_PORT_FUNCTION)?;
        Ok(Self {
            device: Handle::read(what, attributes)?,
            index: attributes.required("the index of the port", attributes.u32(uapi::ATTR_PORT_INDEX)?)?,
            flavour: attributes.u16(uapi::ATTR_PORT_FLAVOUR)?.map_or(Flavour::Other(u16::MAX), Flavour::from_number),
            netdev: attributes.text(uapi::ATTR_PORT_NETDEV_NAME)?,
            controller: attributes.u32(uapi::ATTR_PORT_CONTROLLER_NUMBER)?,
            pf: attributes.u16(uapi::ATTR_PORT_PCI_PF_NUMBER)?,
            vf: attributes.u16(uapi::ATTR_PORT_PCI_VF_NUMBER)?,
            sf: attributes.u32(uapi::ATTR_PORT_PCI_SF_NUMBER)?,
            function: function.map(|f| PortFunction::read(&f)).transpose()?.flatten(),
        })
    }
}

/// What to change of the function behind a port; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionChange {
    /// Its hardware address, 6 to 20 bytes.
    pub hw_addr: Option<Vec<u8>>,
    /// Whether it can be migrated; of VFs only, while no driver has it.
    pub migratable: Option<bool>,
    /// Whether it has RoCE.
    pub roce: Option<bool>,
    /// Whether it may be used; set last.
    pub state: Option<PortState>,
}

impl FunctionChange {
    /// The nested attributes of each request, in their order, with a name.
    pub(super) fn requests(&self) -> Result<Vec<(&'static str, Vec<u8>)>, HostError> {
        let mut requests = Vec::new();
        let mut add = |name, kind, value: &[u8]| {
            let mut nest = Vec::new();
            put(&mut nest, kind, value);
            requests.push((name, nest));
        };
        if let Some(address) = &self.hw_addr {
            if !HW_ADDR_BYTES.contains(&address.len()) {
                return Err(HostError::argument(
                    format!("a hardware address of {} bytes", address.len()),
                    "it has 6 to 20",
                ));
            }
            add("hw_addr", uapi::FN_ATTR_HW_ADDR, address);
        }
        for (name, bit, wanted) in
            [("roce", uapi::FN_CAP_ROCE, self.roce), ("migratable", uapi::FN_CAP_MIGRATABLE, self.migratable)]
        {
            if let Some(on) = wanted {
                let caps = Bitfield { value: if on { bit } else { 0 }, selector: bit };
                add(name, uapi::FN_ATTR_CAPS, &caps.bytes());
            }
        }
        if let Some(state) = self.state {
            add("state", uapi::FN_ATTR_STATE, &[u8::from(state == PortState::Active)]);
        }
        Ok(requests)
    }
}

/// A port to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPort {
    /// What it is to be; drivers make [`Flavour::PciSf`].
    pub flavour: Flavour,
    /// Number of the PF that it belongs to.
    pub pf: u16,
    /// Number of the subfunction; the driver chooses where it is `None`.
    pub sf: Option<u32>,
    /// The controller, for a device that serves several hosts.
    pub controller: Option<u32>,
}
