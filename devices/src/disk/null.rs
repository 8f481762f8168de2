//! A disk that moves no data, to measure what everything around it costs: reads leave guest memory as it is, writes
//! are forgotten, and each request is done when it is submitted.

use super::immediate::ImmediateQueue;
use super::immediate::Perform;
use super::{Data, Disk, DiskError, DiskOp, DiskQueue, Geometry, IoFault};
use crate::ram::Ram;

/// The disk.
#[derive(Debug)]
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
        Ok(ImmediateQueue::open(Nothing(None), depth))
    }
}

/// The buffer of the last request, if it was the caller's.
struct Nothing(Option<Vec<u8>>);

impl Perform for Nothing {
    fn perform(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault> {
        let len = match op {
            DiskOp::Read { data, .. } | DiskOp::Write { data, .. } => match data {
                Data::Guest(segments) => segments.iter().map(|part| part.len()).sum(),
                Data::Host(buffer) => self.0.insert(buffer).len(),
            },
            DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => 0,
        };
        Ok(u64::try_from(len).unwrap_or(u64::MAX))
    }

    fn release(&mut self) -> Option<Vec<u8>> {
        self.0.take()
    }
}
