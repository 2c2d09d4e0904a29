//! Addresses of PCI functions.

use std::fmt;
use std::str::FromStr;

use crate::sysfs::HostError;

/// The address of a PCI function: domain, bus, device, function. Written as Linux does, `0000:01:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Domain (segment). Virtual ones of VMD and Hyper-V exceed 16 bits.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7. (With ARI, Linux goes on writing five bits of device and three of function.)
    pub function: u8,
}

impl PciAddress {
    /// Reads the form that Linux writes; upper case digits are taken too, a missing domain is not.
    fn parse(text: &str) -> Option<Self> {
        let hex = |digits: &str, least: usize, most: usize| {
            let plain = (least..=most).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
        };
        let mut parts = text.split(':');
        let (domain, bus, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let (device, function) = rest.split_once('.')?;
        if parts.next().is_some() {
            return None;
        }
        let address = Self {
            domain: hex(domain, 4, 8)?,
            bus: hex(bus, 2, 2)?.try_into().ok()?,
            device: hex(device, 2, 2)?.try_into().ok()?,
            function: hex(function, 1, 1)?.try_into().ok()?,
        };
        (address.device < 32 && address.function < 8).then_some(address)
    }
}

impl FromStr for PciAddress {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        Self::parse(text).ok_or_else(|| {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(40).collect();
            HostError::argument(
                format!("{shown:?}"),
                "this is not the address of a PCI function, as 0000:01:00.0 is one",
            )
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_writes_is_read() {
        for text in ["0000:01:00.0", "0000:ff:1f.7", "10000:e1:00.0", "ffffffff:00:00.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        assert_eq!("0000:0A:1F.3".parse::<PciAddress>().unwrap().to_string(), "0000:0a:1f.3");
    }

    #[test]
    fn nothing_else_is() {
        for text in [
            "",
            "01:00.0",
            "0000:01:00",
            "0000:01:00.8",
            "0000:01:20.0",
            "0000:1:00.0",
            "0000:01:00.0\n",
            "0000:01:00.0/..",
            "../x",
            "+000:01:00.0",
            "0000:01:00.00",
            "0000:01:00.0:0",
            "100000000:00:00.0",
            "000:01:00.0",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text:?}");
        }
    }
}
