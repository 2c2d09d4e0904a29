//! Devlink over generic netlink (`Documentation/networking/devlink/devlink-port.rst`, `include/uapi/linux/devlink.h`): ports of an
//! eswitch, the function behind a port, and the mode of the eswitch.
//!
//! Reading needs no rights; every change needs CAP_NET_ADMIN in the network namespace of the device.

mod attribute;
mod meaning;
mod message;
mod port;
mod socket;
#[cfg(test)]
mod tests;

pub use port::{Flavour, FunctionChange, Handle, NewPort, OperationalState, Port, PortFunction, PortState};

use self::attribute::{Attributes, put, put_text, put_u16, put_u32};
use self::message::Reply;
use self::socket::Socket;
use crate::sysfs::{HostError, HostErrorKind};

/// Commands and attributes of `enum devlink_command` and `enum devlink_attr`, those that are used.
mod uapi {
    pub const CMD_GET: u8 = 1;
    pub const CMD_PORT_GET: u8 = 5;
    pub const CMD_PORT_SET: u8 = 6;
    pub const CMD_PORT_NEW: u8 = 7;
    pub const CMD_PORT_DEL: u8 = 8;
    pub const CMD_ESWITCH_GET: u8 = 29;
    pub const CMD_ESWITCH_SET: u8 = 30;

    pub const ATTR_BUS_NAME: u16 = 1;
    pub const ATTR_DEV_NAME: u16 = 2;
    pub const ATTR_PORT_INDEX: u16 = 3;
    pub const ATTR_PORT_NETDEV_NAME: u16 = 7;
    pub const ATTR_ESWITCH_MODE: u16 = 25;
    pub const ATTR_PORT_FLAVOUR: u16 = 77;
    pub const ATTR_PORT_PCI_PF_NUMBER: u16 = 127;
    pub const ATTR_PORT_PCI_VF_NUMBER: u16 = 128;
    pub const ATTR_PORT_FUNCTION: u16 = 145;
    pub const ATTR_PORT_CONTROLLER_NUMBER: u16 = 150;
    pub const ATTR_PORT_PCI_SF_NUMBER: u16 = 164;

    /// `enum devlink_port_function_attr`, nested in `ATTR_PORT_FUNCTION`.
    pub const FN_ATTR_HW_ADDR: u16 = 1;
    pub const FN_ATTR_STATE: u16 = 2;
    pub const FN_ATTR_OPSTATE: u16 = 3;
    pub const FN_ATTR_CAPS: u16 = 4;

    /// Bits of `FN_ATTR_CAPS`.
    pub const FN_CAP_ROCE: u32 = 1;
    pub const FN_CAP_MIGRATABLE: u32 = 2;
}

/// The most devices or ports that are listed.
const MOST_LISTED: usize = 65536;

/// The mode of an eswitch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EswitchMode {
    /// The PF switches by MAC and VLAN.
    Legacy,
    /// Every VF and SF has a port with a representor.
    Switchdev,
    /// Switchdev, with nothing let through until it is set up.
    SwitchdevInactive,
    /// One that we don't know.
    Other(u16),
}

impl EswitchMode {
    fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Legacy,
            1 => Self::Switchdev,
            2 => Self::SwitchdevInactive,
            other => Self::Other(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Legacy => 0,
            Self::Switchdev => 1,
            Self::SwitchdevInactive => 2,
            Self::Other(number) => number,
        }
    }
}

/// A netlink socket to devlink. One request is under way at a time.
#[derive(Debug)]
pub struct Devlink {
    socket: Socket,
}

impl Devlink {
    /// Opens a socket and finds devlink.
    ///
    /// # Errors
    /// [`HostErrorKind::Unsupported`] where the kernel has no devlink, or what the system says.
    pub fn open() -> Result<Self, HostError> {
        Ok(Self { socket: Socket::open("devlink")? })
    }

    /// Every device that has devlink.
    ///
    /// # Errors
    /// What the kernel says; so for every method.
    pub fn devices(&mut self) -> Result<Vec<Handle>, HostError> {
        let what = "listing the devlink devices";
        let replies = self.socket.dump(what, uapi::CMD_GET, MOST_LISTED)?;
        replies.iter().map(|reply| Handle::read(what, &reply.attributes(what)?)).collect()
    }

    /// Every port of every device.
    ///
    /// # Errors
    /// See [`Devlink::devices`].
    pub fn ports(&mut self) -> Result<Vec<Port>, HostError> {
        let what = "listing the devlink ports";
        let replies = self.socket.dump(what, uapi::CMD_PORT_GET, MOST_LISTED)?;
        replies.iter().map(|reply| Port::read(what, &reply.attributes(what)?)).collect()
    }

    /// One port.
    ///
    /// # Errors
    /// [`HostErrorKind::NotFound`] where there is none.
    pub fn port(&mut self, device: &Handle, index: u32) -> Result<Port, HostError> {
        let what = format!("reading devlink port {device}/{index}");
        let reply = self.ask(&what, uapi::CMD_PORT_GET, &port_request(device, index))?;
        Port::read(&what, &reply.attributes(&what)?)
    }

