//! Discarding and zeroing ranges of an image, blocking. What the host can't do in one call is done in others.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::handle::Handle;
use super::image::Image;
use super::transfer::{MemoryAccess, Transfer};
use super::{Data, IoFault, calls};

/// Zeroes written at a time where the host has no call for it.
const CHUNK: u64 = 1 << 20;

/// How a range is to be freed or zeroed by fallocate(2), or `None` if it takes something else. Ring and plain
/// backends both start with this.
pub(super) fn fallocate_mode(image: &Image, task: Task) -> Option<FallocateFlags> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match task {
        Task::Discard if image.block_device => None,
        Task::Discard | Task::Zero { may_unmap: true } => Some(hole),
        Task::Zero { may_unmap: false } if image.refused.zero_range.load(Ordering::Relaxed) => None,
        Task::Zero { may_unmap: false } => {
            Some(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE)
        }
    }
}

/// What is to happen to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Discard,
    Zero { may_unmap: bool },
}

impl Task {
    /// A zeroing, which unmaps only where the operator lets the guest free blocks and the host is
    /// known to do it.
    pub(super) fn zero(image: &Image, may_unmap: bool) -> Self {
        Self::Zero {
            may_unmap: may_unmap
                && image.zeroes_unmap()
                && !image.refused.zero_unmap.load(Ordering::Relaxed),
        }
    }
}

/// Does it, blocking.
pub(super) fn run(
    image: &Handle,
    access: &MemoryAccess,
    task: Task,
    offset: u64,
    len: u64,
) -> Result<(), IoFault> {
    if let Task::Zero { .. } = task
        && !fits(image, offset, len)
    {
        return zero_around_blocks(image, access, task, offset, len);
    }
    match fallocate_mode(image, task) {
        None => instead(image, access, task, offset, len),
        Some(mode) => match allocate(image, mode, offset, len) {
            Ok(()) => Ok(()),
            Err(error) if refused(error.raw_os_error()) => {
                note_refusal(image, task, error.raw_os_error());
                instead(image, access, task, offset, len)
            }
            Err(error) => Err(IoFault::from_errno(error.raw_os_error())),
        },
    }
}

/// Whether fallocate(2) takes this range: of a block device, whole blocks only.
pub(super) fn fits(image: &Image, offset: u64, len: u64) -> bool {
    let block = image.device_block();
    !image.block_device || (offset.is_multiple_of(block) && len.is_multiple_of(block))
}

/// Zeroes the whole blocks of a range as `task` says, and writes zeroes to what is in front and
/// behind.
fn zero_around_blocks(
    image: &Handle,
    access: &MemoryAccess,
    task: Task,
    offset: u64,
    len: u64,
) -> Result<(), IoFault> {
    let (blocks, end) = (whole_blocks(image, offset, len), offset.saturating_add(len));
    let Some((start, count)) = blocks else {
        return write_zeroes(image, access, offset, len);
    };
    let behind = start.saturating_add(count);
    write_zeroes(image, access, offset, start.saturating_sub(offset))?;
    run(image, access, task, start, count)?;
    write_zeroes(image, access, behind, end.saturating_sub(behind))
}

/// First byte and length of the whole blocks of a block device's in a range, if there are any.
fn whole_blocks(image: &Image, offset: u64, len: u64) -> Option<(u64, u64)> {
    let block = image.device_block();
    let end = offset.saturating_add(len);
    let end = end.saturating_sub(end.checked_rem(block)?);
    let start = offset.checked_next_multiple_of(block)?;
    let count = end.checked_sub(start).filter(|count| *count > 0)?;
    Some((start, count))
}

fn allocate(image: &Handle, mode: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
    let _shared = image.share(offset..offset.saturating_add(len));
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(image.file(), mode, offset, len))
}

/// Whether an error of fallocate means that it can't do this, rather than that it failed.
pub(super) fn refused(errno: i32) -> bool {
    // A block device answers EINVAL to ranges that are no whole blocks of its own.
    [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL]
        .iter()
        .any(|known| known.raw_os_error() == errno)
}

/// Remembers what need not be tried again: what the host can't do at all, rather than not with this
/// range (EINVAL).
pub(super) fn note_refusal(image: &Image, task: Task, errno: i32) {
    if errno == Errno::INVAL.raw_os_error() {
        return;
    }
    let flag = match task {
        Task::Discard => &image.refused.discard,
        Task::Zero { may_unmap: true } => &image.refused.zero_unmap,
        Task::Zero { may_unmap: false } => &image.refused.zero_range,
    };
    if !flag.swap(true, Ordering::Relaxed) {
        let what = match task {
            Task::Discard => "discards nothing",
            Task::Zero { may_unmap: true } => "frees nothing while zeroing",
            Task::Zero { may_unmap: false } => "zeroes no ranges, so zeroes are written",
        };
        tracing::info!("{}: the host {what} there", image.path.display());
    }
}

/// What to do where fallocate can't.
pub(super) fn instead(
    image: &Handle,
    access: &MemoryAccess,
    task: Task,
    offset: u64,
    len: u64,
) -> Result<(), IoFault> {
    match task {
        Task::Discard if image.block_device => discard_blocks(image, offset, len),
        // Zeroes were promised, and writing them is not what was asked for.
        Task::Discard if image.discard_zeroes() => Err(IoFault::Host(libc::EOPNOTSUPP)),
        // A hint, and nothing to take it.
        Task::Discard => Ok(()),
        Task::Zero { may_unmap: true } => {
            run(image, access, Task::Zero { may_unmap: false }, offset, len)
        }
        Task::Zero { may_unmap: false } => write_zeroes(image, access, offset, len),
    }
}

/// BLKDISCARD over the whole blocks of the range.
fn discard_blocks(image: &Handle, offset: u64, len: u64) -> Result<(), IoFault> {
    if image.refused.discard.load(Ordering::Relaxed) {
        return Ok(());
    }
    let Some((start, len)) = whole_blocks(image, offset, len) else {
        return Ok(());
    };
    let _shared = image.share(start..start.saturating_add(len));
    match blkdiscard(image.file(), [start, len]) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => {
            note_refusal(image, Task::Discard, Errno::OPNOTSUPP.raw_os_error());
            Ok(())
        }
        Err(error) => Err(IoFault::from_errno(error.raw_os_error())),
    }
}

#[expect(unsafe_code, reason = "an ioctl that rustix has no function for")]
fn blkdiscard(file: &File, range: [u64; 2]) -> Result<(), Errno> {
    /// `_IO(0x12, 119)` of linux/fs.h.
    const BLKDISCARD: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 119);
    // SAFETY: BLKDISCARD takes a pointer to two u64, offset and length, and only reads them.
    unsafe {
        rustix::ioctl::ioctl(
            file.as_fd(),
            rustix::ioctl::Setter::<BLKDISCARD, [u64; 2]>::new(range),
        )
    }
}

fn write_zeroes(
    image: &Handle,
    access: &MemoryAccess,
    offset: u64,
    len: u64,
) -> Result<(), IoFault> {
    let mut transfer = Transfer::default();
    let mut zeroes = vec![0; usize::try_from(CHUNK.min(len)).unwrap_or(0)];
    let (mut at, mut left) = (offset, len);
    while left > 0 {
        let count = left.min(CHUNK);
        zeroes.truncate(usize::try_from(count).unwrap_or(0));
        transfer.load(Data::Host(zeroes), access)?;
        calls::write(image, &mut transfer, at, false)?;
        zeroes = transfer.clear().unwrap_or_default();
        at = at.saturating_add(count);
        left = left.saturating_sub(count);
    }
    Ok(())
}
