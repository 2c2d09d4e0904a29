//! What each command does.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;

use crate::interrupts::check_eventfd;
use crate::pci::{IRQS, MSIX_IRQ, PciFunction, REGIONS};
use crate::peer::Peer;
use crate::protocol::{
    DecodeError, DeviceInfo, DmaMap, DmaUnmap, IrqAction, IrqData, IrqInfo, MessageType, RegionAccess, RegionInfo,
    RegionInfoRequest, SetIrqs, command, decode_write_multi, device_flags, flags, region_flags,
};
use crate::socket::Message;
use crate::{ClientMemory, Interrupts};

/// How long a reset lets DMA messages under way end by themselves. A client that waits for the reset does not answer them.
const GRACE: Duration = Duration::from_millis(50);

/// What is sent back: the body of an answer, or why there is none.
type Answer = Result<Vec<u8>, Errno>;

fn refused(_: DecodeError) -> Errno {
    Errno::INVAL
}

/// Everything that commands act upon.
#[derive(Clone, Copy)]
pub(super) struct Commands<'a> {
    pub(super) function: &'a dyn PciFunction,
    pub(super) peer: &'a Peer,
    pub(super) memory: &'a ClientMemory,
    pub(super) interrupts: &'a Interrupts,
}

impl Commands<'_> {
    /// Whether this command may wait for DMA messages, and with it for answers of the client.
    pub(super) fn waits(&self, message: &Message) -> bool {
        match message.header.command {
            command::RESET => true,
            command::DMA_UNMAP => self.peer.busy(),
            _ => self.holds(message),
        }
    }

    /// Whether it stops the function's DMA.
    pub(super) fn holds(&self, message: &Message) -> bool {
        let waits = |access: &RegionAccess, data: &[u8]| self.function.waits(access.region, access.offset, data);
        match message.header.command {
            command::RESET => true,
            command::REGION_WRITE => {
                RegionAccess::decode_write(&message.body).is_ok_and(|(access, data)| waits(&access, data))
            }
            command::REGION_WRITE_MULTI => decode_write_multi(&message.body)
                .is_ok_and(|writes| writes.iter().any(|write| waits(&write.access, write.data()))),
            _ => false,
        }
    }

    /// Carries a command out and answers it.
    pub(super) fn execute(&self, message: Message) {
        let holds = self.holds(&message);
        if holds {
            self.peer.hold(GRACE);
        }
        let header = message.header;
        let answer = self.answer(message);
        if holds {
            self.peer.release();
        }
        if !header.wants_reply() {
            return;
        }
        let reply = match answer {
            Ok(body) => header.reply(&[&body]),
            Err(errno) => header.error_reply(errno.raw_os_error().unsigned_abs()),
        };
        // Where it can't be sent, the reader finds the connection broken and ends it.
        let _ = self.peer.outbox().send(reply);
    }

    /// Descriptors that a command has no use for are closed with the message.
    fn answer(&self, message: Message) -> Answer {
        let Message { header, body, fds } = message;
        debug_assert!(header.message_type() == MessageType::Command);
        if header.unknown_flags() != 0 || header.flags & flags::ERROR != 0 {
            return Err(Errno::INVAL);
        }
        match header.command {
            command::DMA_MAP => self.dma_map(&body, &fds),
            command::DMA_UNMAP => self.dma_unmap(&body),
            command::GET_INFO => {
                DeviceInfo::check_request(&body).map_err(refused)?;
                let flags = device_flags::PCI | device_flags::RESET;
                Ok(DeviceInfo { flags, regions: REGIONS, irqs: IRQS }.encode())
            }
            command::GET_REGION_INFO => self.region_info(&body),
            command::GET_IRQ_INFO => self.irq_info(&body),
            command::SET_IRQS => self.set_irqs(&body, fds),
            command::REGION_READ => self.read(&body),
            command::REGION_WRITE => self.write(&body),
            command::REGION_WRITE_MULTI => self.write_multi(&body),
            command::RESET if body.is_empty() => {
                self.function.reset();
                Ok(Vec::new())
            }
            // VERSION comes once.
            command::RESET | command::VERSION => Err(Errno::INVAL),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn dma_map(&self, body: &[u8], fds: &[OwnedFd]) -> Answer {
        let map = DmaMap::decode(body).map_err(refused)?;
        if fds.len() > 1 {
            return Err(Errno::INVAL);
        }
        self.memory.map(&map, fds.first()).map_err(|error| error.errno())?;
        Ok(Vec::new())
    }

    fn dma_unmap(&self, body: &[u8]) -> Answer {
        let unmap = DmaUnmap::decode(body).map_err(refused)?;
        self.memory.unmap(&unmap).map_err(|error| error.errno())?;
        Ok(unmap.encode())
    }

    fn region_info(&self, body: &[u8]) -> Answer {
        let RegionInfoRequest { index } = RegionInfoRequest::decode(body).map_err(refused)?;
        if index >= REGIONS {
            return Err(Errno::INVAL);
        }
        let size = self.function.region_bytes(index);
        let flags = if size == 0 { 0 } else { region_flags::READ | region_flags::WRITE };
        Ok(RegionInfo { flags, index, size }.encode())
    }

    fn irq_info(&self, body: &[u8]) -> Answer {
        let index = IrqInfo::decode_request(body).map_err(refused)?;
        match index {
            MSIX_IRQ => Ok(IrqInfo { flags: IrqInfo::EVENTFD, index, count: self.interrupts.count() }.encode()),
            // INTx, MSI, requests: none. Errors: QEMU wants to hear that there is no such index.
            0 | 1 | 4 => Ok(IrqInfo { flags: 0, index, count: 0 }.encode()),
            _ => Err(Errno::INVAL),
        }
    }

    fn set_irqs(&self, body: &[u8], fds: Vec<OwnedFd>) -> Answer {
        let set = SetIrqs::decode(body).map_err(refused)?;
        let vectors = if set.index == MSIX_IRQ { self.interrupts.count() } else { 0 };
        // The sum was checked not to overflow.
        if set.index >= IRQS || set.start + set.count > vectors {
            return Err(Errno::INVAL);
        }
        match (set.action, set.data) {
            // Masks are in the table, which is the VMM's; the kernel refuses them in the same way.
            (IrqAction::Mask | IrqAction::Unmask, _) => return Err(Errno::NOTTY),
            (IrqAction::Trigger, IrqData::Eventfds) => {
                let (start, count) = (set.start as usize, set.count as usize);
                if !fds.is_empty() && fds.len() != count {
                    return Err(Errno::INVAL);
                }
                fds.iter().try_for_each(check_eventfd)?;
                let wired = fds.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
                self.interrupts.wire(start, wired.take(count));
            }
            (IrqAction::Trigger, IrqData::None) if set.count == 0 => {
                if set.index == MSIX_IRQ {
                    self.interrupts.unwire();
                }
            }
            (IrqAction::Trigger, IrqData::None) => {
                (set.start..set.start + set.count).for_each(|vector| self.raise(vector));
            }
            (IrqAction::Trigger, IrqData::Bools(bools)) => {
                let chosen = (set.start..).zip(bools).filter(|(_, wanted)| **wanted != 0);
                chosen.for_each(|(vector, _)| self.raise(vector));
            }
        }
        Ok(Vec::new())
    }

    fn raise(&self, vector: u32) {
        if let Ok(vector) = u16::try_from(vector) {
            self.interrupts.raise(vector);
        }
    }

    /// The access, where it lies inside of its region.
    fn inside(&self, access: RegionAccess) -> Result<RegionAccess, Errno> {
        let end = access.offset.checked_add(access.count.into()).ok_or(Errno::INVAL)?;
        if access.region >= REGIONS || end > self.function.region_bytes(access.region) {
            return Err(Errno::INVAL);
        }
        Ok(access)
    }

    fn read(&self, body: &[u8]) -> Answer {
        let access = self.inside(RegionAccess::decode_read(body).map_err(refused)?)?;
        let head = access.encode();
        let mut answer = vec![0; head.len() + access.count as usize];
        let (to, data) = answer.split_at_mut(head.len());
        to.copy_from_slice(&head);
        self.function.read(access.region, access.offset, data);
        Ok(answer)
    }

    fn write(&self, body: &[u8]) -> Answer {
        let (access, data) = RegionAccess::decode_write(body).map_err(refused)?;
        let access = self.inside(access)?;
        self.function.write(access.region, access.offset, data);
        Ok(access.encode().to_vec())
    }

    fn write_multi(&self, body: &[u8]) -> Answer {
        let writes = decode_write_multi(body).map_err(refused)?;
        for write in &writes {
            self.inside(write.access)?;
        }
        for write in &writes {
            self.function.write(write.access.region, write.access.offset, write.data());
        }
        Ok((writes.len() as u64).to_le_bytes().to_vec())
    }
}
