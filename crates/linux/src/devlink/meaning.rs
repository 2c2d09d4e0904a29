//! What an errno means to devlink (`net/devlink`).

use rustix::io::Errno;

use super::uapi;
use crate::sysfs::HostErrorKind as Kind;
use crate::sysfs::Meaning;

pub(super) fn meaning(command: u8, errno: Errno) -> Option<Meaning> {
    Some(match (command, errno) {
        (_, Errno::PERM | Errno::ACCESS) => {
            Meaning(Kind::Permission, "not permitted", "changes of devlink need CAP_NET_ADMIN: run as root")
        }
        (uapi::CMD_PORT_SET, Errno::OPNOTSUPP) => Meaning(
            Kind::Unsupported,
            "the driver does not have this attribute for the function of this port",
            "ports of VFs and subfunctions in switchdev mode may have it, by driver; migratable is of VFs of mlx5",
        ),
        (uapi::CMD_PORT_NEW | uapi::CMD_PORT_DEL, Errno::OPNOTSUPP) => Meaning(
            Kind::Unsupported,
            "the driver does not make or delete ports",
            "mlx5 and ice do, for subfunctions in switchdev mode",
        ),
        (uapi::CMD_ESWITCH_GET | uapi::CMD_ESWITCH_SET, Errno::OPNOTSUPP) => {
            Meaning(Kind::Unsupported, "the device has no eswitch, or its driver not this mode", "")
        }
        (_, Errno::OPNOTSUPP) => Meaning(Kind::Unsupported, "the driver can't do this", ""),
        (_, Errno::NODEV | Errno::NOENT) => Meaning(
            Kind::NotFound,
            "there is no such devlink device or port",
            "towline list shows what there is; a device is seen in its own network namespace only",
        ),
        (_, Errno::BUSY) => Meaning(Kind::Busy, "the function or the device is in use", "unbind its driver first"),
        (_, Errno::EXIST) => Meaning(Kind::Exists, "there is such a port", "choose another number"),
        (_, Errno::NOSPC) => Meaning(Kind::Limit, "the device has no subfunctions left", "delete another one"),
        (_, Errno::INVAL | Errno::RANGE) => Meaning(Kind::Argument, "the kernel does not accept the request", ""),
        _ => return None,
    })
}
