//! Config space of a PCI Express endpoint with MSI-X and function level reset, and nothing that a guest could want of it besides.
//!
//! Layout: PCI Express Base 5.0, 7.5.1 (type 0 header), 7.5.2 (power management), 7.5.3 (PCI Express capability), 7.7.2 (MSI-X).

/// Bytes of config space.
const BYTES: usize = 4096;

const COMMAND: usize = 0x04;
/// Memory space, bus master, parity error response, SERR#, interrupt disable. There is no I/O space.
const COMMAND_BITS: u16 = 0x0546;
const COMMAND_MASTER: u16 = 1 << 2;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const BAR4: usize = 0x20;
const INTERRUPT_LINE: usize = 0x3c;

const PM: usize = 0x40;
const PM_CONTROL: usize = PM + 4;
/// PMCSR: what the function knows survives D3hot.
const PM_NO_SOFT_RESET: u16 = 1 << 3;
const PM_STATE: u16 = 3;

const EXPRESS: usize = 0x60;
const DEVICE_CONTROL: usize = EXPRESS + 8;
const LINK_CONTROL: usize = EXPRESS + 0x10;
const DEVICE_CONTROL_2: usize = EXPRESS + 0x28;
const LINK_CONTROL_2: usize = EXPRESS + 0x30;
/// Role-based error reporting, payloads up to 256 bytes, function level reset.
const DEVICE_CAPABILITIES: u32 = 1 << 28 | 1 << 15 | 1;
/// As after a reset: reads of 512 bytes, no snoop, relaxed ordering.
const DEVICE_CONTROL_RESET: u16 = 0x2810;
const INITIATE_RESET: u16 = 1 << 15;
/// Four lanes of 8 GT/s.
const LINK: u32 = 4 << 4 | 3;

const MSIX: usize = 0xb0;
const MSIX_CONTROL: usize = MSIX + 2;
/// Enable and function mask.
const MSIX_CONTROL_BITS: u16 = 0xc000;
/// BAR4 holds table and pending bits.
const MSIX_BAR: u32 = 4;

/// Where in BAR4 the MSI-X table is, in bytes.
pub const MSIX_TABLE_OFFSET: u64 = 0;
/// Where in BAR4 the pending bits are, in bytes.
pub const MSIX_PBA_OFFSET: u64 = 0x1000;

/// What a function says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionDescription {
    /// Vendor, and subsystem vendor.
    pub vendor: u16,
    /// Device, and subsystem device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Bytes of BAR0, a power of two from 16.
    pub bar0_bytes: u64,
    /// Bytes of BAR4, a power of two from 16; holds MSI-X table and pending bits.
    pub bar4_bytes: u64,
    /// MSI-X vectors, 1 to 2048.
    pub vectors: u16,
}

/// What a write to config space changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigWrite {
    /// A function level reset was asked for. Everything is as after one already.
    pub reset: bool,
}

/// Everything in config space that a guest can change, as it reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigState {
    /// `PCI_COMMAND`.
    pub command: u16,
    /// Cache line size.
    pub cache_line: u8,
    /// Interrupt line.
    pub interrupt_line: u8,
    /// BAR0, with its type bits.
    pub bar0: u64,
    /// BAR4, with its type bits.
    pub bar4: u64,
    /// Power management control and status.
    pub power_control: u16,
    /// Device control of PCI Express.
    pub device_control: u16,
    /// Link control.
    pub link_control: u16,
    /// Device control 2.
    pub device_control_2: u16,
    /// Link control 2.
    pub link_control_2: u16,
    /// Message control of MSI-X: enable, function mask, size of the table.
    pub msix_control: u16,
}

impl ConfigState {
    /// Each field: its offset, how many bytes it has, and its value.
    fn fields(&self) -> [(usize, usize, u64); 11] {
        [
            (BAR0, 8, self.bar0),
            (BAR4, 8, self.bar4),
            (CACHE_LINE, 1, self.cache_line.into()),
            (INTERRUPT_LINE, 1, self.interrupt_line.into()),
            (PM_CONTROL, 2, self.power_control.into()),
            (DEVICE_CONTROL, 2, self.device_control.into()),
            (LINK_CONTROL, 2, self.link_control.into()),
            (DEVICE_CONTROL_2, 2, self.device_control_2.into()),
            (LINK_CONTROL_2, 2, self.link_control_2.into()),
            (MSIX_CONTROL, 2, self.msix_control.into()),
            (COMMAND, 2, self.command.into()),
        ]
    }
}

