//! Commands that need the disk, step by step.
//!
//! A [`Job`] says which request to the disk comes next and judges what came of the last one; it knows neither rings
//! nor threads. Plain reads and writes go straight between guest memory and disk. Commands that look at the data go
//! through a buffer of at most [`CHUNK`] bytes, however long they are.

use super::cdb::Check;
use super::sense::{Sense, Status};
use crate::disk::IoFault;
use crate::disk::metrics::RequestKind;

/// Bytes that comparing, merging and repeating commands handle at a time; a multiple of every block size.
pub(crate) const CHUNK: u64 = 128 << 10;

/// One request to the disk. Offsets are bytes on the disk, `start` is bytes into the command's data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// From the disk into the guest's data-in.
    Read {
        offset: u64,
        len: u64,
    },
    /// From the guest's data-out to the disk.
    Write {
        offset: u64,
        start: u64,
        len: u64,
        fua: bool,
    },
    ReadHost {
        offset: u64,
        buffer: Vec<u8>,
    },
    WriteHost {
        offset: u64,
        buffer: Vec<u8>,
        fua: bool,
    },
    Flush,
    /// Frees the range. What is read there afterwards is as the disk's geometry says.
    Discard {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Zeroes {
        offset: u64,
        len: u64,
        unmap: bool,
        fua: bool,
    },
}

/// What a job does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Op(Op),
    Done(Status),
}

/// The command's data-out.
pub(crate) trait DataOut {
    /// Copies the bytes from `start` on; false if there are fewer.
    fn copy(&self, start: u64, out: &mut [u8]) -> bool;
}

/// What came of the last request.
pub(crate) struct Done {
    pub(crate) result: Result<u64, IoFault>,
    pub(crate) buffer: Option<Vec<u8>>,
}

/// A command at work.
#[derive(Debug)]
pub(crate) enum Job {
    Read {
        offset: u64,
        len: u64,
    },
    Write {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Flush,
    /// Discards ranges, in turn from the last. Zeroing them instead could become a write of as many bytes.
    Unmap {
        ranges: Vec<(u64, u64)>,
        fua: bool,
    },
    /// WRITE SAME.
    Same(Same),
    /// VERIFY, and the second half of WRITE AND VERIFY.
    Verify(Walk, Check),
    WriteAndVerify(Walk, Check),
    CompareAndWrite {
        walk: Walk,
        fua: bool,
        matched: bool,
    },
    OrWrite {
        walk: Walk,
        fua: bool,
        writing: bool,
    },
}

/// A run of bytes taken chunk by chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Walk {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    done: u64,
    /// Block size, for comparing many blocks with one.
    block: u64,
}

impl Walk {
    pub(crate) fn new(offset: u64, len: u64, block: u32) -> Self {
        Self {
            offset,
            len,
            done: 0,
            block: block.into(),
        }
    }

    fn at(&self) -> u64 {
        self.offset.saturating_add(self.done)
    }

    /// A buffer for the next chunk; `None` at the end.
    fn buffer(&self) -> Option<Vec<u8>> {
        let left = self.len.saturating_sub(self.done).min(CHUNK);
        let len = usize::try_from(left).ok().filter(|len| *len > 0)?;
        Some(vec![0; len])
    }

    fn read(&self) -> Option<Op> {
        Some(Op::ReadHost {
            offset: self.at(),
            buffer: self.buffer()?,
        })
    }

    fn advance(&mut self, count: usize) {
        self.done = self
            .done
            .saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Compares what was read with the data-out; `Some(offset)` of the first byte that differs.
    fn compare(&self, read: &[u8], check: Check, data: &dyn DataOut) -> Option<u64> {
        match check {
            Check::Medium => None,
            Check::Bytes => differs(read, self.done, data),
            Check::OneBlock => {
                let block = usize::try_from(self.block).unwrap_or(usize::MAX).max(1);
                read.chunks(block).find_map(|chunk| differs(chunk, 0, data))
            }
        }
    }
}

/// Where `read` first differs from the data-out from `start` on, counted from the start of the data-out.
fn differs(read: &[u8], start: u64, data: &dyn DataOut) -> Option<u64> {
    let mut expected = vec![0; read.len()];
    if !data.copy(start, &mut expected) {
        return Some(start);
    }
    let first = read.iter().zip(&expected).position(|(a, b)| a != b)?;
    Some(start.saturating_add(u64::try_from(first).unwrap_or(0)))
}

/// One block written many times.
#[derive(Debug)]
pub(crate) struct Same {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) block: u32,
    pub(crate) fua: bool,
    pub(crate) unmap: bool,
    /// There is a block of data-out; else it is zeroes.
    pub(crate) data: bool,
    pattern: Vec<u8>,
}

