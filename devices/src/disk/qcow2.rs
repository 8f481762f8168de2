//! qcow2 images, through the `imago` crate.
//!
//! Requests are blocking calls on a thread of the queue's own, with guest memory copied through a buffer: this is for convenience,
//! raw images are for speed. Nothing is guessed: the operator says that an image is qcow2, an image that rests on a
//! backing file is refused unless `backing=on`, and then it has to name the backing file's format too.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::blocking::BlockingQueue;
use super::config::{Cache, DiskConfig};
use super::flush::Flushes;
use super::immediate::Perform;
use super::lock::Use;
use super::opening::{self, Access};
use super::partition;
use super::transfer::{MemoryAccess, Transfer};
use super::{Disk, DiskError, DiskOp, DiskQueue, Geometry, IoFault, RangeLimits};
use crate::debug::opaque_debug;
use crate::ram::Ram;

/// Most images in a chain of backing files.
const MAX_CHAIN: u32 = 32;
/// What qcow2 images are usually made of.
const CLUSTER: u32 = 64 << 10;
/// Bytes copied at a time.
const PIECE: u64 = 1 << 20;
/// Longest range worth one request, which blocks the queue.
const RANGE_MAX: u64 = 1 << 30;

type Layer = FormatAccess<Storage>;

/// An opened qcow2 image.
pub struct Qcow2Disk {
    shared: Arc<Shared>,
    geometry: Geometry,
}

opaque_debug! { Qcow2Disk |it| { path: it.shared.path, geometry: it.geometry } }

struct Shared {
    path: PathBuf,
    flushes: Flushes,
    /// Held over a flush. The image is open once for all queues, so of two that ran at once the
    /// host would tell only one that data was lost, and the other could end before that is
    /// remembered.
    flushing: Mutex<()>,
    /// Locked exclusively only for discards, which move what others may be reading.
    image: RwLock<Layer>,
    capacity: u64,
    read_only: bool,
    writethrough: bool,
    discard: bool,
}

impl Qcow2Disk {
    /// Opens and locks the image, and with `backing=on` what it rests on.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn open(config: &DiskConfig) -> Result<Self, DiskError> {
        let image = open_layer(&config.path, config, !config.readonly, MAX_CHAIN)?;
        let capacity = image.size();
        let block = config
            .block_size
            .or_else(|| partitioned_with(&image))
            .unwrap_or(512);
        if capacity == 0 || !capacity.is_multiple_of(u64::from(block)) {
            return Err(DiskError::Unusable {
                path: config.path.clone(),
                problem: format!("its size of {capacity} bytes is not a multiple of {block}"),
                remedy: "resize it, for example with `qemu-img resize`",
            });
        }
        let range = RangeLimits {
            granularity: CLUSTER,
            max: RANGE_MAX,
        };
        let geometry = Geometry {
            capacity,
            logical_block: block,
            physical_block: 4096,
            alignment_offset: 0,
            min_io: 4096,
            opt_io: CLUSTER,
            memory_alignment: 1,
            read_only: config.readonly,
            write_cache: config.cache == Cache::Writeback,
            discard: (config.discard && !config.readonly).then_some(range),
            // What a backing file has may show again.
            discard_zeroes: false,
            zeroes_unmap: config.discard && !config.readonly,
            zeroes: range,
        };
        let shared = Shared {
            path: config.path.clone(),
            flushes: Flushes::default(),
            flushing: Mutex::new(()),
            image: RwLock::new(image),
            capacity,
            read_only: config.readonly,
            writethrough: !geometry.write_cache,
            discard: geometry.discard.is_some(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            geometry,
        })
    }
}

/// The block size of the image's partition table, if it has one that can be read.
fn partitioned_with(image: &Layer) -> Option<u32> {
    let mut head = [0; partition::HEAD];
    image.read(&mut head[..], 0).ok()?;
    partition::block_size(&head)
}

/// Opens one image of a chain with all that is below it.
fn open_layer(
    path: &Path,
    config: &DiskConfig,
    write: bool,
    left: u32,
) -> Result<Layer, DiskError> {
    let qcow2 = |source| DiskError::Host {
        operation: "open as qcow2",
        path: path.to_owned(),
        source,
    };
    let storage = open_storage(path, config, write)?;
    let mut image = Qcow2::<Storage>::open_image(storage, write).map_err(qcow2)?;
    if image.requires_external_data_file() {
        return Err(unusable(
            path,
            "it keeps its data in another file",
            "convert it with `qemu-img convert`",
        ));
    }
    image.set_data_file(None);
    let backing = match image.implicit_backing_file() {
        None => None,
        Some(name) => {
            let below = path.parent().unwrap_or(Path::new("")).join(name);
            let format = image.implicit_backing_format().map(String::as_str);
            Some(open_backing(path, &below, format, config, left)?)
        }
    };
    image.set_backing(backing);
    Ok(FormatAccess::new(image))
}

