//! The memory of one request while the host works on it: checked once, then handed to the kernel as an iovec array.
//!
//! This is where guest memory becomes raw pointers for system calls, so the checks are here too: a guest segment is
//! taken only if it lies in the memory the queue keeps mapped, and a front end's buffer is owned until the end.
#![expect(
    unsafe_code,
    reason = "system calls take guest memory as raw iovecs; no Rust reference to it may exist"
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use splitring_virtio::mem::Segment;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

use super::{Data, IoFault};
use crate::ram::Ram;

/// Most iovecs one system call takes (UIO_MAXIOV).
pub(super) const IOV_MAX: usize = 1024;

/// Guest memory and where the host has it mapped: what a segment has to lie in.
#[derive(Clone, Debug)]
pub(super) struct MemoryAccess {
    /// Address and length of each region that there was at the start.
    regions: Vec<(usize, usize)>,
    /// Keeps them mapped, and knows those that came later.
    ram: Ram,
}

impl MemoryAccess {
    pub(super) fn new(ram: Ram) -> Self {
        let mapping = ram.mapping();
        let regions = mapping.iter().map(|region| {
            let len = usize::try_from(region.len()).unwrap_or(0);
            (region.as_ptr().addr(), len)
        });
        Self {
            regions: regions.collect(),
            ram,
        }
    }

    #[inline]
    fn holds(&self, segment: &Segment) -> bool {
        let known = self.regions.iter().any(|(start, len)| {
            let offset = segment.as_ptr().addr().wrapping_sub(*start);
            len.checked_sub(offset)
                .is_some_and(|room| segment.len() <= room)
        });
        known || self.ram.holds(segment.as_ptr(), segment.len())
    }
}

/// What came of a transfer that must not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// All was transferred.
    Done,
    /// Some was.
    Partial,
    /// Nothing, for it would have to wait, or fails.
    WouldWait,
    /// The file system can't be asked not to wait.
    Unsupported,
}

/// preadv2, or its shorter form where that says the same.
fn read(
    file: &File,
    rest: &[libc::iovec],
    offset: libc::off_t,
    flags: libc::c_int,
) -> libc::ssize_t {
    let fd = file.as_raw_fd();
    match rest {
        // SAFETY: the entry is memory that is valid and writable as long as its request, as `load` saw to.
        [one] if flags == 0 => unsafe { libc::pread(fd, one.iov_base, one.iov_len, offset) },
        // SAFETY: as above, for each entry.
        many => unsafe { libc::preadv2(fd, many.as_ptr(), count(many), offset, flags) },
    }
}

/// pwritev2, or its shorter form where that says the same.
fn write(
    file: &File,
    rest: &[libc::iovec],
    offset: libc::off_t,
    flags: libc::c_int,
) -> libc::ssize_t {
    let fd = file.as_raw_fd();
    match rest {
        // SAFETY: the entry is memory that is valid and readable as long as its request, as `load` saw to.
        [one] if flags == 0 => unsafe { libc::pwrite(fd, one.iov_base, one.iov_len, offset) },
        // SAFETY: as above, for each entry.
        many => unsafe { libc::pwritev2(fd, many.as_ptr(), count(many), offset, flags) },
    }
}

fn count(entries: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(entries.len()).unwrap_or(0)
}

/// The memory of a request in flight. Reused from request to request, so that its lists keep their room.
///
/// Whoever loads guest memory into it keeps the `MemoryAccess` it was checked against until it is cleared.
#[derive(Debug, Default)]
pub(super) struct Transfer {
    iov: Vec<libc::iovec>,
    owned: Option<Vec<u8>>,
    /// Bytes in all.
    len: u64,
    /// The first entry of `iov` with bytes left to transfer; it is cut down as they are.
    first: usize,
    /// Bytes left.
    left: u64,
}

