//! The section of its own that the exposure `vfio` has in a stream: what the guest has set in configuration space that the kernel
//! or the VMM keeps, and that therefore is no part of the device's state.
//!
//! Restored in this order, on a destination whose guest doesn't run yet:
//! 1. The guest's interrupt controller, by the caller: an interrupt that is wired before its controller is restored is lost.
//! 2. The device's state, up to the state before `RUNNING`, by the combined arc: no `STOP` of one's own between `RUNNING` and
//!    `RESUMING`. With `mlx5` that makes the device initialise its queues anew over what was loaded.
//! 3. [`ExposureSection::restore`]: BARs and the interrupt line; `PCI_COMMAND` without bus mastering; eventfds; control of MSI or
//!    MSI-X; all of `PCI_COMMAND`. Loading state resets what the device knows of these, and it can neither raise interrupts nor
//!    reach memory before they are set again.
//! 4. `RUNNING`.
//!
//! Nothing else of configuration space is carried: vendor-specific bytes differ between versions of a device.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use towline_core::channel::{ChannelError, ChannelErrorKind};

use super::device::VfioDevice;
use super::region::Region;

/// The version that is written, and the only one that is read.
const VERSION: u16 = 1;
/// The most vectors of one index: MSI-X.
const MOST_VECTORS: usize = 2048;
/// The most capabilities that 256 bytes of configuration space can hold.
const MOST_CAPABILITIES: usize = 48;
/// Bytes before the bitmap of vectors.
const FIXED_BYTES: usize = 36;
/// Index of the configuration space's region.
const CONFIG_REGION: u32 = 7;

/// Offsets in configuration space (PCI Local Bus 3.0, 6.1 and 6.7), bits of `PCI_COMMAND`.
const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const BARS: u16 = 0x10;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT_LINE: u16 = 0x3c;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const COMMAND_BITS: u16 = 0x07ff;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const MSI: u8 = 0x05;
const MSIX: u8 = 0x11;
const MSI_CONTROL_BITS: u16 = 0x0071;
const MSIX_CONTROL_BITS: u16 = 0xc000;
const MSIX_SIZE: u16 = 0x07ff;

fn bad(message: String) -> ChannelError {
    ChannelError::new(ChannelErrorKind::BadState, message)
}

/// What the section is read from and written to.
pub trait ExposurePort {
    /// Reads configuration space.
    ///
    /// # Errors
    /// What the device said.
    fn read_config(&self, offset: u16, out: &mut [u8]) -> Result<(), ChannelError>;

    /// Writes configuration space.
    ///
    /// # Errors
    /// What the device said.
    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), ChannelError>;

    /// Wires an eventfd to each vector of `index` (0 INTx, 1 MSI, 2 MSI-X) for which `vectors` says so.
    ///
    /// # Errors
    /// What the device said.
    fn wire(&self, index: u32, vectors: &[bool]) -> Result<(), ChannelError>;
}

/// Which vectors of which index are wired. Eventfds don't travel: the destination makes its own for the same vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// 0 INTx, 1 MSI, 2 MSI-X.
    pub index: u32,
    /// A vector each.
    pub vectors: Vec<bool>,
}

/// See the description of the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExposureSection {
    /// `PCI_COMMAND` as the guest has it.
    pub command: u16,
    /// The BARs as the guest has them.
    pub bars: [u32; 6],
    /// The interrupt line.
    pub interrupt_line: u8,
    /// Message control of MSI-X: enable and function mask. `None` without MSI-X.
    pub msix_control: Option<u16>,
    /// Message control of MSI: enable and the number of messages. `None` without MSI.
    pub msi_control: Option<u16>,
    /// What is wired, if anything is.
    pub wiring: Option<Wiring>,
}