/// Opens what the image at `path` rests on.
fn open_backing(
    path: &Path,
    below: &Path,
    format: Option<&str>,
    config: &DiskConfig,
    left: u32,
) -> Result<Layer, DiskError> {
    let problem = |text: &str| format!("it rests on the backing file {} {text}", below.display());
    if !config.backing {
        let remedy =
            "use backing=on if you trust what it names, or convert it with `qemu-img convert`";
        return Err(unusable(path, problem(""), remedy));
    }
    let Some(left) = left.checked_sub(1) else {
        return Err(unusable(
            path,
            problem("at the end of too long a chain"),
            "merge some with `qemu-img commit`",
        ));
    };
    match format {
        Some("qcow2") => open_layer(below, config, false, left),
        Some("raw") => {
            let storage = open_storage(below, config, false)?;
            let raw = Raw::builder(storage).open(DenyImplicitOpenGate::default());
            raw.map(FormatAccess::new)
                .map_err(|source| DiskError::Host {
                    operation: "open as raw",
                    path: below.to_owned(),
                    source,
                })
        }
        other => {
            let text = other.map_or("without naming its format".into(), |name| {
                format!("of the format {name}")
            });
            Err(unusable(
                path,
                problem(&text),
                "set it with `qemu-img rebase -u -F raw` or `-F qcow2`",
            ))
        }
    }
}

/// Opens and locks a file of the chain.
fn open_storage(path: &Path, config: &DiskConfig, write: bool) -> Result<Storage, DiskError> {
    let access = Access {
        write,
        direct: false,
    };
    let file = opening::open(path, access)?;
    opening::admit(&file, path)?;
    let share = config.share;
    opening::take_lock(&file, path, Use { write, share })?;
    let options = StorageOpenOptions::new().filename(path).write(write);
    Storage::from_open_file(file, options).map_err(|source| DiskError::Open {
        path: path.to_owned(),
        source,
    })
}

fn unusable(path: &Path, problem: impl Into<String>, remedy: &'static str) -> DiskError {
    DiskError::Unusable {
        path: path.to_owned(),
        problem: problem.into(),
        remedy,
    }
}

impl Disk for Qcow2Disk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_queue(&self, ram: Ram, _: u16, depth: u16) -> Result<Box<dyn DiskQueue>, DiskError> {
        let stream = Qcow2Stream {
            shared: Arc::clone(&self.shared),
            access: MemoryAccess::new(ram),
            transfer: Transfer::default(),
            buffer: Vec::new(),
        };
        let queue = BlockingQueue::start(stream, depth).map_err(|source| DiskError::Host {
            operation: "start a thread for",
            path: self.shared.path.clone(),
            source,
        })?;
        Ok(Box::new(queue))
    }
}

struct Qcow2Stream {
    shared: Arc<Shared>,
    access: MemoryAccess,
    transfer: Transfer,
    /// What guest memory is copied through; kept for its room.
    buffer: Vec<u8>,
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Layer> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Layer> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, offset: u64, len: u64, writes: bool) -> Result<(), IoFault> {
        if writes && self.read_only {
            return Err(IoFault::ReadOnly);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.capacity => Ok(()),
            _ => Err(IoFault::OutOfRange),
        }
    }

    /// Tables first, then what they and the data are stored on.
    fn flush(&self) -> Result<(), IoFault> {
        let _alone = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.flushes.admit()?;
        let image = self.read();
        // A table that could not be written stays with the image, to be written by the next flush.
        image.flush()?;
        image
            .sync()
            .inspect_err(|_| self.flushes.failed(&self.path))?;
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        if may_unmap && self.discard {
            return self.write().discard_to_zero(offset, len);
        }
        self.read().write_zeroes(offset, len)
    }
}

impl Qcow2Stream {
    /// Moves the whole transfer, a buffer's worth at a time.
    fn in_pieces(
        &mut self,
        offset: u64,
        mut step: impl FnMut(u64, &mut Vec<u8>, &mut Transfer) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut at = offset;
        while self.transfer.left() > 0 {
            let count = self.transfer.left().min(PIECE);
            self.buffer.resize(usize::try_from(count).unwrap_or(0), 0);
            step(at, &mut self.buffer, &mut self.transfer)?;
            at = at.saturating_add(count);
        }
        Ok(())
    }
}

impl Perform for Qcow2Stream {
    fn perform(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault> {
        let shared = Arc::clone(&self.shared);
        let (len, fua) = match op {
            DiskOp::Read { offset, data } => {
                self.transfer.load(data, &self.access)?;
                shared.admit(offset, self.transfer.len(), false)?;
                self.in_pieces(offset, |at, buffer, transfer| {
                    shared.read().read(&mut *buffer, at)?;
                    transfer.fill_from(buffer);
                    Ok(())
                })?;
                (self.transfer.len(), false)
            }
            DiskOp::Write { offset, data, fua } => {
                self.transfer.load(data, &self.access)?;
                shared.admit(offset, self.transfer.len(), true)?;
                self.in_pieces(offset, |at, buffer, transfer| {
                    transfer.copy_into(buffer);
                    shared.read().write(&*buffer, at)
                })?;
                (self.transfer.len(), fua)
            }
            DiskOp::Flush => return shared.flush().map(|()| 0),
            DiskOp::Discard { offset, len, fua } => {
                shared.admit(offset, len, true)?;
                match shared.write().discard_to_any(offset, len) {
                    Err(error) if error.kind() != io::ErrorKind::Unsupported => {
                        return Err(error.into());
                    }
                    _ => (0, fua),
                }
            }
            DiskOp::WriteZeroes {
                offset,
                len,
                may_unmap,
                fua,
            } => {
                shared.admit(offset, len, true)?;
                shared.zero(offset, len, may_unmap)?;
                (0, fua)
            }
        };
        if fua || shared.writethrough {
            shared.flush()?;
        }
        Ok(len)
    }

    fn release(&mut self) -> Option<Vec<u8>> {
        self.transfer.clear()
    }
}

#[cfg(test)]
mod tests;
