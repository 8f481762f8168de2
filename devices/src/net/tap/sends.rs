//! Frames that are sent together: one io_uring_enter for all of them.
//!
//! Besides the system calls this saves switches: whoever waits for a frame on this host is woken by the first and would
//! take the processor between two system calls, to wait again for the second.

#![expect(
    unsafe_code,
    reason = "submission entries hold addresses that stay valid until their completion"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, types};
use libc::iovec;
use splitring_virtio::mem::Segment;
use splitring_virtio::spec::net::Header;
use zerocopy::IntoBytes;

use crate::net::buffers::{self, MAX_SEGMENTS};
use crate::net::port::{MOST_TAKEN, Refusal};

/// Frames taken and not sent yet, and the ring they go through.
pub(super) struct Sends {
    ring: IoUring,
    frames: Vec<Frame>,
    /// All frames' lists for the kernel, one after the other. A header's comes first; its address is filled in when
    /// headers don't move any more.
    vectors: Vec<iovec>,
    /// The headers that were judged: the guest may have changed its own since.
    headers: Vec<Header>,
    /// Frames in more pieces than one call takes, joined.
    joined: Vec<Vec<u8>>,
}

/// Where a frame's list is.
struct Frame {
    first: usize,
    count: usize,
}

// SAFETY: the addresses are only used within `commit`; the segments' come from chains that the caller holds.
unsafe impl Send for Sends {}

impl Sends {
    /// `None` if this host has no io_uring for us.
    pub(super) fn new() -> Option<Self> {
        let ring = restricted()
            .inspect_err(|error| tracing::debug!(%error, "no io_uring for frames"))
            .ok()?;
        Some(Self {
            ring,
            frames: Vec::with_capacity(MOST_TAKEN),
            vectors: Vec::new(),
            headers: Vec::with_capacity(MOST_TAKEN),
            joined: Vec::new(),
        })
    }

    /// Takes a frame, whose segments have to stay until `commit` is over.
    pub(super) fn take(&mut self, header: &Header, frame: &[Segment]) {
        let first = self.vectors.len();
        self.headers.push(*header);
        self.vectors.push(iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: size_of::<Header>(),
        });
        if frame.len() <= MAX_SEGMENTS {
            self.vectors.extend(frame.iter().map(buffers::vector));
        } else {
            let mut bytes = vec![0; buffers::total(frame)];
            buffers::copy_out(frame, &mut bytes);
            self.vectors.push(iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            });
            self.joined.push(bytes);
        }
        let count = self.vectors.len().saturating_sub(first);
        self.frames.push(Frame { first, count });
    }

    /// Sends all frames taken, in their order. `Err`: they are sent, but the ring is of no use.
    pub(super) fn commit(&mut self, file: &File, refused: &mut Vec<Refusal>) -> io::Result<()> {
        for (frame, header) in self.frames.iter().zip(&self.headers) {
            if let Some(vector) = self.vectors.get_mut(frame.first) {
                vector.iov_base = header.as_bytes().as_ptr().cast_mut().cast();
            }
        }
        let (through_ring, done) = match self.frames.len() {
            // Nothing to save.
            0 | 1 => (0, Ok(())),
            _ => self.enter(file, refused),
        };
        for (number, frame) in self.frames.iter().enumerate().skip(through_ring) {
            if let Err(error) = self.write(file, frame) {
                refused.push(Refusal { number, error });
            }
        }
        self.forget();
        done
    }

    /// Forgets the frames taken.
    pub(super) fn forget(&mut self) {
        self.frames.clear();
        self.vectors.clear();
        self.headers.clear();
        self.joined.clear();
    }

    /// One by one.
    fn write(&self, file: &File, frame: &Frame) -> io::Result<()> {
        let list = frame.list(&self.vectors);
        let count = list.len().try_into().unwrap_or(libc::c_int::MAX);
        // SAFETY: the caller's chains keep the segments mapped; headers and joined frames are ours and stay.
        match unsafe { libc::writev(file.as_raw_fd(), list.as_ptr(), count) } {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Gives all frames to the kernel, which sends each when it takes it. How many are dealt with.
    fn enter(&mut self, file: &File, refused: &mut Vec<Refusal>) -> (usize, io::Result<()>) {
        let tap = types::Fd(file.as_raw_fd());
        for (number, frame) in (0..).zip(&self.frames) {
            let list = frame.list(&self.vectors);
            let count = list.len().try_into().unwrap_or(u32::MAX);
            let entry = opcode::Writev::new(tap, list.as_ptr(), count)
                // Refused rather than waited for, so that nothing stays with the kernel.
                .rw_flags(libc::RWF_NOWAIT)
                .build()
                .user_data(number);
            // SAFETY: what the entry points to stays until `commit` is over, and the entry does not outlive that: it
            // is completed when it is taken, or goes with the ring.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                return (0, Err(io::ErrorKind::QuotaExceeded.into()));
            }
        }
        let mut sent = 0;
        let mut done = Ok(());
        while sent < self.frames.len() && done.is_ok() {
            match self.ring.submit() {
                Ok(0) => done = Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => sent = sent.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => done = Err(error),
            }
        }
        match self.judge(refused) {
            Ok(()) => (sent, done),
            Err(unsupported) => (0, Err(unsupported)),
        }
    }

    /// Looks at the answers. A kernel whose tun driver knows no refusing to wait refuses all.
    fn judge(&mut self, refused: &mut Vec<Refusal>) -> io::Result<()> {
        for answer in self.ring.completion() {
            if answer.result() >= 0 {
                continue;
            }
            let error = io::Error::from_raw_os_error(answer.result().saturating_neg());
            if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
                return Err(error);
            }
            let number = usize::try_from(answer.user_data()).unwrap_or(usize::MAX);
            refused.push(Refusal { number, error });
        }
        Ok(())
    }
}

