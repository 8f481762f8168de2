//! Frames between guest memory and a file descriptor or a buffer of ours.
//!
//! The segments come from chains that the caller holds, so the memory behind them stays mapped; the
//! guest may write it at any time, so nothing here makes a reference to it.

#![expect(
    unsafe_code,
    reason = "the kernel and we copy frames from and to guest memory by address"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, iovec};
use splitring_virtio::mem::Segment;

/// Segments one system call takes beside a buffer of ours (`IOV_MAX` is 1024); longer lists are joined first.
pub(super) const MAX_SEGMENTS: usize = 1023;

/// A length as it is counted on the wire.
pub(super) fn wire_len(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// A list for the kernel, reused from frame to frame.
#[derive(Default)]
pub(super) struct Vectors(Vec<iovec>);

// SAFETY: the addresses in the list are only used within one call, which fills it anew.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Reads into `into`, at most [`MAX_SEGMENTS`], and then `rest`; the number of bytes, or `None` if nothing waits.
    pub(super) fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        into: &[Segment],
        rest: &mut [u8],
    ) -> io::Result<Option<u64>> {
        self.0.clear();
        self.0.extend(into.iter().map(vector));
        self.0.push(iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        });
        // SAFETY: the caller's chains keep the segments mapped, and `rest` lives across the call.
        answer(unsafe { libc::readv(fd.as_raw_fd(), self.0.as_ptr(), self.count()) })
    }

    /// Writes `head` and then `from`; the number of bytes, or `None` if there is no room.
    pub(super) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        head: &[u8],
        from: &[Segment],
    ) -> io::Result<Option<u64>> {
        let mut joined = Vec::new();
        self.0.clear();
        self.0.push(iovec {
            iov_base: head.as_ptr().cast_mut().cast(),
            iov_len: head.len(),
        });
        if from.len() <= MAX_SEGMENTS {
            self.0.extend(from.iter().map(vector));
        } else {
            joined.resize(total(from), 0);
            copy_out(from, &mut joined);
            self.0.push(iovec {
                iov_base: joined.as_mut_ptr().cast(),
                iov_len: joined.len(),
            });
        }
        // SAFETY: `head` and `joined` live across the call; segments as in `read`.
        answer(unsafe { libc::writev(fd.as_raw_fd(), self.0.as_ptr(), self.count()) })
    }

    fn count(&self) -> c_int {
        self.0.len().try_into().unwrap_or(c_int::MAX)
    }
}

/// Guest memory that a port may use during one call.
///
/// Only a card makes one, from the chains that it holds. Segments that a port keeps beyond the call may have become
/// somebody else's memory.
#[derive(Clone, Copy, Debug)]
pub struct GuestBuffers<'a>(&'a [Segment]);

impl<'a> GuestBuffers<'a> {
    /// `segments` are those of chains that the caller holds.
    pub(super) fn new(segments: &'a [Segment]) -> Self {
        Self(segments)
    }

    /// The segments, for system calls that take addresses.
    #[must_use]
    pub fn segments(self) -> &'a [Segment] {
        self.0
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(self) -> usize {
        total(self.0)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Stores `parts`, one behind the other, from the front. What does not fit is left out.
    pub fn store(self, parts: &[&[u8]]) {
        copy_in(parts, self.0);
    }

    /// Fills `bytes` from the front of the memory. What is beyond its end stays as it is.
    pub fn fetch(self, bytes: &mut [u8]) {
        copy_out(self.0, bytes);
    }
}

/// Bytes of all segments.
pub(super) fn total(segments: &[Segment]) -> usize {
    segments
        .iter()
        .map(Segment::len)
        .fold(0, usize::saturating_add)
}

/// Fills `to` from the front of `from`; what `from` lacks is left as it is.
pub(super) fn copy_out(from: &[Segment], to: &mut [u8]) {
    let mut rest = to;
    for segment in from {
        let Some((now, later)) = rest.split_at_mut_checked(segment.len().min(rest.len())) else {
            return;
        };
        // SAFETY: the segment is mapped for its length, `now` is not guest memory.
        unsafe { std::ptr::copy_nonoverlapping(segment.as_ptr(), now.as_mut_ptr(), now.len()) };
        rest = later;
    }
}

/// Copies `from` to the front of `to`; what does not fit is left out.
pub(super) fn copy_in(from: &[&[u8]], to: &[Segment]) {
    let mut segments = to.iter().copied();
    let mut room = segments.next();
    for mut bytes in from.iter().copied() {
        while let (Some(segment), false) = (room, bytes.is_empty()) {
            let count = segment.len().min(bytes.len());
            let (Some((_, left)), Some((now, later))) =
                (segment.split_at(count), bytes.split_at_checked(count))
            else {
                return;
            };
            // SAFETY: as in `copy_out`, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), segment.as_ptr(), count) };
            bytes = later;
            room = if left.is_empty() {
                segments.next()
            } else {
                Some(left)
            };
        }
    }
}

/// A segment as the kernel takes it.
pub(super) fn vector(segment: &Segment) -> iovec {
    iovec {
        iov_base: segment.as_ptr().cast(),
        iov_len: segment.len(),
    }
}

/// A transfer's count; `None` where it would block.
fn answer(count: isize) -> io::Result<Option<u64>> {
    if let Ok(count) = u64::try_from(count) {
        return Ok(Some(count));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(None),
        _ => Err(error),
    }
}
