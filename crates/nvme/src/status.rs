//! Completion status (NVM Express Base 2.1, "Status Field Definition"), with names and with what each means for somebody
//! who migrates a controller.

use std::fmt;

/// The status of a completed command. All zero is success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Status {
    /// Status code type, 0 to 7.
    pub sct: u8,
    /// Status code within the type.
    pub sc: u8,
    /// Do not retry: the same command will fail again.
    pub dnr: bool,
}

impl Status {
    /// Success.
    pub const SUCCESS: Self = Self { sct: 0, sc: 0, dnr: false };

    /// Whether the command succeeded.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.sct == 0 && self.sc == 0
    }

    /// The 15-bit status field as it stands above the phase bit of a completion entry, and as Linux's passthrough
    /// ioctls return it: SC in bits 7:0, SCT in 10:8, DNR in 14. Retry delay and More are not kept.
    #[must_use]
    pub fn from_field(field: u16) -> Self {
        Self { sct: (field >> 8) as u8 & 7, sc: field as u8, dnr: field & 0x4000 != 0 }
    }

    /// See [`Status::from_field`].
    #[must_use]
    pub fn field(self) -> u16 {
        u16::from(self.sc) | u16::from(self.sct & 7) << 8 | if self.dnr { 0x4000 } else { 0 }
    }

    /// `SCT << 8 | SC`, as errors report it.
    #[must_use]
    pub fn sct_sc(self) -> u16 {
        u16::from(self.sct & 7) << 8 | u16::from(self.sc)
    }

    /// The code, where it is one that we know by name.
    #[must_use]
    pub fn code(self) -> Option<StatusCode> {
        StatusCode::from_sct_sc(self.sct_sc())
    }
}

impl From<StatusCode> for Status {
    fn from(code: StatusCode) -> Self {
        let raw = code.sct_sc();
        Self { sct: (raw >> 8) as u8, sc: raw as u8, dnr: false }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code() {
            Some(code) => write!(f, "{} ({:#05x}): {}", code.name(), self.sct_sc(), code.explanation()),
            None => write!(f, "status {:#05x} (SCT {}, SC {:#04x})", self.sct_sc(), self.sct, self.sc),
        }
    }
}

macro_rules! status_codes {
    ($( $variant:ident = $raw:literal, $name:literal, $explanation:literal; )*) => {
        /// Status codes that towline produces or reacts to. The discriminant is `SCT << 8 | SC`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum StatusCode {
            $( #[doc = concat!($name, ": ", $explanation, ".")] $variant = $raw, )*
        }

        impl StatusCode {
            /// Every code of this list.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The code with this `SCT << 8 | SC`.
            #[must_use]
            pub fn from_sct_sc(raw: u16) -> Option<Self> {
                match raw { $( $raw => Some(Self::$variant), )* _ => None }
            }

            /// `SCT << 8 | SC`.
            #[must_use]
            pub fn sct_sc(self) -> u16 {
                self as u16
            }

            /// Name, near the specification's.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            /// What it means here, in one phrase.
            #[must_use]
            pub fn explanation(self) -> &'static str {
                match self { $( Self::$variant => $explanation, )* }
            }
        }
    };
}