impl Frame {
    fn list<'a>(&self, vectors: &'a [iovec]) -> &'a [iovec] {
        let lists = vectors.get(self.first..).unwrap_or_default();
        lists.get(..self.count).unwrap_or_default()
    }
}

/// A ring that can do nothing but write. It is told the file with each frame: one that it knew would stay open until the
/// kernel has taken the ring down, some time after its end, and the interface busy for whoever comes next.
fn restricted() -> io::Result<IoUring> {
    let depth = MOST_TAKEN.try_into().unwrap_or(u32::MAX);
    let ring = IoUring::builder()
        .setup_r_disabled()
        .setup_submit_all()
        .build(depth)?;
    let mut rules = [Restriction::sqe_op(opcode::Writev::CODE)];
    ring.submitter().register_restrictions(&mut rules)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;

    use splitring_virtio::mem::{Access, GuestRam};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::net::buffers::GuestBuffers;
    use crate::net::port::FramePort;
    use crate::net::tap::port::{Gear, TapPort};
    use crate::pool::Pool;
    use crate::ram::Ram;
    use crate::testing::memory;

    /// Something that takes each write as a message of its own, as an interface does, and its other end.
    fn messages() -> (File, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (File::from(OwnedFd::from(ours)), theirs)
    }

    fn header(number: u8) -> Header {
        Header {
            hdr_len: u16::from(number).into(),
            ..Header::default()
        }
    }

    /// Frames in guest memory.
    struct Guest {
        ram: Ram,
        used: u64,
    }

    impl Guest {
        fn new() -> Self {
            Self {
                ram: memory(),
                used: 0,
            }
        }

        /// A frame full of `byte`, in pieces.
        fn frame(&mut self, byte: u8, len: usize, piece: usize) -> Vec<Segment> {
            let bytes = vec![byte; len];
            let at = self.used;
            self.used += len as u64;
            let mapping = self.ram.mapping();
            mapping.write_slice(&bytes, GuestAddress(at)).unwrap();
            let region = self.ram.region(at, Access::Read).unwrap();
            let starts = (0..len).step_by(piece);
            starts
                .map(|start| {
                    region
                        .segment(at + start as u64, piece.min(len - start))
                        .unwrap()
                })
                .collect()
        }
    }

    /// What arrived, as each message's header number, filling and length; a message that mixes fillings is wrong.
    fn arrived(host: &UnixDatagram) -> Vec<(u8, u8, usize)> {
        let mut bytes = vec![0; 1 << 17];
        let message = |len: usize, bytes: &[u8]| {
            let (head, frame) = bytes[..len].split_at(size_of::<Header>());
            assert!(frame.iter().all(|byte| *byte == frame[0]));
            (head[2], frame[0], frame.len())
        };
        std::iter::from_fn(|| host.recv(&mut bytes).ok().map(|len| message(len, &bytes))).collect()
    }

    #[test]
    fn frames_go_in_order_each_behind_its_header() {
        let (file, host) = messages();
        let mut sends = Sends::new().unwrap();
        let mut guest = Guest::new();
        let mut refused = Vec::new();
        for count in [1, 2, 7] {
            for number in 1..=count {
                let frame = guest.frame(number, 60 + usize::from(number), 16);
                sends.take(&header(number), &frame);
            }
            sends.commit(&file, &mut refused).unwrap();
            let expected: Vec<_> = (1..=count).map(|n| (n, n, 60 + usize::from(n))).collect();
            assert_eq!(arrived(&host), expected);
        }
        assert!(refused.is_empty());
    }

    #[test]
    fn a_ring_is_used_by_one_port_after_the_other_whatever_threads_they_are_on() {
        let (file, host) = messages();
        let file = Arc::new(file);
        let pool = Pool::new([Gear::new(true)]);
        let ring = || {
            let gear = pool.take(0).unwrap();
            gear.get().unwrap().sends().unwrap().ring.as_raw_fd()
        };
        let before = ring();
        let open = || TapPort::new(Arc::clone(&file), pool.take(0).unwrap(), true);
        // Made and dropped unused, as where a start fails half-way.
        drop(open());
        let mut guest = Guest::new();
        for round in 1..=3 {
            let frames: Vec<_> = (0..2).map(|_| guest.frame(round, 60, 16)).collect();
            let left_over = guest.frame(9, 60, 16);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut port = open();
                    let mut refused = Vec::new();
                    for frame in &frames {
                        port.send(&header(round), GuestBuffers::new(frame)).unwrap();
                    }
                    port.commit(&mut refused);
                    assert!(refused.is_empty());
                    // Its buffers are gone when the next port is opened.
                    let left_over = GuestBuffers::new(&left_over);
                    port.send(&header(9), left_over).unwrap();
                });
            });
            assert_eq!(arrived(&host), [(round, round, 60); 2]);
        }
        assert_eq!(ring(), before);
    }

    #[test]
    fn a_frame_in_very_many_pieces_is_joined() {
        let (file, host) = messages();
        let mut sends = Sends::new().unwrap();
        let mut guest = Guest::new();
        sends.take(&header(1), &guest.frame(1, 3000, 1));
        sends.take(&header(2), &guest.frame(2, 60, 60));
        sends.commit(&file, &mut Vec::new()).unwrap();
        assert_eq!(arrived(&host), [(1, 1, 3000), (2, 2, 60)]);
    }

    #[test]
    fn a_frame_the_host_refuses_is_named_and_the_others_go() {
        const TOO_LONG: usize = 1 << 22;
        let (file, host) = messages();
        let mut sends = Sends::new().unwrap();
        let mut guest = Guest::new();
        for (number, len) in [(1, 60), (2, TOO_LONG), (3, 60)] {
            sends.take(&header(number), &guest.frame(number, len, len));
        }
        let mut refused = Vec::new();
        sends.commit(&file, &mut refused).unwrap();
        let named: Vec<_> = refused
            .iter()
            .map(|refusal| (refusal.number, refusal.error.raw_os_error()))
            .collect();
        assert_eq!(named, [(1, Some(libc::EMSGSIZE))]);
        assert_eq!(arrived(&host), [(1, 1, 60), (3, 3, 60)]);
    }

    /// The two ends of a terminal that changes no byte: a file that no write can be refused to wait for, as tun drivers
    /// before Linux 6.4 are.
    fn terminal() -> (File, File) {
        let mut ends = [-1; 2];
        let [ours, theirs] = &mut ends;
        let none = std::ptr::null_mut();
        // SAFETY: the calls fill what they are given; zeroes are settings, and those of no terminal have no name.
        let (done, ends) = unsafe {
            let mut raw = std::mem::zeroed();
            libc::cfmakeraw(&raw mut raw);
            let done = libc::openpty(ours, theirs, none, &raw mut raw, std::ptr::null_mut());
            (done, ends.map(|end| File::from_raw_fd(end)))
        };
        assert_eq!(done, 0);
        ends.into()
    }

    #[test]
    fn where_the_ring_is_of_no_use_all_are_sent_without_it() {
        let (file, mut host) = terminal();
        let mut sends = Sends::new().unwrap();
        let mut guest = Guest::new();
        for number in [1, 2] {
            sends.take(&header(number), &guest.frame(number, 60, 60));
        }
        let mut refused = Vec::new();
        let error = sends.commit(&file, &mut refused).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(refused.is_empty());
        let mut bytes = [0; 2 * 72];
        host.read_exact(&mut bytes).unwrap();
        let expected =
            [[1; 60], [2; 60]].map(|frame| [header(frame[0]).as_bytes(), &frame].concat());
        assert_eq!(bytes, *expected.concat());
    }

    #[test]
    fn the_interface_is_free_as_soon_as_its_port_is_gone() {
        let (file, host) = messages();
        let mut sends = Sends::new().unwrap();
        let mut guest = Guest::new();
        for number in [1, 2] {
            sends.take(&header(number), &guest.frame(number, 60, 60));
        }
        sends.commit(&file, &mut Vec::new()).unwrap();
        drop((sends, file));
        let error = host.send(&[0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
