//! Why the system refused something about a device, in words that help.

use rustix::io::Errno;

use crate::errno::errno_text;

/// The sort of a [`HostError`]: what a caller may branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostErrorKind {
    /// The caller's argument can't be right, whatever the system is.
    Argument,
    /// It needs more rights.
    Permission,
    /// Possible in another state of the device only: something has to be undone before.
    State,
    /// Somebody uses it: something has to be closed or unbound before.
    Busy,
    /// More than there is: VFs, vectors, instances.
    Limit,
    /// It exists already.
    Exists,
    /// There is no such device, type or parent here.
    NotFound,
    /// The device is not there (any more).
    Gone,
    /// The kernel, the driver or the device can't do this.
    Unsupported,
    /// The device or its driver failed.
    Device,
    /// Another failure of the system.
    System,
}

/// What the system refused, why, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct HostError {
    /// The sort of failure.
    pub kind: HostErrorKind,
    /// What was attempted, with the file, ioctl or command and the value: `writing 4 to /sys/…/sriov_numvfs`.
    pub what: String,
    /// The errno, where a system call gave one.
    pub errno: Option<i32>,
    /// What that means here.
    pub meaning: String,
    /// What to do; empty where nothing better than trying something else is known.
    pub mend: String,
    /// What the kernel said in its own words (netlink's extended acknowledgement), where it did.
    pub kernel: Option<String>,
}

impl HostError {
    pub(crate) fn new(kind: HostErrorKind, what: impl Into<String>, meaning: impl Into<String>) -> Self {
        let (what, meaning) = (what.into(), meaning.into());
        Self { kind, what, errno: None, meaning, mend: String::new(), kernel: None }
    }

    pub(crate) fn argument(what: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(HostErrorKind::Argument, what, meaning)
    }

    pub(crate) fn mend(self, mend: impl Into<String>) -> Self {
        Self { mend: mend.into(), ..self }
    }

    /// An errno, with its meaning where it was tried: `known` says what it means there, and what to do.
    pub(crate) fn refused(what: impl Into<String>, errno: Errno, known: Option<Meaning>) -> Self {
        let Meaning(kind, meaning, mend) = known.unwrap_or_else(|| anywhere(errno));
        Self { errno: Some(errno.raw_os_error()), ..Self::new(kind, what, meaning).mend(mend) }
    }

    /// The name of the errno: `EBUSY`.
    #[must_use]
    pub fn errno_name(&self) -> Option<String> {
        self.errno.map(errno_text)
    }

    fn text(&self) -> String {
        let mut text = self.what.clone();
        if let Some(name) = self.errno_name() {
            text = format!("{text}: {name}");
        }
        if !self.meaning.is_empty() {
            text = format!("{text}: {}", self.meaning);
        }
        if let Some(kernel) = &self.kernel {
            text = format!("{text} (the kernel says: {kernel})");
        }
        if !self.mend.is_empty() {
            text = format!("{text}; {}", self.mend);
        }
        text
    }
}

/// What an errno means where it came from, and what to do.
pub(crate) struct Meaning(pub HostErrorKind, pub &'static str, pub &'static str);

/// What an errno means where nothing more is known.
fn anywhere(errno: Errno) -> Meaning {
    use HostErrorKind as Kind;
    match errno {
        Errno::ACCESS | Errno::PERM => {
            Meaning(Kind::Permission, "not permitted", "run as root or give the process the capability")
        }
        Errno::ROFS => Meaning(
            Kind::Permission,
            "sysfs is mounted read-only here",
            "run outside of the container, or mount it writable",
        ),
        Errno::NOENT => Meaning(Kind::Unsupported, "this kernel or driver has no such file", ""),
        Errno::NODEV | Errno::NXIO => Meaning(Kind::Gone, "the device is gone", "list the devices again"),
        Errno::BUSY => Meaning(Kind::Busy, "it is in use", "end what uses it"),
        Errno::INVAL => Meaning(Kind::Device, "the kernel does not accept this value", ""),
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS => Meaning(Kind::Unsupported, "the driver can't do this", ""),
        Errno::EXIST => Meaning(Kind::Exists, "it exists already", ""),
        Errno::NOSPC => Meaning(Kind::Limit, "there is no room for it", ""),
        Errno::NOMEM => Meaning(Kind::System, "the kernel has no memory for it", "try again later"),
        Errno::IO | Errno::TIMEDOUT => {
            Meaning(Kind::Device, "the device does not answer as it should", "look at dmesg")
        }
        _ => Meaning(Kind::System, "", "look at dmesg"),
    }
}
