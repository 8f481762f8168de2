//! From a request to what is done about it: judged, loaded into a slot, answered at once or made an entry of the ring.

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};

use super::RingQueue;
use super::job::{Step, What};
use super::slot::{Next, Slot, seated};
use crate::disk::range::{self, Task};
use crate::disk::{DiskOp, IoFault, bounce};

impl RingQueue {
    /// Checks a request and fills a slot with it.
    pub(super) fn prepare(&mut self, index: u16, seat: u16, tag: u64, op: DiskOp<'_>) -> Next {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Next::Done(Err(IoFault::Host(libc::EBADF)));
        };
        (slot.tag, slot.seat, slot.busy) = (tag, seat, 0);
        slot.cancelled = false;
        let Some(image) = seated(&self.images, seat) else {
            return Next::Done(Err(IoFault::Host(libc::EBADF)));
        };
        slot.mark = image.mark();
        let admitted = match op {
            DiskOp::Read { offset, data } => {
                (slot.step, slot.offset) = (Step::Read, offset);
                let loaded = slot.transfer.load(data, &self.access);
                loaded.and_then(|()| image.admit(offset, slot.transfer.len(), false))
            }
            DiskOp::Write { offset, data, fua } => {
                (slot.step, slot.offset) = (
                    Step::Write {
                        fua: fua || image.writethrough,
                    },
                    offset,
                );
                let loaded = slot.transfer.load(data, &self.access);
                loaded.and_then(|()| image.admit(offset, slot.transfer.len(), true))
            }
            DiskOp::Flush => {
                slot.step = Step::Flush;
                image.admit_flush()
            }
            DiskOp::Discard { offset, len, fua } => {
                let fua = fua || image.writethrough;
                (slot.step, slot.offset) = (
                    Step::Range {
                        task: Task::Discard,
                        len,
                        fua,
                    },
                    offset,
                );
                image.admit(offset, len, true)
            }
            DiskOp::WriteZeroes {
                offset,
                len,
                may_unmap,
                fua,
            } => {
                let fua = fua || image.writethrough;
                (slot.step, slot.offset) = (
                    Step::Range {
                        task: Task::zero(image, may_unmap),
                        len,
                        fua,
                    },
                    offset,
                );
                image.admit(offset, len, true)
            }
        };
        match admitted {
            Ok(()) => self.route(index),
            Err(fault) => Next::Done(Err(fault)),
        }
    }

    /// Does what needs no waiting at once, and finds the way for the rest.
    fn route(&mut self, index: u16) -> Next {
        let none = Next::Done(Err(IoFault::Host(libc::EBADF)));
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return none;
        };
        let Some(image) = seated(&self.images, slot.seat) else {
            return none;
        };
        let fits = |slot: &Slot| bounce::fits(image, &slot.transfer, slot.offset);
        let at_once = match slot.step {
            Step::Read | Step::Write { .. } if slot.transfer.len() == 0 => Some(Ok(0)),
            Step::Range { len: 0, .. } => Some(Ok(0)),
            Step::Read if !fits(slot) => return Next::Blocking(What::Step(slot.step)),
            Step::Write { .. } if !fits(slot) => return Next::Blocking(What::Step(slot.step)),
            Step::Range { task, len, .. }
                if range::fallocate_mode(image, task).is_none()
                    || !range::fits(image, slot.offset, len) =>
            {
                return Next::Blocking(What::Step(slot.step));
            }
            Step::Read => self.cached.read(image, &mut slot.transfer, slot.offset),
            Step::Write { fua: false } => self.cached.write(image, &mut slot.transfer, slot.offset),
            _ => None,
        };
        if let Some(result) = at_once {
            return Next::Done(result);
        }
        if image.plain {
            return Next::Blocking(What::Step(slot.step));
        }
        let span = match slot.step {
            Step::Write { .. } => slot.transfer.span(slot.offset),
            Step::Range { len, .. } => slot.offset..slot.offset.saturating_add(len),
            Step::Read | Step::Flush => return Next::Ring,
        };
        match image.try_share(span) {
            Ok(lock) => slot.lock = lock,
            // Somebody patches a block of it: the thread waits for that.
            Err(()) => return Next::Blocking(What::Step(slot.step)),
        }
        Next::Ring
    }

    /// The entry for what a slot does next.
    pub(super) fn entry(&self, index: u16) -> Option<squeue::Entry> {
        let slot = self.slots.get(usize::from(index))?;
        let image = seated(&self.images, slot.seat)?;
        let file = Fixed(u32::from(slot.seat));
        let at = slot.transfer.position(slot.offset);
        let rest = slot.transfer.rest();
        let count = u32::try_from(rest.len()).unwrap_or(0);
        let flags = |fua| if fua { libc::RWF_DSYNC } else { 0 };
        let entry = match (slot.step, rest) {
            (Step::Read, [one]) => {
                opcode::Read::new(file, one.iov_base.cast(), length(one.iov_len))
                    .offset(at)
                    .build()
            }
            (Step::Write { fua }, [one]) => {
                let write = opcode::Write::new(file, one.iov_base.cast(), length(one.iov_len));
                write.offset(at).rw_flags(flags(fua)).build()
            }
            (Step::Read, many) => opcode::Readv::new(file, many.as_ptr(), count)
                .offset(at)
                .build(),
            (Step::Write { fua }, many) => opcode::Writev::new(file, many.as_ptr(), count)
                .offset(at)
                .rw_flags(flags(fua))
                .build(),
            (Step::Flush, _) => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
            (Step::Range { task, len, .. }, _) => {
                let mode = range::fallocate_mode(image, task)?.bits();
                opcode::Fallocate::new(file, len)
                    .offset(at)
                    .mode(i32::try_from(mode).ok()?)
                    .build()
            }
        };
        Some(entry.user_data(u64::from(index)))
    }
}

/// A length for one entry; what is cut off is transferred by the next.
fn length(len: usize) -> u32 {
    const MOST: u32 = 1 << 30;
    u32::try_from(len).unwrap_or(MOST).min(MOST)
}