fn read_u16(port: &dyn ExposurePort, offset: u16) -> Result<u16, ChannelError> {
    let mut bytes = [0; 2];
    port.read_config(offset, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

/// Where the capability with this number is, by the list in configuration space.
fn capability(port: &dyn ExposurePort, wanted: u8) -> Result<Option<u16>, ChannelError> {
    if read_u16(port, STATUS)? & STATUS_CAPABILITIES == 0 {
        return Ok(None);
    }
    let mut pointer = [0u8; 1];
    port.read_config(CAPABILITIES, &mut pointer)?;
    let [mut at] = pointer;
    // A device may have a list that goes in a circle.
    for _ in 0..MOST_CAPABILITIES {
        at &= !3;
        if at < 0x40 {
            return Ok(None);
        }
        let mut header = [0u8; 2];
        port.read_config(u16::from(at), &mut header)?;
        let [id, next] = header;
        if id == wanted {
            return Ok(Some(u16::from(at)));
        }
        at = next;
    }
    Ok(None)
}

impl ExposureSection {
    /// Reads it from a device that is stopped. `wiring` is what its holder has wired.
    ///
    /// # Errors
    /// What the device said; [`ChannelErrorKind::Limit`] for more vectors than MSI-X has.
    pub fn save(port: &dyn ExposurePort, wiring: Option<Wiring>) -> Result<Self, ChannelError> {
        if let Some(wiring) = &wiring
            && (wiring.vectors.len() > MOST_VECTORS || wiring.index > 2)
        {
            let message = format!("{} vectors of interrupt index {}", wiring.vectors.len(), wiring.index);
            return Err(ChannelError::new(ChannelErrorKind::Limit, message));
        }
        let control = |id: u8, bits: u16| match capability(port, id)? {
            Some(at) => Ok::<_, ChannelError>(Some(read_u16(port, at.saturating_add(2))? & bits)),
            None => Ok(None),
        };
        let mut bars = [0u32; 6];
        for (n, bar) in (0u16..).zip(&mut bars) {
            let mut bytes = [0; 4];
            port.read_config(BARS + 4 * n, &mut bytes)?;
            *bar = u32::from_le_bytes(bytes);
        }
        let mut line = [0];
        port.read_config(INTERRUPT_LINE, &mut line)?;
        let [interrupt_line] = line;
        Ok(Self {
            command: read_u16(port, COMMAND)? & COMMAND_BITS,
            bars,
            interrupt_line,
            msix_control: control(MSIX, MSIX_CONTROL_BITS)?,
            msi_control: control(MSI, MSI_CONTROL_BITS)?,
            wiring,
        })
    }

    /// Step 3 of the order above.
    ///
    /// # Errors
    /// [`ChannelErrorKind::BadState`] where this device has not what the section is about (before anything is written); what
    /// the device said.
    pub fn restore(&self, port: &dyn ExposurePort) -> Result<(), ChannelError> {
        let mut controls = Vec::new();
        for (id, name, saved) in [(MSI, "MSI", self.msi_control), (MSIX, "MSI-X", self.msix_control)] {
            match (capability(port, id)?, saved) {
                (Some(at), Some(control)) => controls.push((id, at.saturating_add(2), control)),
                (None, Some(_)) => return Err(bad(format!("the source has {name}, and this function doesn't"))),
                (Some(_), None) => return Err(bad(format!("this function has {name}, and the source doesn't"))),
                (None, None) => {}
            }
        }
        if let Some(Wiring { index: 2, vectors }) = &self.wiring {
            let at = controls.iter().find(|(id, ..)| *id == MSIX).map(|(_, at, _)| *at);
            let at = at.ok_or_else(|| bad("vectors of MSI-X are wired, and there is no MSI-X".to_owned()))?;
            let size = usize::from(read_u16(port, at)? & MSIX_SIZE) + 1;
            if vectors.len() > size {
                return Err(bad(format!("{} vectors are wired, and this function has {size}", vectors.len())));
            }
        }
        for (n, bar) in (0u16..).zip(&self.bars) {
            port.write_config(BARS + 4 * n, &bar.to_le_bytes())?;
        }
        port.write_config(INTERRUPT_LINE, &[self.interrupt_line])?;
        let command = |bits: u16| port.write_config(COMMAND, &bits.to_le_bytes());
        command(self.command & !COMMAND_BUS_MASTER)?;
        if let Some(wiring) = &self.wiring {
            port.wire(wiring.index, &wiring.vectors)?;
        }
        for (_, at, control) in controls {
            port.write_config(at, &control.to_le_bytes())?;
        }
        command(self.command)
    }

    /// Its bytes, little-endian: version u16, which of MSI (1), MSI-X (2) and wiring (4) there are u16, `PCI_COMMAND` u16, interrupt
    /// line u8, 0 u8, six BARs u32, control of MSI-X u16 and of MSI u16; then for wiring index u8, 0 u8, vectors u16, a bit each.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_BYTES + 4 + MOST_VECTORS / 8);
        let has = u16::from(self.msi_control.is_some())
            | u16::from(self.msix_control.is_some()) << 1
            | u16::from(self.wiring.is_some()) << 2;
        for number in [VERSION, has, self.command, u16::from(self.interrupt_line)] {
            out.extend(number.to_le_bytes());
        }
        self.bars.iter().for_each(|bar| out.extend(bar.to_le_bytes()));
        for control in [self.msix_control, self.msi_control] {
            out.extend(control.unwrap_or(0).to_le_bytes());
        }
        if let Some(wiring) = &self.wiring {
            let vectors = wiring.vectors.get(..MOST_VECTORS).unwrap_or(&wiring.vectors);
            out.extend((wiring.index as u16).to_le_bytes());
            out.extend((vectors.len() as u16).to_le_bytes());
            out.extend(
                vectors.chunks(8).map(|bits| bits.iter().rev().fold(0u8, |byte, bit| byte << 1 | u8::from(*bit))),
            );
        }
        out
    }

    /// Reads what [`ExposureSection::encode`] wrote.
    ///
    /// # Errors
    /// [`ChannelErrorKind::BadState`] for anything else: another version, cut, longer, bits that mean nothing.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChannelError> {
        let u16_at = |at: usize| {
            let two = bytes.get(at..at.saturating_add(2)).and_then(|two| two.try_into().ok());
            two.map(u16::from_le_bytes).ok_or_else(|| bad(format!("the exposure's section ends at {}", bytes.len())))
        };
        let version = u16_at(0)?;
        if version != VERSION {
            return Err(bad(format!("the exposure's section is of version {version}; {VERSION} is read here")));
        }
        let (has, command, line) = (u16_at(2)?, u16_at(4)?, u16_at(6)?);
        let interrupt_line =
            u8::try_from(line).map_err(|_| bad("the exposure's section has a reserved byte set".into()))?;
        let mut bars = [0u32; 6];
        for (n, bar) in bars.iter_mut().enumerate() {
            *bar = u32::from(u16_at(8 + 4 * n)?) | u32::from(u16_at(10 + 4 * n)?) << 16;
        }
        let (msix, msi) = (u16_at(32)?, u16_at(34)?);
        let control = |bit: u16, value: u16, bits: u16| match (has & bit != 0, value & !bits) {
            (true, 0) => Ok(Some(value)),
            (false, _) if value == 0 => Ok(None),
            _ => Err(bad("the exposure's section controls interrupts that it doesn't have".into())),
        };
        let msi_control = control(1, msi, MSI_CONTROL_BITS)?;
        let msix_control = control(2, msix, MSIX_CONTROL_BITS)?;
        if has & !7 != 0 || command & !COMMAND_BITS != 0 {
            return Err(bad("the exposure's section has bits set that mean nothing".into()));
        }
        let (mut end, mut wiring) = (FIXED_BYTES, None);
        if has & 4 != 0 {
            let (index, count) = (u16_at(36)?, usize::from(u16_at(38)?));
            if index > 2 || count > MOST_VECTORS {
                return Err(bad(format!("the exposure's section has {count} vectors of interrupt index {index}")));
            }
            end = FIXED_BYTES + 4 + count.div_ceil(8);
            let bits = bytes.get(FIXED_BYTES + 4..end).ok_or_else(|| bad("its vectors are cut".into()))?;
            let vectors: Vec<bool> =
                (0..count).map(|n| bits.get(n / 8).is_some_and(|byte| byte >> (n % 8) & 1 == 1)).collect();
            if bits.last().is_some_and(|last| count % 8 != 0 && last >> (count % 8) != 0) {
                return Err(bad("the exposure's section has bits behind its last vector".into()));
            }
            wiring = Some(Wiring { index: u32::from(index), vectors });
        }
        if bytes.len() != end {
            return Err(bad(format!("the exposure's section has {} bytes, not {end}", bytes.len())));
        }
        Ok(Self { command, bars, interrupt_line, msix_control, msi_control, wiring })
    }
}

