//! Mediated devices in sysfs (`Documentation/driver-api/vfio-mediated-device.rst`): parents, their types, and devices that are made
//! and removed by writing a UUID.

use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use crate::pci::{vfio_device, vfio_state};
use crate::sysfs::{
    self, HostError, HostErrorKind as Kind, Meaning, Sysfs, entries, index_of, is_plain_name, link_name, small, text,
};

/// The most components of a parent's path below the root of sysfs. A PCI function behind 8 bridges has a dozen.
const MOST_COMPONENTS: usize = 64;

/// A type of mediated device that a parent offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdevType {
    /// `mtty-1`: driver and type.
    pub id: String,
    /// A name for people.
    pub name: Option<String>,
    /// `vfio-pci`, `vfio-ccw`, `vfio-ap`.
    pub device_api: String,
    /// How many more can be made.
    pub available_instances: u32,
    /// More for people.
    pub description: Option<String>,
}

/// A mediated device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdevDevice {
    /// Its name on the bus, which is a UUID in lower case.
    pub uuid: String,
    /// [`MdevType::id`].
    pub type_id: String,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// Number of its IOMMU group.
    pub iommu_group: Option<u32>,
    /// `vfio2` for `/dev/vfio/devices/vfio2`.
    pub vfio_device: Option<String>,
    /// Migration state as the kernel's debugfs tells it.
    pub vfio_state: Option<String>,
}

/// A device that makes mediated ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdevParent {
    /// Path below the root of sysfs: `devices/virtual/mtty/mtty`.
    pub path: String,
    /// Last part of the path.
    pub name: String,
    /// What it offers.
    pub types: Vec<MdevType>,
    /// What there is of it.
    pub devices: Vec<MdevDevice>,
}

/// Every parent of mediated devices (`/sys/class/mdev_bus`), by path.
#[must_use]
pub fn parents(sysfs: &Sysfs) -> Vec<MdevParent> {
    let class = sysfs.path("class/mdev_bus");
    let mut all: Vec<MdevParent> = entries(&class)
        .iter()
        .filter_map(|name| relative(sysfs, &class.join(name)))
        .map(|path| parent(sysfs, path))
        .collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all.dedup_by(|a, b| a.path == b.path);
    all
}

/// Where a link of sysfs leads, below the root; `None` where it leaves sysfs.
fn relative(sysfs: &Sysfs, link: &Path) -> Option<String> {
    let root = sysfs.root().canonicalize().ok()?;
    let target = link.canonicalize().ok()?;
    let path = target.strip_prefix(root).ok()?.to_str()?.to_owned();
    is_parent_path(&path).then_some(path)
}

/// `devices/…` of plain names.
fn is_parent_path(path: &str) -> bool {
    let mut components = Path::new(path).components();
    let plain = |component: Component<'_>| match component {
        Component::Normal(name) => name.to_str().is_some_and(is_plain_name),
        _ => false,
    };
    path.starts_with("devices/")
        && !path.contains("//")
        && components.clone().count() <= MOST_COMPONENTS
        && components.all(plain)
}

fn parent(sysfs: &Sysfs, path: String) -> MdevParent {
    let folder = sysfs.path(&path);
    let supported = folder.join("mdev_supported_types");
    let ids = entries(&supported);
    let types = ids.iter().map(|id| {
        let at = |name: &str| supported.join(id).join(name);
        MdevType {
            id: id.clone(),
            name: text(&at("name")),
            device_api: text(&at("device_api")).unwrap_or_default(),
            available_instances: small(&at("available_instances")).unwrap_or(0),
            description: text(&at("description")),
        }
    });
    let devices = ids.iter().flat_map(|id| {
        entries(&supported.join(id).join("devices"))
            .into_iter()
            .filter_map(|uuid| checked_uuid(&uuid).ok())
            .map(|uuid| device(sysfs, uuid, id.clone()))
    });
    let mut devices: Vec<MdevDevice> = devices.collect();
    devices.sort_by(|a, b| a.uuid.cmp(&b.uuid));
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    MdevParent { types: types.collect(), devices, name, path }
}