/// Config space: values, and which bits a guest may change.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    values: Box<[u8; BYTES]>,
    writable: Box<[u8; BYTES]>,
    reset_values: Box<[u8; BYTES]>,
}

struct Builder {
    values: Box<[u8; BYTES]>,
    writable: Box<[u8; BYTES]>,
}

impl Builder {
    fn put<const N: usize>(&mut self, at: usize, value: [u8; N], writable: [u8; N]) {
        self.values.iter_mut().skip(at).zip(value).for_each(|(to, from)| *to = from);
        self.writable.iter_mut().skip(at).zip(writable).for_each(|(to, from)| *to = from);
    }

    fn u8(&mut self, at: usize, value: u8, writable: u8) {
        self.put(at, [value], [writable]);
    }

    fn u16(&mut self, at: usize, value: u16, writable: u16) {
        self.put(at, value.to_le_bytes(), writable.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32, writable: u32) {
        self.put(at, value.to_le_bytes(), writable.to_le_bytes());
    }

    /// A 64-bit memory BAR: the bits below its size read as zero, which is how its size is found.
    fn bar(&mut self, at: usize, bytes: u64) {
        self.put(at, 0x4u64.to_le_bytes(), (!(bytes - 1)).to_le_bytes());
    }
}

impl ConfigSpace {
    /// Bytes of config space.
    pub const BYTES: u64 = BYTES as u64;

    /// Config space as after a reset.
    #[must_use]
    pub fn new(function: &FunctionDescription) -> Self {
        let mut b = Builder { values: Box::new([0; BYTES]), writable: Box::new([0; BYTES]) };
        b.u16(0x00, function.vendor, 0);
        b.u16(0x02, function.device, 0);
        b.u16(COMMAND, 0, COMMAND_BITS);
        b.u16(0x06, STATUS_CAPABILITIES, 0);
        b.u32(0x08, function.class << 8 | u32::from(function.revision), 0);
        b.u8(CACHE_LINE, 0, 0xff);
        b.bar(BAR0, function.bar0_bytes.max(16));
        b.bar(BAR4, function.bar4_bytes.max(16));
        b.u16(0x2c, function.vendor, 0);
        b.u16(0x2e, function.device, 0);
        b.u8(0x34, PM as u8, 0);
        // No pin: MSI-X only, as a virtual function has it.
        b.u8(INTERRUPT_LINE, 0, 0xff);

        b.u16(PM, 0x01 | (EXPRESS as u16) << 8, 0);
        b.u16(PM + 2, 3, 0);
        b.u16(PM_CONTROL, PM_NO_SOFT_RESET, PM_STATE);

        b.u16(EXPRESS, 0x10 | (MSIX as u16) << 8, 0);
        // Version 2, endpoint.
        b.u16(EXPRESS + 0x02, 2, 0);
        b.u32(EXPRESS + 0x04, DEVICE_CAPABILITIES, 0);
        b.u16(DEVICE_CONTROL, DEVICE_CONTROL_RESET, 0x7fff);
        b.u32(EXPRESS + 0x0c, LINK, 0);
        b.u16(LINK_CONTROL, 0, 0x01fb);
        b.u16(EXPRESS + 0x12, LINK as u16, 0);
        // Completion timeouts can be disabled.
        b.u32(EXPRESS + 0x24, 1 << 4, 0);
        b.u16(DEVICE_CONTROL_2, 0, 0x001f);
        // Speeds of 2.5, 5 and 8 GT/s.
        b.u32(EXPRESS + 0x2c, 0b1110, 0);
        b.u16(LINK_CONTROL_2, 3, 0x000f);

        b.u16(MSIX, 0x11, 0);
        b.u16(MSIX_CONTROL, function.vectors.clamp(1, 2048) - 1, MSIX_CONTROL_BITS);
        b.u32(MSIX + 4, MSIX_TABLE_OFFSET as u32 | MSIX_BAR, 0);
        b.u32(MSIX + 8, MSIX_PBA_OFFSET as u32 | MSIX_BAR, 0);
        Self { reset_values: b.values.clone(), values: b.values, writable: b.writable }
    }

    /// Puts everything back as after a reset.
    pub fn reset(&mut self) {
        self.values.clone_from(&self.reset_values);
    }

    fn u16(&self, at: usize) -> u16 {
        self.values.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |raw| u16::from_le_bytes(*raw))
    }

    fn u8(&self, at: usize) -> u8 {
        self.values.get(at).copied().unwrap_or(0)
    }

