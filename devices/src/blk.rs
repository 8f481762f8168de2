//! Block device: the configuration side (virtio 1.3, section 5.2).
//!
//! It turns a [`Disk`]'s geometry into features and a configuration space and, when the driver is ready, opens one
//! disk queue a virtqueue. Requests are parsed in `request` and done in `queue`. It knows no PCI, no files and no
//! threads.

mod queue;
mod request;
mod saved;
mod shared;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use splitring_virtio::spec::blk::{CONFIG_WRITEBACK, Config, ID_BYTES, SECTOR_SIZE, feature};
use splitring_virtio::spec::id;
use vm_memory::GuestMemoryBackend;
use zerocopy::IntoBytes;

use crate::debug::opaque_debug;
use crate::device::{DeviceKind, Start, StartError, Task, VirtioDevice, read_window};
use crate::disk::faults::Faults;
use crate::disk::metrics::{DiskMetrics, DiskTotals};
use crate::disk::{Disk, DiskError, Geometry, RangeLimits};
use crate::events::EventSink;
use crate::interrupt::ConfigNotifier;
use crate::saved::{StateError, Versioned};
use queue::{BlkQueue, CacheMode};
use request::{Limits, MAX_RANGES};
use saved::BlkState;
use shared::Shared;

/// Mass storage of no particular kind.
const KIND: DeviceKind = DeviceKind {
    type_id: id::BLOCK,
    pci_class: 0x01_8000,
};

/// Most segments of a request that are worth offering: what one system call takes, with header and status.
const SEGMENTS: u16 = 1022;

/// A block device.
pub struct Blk {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    geometry: Geometry,
    queue_sizes: Vec<u16>,
    mask: u64,
    /// How to tell a running driver about a change.
    notifier: Mutex<Option<ConfigNotifier>>,
}

opaque_debug! { Blk |it| { id: it.shared.id, geometry: it.geometry } }

/// A running device seen from the outside. Every call is `None` once the device is gone.
#[derive(Clone)]
pub struct BlkHandle(Weak<Blk>);

opaque_debug! { BlkHandle |it| { id: it.id() } }

impl BlkHandle {
    /// The device's name.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        self.0.upgrade().map(|blk| blk.shared.id.clone())
    }

    /// What its requests came to so far.
    #[must_use]
    pub fn totals(&self) -> Option<DiskTotals> {
        self.0.upgrade().map(|blk| blk.metrics().totals())
    }

    /// As [`Blk::rescan`].
    #[must_use]
    pub fn rescan(&self) -> Option<Result<u64, DiskError>> {
        self.0.upgrade().map(|blk| blk.rescan())
    }
}

impl Blk {
    /// A device called `id` on `disk`, with `queues` request queues of `queue_size` descriptors, a power of two. The
    /// disk must have been opened for as many streams. Of the serial number the first 20 bytes count.
    #[must_use]
    pub fn new(id: &str, disk: Arc<dyn Disk>, queues: u16, queue_size: u16, serial: &str) -> Self {
        let geometry = disk.geometry();
        let mut bytes = [0; ID_BYTES];
        for (to, from) in bytes.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Self {
            shared: Arc::new(Shared {
                id: id.to_owned(),
                capacity: AtomicU64::new(geometry.capacity),
                writeback: AtomicBool::new(geometry.write_cache),
                serial: bytes,
                metrics: DiskMetrics::new(queues),
                faults: Faults::default(),
                events: OnceLock::new(),
            }),
            disk,
            geometry,
            queue_sizes: vec![queue_size; usize::from(queues)],
            mask: u64::MAX,
            notifier: Mutex::new(None),
        }
    }

    /// The same device that offers none of `features`.
    #[must_use]
    pub fn without(self, features: u64) -> Self {
        Self {
            mask: self.mask & !features,
            ..self
        }
    }

    /// Sends the disk's events to `sink` from now on. Only the first call counts.
    pub fn report_to(&self, sink: EventSink) {
        // Refused where there is one already.
        let _ = self.shared.events.set(sink);
    }

    /// What its requests came to so far.
    #[must_use]
    pub fn metrics(&self) -> &DiskMetrics {
        &self.shared.metrics
    }

    /// Asks the host for the image's size again and tells the driver if it changed. Returns the capacity in bytes.
    ///
    /// # Errors
    /// The host can't tell the size, or there is no whole block left.
    pub fn rescan(&self) -> Result<u64, DiskError> {
        let capacity = self.disk.rescan()?.capacity;
        if capacity != self.shared.capacity.load(Ordering::Acquire) {
            let apply = || self.shared.capacity.store(capacity, Ordering::Release);
            match self.notifier().clone() {
                Some(notifier) => notifier.change(apply),
                None => apply(),
            }
        }
        Ok(capacity)
    }

    /// A handle for run-time changes that does not keep the device and its image open.
    #[must_use]
    pub fn handle(self: &Arc<Self>) -> BlkHandle {
        BlkHandle(Arc::downgrade(self))
    }

    fn notifier(&self) -> MutexGuard<'_, Option<ConfigNotifier>> {
        self.notifier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue_size(&self) -> u16 {
        self.queue_sizes.first().copied().unwrap_or(1)
    }

    /// Header and status take a descriptor each; the smallest rings still carry a segment by merging them.
    fn seg_max(&self) -> u32 {
        u32::from(self.queue_size().saturating_sub(2).clamp(1, SEGMENTS))
    }

