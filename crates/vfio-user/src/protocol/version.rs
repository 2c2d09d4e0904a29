//! VERSION: the first message. Two numbers and capabilities as JSON text that ends with NUL.

use serde_json::{Value, json};

use super::fields::Fields;
use super::{DecodeError, MAX_CAPABILITIES_BYTES, MAX_DATA_BYTES, MAX_DMA_MAPS, MAX_FDS};

/// What the other side can take. Where it says nothing, the protocol's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCapabilities {
    /// The most data of one DMA_READ or DMA_WRITE to it, in bytes; at most [`MAX_DATA_BYTES`].
    pub max_data_bytes: usize,
}

impl Default for PeerCapabilities {
    fn default() -> Self {
        Self { max_data_bytes: MAX_DATA_BYTES }
    }
}

/// A VERSION message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Major version; both sides have to have the same.
    pub major: u16,
    /// Minor version: the client's latest, the server's answer is not greater.
    pub minor: u16,
    /// What the sender can take.
    pub capabilities: PeerCapabilities,
}

impl Version {
    /// Decodes a client's message. What is unknown in the capabilities is ignored, as the protocol wants it.
    ///
    /// # Errors
    /// Too short or too long; capabilities that are no JSON object, or numbers in them that cannot be.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::at_least(body, 4)?;
        let (major, minor) = (fields.u16()?, fields.u16()?);
        let text = fields.rest();
        if text.len() > MAX_CAPABILITIES_BYTES {
            return Err(DecodeError::Length { actual: text.len(), wanted: MAX_CAPABILITIES_BYTES });
        }
        let bad = || DecodeError::field("VERSION capabilities", text.len() as u64);
        let text = text.strip_suffix(&[0]).unwrap_or(text);
        let mut capabilities = PeerCapabilities::default();
        if !text.is_empty() {
            let json: Value = serde_json::from_slice(text).map_err(|_| bad())?;
            let object = json.as_object().ok_or_else(bad)?;
            if let Some(inner) = object.get("capabilities") {
                let inner = inner.as_object().ok_or_else(bad)?;
                if let Some(bytes) = inner.get("max_data_xfer_size") {
                    let bytes = bytes.as_u64().filter(|bytes| *bytes > 0).ok_or_else(bad)?;
                    capabilities.max_data_bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(MAX_DATA_BYTES);
                }
            }
        }
        Ok(Self { major, minor, capabilities })
    }

    /// The body of the server's answer: version 0.0 and what this server takes.
    #[must_use]
    pub fn answer() -> Vec<u8> {
        let capabilities = json!({
            "capabilities": {
                "max_msg_fds": MAX_FDS,
                "max_data_xfer_size": MAX_DATA_BYTES,
                "max_dma_maps": MAX_DMA_MAPS,
                "pgsizes": 4096,
                "write_multiple": true,
            }
        });
        let mut body = vec![0; 4];
        body.extend(capabilities.to_string().bytes());
        body.push(0);
        body
    }
}
