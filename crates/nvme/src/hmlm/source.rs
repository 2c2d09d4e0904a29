//! The dirty source: which guest memory a controller wrote.

use std::fmt;

use towline_core::channel::{ChannelError, ChannelErrorKind, DirtySink, DirtySource, normalise_ranges};
use towline_core::memory::MemoryRange;

use super::ranges::{Plan, plan};
use crate::admin::{AdminClient, AdminError};
use crate::identify::trattr;
use crate::status::StatusCode;
use crate::track::{GRANULARITY_UNIT_BYTES, granularity_bytes};

/// What a [`TrackReceiveSource`] is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackConfig {
    /// The controller whose writes are tracked.
    pub cntlid: u16,
    /// The most ranges given to the device, besides its own limits; neighbours are merged to stay within.
    pub max_ranges: usize,
}

impl TrackConfig {
    /// The defaults for a controller.
    #[must_use]
    pub fn new(cntlid: u16) -> Self {
        Self { cntlid, max_ranges: 4096 }
    }
}

/// Tracks the memory that a controlled controller writes, by Track Send and Track Receive of its controlling function.
///
/// Reports are taken, not copied: one that was lost on its way is lost for good, so after any error of
/// [`DirtySource::harvest`] every page is to be taken as written. Dropping it does not stop the tracking.
pub struct TrackReceiveSource {
    client: AdminClient,
    config: TrackConfig,
    active: Option<Active>,
    /// The last harvest ended with "suspended, and nothing more".
    complete: bool,
}

#[derive(Clone, Copy)]
struct Active {
    /// Granules under tracking, at least 1.
    granules: u64,
    /// It was stopped while the controller was suspended, which only the device still has to be told.
    stopped: bool,
}

impl fmt::Debug for TrackReceiveSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackReceiveSource")
            .field("config", &self.config)
            .field("active", &self.active.is_some())
            .finish_non_exhaustive()
    }
}

/// Granularities that a device supports, as powers of two of 4 KiB, and how its ranges have to be.
struct Abilities {
    finest: u8,
    coarsest: u8,
    power_of_two: bool,
    max_ranges: usize,
}

impl TrackReceiveSource {
    /// A source over a controlling function. Sends nothing yet.
    #[must_use]
    pub fn new(client: AdminClient, config: TrackConfig) -> Self {
        Self { client, config, active: None, complete: false }
    }

    /// Whether the last harvest found the controller suspended and nothing left: then nothing can come any more until it
    /// is resumed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    fn abilities(&self) -> Result<Abilities, ChannelError> {
        let controlling = self.client.identify_controller().map_err(|error| error.into_channel_error(None))?;
        if controlling.trattr & trattr::HOST_MEMORY_CHANGES == 0 {
            let message = format!("controller {} does not track memory that others write", controlling.cntlid);
            return Err(ChannelError::new(ChannelErrorKind::Unsupported, message));
        }
        // The limits of the descriptors are not known to be filled in everywhere: 0 is taken as no limit.
        let device = [controlling.cmmrtd, controlling.nmmrtd].into_iter().filter(|n| *n != 0).min();
        let device = device.map_or(usize::MAX, usize::from);
        Ok(Abilities {
            finest: controlling.minmrtg,
            coarsest: controlling.maxmrtg.max(controlling.minmrtg),
            power_of_two: controlling.trattr & trattr::POWER_OF_TWO_LENGTH != 0,
            max_ranges: device.min(self.client.max_track_ranges()).min(self.config.max_ranges),
        })
    }

    fn failed(&self, kind: ChannelErrorKind, message: impl fmt::Display) -> ChannelError {
        ChannelError::new(kind, format!("tracking of controller {}: {message}", self.config.cntlid))
    }

    fn send_start(&self, granularity: u8, plan: &Plan) -> Result<(), AdminError> {
        let start = || self.client.track_memory_start(self.config.cntlid, granularity, &plan.ranges);
        match start() {
            // Somebody who died has left it tracking: what it found belongs to nobody.
            Err(error) if error.is(StatusCode::CommandSequenceError) => {
                self.client.track_memory_stop(self.config.cntlid)?;
                start()
            }
            other => other,
        }
    }
}

