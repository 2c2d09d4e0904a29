//! Which features a device has.

use rustix::io::Errno;
use towline_core::channel::ChannelError;
use vfio_bindings::bindings::vfio::*;

use super::error::failed;

/// Numbers of the features that there are (`VFIO_DEVICE_FEATURE_*`), with the operation by which they are probed.
const FEATURES: [(u32, u32); 13] = [
    (VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, VFIO_DEVICE_FEATURE_SET),
    (VFIO_DEVICE_FEATURE_MIGRATION, VFIO_DEVICE_FEATURE_GET),
    (VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET),
    (VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, VFIO_DEVICE_FEATURE_SET),
    (VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, VFIO_DEVICE_FEATURE_SET),
    (VFIO_DEVICE_FEATURE_LOW_POWER_EXIT, VFIO_DEVICE_FEATURE_SET),
    (VFIO_DEVICE_FEATURE_DMA_LOGGING_START, VFIO_DEVICE_FEATURE_SET),
    (VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, VFIO_DEVICE_FEATURE_SET),
    (VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, VFIO_DEVICE_FEATURE_GET),
    (VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, VFIO_DEVICE_FEATURE_GET),
    (VFIO_DEVICE_FEATURE_BUS_MASTER, VFIO_DEVICE_FEATURE_SET),
    (VFIO_DEVICE_FEATURE_DMA_BUF, VFIO_DEVICE_FEATURE_GET),
    (VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, VFIO_DEVICE_FEATURE_SET),
];

/// The features that a device answered a probe for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    pub(super) fn probe(name: &str, probe: impl Fn(u32, u32) -> Result<(), Errno>) -> Result<Self, ChannelError> {
        let mut bits = 0;
        for (index, operation) in FEATURES {
            match probe(index, operation) {
                Ok(()) => bits |= 1 << index,
                // EINVAL as well: PRECOPY_INFOv2 without PRE_COPY has it, and kernels that don't know the operation.
                Err(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(failed(&format!("{name}: probe VFIO_DEVICE_FEATURE {index}"), errno)),
            }
        }
        Ok(Self(bits))
    }

    /// Whether it has feature `number` (`VFIO_DEVICE_FEATURE_*`).
    #[must_use]
    pub fn has(self, number: u32) -> bool {
        1u32.checked_shl(number).is_some_and(|bit| self.0 & bit != 0)
    }

    /// Numbers of what it has, ascending.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (0..FEATURES.len() as u32).filter(move |n| self.has(*n))
    }

    /// Whether it logs which pages it writes: all three of the features that this takes.
    #[must_use]
    pub fn logs_dma(self) -> bool {
        [
            VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
            VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
            VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
        ]
        .into_iter()
        .all(|n| self.has(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_probed_once_by_its_operation() {
        for (at, (index, _)) in FEATURES.iter().enumerate() {
            assert_eq!(at as u32, *index);
        }
        let all = Features::probe("x", |_, _| Ok(())).unwrap();
        assert_eq!(all.numbers().collect::<Vec<_>>(), (0..13).collect::<Vec<_>>());
        assert!(all.logs_dma() && !all.has(13) && !all.has(99));
        let some = Features::probe("x", |index, operation| match index {
            8 => Err(Errno::NOTTY),
            12 => Err(Errno::INVAL),
            _ if operation == 0 => Err(Errno::IO),
            _ => Ok(()),
        })
        .unwrap();
        assert!(!some.logs_dma() && some.has(6) && !some.has(12));
        let gone = Features::probe("x", |_, _| Err(Errno::NODEV)).unwrap_err();
        assert_eq!(gone.errno, Some(19));
    }
}
