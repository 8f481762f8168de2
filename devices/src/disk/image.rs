//! An opened raw image: what it is, how large, how aligned, and its lock. Raw backends share it.
//!
//! Knows no rings and no guest memory. Paths are used only while opening.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use rustix::process::{Resource, getrlimit};

use super::aligned::{Align, read_head};
use super::config::{Aio, Cache, DiskConfig};
use super::flush::{Flushes, Mark};
use super::lock::{self, Use};
use super::opening::{self, Access};
use super::partition;
use super::refused::Refused;
use super::spans::{self, Access as Lock, Spans};
use super::{DiskError, Extent, Geometry, ImageId, IoFault, RangeLimits, SECTOR};

/// What file systems and page caches work in.
const PAGE: u32 = 4096;
/// Longest discard of a file that is worth one request: freeing extents is quick.
const FILE_DISCARD_MAX: u64 = 1 << 30;
/// Longest zeroing that is worth one request: it may have to be done by writing.
const ZEROES_MAX: u64 = 16 << 20;
/// `f_type` of tmpfs and ramfs (statfs(2)), the file systems without a disk below.
const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// A regular file or block device opened as a disk.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// Others may have the description of `file`, too.
    pub(super) handed_over: bool,
    /// What it was locked for.
    pub(super) intent: Use,
    /// Its file system has locks.
    pub(super) locked: bool,
    pub(super) block_device: bool,
    /// What transfers have to be aligned to.
    pub(super) align: Align,
    /// Every write is made stable before it completes.
    pub(super) writethrough: bool,
    /// The host's page cache is gone around.
    pub(super) direct: bool,
    /// Its requests are blocking calls, whatever the host offers.
    pub(super) plain: bool,
    /// It has no medium that a transfer could wait for.
    pub(super) in_memory: bool,
    read_only: bool,
    capacity: AtomicU64,
    blocks: Blocks,
    discard: Option<RangeLimits>,
    /// The host can free ranges and have them read as zeroes.
    zeroes_unmap: bool,
    flushes: Flushes,
    /// What the host turned out not to do, found out on the way.
    pub(super) refused: Refused,
    /// Held over writes of blocks that may be written in part, see `bounce`.
    pub(super) spans: Arc<Spans>,
}

/// Block sizes to report, in bytes.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    logical: u32,
    /// The smallest the host takes.
    host: u32,
    physical: u32,
    alignment_offset: u32,
    min_io: u32,
    opt_io: u32,
}

impl Image {
    /// Opens and locks what `config` names.
    pub(super) fn open(config: &DiskConfig) -> Result<Self, DiskError> {
        let access = Access {
            write: !config.readonly,
            direct: config.direct,
        };
        let mut image = Self::from_file(opening::open(&config.path, access)?, config)?;
        image.handed_over = false;
        Ok(image)
    }

    /// Takes a descriptor opened by somebody else, with the access mode and O_DIRECT that `config` asks for.
    pub(super) fn from_file(file: File, config: &DiskConfig) -> Result<Self, DiskError> {
        let path = config.path.clone();
        let host = |operation: &'static str| {
            let path = path.clone();
            move |source: io::Error| DiskError::Host {
                operation,
                path,
                source,
            }
        };
        let meta = opening::admit(&file, &path)?;
        let block_device = meta.file_type().is_block_device();
        let intent = Use {
            write: !config.readonly,
            share: config.share,
        };
        let locked = opening::take_lock(&file, &path, intent)?;

