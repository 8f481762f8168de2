//! A disk that moves no data, to measure what everything around it costs: reads leave guest memory as it is, writes
//! are forgotten, and each request is done when it is submitted.

use std::os::fd::BorrowedFd;

use super::{Completion, Data, Disk, DiskError, DiskOp, DiskQueue, Full, Geometry};
use crate::ram::Ram;

/// The disk.
pub struct NullDisk {
    geometry: Geometry,
}

impl NullDisk {
    /// A disk that says it is so.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry }
    }
}

impl Disk for NullDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_queue(&self, _: Ram, _: u16, depth: u16) -> Result<Box<dyn DiskQueue>, DiskError> {
        let depth = usize::from(depth);
        Ok(Box::new(NullQueue {
            done: Vec::with_capacity(depth),
            depth,
        }))
    }
}

struct NullQueue {
    done: Vec<Completion>,
    depth: usize,
}

impl DiskQueue for NullQueue {
    fn ready(&mut self) -> bool {
        self.done.len() < self.depth
    }

    fn submit(&mut self, tag: u64, op: DiskOp<'_>) -> Result<(), Full> {
        if !self.ready() {
            return Err(Full);
        }
        let (len, buffer) = match op {
            DiskOp::Read { data, .. } | DiskOp::Write { data, .. } => match data {
                Data::Guest(segments) => (segments.iter().map(|part| part.len()).sum(), None),
                Data::Host(buffer) => (buffer.len(), Some(buffer)),
            },
            DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => (0, None),
        };
        let result = Ok(u64::try_from(len).unwrap_or(u64::MAX));
        self.done.push(Completion {
            tag,
            result,
            buffer,
        });
        Ok(())
    }

    fn commit(&mut self) {}

    fn completions(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.done);
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn drain(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.done);
    }
}
