//! The token of a PF's user, which users of its VFs have to know.

use std::fmt;

use towline_core::channel::{ChannelError, ChannelErrorKind};

/// A VF token: a UUID that whoever opened the PF on `vfio-pci` has set (`VFIO_DEVICE_FEATURE_PCI_VF_TOKEN`), and without which
/// its VFs can't be opened. It is a shared secret, so neither `Debug` nor any message shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VfToken([u8; 16]);

impl VfToken {
    /// From its 16 bytes, in the order of the text.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// From text: 32 hexadecimal digits with dashes after the 8th, 12th, 16th and 20th.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Limit`] for anything else.
    pub fn parse(text: &str) -> Result<Self, ChannelError> {
        let wrong = || ChannelError::new(ChannelErrorKind::Limit, "a VF token is a UUID");
        let mut bytes = [0u8; 16];
        let mut nibbles = 0usize;
        if text.len() != 36 {
            return Err(wrong());
        }
        for (at, c) in text.chars().enumerate() {
            if matches!(at, 8 | 13 | 18 | 23) {
                if c != '-' {
                    return Err(wrong());
                }
                continue;
            }
            let digit = c.to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or_else(wrong)?;
            let byte = bytes.get_mut(nibbles / 2).ok_or_else(wrong)?;
            *byte = *byte << 4 | digit;
            nibbles += 1;
        }
        Ok(Self(bytes))
    }

    /// Its bytes, in the order of the text.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// As the name of a device in its group takes it.
    pub(super) fn text(&self) -> String {
        let mut out = String::with_capacity(36);
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                out.push('-');
            }
            out.push_str(&format!("{byte:02x}"));
        }
        out
    }
}

impl fmt::Debug for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00112233-4455-6677-8899-aabbccddeeff";

    #[test]
    fn text_and_bytes() {
        let token = VfToken::parse(TEXT).unwrap();
        assert_eq!(
            token.bytes(),
            &[0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]
        );
        assert_eq!(token.text(), TEXT);
        assert_eq!(VfToken::parse(&TEXT.to_uppercase()), Ok(token));
        assert!(!format!("{token:?}").contains("ff"));
    }

    #[test]
    fn what_is_no_uuid_is_refused() {
        for text in
            ["", "0", "00112233445566778899aabbccddeeff", &TEXT[1..], &format!("{TEXT}0"), &TEXT.replace('f', "g")]
        {
            assert!(VfToken::parse(text).is_err(), "{text}");
        }
        assert!(VfToken::parse("0011223-34455-6677-8899-aabbccddeeff").is_err());
        assert!(VfToken::parse(&"é".repeat(18)).is_err());
    }
}
