//! [`Hwpt`]: the page table of an IOMMU over an address space.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use towline_core::channel::ChannelError;

use super::ioas::Ioas;
use super::ioctl;
use super::object::{Object, no_device};
use crate::iommu_error::failed;

/// A hardware page table (`IOMMU_HWPT_ALLOC`) that maps what its [`Ioas`] does. A device is attached to it by its number.
///
/// Tracking dirty pages has to be asked for when it is made: page tables that the kernel makes when a device is attached to
/// an IOAS don't track.
#[derive(Debug)]
pub struct Hwpt {
    // Before the address space, which it uses.
    object: Object,
    ioas: Arc<Ioas>,
}

impl Hwpt {
    /// Makes one for the IOMMU in front of a bound device. `dev_id` is what binding it gave (`out_devid`).
    ///
    /// # Errors
    /// `Unsupported` where `dirty_tracking` is asked of an IOMMU that has none ([`super::HwInfo::can_track_dirty`] tells);
    /// otherwise what the kernel said.
    pub fn allocate(ioas: &Arc<Ioas>, dev_id: u32, dirty_tracking: bool) -> Result<Arc<Self>, ChannelError> {
        let iommu = ioas.iommufd();
        let id = ioctl::hwpt_alloc(iommu.as_fd(), dev_id, ioas.id(), dirty_tracking).map_err(|errno| {
            let meaning = match errno {
                Errno::OPNOTSUPP if dirty_tracking => {
                    "the IOMMU in front of this device doesn't track dirty pages; take the device's own log"
                }
                errno => no_device(errno),
            };
            let flags = if dirty_tracking { " with DIRTY_TRACKING" } else { "" };
            failed(&format!("IOMMU_HWPT_ALLOC{flags} for device {dev_id}"), errno, meaning)
        })?;
        Ok(Arc::new(Self { object: Object::new(iommu, "HWPT", id), ioas: Arc::clone(ioas) }))
    }

    /// Its number, for attaching a device (`VFIO_DEVICE_ATTACH_IOMMUFD_PT`); 0 once it is closed.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.object.id()
    }

    /// The address space that it maps.
    #[must_use]
    pub fn ioas(&self) -> &Arc<Ioas> {
        &self.ioas
    }

    /// `IOMMU_HWPT_SET_DIRTY_TRACKING`. Switching it on forgets all that is dirty.
    ///
    /// # Errors
    /// `Unsupported` where it was made without.
    pub fn set_dirty_tracking(&self, on: bool) -> Result<(), ChannelError> {
        ioctl::set_dirty_tracking(self.ioas.iommufd().as_fd(), self.id(), on).map_err(|errno| {
            let meaning = match errno {
                Errno::OPNOTSUPP => "this page table was made without dirty tracking",
                Errno::NOENT => "the page table is closed",
                _ => "",
            };
            failed(&format!("IOMMU_HWPT_SET_DIRTY_TRACKING of {}", self.id()), errno, meaning)
        })
    }

    /// `IOMMU_HWPT_GET_DIRTY_BITMAP`: sets the bit of every page of `iova .. iova + len` that was written, bit `n % 64` of
    /// word `n / 64` for page `n`, and forgets it unless `keep`.
    ///
    /// `iova` and `iova + len` are multiples of `page_size` and of the alignment of [`Ioas::iova_ranges`], and the whole range
    /// is mapped: at a hole the kernel stops **and reports success**. It does the same, and forgets the pages, where it can't
    /// write the bitmap; so that is memory that is there and locked ([`super::IommufdDirty`] sees to both).
    ///
    /// # Errors
    /// `EINVAL` for a page size that is no power of two, a bitmap that is too short, and what is not aligned.
    pub fn get_dirty(
        &self,
        iova: u64,
        len: u64,
        page_size: u64,
        bitmap: &mut [u64],
        keep: bool,
    ) -> Result<(), ChannelError> {
        ioctl::get_dirty_bitmap(self.ioas.iommufd().as_fd(), self.id(), (iova, len), page_size, bitmap, keep).map_err(
            |errno| {
                let what = format!("IOMMU_HWPT_GET_DIRTY_BITMAP of {iova:#x} (+{len:#x} bytes) by {page_size:#x}");
                failed(&what, errno, "")
            },
        )
    }

    /// Destroys it. Idempotent.
    ///
    /// # Errors
    /// `EBUSY` while a device is attached.
    pub fn close(&self) -> Result<(), ChannelError> {
        self.object.destroy()
    }
}
