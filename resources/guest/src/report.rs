//! The guest's report: lines of text on a separate disk, whose serial number is `report`.
//!
//! Every machine that the guest runs on has disks, and the host can read the file while the guest
//! runs. The text ends at the first zero byte.

use alloc::string::String;
use core::fmt::{self, Write};

use splitring_virtio::driver::DmaBytes;
use splitring_virtio::driver::blk::{Bio, Transfer};
use splitring_virtio::scatterlist::ScatterList;

use crate::blk::Disk;

const SECTOR: usize = 512;

/// The open report.
pub(crate) struct Report {
    disk: Disk,
    /// The sector that is being filled, and its fill level.
    sector: u64,
    filled: usize,
    buffer: Option<DmaBytes>,
}

impl Report {
    pub(crate) fn new(disk: Disk) -> Self {
        Self {
            disk,
            sector: 0,
            filled: 0,
            buffer: DmaBytes::zeroed(SECTOR, SECTOR),
        }
    }

    /// Writes one line and waits until the device has completed the write.
    pub(crate) fn line(&mut self, text: fmt::Arguments<'_>) {
        let mut line = String::new();
        // Writing to a String never fails.
        let _ = writeln!(line, "{text}");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            let now = rest.len().min(SECTOR - self.filled);
            if let Some(buffer) = &mut self.buffer {
                buffer.bytes_mut()[self.filled..self.filled + now].copy_from_slice(&rest[..now]);
            }
            self.filled += now;
            rest = &rest[now..];
            self.store();
            if self.filled == SECTOR {
                self.sector += 1;
                self.filled = 0;
                self.buffer = DmaBytes::zeroed(SECTOR, SECTOR);
            }
        }
    }

    fn store(&mut self) {
        let Some(buffer) = self.buffer.take() else {
            return;
        };
        let data = ScatterList::from_buffers([buffer]);
        let bio = Bio {
            transfer: Transfer::Write,
            sector: self.sector,
            data,
        };
        self.buffer = self.disk.one(bio).ok().and_then(|mut data| data.take(0));
    }
}