impl Same {
    pub(crate) fn new(offset: u64, len: u64, block: u32) -> Self {
        Self {
            offset,
            len,
            block,
            fua: false,
            unmap: false,
            data: true,
            pattern: Vec::new(),
        }
    }

    fn begin(&mut self, data: &dyn DataOut) -> Step {
        let size = usize::try_from(self.block).unwrap_or(0);
        let mut block = vec![0; size];
        if self.data && !data.copy(0, &mut block) {
            return Step::Done(Sense::INTERNAL_FAILURE.into());
        }
        if block.iter().all(|byte| *byte == 0) {
            let (offset, len, unmap, fua) = (self.offset, self.len, self.unmap, self.fua);
            self.len = 0;
            return Step::Op(Op::Zeroes {
                offset,
                len,
                unmap,
                fua,
            });
        }
        // Deallocating would change what is read back, so blocks that are not zero are written even with UNMAP.
        let copies = usize::try_from(self.len.min(CHUNK))
            .unwrap_or(0)
            .checked_div(size)
            .unwrap_or(0);
        self.pattern = block.repeat(copies);
        self.next(None)
    }

    fn next(&mut self, buffer: Option<Vec<u8>>) -> Step {
        if self.len == 0 {
            return Step::Done(Status::Good);
        }
        let mut buffer = buffer.unwrap_or_else(|| std::mem::take(&mut self.pattern));
        let count = usize::try_from(self.len)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if count == 0 {
            return Step::Done(Sense::INTERNAL_FAILURE.into());
        }
        buffer.truncate(count);
        let offset = self.offset;
        let count = u64::try_from(count).unwrap_or(0);
        self.offset = offset.saturating_add(count);
        self.len = self.len.saturating_sub(count);
        Step::Op(Op::WriteHost {
            offset,
            buffer,
            fua: self.fua,
        })
    }
}

impl Job {
    /// Bytes of the disk that nobody else of this kind may work on meanwhile.
    pub(crate) fn exclusive(&self) -> Option<(u64, u64)> {
        match self {
            Self::CompareAndWrite { walk, .. } | Self::OrWrite { walk, .. } => {
                Some((walk.offset, walk.offset.saturating_add(walk.len)))
            }
            _ => None,
        }
    }

    /// What it counts as.
    pub(crate) fn kind(&self) -> RequestKind {
        match self {
            Self::Read { .. } | Self::Verify(..) => RequestKind::Read,
            Self::Flush => RequestKind::Flush,
            Self::Unmap { .. } => RequestKind::Discard,
            Self::Same(_) => RequestKind::WriteZeroes,
            Self::Write { .. }
            | Self::WriteAndVerify(..)
            | Self::CompareAndWrite { .. }
            | Self::OrWrite { .. } => RequestKind::Write,
        }
    }

    /// Bytes of data-in the job fills if it succeeds.
    pub(crate) fn data_in(&self) -> u64 {
        match self {
            Self::Read { len, .. } => *len,
            _ => 0,
        }
    }