    /// Configures the function behind a port: address, then capabilities, and the state last, each by a request of its own, so that an
    /// error names what was refused. What was set before it stays.
    ///
    /// # Errors
    /// [`HostErrorKind::Unsupported`] where the driver does not have the attribute for this port, [`HostErrorKind::Permission`] without
    /// CAP_NET_ADMIN.
    pub fn set_port(&mut self, device: &Handle, index: u32, change: &FunctionChange) -> Result<(), HostError> {
        for (name, function) in change.requests()? {
            let what = format!("setting {name} of the function of devlink port {device}/{index}");
            let mut request = port_request(device, index);
            put(&mut request, uapi::ATTR_PORT_FUNCTION | attribute::NESTED, &function);
            self.socket.request(&what, uapi::CMD_PORT_SET, &request)?;
        }
        Ok(())
    }

    /// Makes a port, and with it a function that is inactive.
    ///
    /// # Errors
    /// [`HostErrorKind::Unsupported`] where the driver makes no ports (mlx5 and ice do).
    pub fn new_port(&mut self, device: &Handle, new: &NewPort) -> Result<Port, HostError> {
        let what = format!("making a devlink port of {device}");
        let mut request = device_request(device);
        put_u16(&mut request, uapi::ATTR_PORT_FLAVOUR, new.flavour.number());
        put_u16(&mut request, uapi::ATTR_PORT_PCI_PF_NUMBER, new.pf);
        if let Some(sf) = new.sf {
            put_u32(&mut request, uapi::ATTR_PORT_PCI_SF_NUMBER, sf);
        }
        if let Some(controller) = new.controller {
            put_u32(&mut request, uapi::ATTR_PORT_CONTROLLER_NUMBER, controller);
        }
        let reply = self.ask(&what, uapi::CMD_PORT_NEW, &request)?;
        Port::read(&what, &reply.attributes(&what)?)
    }

    /// Deletes a port that [`Devlink::new_port`] made, and its function.
    ///
    /// # Errors
    /// [`HostErrorKind::NotFound`], or [`HostErrorKind::Unsupported`] for a port that the driver made itself.
    pub fn delete_port(&mut self, device: &Handle, index: u32) -> Result<(), HostError> {
        let what = format!("deleting devlink port {device}/{index}");
        self.socket.request(&what, uapi::CMD_PORT_DEL, &port_request(device, index)).map(drop)
    }

    /// The mode of a device's eswitch.
    ///
    /// # Errors
    /// [`HostErrorKind::Unsupported`] where it has none.
    pub fn eswitch_mode(&mut self, device: &Handle) -> Result<EswitchMode, HostError> {
        let what = format!("reading the eswitch mode of devlink device {device}");
        let reply = self.ask(&what, uapi::CMD_ESWITCH_GET, &device_request(device))?;
        let attributes = reply.attributes(&what)?;
        let mode = attributes.u16(uapi::ATTR_ESWITCH_MODE)?.ok_or_else(|| {
            HostError::new(
                HostErrorKind::Unsupported,
                what.as_str(),
                "the driver does not tell the mode of its eswitch",
            )
        })?;
        Ok(EswitchMode::from_number(mode))
    }

    /// Sets the mode of a device's eswitch. Drivers make or remove ports by it, and may interrupt its traffic.
    ///
    /// # Errors
    /// [`HostErrorKind::Unsupported`] where it has none, or what the driver says.
    pub fn set_eswitch_mode(&mut self, device: &Handle, mode: EswitchMode) -> Result<(), HostError> {
        let what = format!("setting the eswitch mode of devlink device {device}");
        let mut request = device_request(device);
        put_u16(&mut request, uapi::ATTR_ESWITCH_MODE, mode.number());
        self.socket.request(&what, uapi::CMD_ESWITCH_SET, &request).map(drop)
    }

    /// A request that one message answers.
    fn ask(&mut self, what: &str, command: u8, request: &[u8]) -> Result<Reply, HostError> {
        let replies = self.socket.request(what, command, request)?;
        replies
            .into_iter()
            .next()
            .ok_or_else(|| HostError::new(HostErrorKind::System, what, "the kernel did not answer with anything"))
    }
}

fn device_request(device: &Handle) -> Vec<u8> {
    let mut request = Vec::new();
    put_text(&mut request, uapi::ATTR_BUS_NAME, device.bus());
    put_text(&mut request, uapi::ATTR_DEV_NAME, device.device());
    request
}

fn port_request(device: &Handle, index: u32) -> Vec<u8> {
    let mut request = device_request(device);
    put_u32(&mut request, uapi::ATTR_PORT_INDEX, index);
    request
}

/// Reads the attributes of a message.
impl Reply {
    fn attributes<'a>(&'a self, what: &'a str) -> Result<Attributes<'a>, HostError> {
        Attributes::parse(what, &self.body)
    }
}
