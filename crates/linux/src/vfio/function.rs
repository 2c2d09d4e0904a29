//! A device with the address space that it uses: what a holder of a function opens.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind, DirtySource};

use super::container::Container;
use super::device::VfioDevice;
use super::dma_log::VfioDmaLog;
use super::place::Place;
use super::token::VfToken;
use crate::address_space::{AddressSpace, GuestMapping};
use crate::iommufd::{Hwpt, Ioas, Iommufd, IommufdDirty};
use crate::memory::MappedMemory;
use crate::type1::{Type1, Type1Dirty};

/// By which way to open a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenBy {
    /// By its own node where the device has one and the kernel has iommufd, by its group otherwise.
    #[default]
    Auto,
    /// By its group, with a container of its own.
    Group,
    /// By its own node, with an iommufd of its own.
    Cdev,
}

/// How to open a device.
#[derive(Clone, Copy, Debug)]
pub struct VfioOptions {
    /// By which way.
    pub by: OpenBy,
    /// The VF token, where the PF is on `vfio-pci`.
    pub token: Option<VfToken>,
    /// By its own node: a page table that tracks dirty pages, where the IOMMU can. It has no large pages then, as a write would make
    /// all of one dirty.
    pub dirty_tracking: bool,
}

impl Default for VfioOptions {
    fn default() -> Self {
        Self { by: OpenBy::Auto, token: None, dirty_tracking: true }
    }
}

/// Who tells which pages a device wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirtyBy {
    /// The device's own log.
    Device,
    /// The IOMMU, by a page table of an iommufd.
    Iommufd,
    /// The container: all that is mapped for a device with an IOMMU, what its parent pinned for a mediated device.
    Type1,
    /// Nobody.
    Nobody,
}

/// What a device's DMA goes through. Its parts are dropped, and taken down, from the first to the last.
#[derive(Debug)]
enum Space {
    /// That of whoever opened it.
    Others,
    Type1(Arc<Type1>),
    Iommufd {
        hwpt: Option<Arc<Hwpt>>,
        ioas: Arc<Ioas>,
    },
}

/// A device and its address space.
///
/// Once it is dropped the device reaches no memory any more, even while a channel still has it open.
pub struct VfioFunction {
    mapping: Mutex<Option<GuestMapping>>,
    device: Arc<VfioDevice>,
    space: Space,
    dirty_by: DirtyBy,
}

impl fmt::Debug for VfioFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioFunction").field("device", &self.device).field("space", &self.space).finish_non_exhaustive()
    }
}

impl VfioFunction {
    /// Opens the device with this name: the PCI address of a function, the UUID of a mediated device.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Gone`] where there is no such device, [`ChannelErrorKind::Unsupported`] where the host can't open it
    /// this way, otherwise what the kernel said.
    pub fn open(name: &str, options: &VfioOptions) -> Result<Self, ChannelError> {
        let place = Place::find(name)?;
        let node = match options.by {
            OpenBy::Group => None,
            OpenBy::Auto => place.cdev().filter(|node| node.exists() && std::path::Path::new("/dev/iommu").exists()),
            OpenBy::Cdev => Some(place.cdev().ok_or_else(|| {
                let message = format!(
                    "{name} has no node of its own: it isn't bound to a driver of VFIO, or the kernel lacks CONFIG_VFIO_DEVICE_CDEV"
                );
                ChannelError::new(ChannelErrorKind::Unsupported, message)
            })?),
        };
        let Some(node) = node else {
            let group = place.group()?;
            let container = Container::open()?;
            let device = Arc::new(container.device_with_token(group, name, options.token.as_ref())?);
            let space = Type1::new(container);
            let tracks = where_known(space.info())?.is_some_and(|info| info.migration.is_some());
            let by = if tracks { DirtyBy::Type1 } else { DirtyBy::Nobody };
            return Self::new(device, Space::Type1(space), by);
        };
        let iommufd = Iommufd::open()?;
        let device = Arc::new(VfioDevice::open_cdev(&node, name, iommufd.as_fd(), options.token.as_ref())?);
        let ioas = Ioas::allocate(&iommufd)?;
        let mut hwpt = None;
        if let (true, false, Some(devid)) = (options.dirty_tracking, place.is_mdev(), device.devid())
            && where_known(iommufd.hw_info(devid))?.is_some_and(|info| info.can_track_dirty())
        {
            // A write makes all of an I/O page dirty, which would be 2 MiB or 1 GiB. It has to be said before there is a page table.
            ioas.set_huge_pages(false)?;
            // Page tables that the kernel makes by itself don't track.
            hwpt = Some(Hwpt::allocate(&ioas, devid, true)?);
        }
        let id = hwpt.as_ref().map_or_else(|| ioas.id(), |hwpt| hwpt.id());
        let by = if hwpt.is_some() { DirtyBy::Iommufd } else { DirtyBy::Nobody };
        let function = Self::new(device, Space::Iommufd { hwpt, ioas }, by)?;
        function.device.attach(id)?;
        Ok(function)
    }