        let queue = block_device.then(|| sysfs_queue(meta.rdev()));
        let limits = |name: &str| queue.as_deref().and_then(|dir| sysfs_number(dir, name));
        let align = if config.direct {
            direct_alignment(&file, limits("logical_block_size"))
                .map_err(host("find the O_DIRECT alignment of"))?
        } else {
            // The page cache takes everything, but a device with blocks of 4 KiB still is one.
            Align {
                memory: 1,
                offset: 1,
            }
        };
        let blocks = Blocks::new(config, &file, &meta, align, limits);
        let mut image = Self {
            in_memory: !block_device && lives_in_memory(&file),
            discard: None,
            zeroes_unmap: false,
            capacity: AtomicU64::new(0),
            read_only: config.readonly,
            writethrough: config.cache == Cache::Writethrough,
            direct: config.direct,
            plain: config.aio == Aio::Threads,
            flushes: Flushes::default(),
            refused: Refused::default(),
            spans: Arc::default(),
            path,
            handed_over: true,
            intent,
            locked,
            block_device,
            align,
            blocks,
            file,
        };
        image.rescan()?;
        image.warn_of_limit();
        if config.discard && !config.readonly {
            image.discard = image.probe_discard(limits);
            image.zeroes_unmap =
                image.discard.is_some() && (!block_device || unmaps_zeroes(limits));
        }
        Ok(image)
    }

    /// Tells the operator if writes to the end of the image are going to fail.
    fn warn_of_limit(&self) {
        let limit = getrlimit(Resource::Fsize).current;
        let beyond = |limit: &u64| *limit < self.capacity.load(Ordering::Acquire);
        if let Some(limit) = limit.filter(beyond)
            && !self.block_device
            && !self.read_only
        {
            tracing::warn!(
                "{}: the limit on file sizes is {limit} bytes, and writes beyond it fail; raise it (`ulimit -f`) to \
                 the image's size",
                self.path.display()
            );
        }
    }

    /// Asks the host for the size again and takes it over, cut to whole blocks, the guest's and the
    /// host's.
    pub(super) fn rescan(&self) -> Result<Geometry, DiskError> {
        // Block devices have no size in their metadata; seeking works on both, and nobody uses the file position.
        let size = (&self.file)
            .seek(SeekFrom::End(0))
            .map_err(|source| DiskError::Host {
                operation: "query the size of",
                path: self.path.clone(),
                source,
            })?;
        let block = u64::from(self.blocks.logical.max(self.align.offset));
        let whole = size
            .checked_next_multiple_of(block)
            .filter(|rounded| *rounded == size);
        let capacity = whole.unwrap_or_else(|| {
            let rest = size.checked_rem(block).unwrap_or(0);
            tracing::warn!(
                "{}: its size of {size} bytes is not a multiple of {block}; the last {rest} bytes can't be used",
                self.path.display()
            );
            size.saturating_sub(rest)
        });
        if capacity == 0 {
            return Err(DiskError::Unusable {
                path: self.path.clone(),
                problem: format!("its size of {size} bytes has no whole block of {block}"),
                remedy: "make it larger, for example with `truncate -s 1G`",
            });
        }
        self.capacity.store(capacity, Ordering::Release);
        Ok(self.geometry())
    }

    /// The present geometry.
    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            capacity: self.capacity.load(Ordering::Acquire),
            logical_block: self.blocks.logical,
            physical_block: self.blocks.physical,
            alignment_offset: self.blocks.alignment_offset,
            min_io: self.blocks.min_io,
            opt_io: self.blocks.opt_io,
            memory_alignment: self.align.memory,
            read_only: self.read_only,
            write_cache: !self.writethrough,
            discard: self.discard,
            discard_zeroes: self.discard_zeroes(),
            zeroes_unmap: self.zeroes_unmap,
            zeroes: RangeLimits {
                granularity: self.blocks.logical,
                max: ZEROES_MAX,
            },
        }
    }

    /// Whether discarded ranges read as zeroes. A hole does; BLKDISCARD promises nothing.
    pub(super) fn discard_zeroes(&self) -> bool {
        !self.block_device && self.discard.is_some()
    }

    /// Whether `WriteZeroes` may free ranges, and the host can.
    pub(super) fn zeroes_unmap(&self) -> bool {
        self.zeroes_unmap
    }

    /// The smallest block that a block device discards or zeroes.
    pub(super) fn device_block(&self) -> u64 {
        u64::from(self.blocks.host)
    }

    /// Whether sectors may be smaller than the blocks that can be written, so that blocks are
    /// patched.
    fn is_patched(&self) -> bool {
        self.direct && u64::from(self.align.offset) > SECTOR
    }

    /// Keeps patches away from whole blocks that are going to be written; blocks until none is
    /// under way.
    pub(super) fn share(&self, span: Range<u64>) -> Option<spans::Guard> {
        self.is_patched()
            .then(|| self.spans.lock(span, Lock::Shared))
    }

    /// As [`Self::share`], without blocking: `Err` if it would.
    pub(super) fn try_share(&self, span: Range<u64>) -> Result<Option<spans::Guard>, ()> {
        if !self.is_patched() {
            return Ok(None);
        }
        self.spans.try_lock(span, Lock::Shared).map(Some).ok_or(())
    }

    /// Whether there is storage behind `offset`, and up to where. The file position is nobody's, so it may be moved.
    pub(super) fn extent(&self, offset: u64) -> Result<Extent, IoFault> {
        use rustix::fs::{SeekFrom, seek};
        let capacity = self.capacity.load(Ordering::Acquire);
        if offset >= capacity {
            return Err(IoFault::OutOfRange);
        }
        if self.block_device {
            return Ok(Extent {
                mapped: true,
                end: capacity,
            });
        }
        let (mapped, next) = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data == offset => (true, seek(&self.file, SeekFrom::Hole(offset))),
            Ok(data) => (false, Ok(data)),
            // No data from here on.
            Err(rustix::io::Errno::NXIO) => (false, Ok(capacity)),
            Err(error) => return Err(IoFault::from_errno(error.raw_os_error())),
        };
        let next = next.map_err(|error| IoFault::from_errno(error.raw_os_error()))?;
        Ok(Extent {
            mapped,
            end: next.clamp(offset.saturating_add(1), capacity),
        })
    }

    /// What tells it from other images.
    pub(super) fn identity(&self) -> Option<ImageId> {
        let meta = self.file.metadata().ok()?;
        Some(match self.block_device {
            true => ImageId {
                device: meta.rdev(),
                inode: 0,
            },
            false => ImageId {
                device: meta.dev(),
                inode: meta.ino(),
            },
        })
    }

    /// Whether a request may touch this range.
    pub(super) fn admit(&self, offset: u64, len: u64, writes: bool) -> Result<(), IoFault> {
        if writes && self.read_only {
            return Err(IoFault::ReadOnly);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.capacity.load(Ordering::Acquire) => Ok(()),
            _ => Err(IoFault::OutOfRange),
        }
    }

    /// Whether a flush may be believed.
    pub(super) fn admit_flush(&self) -> Result<(), IoFault> {
        self.flushes.admit()
    }

    /// When a write that is to be stable begins, for [`Self::admit_sync`].
    pub(super) fn mark(&self) -> Mark {
        self.flushes.mark()
    }

    /// Whether a write that began at `mark` and ended well is stable.
    pub(super) fn admit_sync(&self, mark: Mark) -> Result<(), IoFault> {
        self.flushes.admit_since(mark)
    }

    /// Takes note that a flush, or a write with RWF_DSYNC, ended with this fault, which may be the
    /// report of a failed write-back. Around the page cache the next one still reports what the
    /// device lost.
    pub(super) fn sync_failed(&self, fault: IoFault) {
        let begun = match fault {
            // Given up before it began, or refused before anything was written.
            IoFault::Cancelled => false,
            IoFault::Host(errno) => !matches!(errno, libc::EINTR | libc::EAGAIN | libc::EFBIG),
            _ => true,
        };
        if begun && !self.direct {
            self.flushes.failed(&self.path);
        }
    }

    /// Whether the host discards, found out without an effect on the image.
    fn probe_discard(&self, limits: impl Fn(&str) -> Option<u64>) -> Option<RangeLimits> {
        if self.block_device {
            let max = limits("discard_max_bytes").filter(|max| *max > 0)?;
            let granularity = limits("discard_granularity").unwrap_or(0);
            return Some(RangeLimits {
                granularity: u32::try_from(granularity)
                    .unwrap_or(PAGE)
                    .max(self.blocks.logical.max(self.blocks.host)),
                max: max.min(FILE_DISCARD_MAX),
            });
        }
        // A hole behind the end is nothing, but is refused where holes can't be made.
        let end = self
            .capacity
            .load(Ordering::Acquire)
            .checked_next_multiple_of(u64::from(PAGE))?;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, hole, end, u64::from(PAGE)) {
            Ok(()) => Some(RangeLimits {
                granularity: self.blocks.physical.max(PAGE),
                max: FILE_DISCARD_MAX,
            }),
            Err(error) => {
                tracing::info!(
                    "{}: no discard, holes can't be made in it: {error}",
                    self.path.display()
                );
                None
            }
        }
    }
}

