//! A rate limit on another controller's I/O, set by the controlling function.
//!
//! NVMe has no command for it: none of the features of Base 2.1 limits what one controller of a subsystem may do (Arbitration and I/O
//! Determinism order queues and sets). So this is a vendor specific feature, [`crate::command::feature::RATE_LIMIT`], which the embedded
//! subsystem has and says by listing [`crate::vendor_state::VENDOR_STATE_UUID`] among its controller state formats. It is not for any
//! other device, where the same identifier may mean anything: [`crate::admin::AdminClient::has_rate_limit`] is asked first.
//!
//! | dword | Set Features | Get Features |
//! |---|---|---|
//! | CDW11 15:00 | controller identifier | controller identifier |
//! | CDW11 31:16 | 0 | 0: bytes a second, 1: commands a second |
//! | CDW12, CDW13 | bytes a second, low and high half; 0 for no limit | |
//! | CDW15 | commands a second; 0 for no limit | |
//! | result | 0 | DW0 and DW1: the value |

use crate::command::{AdminCommand, feature, opcode};

/// What a controller may do in a second: 0 for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes of data, read and written.
    pub bytes_per_s: u64,
    /// I/O commands.
    pub commands_per_s: u32,
}

impl RateLimit {
    /// No limit at all.
    pub const NONE: Self = Self { bytes_per_s: 0, commands_per_s: 0 };

    /// Set Features for controller `cntlid`.
    #[must_use]
    pub fn encode(self, cntlid: u16) -> AdminCommand {
        AdminCommand {
            cdw10: feature::RATE_LIMIT.into(),
            cdw11: cntlid.into(),
            cdw12: self.bytes_per_s as u32,
            cdw13: (self.bytes_per_s >> 32) as u32,
            cdw15: self.commands_per_s,
            ..AdminCommand::new(opcode::SET_FEATURES)
        }
    }
}

/// Which part Get Features asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimitPart {
    /// Bytes of data a second.
    BytesPerSecond,
    /// I/O commands a second.
    CommandsPerSecond,
}

impl RateLimitPart {
    /// By its number in CDW11.
    #[must_use]
    pub const fn of(number: u16) -> Option<Self> {
        match number {
            0 => Some(Self::BytesPerSecond),
            1 => Some(Self::CommandsPerSecond),
            _ => None,
        }
    }

    /// Get Features for controller `cntlid`.
    #[must_use]
    pub fn encode(self, cntlid: u16) -> AdminCommand {
        AdminCommand {
            cdw10: feature::RATE_LIMIT.into(),
            cdw11: (self as u32) << 16 | u32::from(cntlid),
            ..AdminCommand::new(opcode::GET_FEATURES)
        }
    }
}
