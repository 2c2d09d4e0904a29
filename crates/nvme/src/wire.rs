//! Fixed little-endian layouts, declared once as a table of offsets.
//!
//! [`wire_struct!`](crate::wire_struct) turns such a table into a struct, its encoder, its decoder and a public list of its
//! fields. Fields that overlap, go backwards or leave the structure do not compile, so slicing by them cannot panic.

/// Where one field of a wire structure is, in bytes. For checking our layouts against somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldInfo {
    /// Name of the field, lower case.
    pub name: &'static str,
    /// First byte.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

/// A value that has a fixed little-endian form.
pub trait WireField: Copy {
    /// Length in bytes.
    const LEN: usize;
    /// Reads the value. `bytes` is [`WireField::LEN`] long; what is missing reads as zero.
    fn load(bytes: &[u8]) -> Self;
    /// Writes the value. `bytes` is [`WireField::LEN`] long; what does not fit is left out.
    fn store(self, bytes: &mut [u8]);
}

macro_rules! integer_field {
    ($($ty:ty),*) => {$(
        impl WireField for $ty {
            const LEN: usize = size_of::<$ty>();
            fn load(bytes: &[u8]) -> Self {
                Self::from_le_bytes(<[u8; size_of::<$ty>()]>::load(bytes))
            }
            fn store(self, bytes: &mut [u8]) {
                self.to_le_bytes().store(bytes);
            }
        }
    )*};
}
integer_field!(u16, u32, u64, u128);

impl WireField for u8 {
    const LEN: usize = 1;
    fn load(bytes: &[u8]) -> Self {
        bytes.first().copied().unwrap_or(0)
    }
    fn store(self, bytes: &mut [u8]) {
        [self].store(bytes);
    }
}

impl<const N: usize> WireField for [u8; N] {
    const LEN: usize = N;
    fn load(bytes: &[u8]) -> Self {
        let mut out = [0; N];
        out.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        out
    }
    fn store(self, bytes: &mut [u8]) {
        bytes.iter_mut().zip(self).for_each(|(to, from)| *to = from);
    }
}

/// Fails (at compile time, where it is used) when `fields` overlap, are out of order or leave `size` bytes.
pub const fn assert_layout(fields: &[FieldInfo], size: usize) {
    let mut i = 0;
    let mut end = 0;
    while i < fields.len() {
        assert!(fields[i].offset >= end, "fields overlap or are out of order");
        end = fields[i].offset + fields[i].len;
        i += 1;
    }
    assert!(end <= size, "a field leaves the structure");
}

/// Declares a fixed little-endian structure: `struct Name [size in bytes] { field: type = offset }`.
#[macro_export]
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident [$size:literal] {
            $( $(#[$fmeta:meta])* $field:ident : $ty:ty = $off:literal ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$fmeta])* pub $field: $ty, )*
        }

        impl $name {
            /// Length on the wire in bytes.
            pub const SIZE: usize = $size;
            /// Every field with its offset.
            pub const LAYOUT: &'static [$crate::wire::FieldInfo] = &[
                $( $crate::wire::FieldInfo {
                    name: stringify!($field),
                    offset: $off,
                    len: <$ty as $crate::wire::WireField>::LEN,
                }, )*
            ];
            const CHECKED: () = $crate::wire::assert_layout(Self::LAYOUT, Self::SIZE);

            /// Reads the structure. Reserved bytes are ignored.
            #[must_use]
            pub fn decode(bytes: &[u8; $size]) -> Self {
                let () = Self::CHECKED;
                Self {
                    $( $field: <$ty as $crate::wire::WireField>::load(
                        &bytes[$off..$off + <$ty as $crate::wire::WireField>::LEN],
                    ), )*
                }
            }

            /// Reads the structure from the start of `bytes`; `None` where there are fewer than [`Self::SIZE`].
            #[must_use]
            pub fn decode_prefix(bytes: &[u8]) -> Option<Self> {
                bytes.first_chunk::<$size>().map(Self::decode)
            }

            /// Writes the structure. Reserved bytes are zero.
            #[must_use]
            pub fn encode(&self) -> [u8; $size] {
                let mut bytes = [0; $size];
                $( <$ty as $crate::wire::WireField>::store(
                    self.$field,
                    &mut bytes[$off..$off + <$ty as $crate::wire::WireField>::LEN],
                ); )*
                bytes
            }
        }

        impl Default for $name {
            /// All zeroes.
            fn default() -> Self {
                Self::decode(&[0; $size])
            }
        }

        const _: () = $name::CHECKED;
    };
}

/// Reads a whole structure's worth of `N`-byte records from `bytes`, at most `count`; stops where bytes run out.
pub(crate) fn records<const N: usize>(bytes: &[u8], count: usize) -> impl Iterator<Item = &[u8; N]> {
    bytes.as_chunks::<N>().0.iter().take(count)
}

/// Why bytes are not what they should be. Nothing was allocated by what they claim.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Fewer bytes than the structure has, or than it says it has.
    #[error("{what} is cut short: {needed} bytes needed, {got} there")]
    Truncated {
        /// Which structure.
        what: &'static str,
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        got: u64,
    },
    /// More bytes than the structure says it has.
    #[error("{what} has {extra} bytes after its end")]
    Trailing {
        /// Which structure.
        what: &'static str,
        /// Bytes after the end.
        extra: u64,
    },
    /// A count or length exceeds its limit.
    #[error("{what} is {value}, the limit is {limit}")]
    Limit {
        /// Which count.
        what: &'static str,
        /// What was claimed.
        value: u128,
        /// The most that is accepted.
        limit: u64,
    },
    /// A version that this reader does not know.
    #[error("{what} has version {version}, known is {known}")]
    Version {
        /// Which structure.
        what: &'static str,
        /// The version found.
        version: u32,
        /// The newest known.
        known: u32,
    },
    /// A value that the structure does not allow.
    #[error("{what}: {why}")]
    Invalid {
        /// Which structure.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}
