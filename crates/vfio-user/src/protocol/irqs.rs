//! SET_IRQS: `struct vfio_irq_set`. Its eventfds come as file descriptors of the message, not in the body.

use super::DecodeError;
use super::fields::Fields;

const DATA_NONE: u32 = 1;
const DATA_BOOL: u32 = 1 << 1;
const DATA_EVENTFD: u32 = 1 << 2;
const DATA: u32 = DATA_NONE | DATA_BOOL | DATA_EVENTFD;
const ACTION_MASK: u32 = 1 << 3;
const ACTION_UNMASK: u32 = 1 << 4;
const ACTION_TRIGGER: u32 = 1 << 5;
const ACTION: u32 = ACTION_MASK | ACTION_UNMASK | ACTION_TRIGGER;

/// What is to be done with the vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// No interrupt until it is unmasked.
    Mask,
    /// The opposite.
    Unmask,
    /// Eventfds are wired, or the interrupt is raised for a test.
    Trigger,
}

/// For which vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqData<'a> {
    /// All of the range.
    None,
    /// Those with a byte that is not 0.
    Bools(&'a [u8]),
    /// Each has an eventfd among the message's descriptors.
    Eventfds,
}

/// A SET_IRQS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetIrqs<'a> {
    /// What to do.
    pub action: IrqAction,
    /// For which vectors.
    pub data: IrqData<'a>,
    /// The interrupt index.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Number of vectors.
    pub count: u32,
}

impl<'a> SetIrqs<'a> {
    const BYTES: usize = 20;

    /// Decodes and checks the body of a SET_IRQS. `start + count` does not overflow.
    ///
    /// # Errors
    /// A wrong length, none or several of the data and action flags, vectors beyond what can be numbered.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::at_least(body, Self::BYTES)?;
        let (argsz, flags, index) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (start, count) = (fields.u32()?, fields.u32()?);
        let bools = fields.rest();
        if flags & !(DATA | ACTION) != 0 {
            return Err(DecodeError::field("SET_IRQS flags", flags));
        }
        if start.checked_add(count).is_none() {
            return Err(DecodeError::field("SET_IRQS count", count));
        }
        let action = match flags & ACTION {
            ACTION_MASK => IrqAction::Mask,
            ACTION_UNMASK => IrqAction::Unmask,
            ACTION_TRIGGER => IrqAction::Trigger,
            _ => return Err(DecodeError::field("SET_IRQS flags", flags)),
        };
        let (data, wanted) = match flags & DATA {
            DATA_NONE => (IrqData::None, 0),
            DATA_BOOL => (IrqData::Bools(bools), count as usize),
            DATA_EVENTFD => (IrqData::Eventfds, 0),
            _ => return Err(DecodeError::field("SET_IRQS flags", flags)),
        };
        if bools.len() != wanted {
            return Err(DecodeError::Length { actual: body.len(), wanted: Self::BYTES.saturating_add(wanted) });
        }
        if (argsz as usize) < Self::BYTES {
            return Err(DecodeError::field("SET_IRQS argsz", argsz));
        }
        Ok(Self { action, data, index, start, count })
    }
}