/// A VFIO device as what the section is restored to, with the eventfds for its vectors.
#[derive(Debug)]
pub struct VfioExposure {
    device: Arc<VfioDevice>,
    config: Region,
    wired: Option<(u32, Vec<Option<OwnedFd>>)>,
}

impl VfioExposure {
    /// `wired`: the interrupt index that is wired here, and the eventfd of each of its vectors, in their order, where there is one.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(device: &Arc<VfioDevice>, wired: Option<(u32, Vec<Option<OwnedFd>>)>) -> Result<Self, ChannelError> {
        Ok(Self { config: device.region(CONFIG_REGION)?, device: Arc::clone(device), wired })
    }
}

impl ExposurePort for VfioExposure {
    fn read_config(&self, offset: u16, out: &mut [u8]) -> Result<(), ChannelError> {
        self.device.read_region(&self.config, offset.into(), out)
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), ChannelError> {
        self.device.write_region(&self.config, offset.into(), data)
    }

    fn wire(&self, index: u32, vectors: &[bool]) -> Result<(), ChannelError> {
        let here: &[Option<OwnedFd>] = match &self.wired {
            Some((wired, eventfds)) if *wired == index => eventfds,
            _ => &[],
        };
        let mut fds = Vec::with_capacity(vectors.len());
        for (n, wired) in vectors.iter().enumerate() {
            let fd = here.get(n).and_then(Option::as_ref).map(OwnedFd::as_fd);
            if *wired && fd.is_none() {
                let what = self.wired.as_ref().map_or_else(
                    || "nothing is wired here".to_owned(),
                    |(other, eventfds)| format!("{} vectors of index {other} are wired here", eventfds.len()),
                );
                let message = format!(
                    "vector {n} of interrupt index {index} is wired at the source, and has no eventfd here: {what}"
                );
                return Err(ChannelError::new(ChannelErrorKind::Limit, message));
            }
            fds.push(fd.filter(|_| *wired));
        }
        self.device.wire_irqs(index, 0, &fds)
    }
}

#[cfg(test)]
mod tests;
