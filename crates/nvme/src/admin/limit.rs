//! The rate limit of a controlled function.

use super::{AdminClient, AdminError, Data};
use crate::limit::{RateLimit, RateLimitPart};
use crate::vendor_state::VENDOR_STATE_UUID;

impl AdminClient {
    /// Whether the device has the vendor specific feature of [`crate::limit`]. On any other its identifier may mean anything.
    ///
    /// # Errors
    /// As for [`AdminClient::state_formats`].
    pub fn has_rate_limit(&self) -> Result<bool, AdminError> {
        Ok(self.state_formats()?.uuids.contains(&VENDOR_STATE_UUID))
    }

    /// Limits the I/O of a controlled function; [`RateLimit::NONE`] lifts the limit. Commands are delayed then, none fails. Ask
    /// [`AdminClient::has_rate_limit`] first.
    ///
    /// # Errors
    /// Invalid Controller Identifier, Invalid Secondary Controller State where it is offline, or as for [`AdminClient::submit`].
    pub fn set_rate_limit(&self, cntlid: u16, limit: RateLimit) -> Result<(), AdminError> {
        let command = "Set Features (rate limit)";
        self.submit(command, &limit.encode(cntlid), Data::None, self.timeouts().command).map(|_| ())
    }

    /// The limit of a controlled function, as the device has it.
    ///
    /// # Errors
    /// As for [`AdminClient::set_rate_limit`].
    pub fn rate_limit(&self, cntlid: u16) -> Result<RateLimit, AdminError> {
        let get = |part: RateLimitPart| {
            self.submit("Get Features (rate limit)", &part.encode(cntlid), Data::None, self.timeouts().command)
        };
        let bytes_per_s = get(RateLimitPart::BytesPerSecond)?;
        Ok(RateLimit { bytes_per_s, commands_per_s: get(RateLimitPart::CommandsPerSecond)? as u32 })
    }
}