impl Blocks {
    /// What `limits` of a block device, the alignment for O_DIRECT and the image's partition table
    /// say. The guest's block may be smaller than the host's: through the page cache the kernel
    /// patches larger ones, around it `bounce`.
    fn new(
        config: &DiskConfig,
        file: &File,
        meta: &fs::Metadata,
        align: Align,
        limits: impl Fn(&str) -> Option<u64>,
    ) -> Self {
        let limit = |name: &str| limits(name).and_then(|number| u32::try_from(number).ok());
        let sector = u32::try_from(SECTOR).unwrap_or(512);
        let device = limit("logical_block_size");
        let host = device.unwrap_or(sector).max(align.offset).max(sector);
        let (logical, why) = match (config.block_size, device) {
            (Some(block), _) => (block, "as block-size says"),
            (None, _) if let Some(block) = partitioned_with(config, file, align) => {
                (block, "as its partition table has them")
            }
            (None, Some(device)) => (device.max(sector), "as the device has them"),
            (None, None) => (sector, "as files have them"),
        };
        if logical != host {
            let path = config.path.display();
            let cost = match logical < host {
                true => "; smaller writes are read, patched and written",
                false => "",
            };
            tracing::info!("{path}: blocks of {logical} bytes, {why}; the host's are {host}{cost}");
        }
        let native = limit("physical_block_size")
            .unwrap_or_else(|| u32::try_from(meta.blksize()).unwrap_or(PAGE));
        // File systems name transfer sizes up to a MiB as their block; none writes more than a page at least.
        let physical = if native.is_power_of_two() {
            native.clamp(sector, PAGE)
        } else {
            PAGE
        };
        let physical = physical.max(logical).max(host);
        Self {
            logical,
            host,
            physical,
            alignment_offset: limit("../alignment_offset")
                .and_then(|bytes| bytes.checked_div(logical))
                .unwrap_or(0),
            min_io: limit("minimum_io_size").unwrap_or(physical).max(logical),
            opt_io: limit("optimal_io_size").unwrap_or(0),
        }
    }
}

