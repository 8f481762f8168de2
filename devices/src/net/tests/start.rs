//! Cards whose start fails half-way.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::net::passt::Passt;
use crate::testing::faults::every_step_that_fails_leaves_nothing_behind;

/// Fails once, after so many steps.
#[derive(Default)]
struct Fuse(AtomicUsize);

impl Fuse {
    fn step(&self) -> io::Result<()> {
        match self.0.fetch_sub(1, Ordering::SeqCst) {
            0 => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            _ => Ok(()),
        }
    }
}

/// A passt for each queue pair, of which one port is open at a time, as of a TAP interface.
struct Fused {
    fuse: Arc<Fuse>,
    pairs: Vec<(Passt, Arc<Mutex<()>>)>,
    /// What the kernel does not wait for.
    file: Arc<File>,
}

struct FusedPort {
    inner: Box<dyn FramePort>,
    fuse: Arc<Fuse>,
    file: Arc<File>,
    _open: Arc<Mutex<()>>,
}

impl NetBackend for Fused {
    fn max_pairs(&self) -> u16 {
        self.pairs.len() as u16
    }
    fn open_port(&self, pair: u16) -> io::Result<Box<dyn FramePort>> {
        self.fuse.step()?;
        let (passt, open) = &self.pairs[usize::from(pair)];
        assert_eq!(Arc::strong_count(open), 1, "pair {pair} is open already");
        Ok(Box::new(FusedPort {
            inner: passt.open_port(0)?,
            fuse: Arc::clone(&self.fuse),
            file: Arc::clone(&self.file),
            _open: Arc::clone(open),
        }))
    }
    fn set_guest_offloads(&self, _: Offloads) -> io::Result<()> {
        self.fuse.step()
    }
    fn set_pairs(&self, _: u16) -> io::Result<()> {
        self.fuse.step()
    }
}

impl FramePort for FusedPort {
    /// A worker can't take a task in whose descriptor it can't wait for.
    fn fd(&self) -> BorrowedFd<'_> {
        match self.fuse.step() {
            Ok(()) => self.inner.fd(),
            Err(_) => self.file.as_fd(),
        }
    }
    fn receive(&mut self, into: GuestBuffers<'_>) -> io::Result<Option<u64>> {
        self.inner.receive(into)
    }
    fn rest(&self) -> &[u8] {
        self.inner.rest()
    }
    fn send(&mut self, header: &Header, frame: GuestBuffers<'_>) -> io::Result<bool> {
        self.inner.send(header, frame)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[test]
fn a_card_survives_every_start_that_fails() {
    let fuse = Arc::new(Fuse(AtomicUsize::new(usize::MAX)));
    let (streams, mut fars): (Vec<_>, Vec<_>) = (0..2).map(|_| UnixStream::pair().unwrap()).unzip();
    let pair = |stream: UnixStream| (Passt::from_fd(stream.into()).unwrap(), Arc::default());
    let backend = Fused {
        fuse: Arc::clone(&fuse),
        pairs: streams.into_iter().map(pair).collect(),
        file: Arc::new(tempfile::tempfile().unwrap()),
    };
    let config = NetConfig {
        queues: Some(2),
        packets: Some(1_000_000),
        ..NetConfig::default()
    };
    every_step_that_fails_leaves_nothing_behind(
        "net::tests::start::a_card_survives_every_start_that_fails",
        || {
            Arc::new(Net::new(
                "net0",
                MacAddress(MAC),
                &config,
                Arc::new(backend),
            ))
        },
        |step| fuse.0.store(step, Ordering::SeqCst),
        |guest| {
            for (pair, far) in fars.iter_mut().enumerate() {
                // A header and the shortest frame, from the pair's transmit queue.
                let queue = 2 * pair + 1;
                guest.poke(0x1_0000, &[0; 72]);
                guest.offer(queue, &[(0x1_0000, 72, false)]);
                guest.kick(queue as u16);
                guest.wait_used(queue, 1);
                far.read_exact(&mut [0; 4 + 60]).unwrap();
            }
            // One pair at first, says a command that the control queue answers.
            guest.poke(0x2_0000, &[4, 0, 1, 0]);
            guest.poke(0x2_1000, &[0xaa]);
            guest.offer(4, &[(0x2_0000, 4, false), (0x2_1000, 1, true)]);
            guest.kick(4);
            guest.wait_used(4, 1);
            assert_eq!(guest.peek(0x2_1000, 1), [ctrl::OK]);
        },
    );
}