    /// The first step.
    pub(crate) fn begin(&mut self, data: &dyn DataOut) -> Step {
        let op = match self {
            Self::Read { len: 0, .. } | Self::Write { len: 0, .. } => None,
            Self::Read { offset, len } => Some(Op::Read {
                offset: *offset,
                len: *len,
            }),
            Self::Write { offset, len, fua } => Some(Op::Write {
                offset: *offset,
                start: 0,
                len: *len,
                fua: *fua,
            }),
            Self::Flush => Some(Op::Flush),
            Self::Unmap { ranges, fua } => next_range(ranges, *fua),
            Self::Same(same) => return same.begin(data),
            Self::WriteAndVerify(Walk { len: 0, .. }, _) => None,
            Self::WriteAndVerify(walk, _) => Some(Op::Write {
                offset: walk.offset,
                start: 0,
                len: walk.len,
                fua: true,
            }),
            Self::Verify(walk, _)
            | Self::CompareAndWrite { walk, .. }
            | Self::OrWrite { walk, .. } => walk.read(),
        };
        step(op)
    }

    /// The next step.
    pub(crate) fn resume(&mut self, done: Done, data: &dyn DataOut) -> Step {
        if let Err(fault) = done.result {
            return Step::Done(self.failed(fault));
        }
        match self {
            Self::Read { .. } | Self::Write { .. } | Self::Flush => Step::Done(Status::Good),
            Self::Unmap { ranges, fua } => step(next_range(ranges, *fua)),
            Self::Same(same) => same.next(done.buffer),
            Self::WriteAndVerify(walk, check) => {
                let (walk, check) = (*walk, *check);
                *self = Self::Verify(walk, check);
                step(walk.read())
            }
            Self::Verify(walk, check) => {
                let read = done.buffer.unwrap_or_default();
                match walk.compare(&read, *check, data) {
                    Some(at) => Step::Done(Sense::MISCOMPARE.with_information(at).into()),
                    None => {
                        walk.advance(read.len());
                        step(walk.read())
                    }
                }
            }
            Self::CompareAndWrite { matched: true, .. } => Step::Done(Status::Good),
            Self::CompareAndWrite { walk, fua, matched } => {
                let read = done.buffer.unwrap_or_default();
                if let Some(at) = walk.compare(&read, Check::Bytes, data) {
                    return Step::Done(Sense::MISCOMPARE.with_information(at).into());
                }
                walk.advance(read.len());
                Step::Op(walk.read().unwrap_or_else(|| {
                    *matched = true;
                    Op::Write {
                        offset: walk.offset,
                        start: walk.len,
                        len: walk.len,
                        fua: *fua,
                    }
                }))
            }
            Self::OrWrite { walk, writing, .. } if *writing => {
                *writing = false;
                walk.advance(done.buffer.map_or(0, |buffer| buffer.len()));
                step(walk.read())
            }
            Self::OrWrite { walk, fua, writing } => {
                *writing = true;
                merge(walk, *fua, done.buffer.unwrap_or_default(), data)
            }
        }
    }

    /// What the guest is told of a host's fault.
    fn failed(&self, fault: IoFault) -> Status {
        let reads = matches!(self, Self::Read { .. } | Self::Verify(..));
        match fault {
            IoFault::OutOfRange => Sense::LBA_OUT_OF_RANGE,
            IoFault::ReadOnly => Sense::WRITE_PROTECTED,
            IoFault::NoSpace if !reads => Sense::NO_SPACE,
            IoFault::BadMemory => Sense::INTERNAL_FAILURE,
            _ if reads => Sense::READ_ERROR,
            _ => Sense::WRITE_ERROR,
        }
        .into()
    }
}

fn step(op: Option<Op>) -> Step {
    op.map_or(Step::Done(Status::Good), Step::Op)
}

fn next_range(ranges: &mut Vec<(u64, u64)>, fua: bool) -> Option<Op> {
    ranges
        .pop()
        .map(|(offset, len)| Op::Discard { offset, len, fua })
}

/// The data-out merged into what was read, to be written back.
fn merge(walk: &Walk, fua: bool, mut buffer: Vec<u8>, data: &dyn DataOut) -> Step {
    let mut given = vec![0; buffer.len()];
    if !data.copy(walk.done, &mut given) {
        return Step::Done(Sense::INTERNAL_FAILURE.into());
    }
    for (byte, given) in buffer.iter_mut().zip(given) {
        *byte |= given;
    }
    Step::Op(Op::WriteHost {
        offset: walk.at(),
        buffer,
        fua,
    })
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