/// The block size of the image's partition table, if it has one.
fn partitioned_with(config: &DiskConfig, file: &File, align: Align) -> Option<u32> {
    match read_head(file, align, partition::HEAD) {
        Ok(head) => partition::block_size(&head),
        // The guest may still be able to save what is behind.
        Err(error) => {
            tracing::warn!(
                "{}: cannot look for a partition table: {error}; give block-size if it has one",
                config.path.display()
            );
            None
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Nothing is in flight any more: queues hold the image, and one that could not be drained never drops it.
        lock::release(&self.file);
    }
}

/// The alignment O_DIRECT asks for: what statx says since Linux 6.1, else the device's block, else found by reading.
fn direct_alignment(file: &File, device_block: Option<u64>) -> io::Result<Align> {
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN)
        && stat.stx_dio_offset_align != 0
    {
        return Ok(Align {
            memory: stat.stx_dio_mem_align.max(1),
            offset: stat.stx_dio_offset_align,
        });
    }
    if let Some(block) = device_block.and_then(|block| u32::try_from(block).ok()) {
        return Ok(Align {
            memory: block,
            offset: block,
        });
    }
    for bytes in [512, 1024, 2048, PAGE] {
        let align = Align {
            memory: bytes,
            offset: bytes,
        };
        // One block.
        match read_head(file, align, 1) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(align),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// Whether a block device zeroes ranges by itself, and so may free them. Where it can't, the kernel
/// writes zeroes.
///
/// `write_zeroes_unmap_max_hw_bytes`, since Linux 6.17, is no help: a loop device says 0 there and
/// frees all the same.
fn unmaps_zeroes(limits: impl Fn(&str) -> Option<u64>) -> bool {
    limits("write_zeroes_max_bytes").is_some_and(|max| max > 0)
}

fn lives_in_memory(file: &File) -> bool {
    rustix::fs::fstatfs(file.as_fd()).is_ok_and(|stat| {
        MEMORY_FILE_SYSTEMS
            .iter()
            .any(|magic| i128::from(stat.f_type) == i128::from(*magic))
    })
}

/// The directory with the limits of a block device; a partition's are its disk's.
fn sysfs_queue(device: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let own = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/queue"));
    if own.is_dir() {
        own
    } else {
        PathBuf::from(format!("/sys/dev/block/{major}:{minor}/../queue"))
    }
}

fn sysfs_number(dir: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
}