fn device(sysfs: &Sysfs, uuid: String, type_id: String) -> MdevDevice {
    let folder = device_folder(sysfs, &uuid);
    MdevDevice {
        driver: link_name(&folder.join("driver")),
        iommu_group: link_name(&folder.join("iommu_group")).and_then(|name| index_of(&name, "")),
        vfio_device: vfio_device(&folder),
        vfio_state: vfio_state(sysfs, &uuid),
        type_id,
        uuid,
    }
}

fn device_folder(sysfs: &Sysfs, uuid: &str) -> PathBuf {
    sysfs.path("bus/mdev/devices").join(uuid)
}

/// The 36 characters of a UUID, in lower case as the kernel writes them.
fn checked_uuid(uuid: &str) -> Result<String, HostError> {
    let dash = |index: usize| matches!(index, 8 | 13 | 18 | 23);
    let right = |(index, b): (usize, u8)| if dash(index) { b == b'-' } else { b.is_ascii_hexdigit() };
    if uuid.len() == 36 && uuid.bytes().enumerate().all(right) {
        return Ok(uuid.to_ascii_lowercase());
    }
    let shown: String = uuid.chars().filter(|c| !c.is_control()).take(48).collect();
    Err(HostError::argument(format!("{shown:?}"), "this is not a UUID, as 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001 is one"))
}

/// Makes a mediated device of a type by its parent, given as [`MdevParent::path`].
///
/// # Errors
/// [`Kind::Exists`] where the UUID is taken, [`Kind::Limit`] where the parent has none left, [`Kind::NotFound`] for a parent or type that
/// is not there, or as the kernel says.
pub fn create(sysfs: &Sysfs, parent_path: &str, type_id: &str, uuid: &str) -> Result<(), HostError> {
    let uuid = checked_uuid(uuid)?;
    let shown = |text: &str| text.chars().filter(|c| !c.is_control()).take(200).collect::<String>();
    if !is_parent_path(parent_path) {
        let why = "this is not the path of a parent below /sys, as devices/virtual/mtty/mtty is one";
        return Err(HostError::argument(format!("{:?}", shown(parent_path)), why));
    }
    if !is_plain_name(type_id) {
        return Err(HostError::argument(
            format!("{:?}", shown(type_id)),
            "this is not the name of a type of mediated devices",
        ));
    }
    let file = sysfs.path(parent_path).join("mdev_supported_types").join(type_id).join("create");
    let what = format!("writing {uuid} to {}", file.display());
    sysfs::write(&file, uuid.as_bytes()).map_err(|errno| HostError::refused(what, errno, create_means(errno)))
}

fn create_means(errno: Errno) -> Option<Meaning> {
    Some(match errno {
        Errno::EXIST => {
            Meaning(Kind::Exists, "a mediated device with this UUID exists", "choose another UUID, or remove it")
        }
        Errno::USERS | Errno::NOSPC => Meaning(
            Kind::Limit,
            "the parent has no instance of this type left",
            "see available_instances; remove another device",
        ),
        Errno::NOENT => Meaning(
            Kind::NotFound,
            "there is no such parent or type",
            "load the driver; towline list shows what there is",
        ),
        Errno::INVAL => Meaning(Kind::Argument, "the kernel does not accept this UUID", ""),
        Errno::NODEV => Meaning(Kind::Gone, "the parent is going away", "list the parents again"),
        _ => return None,
    })
}

/// Removes a mediated device. Blocks while it is open.
///
/// # Errors
/// [`Kind::NotFound`] where there is none, or as the kernel says.
pub fn remove(sysfs: &Sysfs, uuid: &str) -> Result<(), HostError> {
    let uuid = checked_uuid(uuid)?;
    let file = device_folder(sysfs, &uuid).join("remove");
    let what = format!("writing 1 to {}", file.display());
    sysfs::write(&file, b"1").map_err(|errno| HostError::refused(what, errno, remove_means(errno)))
}

fn remove_means(errno: Errno) -> Option<Meaning> {
    Some(match errno {
        Errno::NOENT | Errno::NODEV => {
            Meaning(Kind::NotFound, "there is no such mediated device (any more)", "towline list shows what there is")
        }
        Errno::AGAIN => Meaning(Kind::Busy, "the parent is going away, which removes its devices too", "try again"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