// SAFETY: the pointers are to guest memory, which any thread may touch, or into `owned`, which moves along and whose
// bytes stay where they are.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Takes the memory of a request. Empty segments are skipped. On an error nothing is held.
    pub(super) fn load(&mut self, data: Data<'_>, access: &MemoryAccess) -> Result<(), IoFault> {
        self.clear();
        match data {
            Data::Guest(segments) => {
                for segment in segments {
                    if !access.holds(segment) {
                        self.clear();
                        return Err(IoFault::BadMemory);
                    }
                    self.push(segment.as_ptr(), segment.len());
                }
            }
            Data::Host(mut buffer) => {
                self.push(buffer.as_mut_ptr(), buffer.len());
                self.owned = Some(buffer);
            }
        }
        self.left = self.len;
        Ok(())
    }

    fn push(&mut self, base: *mut u8, len: usize) {
        if len > 0 {
            self.iov.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            });
            // A sum of lengths of real memory.
            self.len = self
                .len
                .saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        }
    }

    /// Forgets everything and returns the front end's buffer, if it was one.
    pub(super) fn clear(&mut self) -> Option<Vec<u8>> {
        self.iov.clear();
        (self.len, self.left, self.first) = (0, 0, 0);
        self.owned.take()
    }

    /// Bytes in all.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes not yet transferred.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Where what is left begins on a disk, if the whole begins at `offset`.
    pub(super) fn position(&self, offset: u64) -> u64 {
        offset.saturating_add(self.len.saturating_sub(self.left))
    }

    /// Which bytes of a disk what is left covers, if the whole begins at `offset`.
    pub(super) fn span(&self, offset: u64) -> Range<u64> {
        let start = self.position(offset);
        start..start.saturating_add(self.left)
    }

    /// What is left, for one system call. The memory stays valid as the type says.
    pub(super) fn rest(&self) -> &[libc::iovec] {
        let rest = self.iov.get(self.first..).unwrap_or(&[]);
        rest.get(..IOV_MAX).unwrap_or(rest)
    }

    /// Whether all of it is aligned to `align`, a power of two, in address and length.
    pub(super) fn is_aligned(&self, align: u32) -> bool {
        let Some(mask) = usize::try_from(align)
            .ok()
            .and_then(|align| align.checked_sub(1))
        else {
            return false;
        };
        self.iov
            .iter()
            .all(|part| (part.iov_base.addr() | part.iov_len) & mask == 0)
    }

    /// Takes note that `count` bytes were transferred, at most what is left.
    pub(super) fn advance(&mut self, count: u64) {
        self.left = self.left.saturating_sub(count);
        if self.left == 0 {
            self.first = self.iov.len();
            return;
        }
        let mut count = usize::try_from(count).unwrap_or(usize::MAX);
        while let Some(part) = self.iov.get_mut(self.first) {
            if part.iov_len > count {
                part.iov_base = part.iov_base.wrapping_byte_add(count);
                part.iov_len = part.iov_len.saturating_sub(count);
                return;
            }
            count = count.saturating_sub(part.iov_len);
            self.first = self.first.saturating_add(1);
        }
    }

    /// Fills what is left from `file`, blocking, retrying what comes short.
    pub(super) fn read_at(&mut self, file: &File, offset: u64) -> Result<(), IoFault> {
        self.all_of_it(offset, |rest, offset| read(file, rest, offset, 0))
    }

    /// Stores what is left in `file`, blocking, retrying what comes short; stable at the return if `fua`.
    pub(super) fn write_at(&mut self, file: &File, offset: u64, fua: bool) -> Result<(), IoFault> {
        let flags = if fua { libc::RWF_DSYNC } else { 0 };
        self.all_of_it(offset, |rest, offset| write(file, rest, offset, flags))
    }

    /// Fills from `file` what it has without waiting, by one call.
    pub(super) fn try_read(&mut self, file: &File, offset: u64) -> Attempt {
        self.attempt(offset, |rest, offset| {
            read(file, rest, offset, libc::RWF_NOWAIT)
        })
    }

    /// Stores in `file` what it takes without waiting, by one call.
    pub(super) fn try_write(&mut self, file: &File, offset: u64) -> Attempt {
        self.attempt(offset, |rest, offset| {
            write(file, rest, offset, libc::RWF_NOWAIT)
        })
    }

    fn attempt(
        &mut self,
        offset: u64,
        call: impl Fn(&[libc::iovec], libc::off_t) -> libc::ssize_t,
    ) -> Attempt {
        let Ok(offset) = libc::off_t::try_from(offset) else {
            return Attempt::WouldWait;
        };
        let count = call(self.rest(), offset);
        match u64::try_from(count) {
            Ok(count) => {
                self.advance(count);
                if self.left == 0 {
                    Attempt::Done
                } else {
                    Attempt::Partial
                }
            }
            Err(_) => match io::Error::last_os_error().raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::EINVAL) => Attempt::Unsupported,
                // Any other error is the ring's to find again.
                _ => Attempt::WouldWait,
            },
        }
    }

    fn all_of_it(
        &mut self,
        offset: u64,
        call: impl Fn(&[libc::iovec], libc::off_t) -> libc::ssize_t,
    ) -> Result<(), IoFault> {
        while self.left > 0 {
            let done = self.len.saturating_sub(self.left);
            let at = offset
                .checked_add(done)
                .and_then(|at| libc::off_t::try_from(at).ok());
            let count = call(self.rest(), at.ok_or(IoFault::OutOfRange)?);
            match u64::try_from(count) {
                Ok(0) => return Err(IoFault::Short),
                Ok(count) => self.advance(count),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error.into()),
                },
            }
        }
        Ok(())
    }

    /// Copies the next `bytes.len()` bytes, which are at most what is left, out of `bytes` and advances.
    pub(super) fn fill_from(&mut self, bytes: &[u8]) {
        self.copy(bytes.len(), |slice, at| {
            if let Some(bytes) = bytes.get(at..) {
                slice.copy_from(bytes);
            }
        });
    }

    /// Copies the next `bytes.len()` bytes, which are at most what is left, into `bytes` and advances.
    pub(super) fn copy_into(&mut self, bytes: &mut [u8]) {
        self.copy(bytes.len(), |slice, at| {
            if let Some(bytes) = bytes.get_mut(at..) {
                slice.copy_to(bytes);
            }
        });
    }

    fn copy(&mut self, len: usize, mut step: impl FnMut(&VolatileSlice<'_>, usize)) {
        let mut at = 0_usize;
        while let Some(part) = self.iov.get(self.first).filter(|_| at < len) {
            let count = part.iov_len.min(len.saturating_sub(at));
            // SAFETY: the entry is valid memory as long as this request, as `load` saw to, and the slice does not
            // outlive this turn. Volatile copies tolerate a guest that writes it meanwhile.
            let slice = unsafe { VolatileSlice::new(part.iov_base.cast(), count) };
            step(&slice, at);
            at = at.saturating_add(count);
            self.advance(u64::try_from(count).unwrap_or(0));
        }
    }
}