    /// A device that somebody else has opened and given an address space. `name` is its PCI address or UUID.
    ///
    /// # Errors
    /// As [`VfioDevice::from_fd`].
    pub fn from_fd(fd: OwnedFd, name: &str) -> Result<Self, ChannelError> {
        Self::new(Arc::new(VfioDevice::from_fd(fd, name)?), Space::Others, DirtyBy::Nobody)
    }

    fn new(device: Arc<VfioDevice>, space: Space, otherwise: DirtyBy) -> Result<Self, ChannelError> {
        // Its own log has the pages that it wrote and no others.
        let dirty_by = match VfioDmaLog::new(&device) {
            Ok(_) => DirtyBy::Device,
            Err(error) if error.kind == ChannelErrorKind::Unsupported => otherwise,
            Err(error) => return Err(error),
        };
        Ok(Self { mapping: Mutex::default(), device, space, dirty_by })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<VfioDevice> {
        &self.device
    }

    /// The address space that its DMA goes through; `None` where somebody else has it.
    #[must_use]
    pub fn address_space(&self) -> Option<Arc<dyn AddressSpace>> {
        match &self.space {
            Space::Others => None,
            Space::Type1(space) => Some(Arc::clone(space) as Arc<dyn AddressSpace>),
            Space::Iommufd { ioas, .. } => Some(Arc::clone(ioas) as Arc<dyn AddressSpace>),
        }
    }

    /// Maps guest memory for its DMA, at guest-physical addresses, as its regions are now.
    ///
    /// # Errors
    /// [`ChannelErrorKind::State`] where some is mapped already, [`ChannelErrorKind::Unsupported`] for a device that somebody
    /// else opened, otherwise as [`AddressSpace::map`]; nothing stays mapped then.
    pub fn map_memory(&self, memory: &MappedMemory) -> Result<(), ChannelError> {
        let name = self.device.name();
        let Some(space) = self.address_space() else {
            let message = format!("{name} was opened by somebody else, who maps memory for it");
            return Err(ChannelError::new(ChannelErrorKind::Unsupported, message));
        };
        let mut mapping = self.mapping.lock().unwrap_or_else(PoisonError::into_inner);
        if mapping.is_some() {
            let message = format!("{name} has guest memory mapped already: unmap it first");
            return Err(ChannelError::new(ChannelErrorKind::State, message));
        }
        *mapping = Some(GuestMapping::new(space, memory)?);
        Ok(())
    }

    /// Unmaps what [`VfioFunction::map_memory`] mapped. Idempotent.
    ///
    /// # Errors
    /// As [`AddressSpace::unmap`]; what is still mapped then is known as such, and another call tries it again.
    pub fn unmap_memory(&self) -> Result<(), ChannelError> {
        unmap(&mut self.mapping.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who tells which pages it wrote.
    #[must_use]
    pub fn dirty_by(&self) -> DirtyBy {
        self.dirty_by
    }

    /// A source of the pages that it wrote, not started; `None` where nobody tells.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn dirty_source(&self) -> Result<Option<Box<dyn DirtySource>>, ChannelError> {
        Ok(match (self.dirty_by, &self.space) {
            // Looked at when it was opened: another look could cost what a log that runs has found.
            (DirtyBy::Device, _) => {
                Some(Box::new(VfioDmaLog::over(Box::new(Arc::clone(&self.device)), self.device.name())))
            }
            (DirtyBy::Iommufd, Space::Iommufd { hwpt: Some(hwpt), .. }) => Some(Box::new(IommufdDirty::new(hwpt))),
            (DirtyBy::Type1, Space::Type1(space)) => Some(Box::new(Type1Dirty::new(space))),
            _ => None,
        })
    }
}

/// What the kernel told of its tracking; `None` where it doesn't know the question, or not for this device, which then tracks
/// nothing. Whatever else it says, nobody knows.
fn where_known<T>(told: Result<T, ChannelError>) -> Result<Option<T>, ChannelError> {
    let unknown = [Errno::OPNOTSUPP, Errno::NOENT, Errno::NOTTY].map(|errno| Some(errno.raw_os_error()));
    match told {
        Ok(info) => Ok(Some(info)),
        Err(error) if unknown.contains(&error.errno) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Forgets a mapping only when the device reaches none of it any more.
fn unmap(mapping: &mut Option<GuestMapping>) -> Result<(), ChannelError> {
    if let Some(mapped) = mapping {
        mapped.close()?;
        *mapping = None;
    }
    Ok(())
}

impl Drop for VfioFunction {
    fn drop(&mut self) {
        // There is nobody to tell errors to; the kernel takes down what is left when the last descriptor is closed.
        let _ = self.unmap_memory();
        if let Space::Iommufd { hwpt, ioas } = &self.space {
            let _ = self.device.detach();
            let _ = hwpt.as_ref().map(|hwpt| hwpt.close());
            let _ = ioas.close();
        }
    }
}

#[cfg(test)]
mod tests;
