//! Channel and source over a device of a few dozen lines that obeys the commands and breaks where it is told to.

mod channel;
mod device;
mod source;