impl DirtySource for TrackReceiveSource {
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        // One that was stopped is started anew, whatever the device still tracks.
        if self.active.is_some_and(|active| !active.stopped) {
            return Err(self.failed(ChannelErrorKind::State, "it is on already"));
        }
        if !page_size_bytes.is_power_of_two() {
            let message = format!("a page size of {page_size_bytes} bytes is not a power of two");
            return Err(self.failed(ChannelErrorKind::Limit, message));
        }
        let ranges = normalise_ranges(ranges);
        if ranges.is_empty() {
            return Err(self.failed(ChannelErrorKind::Limit, "there is no memory to track"));
        }
        let abilities = self.abilities()?;
        let wanted = page_size_bytes.max(GRANULARITY_UNIT_BYTES).trailing_zeros() - 12;
        let mut granularity = u8::try_from(wanted).unwrap_or(u8::MAX).clamp(abilities.finest, abilities.coarsest);
        let mut max_ranges = abilities.max_ranges;
        loop {
            let Some(granule) = granularity_bytes(granularity) else {
                let message = format!("the device has no granularity below 4 KiB << {granularity}");
                return Err(self.failed(ChannelErrorKind::Limit, message));
            };
            let plan = plan(&ranges, granule, max_ranges, abilities.power_of_two)
                .map_err(|message| self.failed(ChannelErrorKind::Limit, message))?;
            let error = match self.send_start(granularity, &plan) {
                Ok(()) => {
                    self.active = Some(Active { granules: (plan.tracked_bytes / granule).max(1), stopped: false });
                    self.complete = false;
                    return Ok(granule);
                }
                Err(error) => error,
            };
            // Not enough resources: the device says what it has. Whatever it says, the next try asks for less.
            let Some(possible) = error.track_resources() else { return Err(error.into_channel_error(None)) };
            let offered_ranges = usize::try_from(possible.descriptors).unwrap_or(usize::MAX);
            let fewer = offered_ranges != 0 && offered_ranges < plan.ranges.len();
            let coarser = u8::try_from(possible.granularity).ok().filter(|g| *g > granularity);
            if fewer {
                max_ranges = offered_ranges;
            }
            granularity = match coarser {
                Some(coarser) => coarser,
                None if fewer => granularity,
                None => granularity.saturating_add(1),
            };
            if granularity > abilities.coarsest {
                return Err(error.into_channel_error(None));
            }
        }
    }

    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        self.complete = false;
        let Some(active) = self.active else { return Err(self.failed(ChannelErrorKind::State, "it is off")) };
        // A controller that runs may write faster than we ask; one that is suspended has each granule to report once. Twice
        // that, and it reports what cannot be.
        let budget = active.granules.saturating_mul(2).saturating_add(1);
        let mut seen: u64 = 0;
        let mut silent = 0;
        loop {
            let report = self.client.track_receive(self.config.cntlid).map_err(|error| {
                let error = error.into_channel_error(None);
                let lost = "reports are taken, not copied: take every page as written";
                ChannelError {
                    message: format!("{} ({seen} ranges were reported before; {lost})", error.message),
                    ..error
                }
            })?;
            for range in &report.ranges {
                let len = u64::from(range.len);
                if len == 0 || range.address.checked_add(len).is_none() {
                    let message = format!("the device reports {len} bytes written at {:#x}", range.address);
                    return Err(self.failed(ChannelErrorKind::Device, message));
                }
                sink.mark(range.address, len);
            }
            seen = seen.saturating_add(report.ranges.len() as u64);
            if !report.header.more() {
                self.complete = report.header.suspended();
                return Ok(());
            }
            silent = if report.ranges.is_empty() { silent + 1 } else { 0 };
            if silent > 16 {
                return Err(self.failed(ChannelErrorKind::Device, "the device has more to report and reports nothing"));
            }
            if seen > budget {
                if report.header.suspended() {
                    let message = format!("the device is suspended and reports on and on, {seen} ranges so far");
                    return Err(self.failed(ChannelErrorKind::Device, message));
                }
                // It runs: the rest is for the next harvest.
                return Ok(());
            }
        }
    }

    fn stop(&mut self) -> Result<(), ChannelError> {
        self.complete = false;
        if self.active.is_none() {
            return Ok(());
        }
        match self.client.track_memory_stop(self.config.cntlid) {
            Ok(()) => {
                self.active = None;
                Ok(())
            }
            Err(error) => {
                // A suspended controller cannot be told to stop. It can once it is resumed; a reset stops it too.
                let suspended = error.is(StatusCode::ControllerSuspended);
                self.active = self.active.filter(|_| suspended).map(|active| Active { stopped: true, ..active });
                Err(error.into_channel_error(None))
            }
        }
    }
}
