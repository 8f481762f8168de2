//! The device, played with by a guest on plain memory.

mod bad_input;
mod memory;
mod pause;
mod requests;
mod saved;
mod workers;

use splitring_virtio::spec::blk::{Range, RequestHeader, request, status};
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};

use super::*;
use crate::device::{Cause, Outcome};
use crate::disk::IoFault;
use crate::disk::doubles::{Fate, FaultyDisk, MemoryDisk, Seen};
use crate::testing::{Bench, Buffer};

const HEADER: u64 = 0x1000;
const STATUS: u64 = 0x1800;
const DATA: u64 = 0x1_0000;
const DISK_LEN: u64 = 1 << 20;
const SECTORS: u64 = DISK_LEN / 512;
/// A status the device never writes.
const UNTOUCHED: u8 = 0xee;

struct Guest {
    bench: Bench<Blk>,
    disk: Arc<FaultyDisk>,
    memory: Arc<MemoryDisk>,
}

/// What came of a request: status and used length.
type Answer = (u8, u32);

impl Guest {
    fn new() -> Self {
        Self::with(MemoryDisk::new(DISK_LEN), u64::MAX, 16)
    }

    fn with(memory: Arc<MemoryDisk>, mask: u64, size: u16) -> Self {
        Self::with_ring(memory, mask, size, size)
    }

    /// The ring has `size` descriptors of the `largest` offered.
    fn with_ring(memory: Arc<MemoryDisk>, mask: u64, size: u16, largest: u16) -> Self {
        let disk = Arc::new(FaultyDisk::new(Arc::new(Arc::clone(&memory))));
        let device = Blk::new(
            "disk0",
            Arc::<FaultyDisk>::clone(&disk),
            1,
            largest,
            "serial",
        );
        let features = (device.features() | EVENT_IDX | INDIRECT_DESC) & mask | VERSION_1;
        let bench = Bench::start(Arc::new(device), features, size);
        Self {
            bench,
            disk,
            memory,
        }
    }

    fn header(&self, kind: u32, sector: u64) {
        let header = RequestHeader {
            kind: kind.into(),
            reserved: 0.into(),
            sector: sector.into(),
        };
        self.bench.poke(HEADER, header.as_bytes());
    }

    /// Offers a chain as it is and runs the device; the answer if there is one.
    fn offer(&mut self, buffers: &[Buffer]) -> Option<Answer> {
        self.bench.poke(STATUS, &[UNTOUCHED]);
        let head = self.bench.rings[0].offer(buffers);
        let _ = self.bench.kick(0);
        let used = self.bench.rings[0].used();
        assert!(used.len() <= 1 && used.iter().all(|(id, _)| *id == head));
        used.first()
            .map(|(_, len)| (self.bench.peek(STATUS, 1)[0], *len))
    }

    /// Header, readable data at [`DATA`] and status.
    fn send(&mut self, kind: u32, sector: u64, len: u32) -> Option<Answer> {
        self.header(kind, sector);
        self.offer(&[(HEADER, 16, false), (DATA, len, false), (STATUS, 1, true)])
    }

    /// Header, writable data at [`DATA`] and status.
    fn receive(&mut self, kind: u32, sector: u64, len: u32) -> Option<Answer> {
        self.header(kind, sector);
        self.offer(&[(HEADER, 16, false), (DATA, len, true), (STATUS, 1, true)])
    }

    fn flush(&mut self) -> Option<Answer> {
        self.header(request::FLUSH, 0);
        self.offer(&[(HEADER, 16, false), (STATUS, 1, true)])
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> Option<Answer> {
        let mut bytes = Vec::new();
        for (sector, count, flags) in ranges {
            let range = Range {
                sector: (*sector).into(),
                num_sectors: (*count).into(),
                flags: (*flags).into(),
            };
            bytes.extend_from_slice(range.as_bytes());
        }
        self.bench.poke(DATA, &bytes);
        self.send(kind, 0, u32::try_from(bytes.len()).unwrap())
    }

    /// Runs the device once more, as when its disk has something.
    fn again(&mut self) -> Vec<u16> {
        let _ = self.bench.run(0, Cause::Source(0)).expect("not broken");
        self.bench.rings[0]
            .used()
            .into_iter()
            .map(|(id, _)| id)
            .collect()
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        self.bench.device.read_config(0, config.as_mut_bytes());
        config
    }
}

const IOERR: Option<Answer> = Some((status::IOERR, 0));
/// A failed request without data: the status is all that is written.
const IOERR_1: Option<Answer> = Some((status::IOERR, 1));
const UNSUPP_1: Option<Answer> = Some((status::UNSUPP, 1));
const OK_1: Option<Answer> = Some((status::OK, 1));