status_codes! {
    Success = 0x000, "Success", "the command did what it was asked to do";
    InvalidOpcode = 0x001, "Invalid Command Opcode", "this controller does not have that command";
    InvalidField = 0x002, "Invalid Field in Command", "a field has a value that is reserved, unsupported or does not fit the state";
    CommandIdConflict = 0x003, "Command ID Conflict", "another outstanding command of that queue has the same identifier";
    DataTransferError = 0x004, "Data Transfer Error", "the data or a PRP list could not be read or written";
    AbortedPowerLoss = 0x005, "Commands Aborted due to Power Loss Notification", "power is about to go";
    InternalError = 0x006, "Internal Error", "the controller failed by itself";
    AbortRequested = 0x007, "Command Abort Requested", "an Abort command ended it";
    AbortedSqDeletion = 0x008, "Command Aborted due to SQ Deletion", "its submission queue was deleted";
    InvalidNamespaceOrFormat = 0x00b, "Invalid Namespace or Format", "the namespace does not exist or is not attached";
    CommandSequenceError = 0x00c, "Command Sequence Error", "a command that has to come first is missing, such as the first part of a controller state";
    InvalidSglSegment = 0x00d, "Invalid SGL Segment Descriptor", "scatter lists are not usable for this command";
    InvalidPrpOffset = 0x013, "PRP Offset Invalid", "a PRP entry has an offset where none is allowed";
    OperationDenied = 0x015, "Operation Denied", "this host or controller may not do that";
    SanitizeInProgress = 0x01d, "Sanitize In Progress", "nothing else is possible while a sanitize runs";
    InvalidTransferBlockSize = 0x01e, "SGL Data Block Granularity Invalid", "the length of a data block does not fit";
    WriteProtected = 0x020, "Namespace is Write Protected", "the namespace cannot be written";
    CommandInterrupted = 0x021, "Command Interrupted", "the controller could not finish it now; retry";
    TransientTransportError = 0x022, "Transient Transport Error", "the transport failed for a moment; retry";
    LbaOutOfRange = 0x080, "LBA Out of Range", "the range ends after the namespace";
    CapacityExceeded = 0x081, "Capacity Exceeded", "the namespace has no room for it";
    NamespaceNotReady = 0x082, "Namespace Not Ready", "the namespace is not ready";
    CompletionQueueInvalid = 0x100, "Completion Queue Invalid", "the completion queue does not exist";
    InvalidQueueIdentifier = 0x101, "Invalid Queue Identifier", "the queue exists already, is out of range or does not exist";
    InvalidQueueSize = 0x102, "Invalid Queue Size", "the queue has no entry or more than the controller can have";
    AbortLimitExceeded = 0x103, "Abort Command Limit Exceeded", "too many aborts at once";
    AsyncEventLimitExceeded = 0x105, "Asynchronous Event Request Limit Exceeded", "too many asynchronous event requests are outstanding";
    InvalidInterruptVector = 0x108, "Invalid Interrupt Vector", "the function does not have that vector";
    InvalidLogPage = 0x109, "Invalid Log Page", "that log page does not exist here";
    InvalidFormat = 0x10a, "Invalid Format", "that LBA format does not exist here";
    InvalidQueueDeletion = 0x10c, "Invalid Queue Deletion", "submission queues still use that completion queue";
    FeatureNotSaveable = 0x10d, "Feature Identifier Not Saveable", "that feature cannot be saved";
    FeatureNotChangeable = 0x10e, "Feature Not Changeable", "that feature cannot be changed";
    FeatureNotNamespaceSpecific = 0x10f, "Feature Not Namespace Specific", "that feature belongs to the controller";
    NamespaceInsufficientCapacity = 0x115, "Namespace Insufficient Capacity", "there is no room for that namespace";
    NamespaceIdentifierUnavailable = 0x116, "Namespace Identifier Unavailable", "there are as many namespaces as there can be";
    NamespaceAlreadyAttached = 0x118, "Namespace Already Attached", "a controller of the list has it already";
    NamespaceIsPrivate = 0x119, "Namespace Is Private", "it may be attached to one controller only";
    NamespaceNotAttached = 0x11a, "Namespace Not Attached", "a controller of the list does not have it";
    ControllerListInvalid = 0x11c, "Controller List Invalid", "the list names a controller that does not exist, is unsorted or too long";
    InvalidControllerIdentifier = 0x11f, "Invalid Controller Identifier", "no such controller, or not one that this command may name";
    InvalidSecondaryControllerState = 0x120, "Invalid Secondary Controller State", "the secondary controller is online where it has to be offline, or has not what it needs to go online";
    InvalidNumberOfControllerResources = 0x121, "Invalid Number of Controller Resources", "more queues or interrupts than there are or than one controller may have";
    InvalidResourceIdentifier = 0x122, "Invalid Resource Identifier", "no such kind of resource";
    NamespaceAttachmentLimitExceeded = 0x127, "Namespace Attachment Limit Exceeded", "the controller has as many namespaces as it can have";
    InvalidControllerDataQueue = 0x137, "Invalid Controller Data Queue", "no such controller data queue";
    NotEnoughResources = 0x138, "Not Enough Resources", "tracking or logging needs more than the controller has: ask for less or coarser";
    ControllerSuspended = 0x139, "Controller Suspended", "that cannot be done while the controller is suspended";
    ControllerNotSuspended = 0x13a, "Controller Not Suspended", "that needs a suspended controller";
    ControllerDataQueueFull = 0x13b, "Controller Data Queue Full", "the queue was not emptied in time and logging has stopped";
    ConflictingAttributes = 0x180, "Conflicting Attributes", "attributes of the command contradict each other";
    WriteToReadOnlyRange = 0x182, "Attempted Write to Read Only Range", "the range cannot be written";
    WriteFault = 0x280, "Write Fault", "the media could not be written";
    UnrecoveredReadError = 0x281, "Unrecovered Read Error", "the media could not be read";
    AccessDenied = 0x286, "Access Denied", "access to that range is denied";
    InternalPathError = 0x300, "Internal Path Error", "the path to the controller failed inside of it";
    HostPathError = 0x370, "Host Pathing Error", "the host lost the path to the controller";
    AbortedByHost = 0x371, "Command Aborted By Host", "the host ended it";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_of_the_migration_commands() {
        for (raw, code) in [
            (0x137, StatusCode::InvalidControllerDataQueue),
            (0x138, StatusCode::NotEnoughResources),
            (0x139, StatusCode::ControllerSuspended),
            (0x13a, StatusCode::ControllerNotSuspended),
            (0x13b, StatusCode::ControllerDataQueueFull),
            (0x11f, StatusCode::InvalidControllerIdentifier),
            (0x00c, StatusCode::CommandSequenceError),
        ] {
            assert_eq!(Status::from_field(raw).code(), Some(code));
        }
    }

    #[test]
    fn every_code_round_trips_through_the_status_field() {
        for code in StatusCode::ALL {
            let status = Status { dnr: true, ..Status::from(*code) };
            assert_eq!(Status::from_field(status.field()), status);
            assert_eq!(status.code(), Some(*code));
            assert!(!code.name().is_empty() && !code.explanation().is_empty());
        }
        assert_eq!(Status::from_field(0x7ff).code(), None);
        assert!(Status::from_field(0).is_success());
        assert!(Status::from_field(0x4000).is_success());
    }
}
