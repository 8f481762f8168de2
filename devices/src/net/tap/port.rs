//! One queue of a TAP interface as a port: frames read one by one, and sent many at a time where that can be.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use splitring_virtio::spec::net::Header;
use zerocopy::IntoBytes;

use super::sends::Sends;
use crate::log;
use crate::net::buffers::{GuestBuffers, Vectors};
use crate::net::port::{FramePort, Refusal};
use crate::pool::Lease;
use crate::throttle::Throttle;

/// Room for all of the longest frame and then some, so that one still longer shows.
const SPILL: usize = 66 << 10;

/// What a port works with. It is made when the interface is opened and waits there while no port is open: a driver that
/// starts the card makes nothing new, and a reset loop costs nothing.
pub(super) struct Gear {
    vectors: Vectors,
    /// For what a frame has left.
    spill: Vec<u8>,
    /// `None` where frames are sent one by one.
    sends: Option<Sends>,
    throttle: Throttle,
}

impl Gear {
    /// With a ring that sends many frames at a time, if `together` and the host has one for us.
    pub(super) fn new(together: bool) -> Self {
        Self {
            vectors: Vectors::default(),
            spill: vec![0; SPILL],
            sends: together.then(Sends::new).flatten(),
            throttle: Throttle::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn sends(&self) -> Option<&Sends> {
        self.sends.as_ref()
    }
}

pub(super) struct TapPort {
    file: Arc<File>,
    gear: Lease<Gear>,
    /// How much of the spill is the last frame's.
    spilled: usize,
    /// Frames may be sent together.
    together: bool,
}

impl TapPort {
    /// The port of the queue `file`. It sends many frames at a time only if `together`: where frames may have to wait,
    /// the others would overtake the one that does.
    pub(super) fn new(file: Arc<File>, mut gear: Lease<Gear>, together: bool) -> Self {
        // Whoever had it before may have gone without a commit; the buffers are gone, too.
        if let Some(sends) = gear.get_mut().and_then(|gear| gear.sends.as_mut()) {
            sends.forget();
        }
        Self {
            file,
            gear,
            spilled: 0,
            together,
        }
    }

    /// What frames are sent together with, if they are.
    fn sends(&mut self) -> Option<&mut Sends> {
        let sends = self.gear.get_mut()?.sends.as_mut();
        sends.filter(|_| self.together)
    }
}

impl FramePort for TapPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn receive(&mut self, into: GuestBuffers<'_>) -> io::Result<Option<u64>> {
        let Some(gear) = self.gear.get_mut() else {
            return Ok(None);
        };
        let answer = gear
            .vectors
            .read(self.file.as_fd(), into.segments(), &mut gear.spill)?;
        let len = answer.and_then(|len| usize::try_from(len).ok());
        self.spilled = len.map_or(0, |len| len.saturating_sub(into.len()));
        Ok(answer)
    }

    fn rest(&self) -> &[u8] {
        let spill = self.gear.get().map_or(&[][..], |gear| &gear.spill);
        spill.get(..self.spilled).unwrap_or_default()
    }

    fn send(&mut self, header: &Header, frame: GuestBuffers<'_>) -> io::Result<bool> {
        if let Some(sends) = self.sends() {
            sends.take(header, frame.segments());
            return Ok(true);
        }
        // The header is the copy that was judged: the guest may have changed its own since.
        let Some(gear) = self.gear.get_mut() else {
            return Ok(false);
        };
        let written = gear
            .vectors
            .write(self.file.as_fd(), header.as_bytes(), frame.segments())?;
        Ok(written.is_some())
    }

    fn commit(&mut self, refused: &mut Vec<Refusal>) {
        let Some(gear) = self.gear.get_mut().filter(|_| self.together) else {
            return;
        };
        let Some(sends) = &mut gear.sends else { return };
        if let Err(error) = sends.commit(&self.file, refused) {
            log::info!(gear.throttle, %error, "frames are sent one by one from now on");
            gear.sends = None;
        }
    }
}
