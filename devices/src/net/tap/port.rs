//! One queue of a TAP interface as a port: frames read one by one, and sent many at a time where that can be.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use splitring_virtio::mem::Segment;
use splitring_virtio::spec::net::Header;
use zerocopy::IntoBytes;

use super::sends::Sends;
use crate::log;
use crate::net::buffers::{self, Vectors};
use crate::net::port::{FramePort, Refusal};
use crate::throttle::Throttle;

/// Room for all of the longest frame and then some, so that one still longer shows.
const SPILL: usize = 66 << 10;

pub(super) struct TapPort {
    file: Arc<File>,
    vectors: Vectors,
    /// What the last frame had left, in the first `spilled` bytes.
    spill: Vec<u8>,
    spilled: usize,
    /// `None` where frames are sent one by one.
    sends: Option<Sends>,
    /// The queue's, so that a reset does not renew it.
    throttle: Arc<Throttle>,
}

impl TapPort {
    /// A port that sends many frames at a time, unless this host can't or frames may have to wait: then the others
    /// would overtake the one that does.
    pub(super) fn new(file: Arc<File>, has_room: bool, throttle: Arc<Throttle>) -> Self {
        Self {
            sends: has_room.then(Sends::new).flatten(),
            file,
            vectors: Vectors::default(),
            spill: vec![0; SPILL],
            spilled: 0,
            throttle,
        }
    }
}

impl FramePort for TapPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn receive(&mut self, into: &[Segment]) -> io::Result<Option<u64>> {
        let answer = self
            .vectors
            .read(self.file.as_fd(), into, &mut self.spill)?;
        let len = answer.and_then(|len| usize::try_from(len).ok());
        self.spilled = len.map_or(0, |len| len.saturating_sub(buffers::total(into)));
        Ok(answer)
    }

    fn rest(&self) -> &[u8] {
        self.spill.get(..self.spilled).unwrap_or_default()
    }

    fn send(&mut self, header: &Header, frame: &[Segment]) -> io::Result<bool> {
        if let Some(sends) = &mut self.sends {
            sends.take(header, frame);
            return Ok(true);
        }
        // The header is the copy that was judged: the guest may have changed its own since.
        let written = self
            .vectors
            .write(self.file.as_fd(), header.as_bytes(), frame)?;
        Ok(written.is_some())
    }

    fn commit(&mut self, refused: &mut Vec<Refusal>) {
        let Some(sends) = &mut self.sends else { return };
        if let Err(error) = sends.commit(&self.file, refused) {
            log::info!(self.throttle, %error, "frames are sent one by one from now on");
            self.sends = None;
        }
    }
}