    fn config(&self) -> Config {
        let geometry = &self.geometry;
        let discard = geometry.discard.unwrap_or(RangeLimits {
            granularity: 0,
            max: 0,
        });
        Config {
            capacity: sectors(self.shared.capacity.load(Ordering::Acquire)).into(),
            seg_max: self.seg_max().into(),
            blk_size: geometry.logical_block.into(),
            physical_block_exp: exponent(geometry.physical_block, geometry.logical_block),
            alignment_offset: u8::try_from(geometry.alignment_offset).unwrap_or(0),
            min_io_size: u16::try_from(blocks(geometry.min_io, geometry))
                .unwrap_or(0)
                .into(),
            opt_io_size: blocks(geometry.opt_io, geometry).into(),
            writeback: u8::from(self.shared.writeback.load(Ordering::Relaxed)),
            num_queues: u16::try_from(self.queue_sizes.len())
                .unwrap_or(u16::MAX)
                .into(),
            max_discard_sectors: sector_count(discard.max).into(),
            max_discard_seg: u32::try_from(MAX_RANGES).unwrap_or(1).into(),
            discard_sector_alignment: sector_count(discard.granularity.into()).into(),
            max_write_zeroes_sectors: sector_count(geometry.zeroes.max).into(),
            max_write_zeroes_seg: u32::try_from(MAX_RANGES).unwrap_or(1).into(),
            write_zeroes_may_unmap: u8::from(geometry.zeroes_unmap),
            ..Config::default()
        }
    }
}

impl VirtioDevice for Blk {
    fn id(&self) -> &str {
        &self.shared.id
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        let mut features = feature::SEG_MAX | feature::BLK_SIZE | feature::TOPOLOGY;
        let mut offer = |bits, on| features |= if on { bits } else { 0 };
        let geometry = &self.geometry;
        offer(feature::RO, geometry.read_only);
        offer(feature::MQ, self.queue_sizes.len() > 1);
        // Without a cache there is nothing to flush, and a driver that knows so doesn't ask.
        offer(feature::FLUSH | feature::CONFIG_WCE, geometry.write_cache);
        offer(
            feature::DISCARD,
            geometry.discard.is_some() && !geometry.read_only,
        );
        offer(feature::WRITE_ZEROES, !geometry.read_only);
        features
    }

    fn mask(&self) -> u64 {
        self.mask
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_window(self.config().as_bytes(), offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let at = CONFIG_WRITEBACK.checked_sub(offset);
        if let Some(value) = at
            .and_then(|at| data.get(at))
            .filter(|_| self.geometry.write_cache)
        {
            self.shared.writeback.store(*value != 0, Ordering::Relaxed);
        }
    }

    fn start(&self, start: Start) -> Result<Vec<Task>, StartError> {
        let has = |bit| start.features & bit != 0;
        let limits = Limits {
            capacity: self.shared.capacity.load(Ordering::Acquire),
            read_only: self.geometry.read_only,
            pieces: usize::try_from(self.seg_max())
                .unwrap_or(usize::MAX)
                .saturating_add(start.ram.mapping().num_regions().saturating_sub(1)),
            discard: self
                .geometry
                .discard
                .filter(|_| has(feature::DISCARD))
                .map(|range| range.max),
            zeroes: has(feature::WRITE_ZEROES).then_some(self.geometry.zeroes.max),
        };
        let cache = match (has(feature::CONFIG_WCE), has(feature::FLUSH)) {
            (true, _) => CacheMode::Switched,
            (false, true) => CacheMode::Writeback,
            (false, false) => CacheMode::Writethrough,
        };
        let mut tasks = Vec::with_capacity(start.queues.len());
        for ready in start.queues {
            let disk = self
                .disk
                .open_queue(start.ram.clone(), ready.index, ready.size)
                .map_err(|error| StartError::new(format_args!("{}: {error}", self.shared.id)))?;
            let shared = Arc::clone(&self.shared);
            let handler = BlkQueue::new(ready.index, ready.size, shared, disk, limits, cache);
            tasks.push(Task {
                queues: vec![ready.index],
                handler: Box::new(handler),
            });
        }
        *self.notifier() = Some(start.config);
        Ok(tasks)
    }

    fn reset(&self) {
        *self.notifier() = None;
        self.shared
            .writeback
            .store(self.geometry.write_cache, Ordering::Relaxed);
    }

    fn save(&self) -> Result<Versioned, StateError> {
        Versioned::new(&BlkState {
            block: self.geometry.logical_block,
            capacity: self.shared.capacity.load(Ordering::Acquire),
            writeback: self.shared.writeback.load(Ordering::Relaxed),
        })
    }

    /// An image whose size has changed since is announced to the driver, as at run time.
    fn restore(&self, state: &Versioned) -> Result<(), StateError> {
        let state: BlkState = state.read()?;
        state.check(&self.geometry)?;
        let writeback = &self.shared.writeback;
        writeback.store(state.writeback, Ordering::Relaxed);
        if state.capacity != self.shared.capacity.load(Ordering::Acquire)
            && let Some(notifier) = self.notifier().clone()
        {
            notifier.change(|| ());
        }
        Ok(())
    }
}

fn sectors(bytes: u64) -> u64 {
    bytes.wrapping_div(SECTOR_SIZE)
}

fn sector_count(bytes: u64) -> u32 {
    u32::try_from(sectors(bytes)).unwrap_or(u32::MAX)
}

fn blocks(bytes: u32, geometry: &Geometry) -> u32 {
    bytes.checked_div(geometry.logical_block).unwrap_or(0)
}

/// Logical blocks in a physical one, as a power of two.
fn exponent(physical: u32, logical: u32) -> u8 {
    let exponent = physical
        .trailing_zeros()
        .saturating_sub(logical.trailing_zeros());
    u8::try_from(exponent).unwrap_or(0)
}

#[cfg(test)]
mod tests;