    fn u64(&self, at: usize) -> u64 {
        self.values.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |raw| u64::from_le_bytes(*raw))
    }

    /// Everything that the guest can change, as it is now.
    #[must_use]
    pub fn state(&self) -> ConfigState {
        ConfigState {
            command: self.u16(COMMAND),
            cache_line: self.u8(CACHE_LINE),
            interrupt_line: self.u8(INTERRUPT_LINE),
            bar0: self.u64(BAR0),
            bar4: self.u64(BAR4),
            power_control: self.u16(PM_CONTROL),
            device_control: self.u16(DEVICE_CONTROL),
            link_control: self.u16(LINK_CONTROL),
            device_control_2: self.u16(DEVICE_CONTROL_2),
            link_control_2: self.u16(LINK_CONTROL_2),
            msix_control: self.u16(MSIX_CONTROL),
        }
    }

    /// The offset of the first field of `state` that can't be had here: it differs in a bit that no guest can change.
    #[must_use]
    pub fn misfit(&self, state: &ConfigState) -> Option<u64> {
        let misfit = |(at, bytes, value): &(usize, usize, u64)| {
            let raw = value.to_le_bytes();
            let bits = self.reset_values.iter().zip(self.writable.iter()).skip(*at).zip(raw.iter().take(*bytes));
            bits.into_iter().any(|((fixed, writable), byte)| (byte ^ fixed) & !writable != 0)
        };
        state.fields().iter().find(|field| misfit(field)).map(|(at, ..)| *at as u64)
    }

    /// Puts a state in place, `PCI_COMMAND` last: the bits that a guest can change, and nothing else.
    pub fn put(&mut self, state: &ConfigState) {
        for (at, bytes, value) in state.fields() {
            self.write(at as u64, value.to_le_bytes().get(..bytes).unwrap_or_default());
        }
    }

    /// Whether the function may do DMA: it is bus master, and not asleep.
    #[must_use]
    pub fn may_do_dma(&self) -> bool {
        self.u16(COMMAND) & COMMAND_MASTER != 0 && self.u16(PM_CONTROL) & PM_STATE == 0
    }

    /// Reads. What is beyond reads as zero.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        let at = usize::try_from(offset).unwrap_or(BYTES).min(BYTES);
        out.fill(0);
        out.iter_mut().zip(self.values.iter().skip(at)).for_each(|(to, from)| *to = *from);
    }

    /// Writes the bits that may be written, and obeys a function level reset.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> ConfigWrite {
        let at = usize::try_from(offset).unwrap_or(BYTES).min(BYTES);
        for ((value, writable), new) in self.values.iter_mut().zip(self.writable.iter()).skip(at).zip(data) {
            *value = *value & !writable | new & writable;
        }
        let reset = Self::asks_for_reset(offset, data);
        if reset {
            self.reset();
        }
        ConfigWrite { reset }
    }

    /// Whether a write sets the bit that starts a function level reset.
    #[must_use]
    pub fn asks_for_reset(offset: u64, data: &[u8]) -> bool {
        let high = DEVICE_CONTROL as u64 + 1;
        let byte = high.checked_sub(offset).and_then(|n| usize::try_from(n).ok()).and_then(|n| data.get(n));
        byte.is_some_and(|byte| byte & (INITIATE_RESET >> 8) as u8 != 0)
    }

    /// Whether an access of `len` bytes touches `PCI_COMMAND`.
    #[must_use]
    pub fn touches_command(offset: u64, len: usize) -> bool {
        offset < COMMAND as u64 + 2 && offset.saturating_add(len as u64) > COMMAND as u64
    }

    /// Whether a write would end the function's right to do DMA.
    #[must_use]
    pub fn would_end_dma(&self, offset: u64, data: &[u8]) -> bool {
        let end = offset.saturating_add(data.len() as u64);
        let touched = [COMMAND, PM_CONTROL].iter().any(|at| offset <= *at as u64 && end > *at as u64);
        if !touched || !self.may_do_dma() {
            return false;
        }
        let mut after = self.clone();
        after.write(offset, data);
        !after.may_do_dma()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ConfigSpace {
        ConfigSpace::new(&FunctionDescription {
            vendor: 0x1234,
            device: 0x5678,
            revision: 1,
            class: 0x01_0802,
            bar0_bytes: 0x4000,
            bar4_bytes: 0x2000,
            vectors: 9,
        })
    }

    fn u32_at(config: &ConfigSpace, at: u64) -> u32 {
        let mut raw = [0; 4];
        config.read(at, &mut raw);
        u32::from_le_bytes(raw)
    }

    #[test]
    fn capabilities_are_a_list_that_ends() {
        let config = config();
        assert_eq!(u32_at(&config, 0), 0x5678_1234);
        assert_eq!(u32_at(&config, 8) >> 8, 0x01_0802);
        let (mut at, mut found) = (u32_at(&config, 0x34) & 0xff, Vec::new());
        while at != 0 {
            let header = u32_at(&config, at.into());
            found.push(header & 0xff);
            at = header >> 8 & 0xff;
            assert!(found.len() < 10);
        }
        assert_eq!(found, [0x01, 0x10, 0x11]);
        assert_eq!(u32_at(&config, 0xb0) >> 16, 8, "table size, 0's-based");
        assert_eq!((u32_at(&config, 0xb4), u32_at(&config, 0xb8)), (4, 0x1004));
        assert_eq!(u32_at(&config, 0x100), 0, "no extended capability");
    }

    #[test]
    fn bars_tell_their_size() {
        let mut config = config();
        config.write(0x10, &[0xff; 8]);
        assert_eq!((u32_at(&config, 0x10), u32_at(&config, 0x14)), (0xffff_c004, u32::MAX));
        config.write(0x20, &[0xff; 4]);
        assert_eq!(u32_at(&config, 0x20), 0xffff_e004);
        config.write(0x18, &[0xff; 4]);
        assert_eq!(u32_at(&config, 0x18), 0, "absent");
    }

    #[test]
    fn read_only_bits_stay() {
        let mut config = config();
        let before: Vec<u32> = (0..1024).map(|n| u32_at(&config, n * 4)).collect();
        let mut other = config.clone();
        for at in (0..4096).filter(|at| *at != 0x69) {
            other.write(at, &[0xff]);
            other.write(at, &[0]);
        }
        assert_eq!(u32_at(&other, 0), before[0]);
        assert_eq!(u32_at(&other, 0xb4), before[0xb4 / 4]);
        config.write(4094, &[1, 2, 3, 4]);
        config.write(u64::MAX, &[1]);
        assert_eq!((0..1024).map(|n| u32_at(&config, n * 4)).collect::<Vec<_>>(), before);
    }

    #[test]
    fn dma_needs_bus_master_and_d0() {
        let mut config = config();
        assert!(!config.may_do_dma());
        config.write(4, &6u16.to_le_bytes());
        assert!(config.may_do_dma());
        config.write(0x44, &[3]);
        assert!(!config.may_do_dma());
        assert!(!config.would_end_dma(4, &[0]), "there is none");
        config.write(0x44, &[0]);
        assert!(config.may_do_dma());
        assert!(config.would_end_dma(4, &[2]) && config.would_end_dma(0x42, &[3, 0, 3]));
        assert!(!config.would_end_dma(4, &[4]) && !config.would_end_dma(6, &[0; 8]));
    }

    #[test]
    fn what_a_guest_set_goes_elsewhere() {
        let mut config = config();
        // Every bit that can be written, but for the function level reset.
        (0..4096).filter(|at| *at != 0x69).for_each(|at| assert!(!config.write(at, &[0xff]).reset));
        let state = config.state();
        let mut other = self::config();
        assert_eq!(other.misfit(&state), None);
        other.put(&state);
        assert!(other == config, "nothing that a guest can change is left out");
        assert_eq!(other.state(), state);
        let wrong = [
            ConfigState { bar0: state.bar0 | 1, ..state },
            ConfigState { msix_control: state.msix_control ^ 1, ..state },
            ConfigState { command: state.command | 1, ..state },
            ConfigState { device_control: state.device_control | 0x8000, ..state },
            ConfigState { power_control: 3, ..state },
        ];
        let at: Vec<_> = wrong.iter().map(|state| other.misfit(state)).collect();
        assert_eq!(at, [Some(0x10), Some(0xb2), Some(4), Some(0x68), Some(0x44)]);
    }

    #[test]
    fn function_level_reset_by_any_width() {
        for (at, data) in [(0x68, vec![0x10, 0xa8]), (0x69, vec![0x80]), (0x68, vec![0x10, 0xa8, 0, 0])] {
            let mut config = config();
            config.write(4, &6u16.to_le_bytes());
            assert!(config.write(at, &data).reset, "{at:#x}");
            assert!(!config.may_do_dma());
            assert_eq!(u32_at(&config, 0x68) as u16, DEVICE_CONTROL_RESET);
        }
        assert!(!config().write(0x68, &[0x80]).reset);
        assert!(!config().write(0x6a, &[0x80]).reset);
    }
}
