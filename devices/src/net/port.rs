//! The host's end of a network device, whatever it is: a backend with one port a queue pair.
//!
//! A frame on a port has a [`Header`] in front, in both directions; one of zeroes leaves nothing to be finished. Ports
//! know no virtqueue: they get guest memory and move bytes.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use splitring_virtio::spec::net::Header;

use super::buffers::GuestBuffers;
use super::vhost::Vhost;

bitflags::bitflags! {
    /// Work that one side may leave to the other.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// Partial checksums.
        const CSUM = 1;
        /// TCP over IPv4 segmentation.
        const TSO4 = 1 << 1;
        /// TCP over IPv6 segmentation.
        const TSO6 = 1 << 2;
        /// Segmentation of packets with ECN.
        const ECN = 1 << 3;
        /// UDP fragmentation.
        const UFO = 1 << 4;
        /// UDP segmentation.
        const USO = 1 << 5;
    }
}

/// Where a device's frames go to and come from. Shared by the control path and the ports.
///
/// The methods with a default are those of a backend without offloads and with one queue pair.
pub trait NetBackend: Send + Sync {
    /// What the host takes from the guest, and the guest may be given, unfinished.
    fn offloads(&self) -> Offloads {
        Offloads::empty()
    }

    /// Most queue pairs.
    fn max_pairs(&self) -> u16 {
        1
    }

    /// Opens the port of queue pair `pair`, below [`max_pairs`](Self::max_pairs). Only one is open at a time. Called
    /// each time that the guest starts the card.
    ///
    /// # Errors
    /// The card then asks the guest for a reset.
    fn open_port(&self, pair: u16) -> io::Result<Box<dyn FramePort>>;

    /// The kernel's devices, where those move the frames and no port does, and the interface's queues.
    #[doc(hidden)]
    fn vhost(&self) -> Option<(&Vhost, &[Arc<File>])> {
        None
    }

    /// The host's name for the interface, if it has one that nobody else on this host has.
    fn interface(&self) -> Option<&str> {
        None
    }

    /// What received frames may leave to the guest from now on.
    ///
    /// # Errors
    /// The host refuses.
    fn set_guest_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let _ = offloads;
        Ok(())
    }

    /// How many pairs, from the first on, the guest listens at.
    ///
    /// # Errors
    /// The host refuses.
    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        let _ = pairs;
        Ok(())
    }
}

/// Frames that a port may take before it sends them.
pub const MOST_TAKEN: usize = 64;

/// A frame that was taken and could not be sent.
#[derive(Debug)]
pub struct Refusal {
    /// Which of those taken, from 0.
    pub number: usize,
    /// The host's answer.
    pub error: io::Error,
}

/// One queue pair's frames, used by one thread.
pub trait FramePort: Send {
    /// Becomes readable when frames wait, and writable when frames can be sent; watched edge-triggered.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Stores the next frame, header first, into `into`, no more segments than one call takes, and returns its length with
    /// the header. `None`: none waits.
    ///
    /// The length of a frame longer than `into` is more than `into` holds; what is left of it is [`rest`](Self::rest):
    /// all of it, its header first, where `into` is empty.
    fn receive(&mut self, into: GuestBuffers<'_>) -> io::Result<Option<u64>>;

    /// What the last frame received had left, until the next is received.
    fn rest(&self) -> &[u8];

    /// Sends a frame behind `header`, or takes it to be sent by [`commit`](Self::commit), at most [`MOST_TAKEN`] in
    /// between: until then the caller keeps the memory. `false`: there is no room now; the frame was not taken.
    fn send(&mut self, header: &Header, frame: GuestBuffers<'_>) -> io::Result<bool>;

    /// Sends what was taken since the last time; adds to `refused` what the host would not have.
    fn commit(&mut self, refused: &mut Vec<Refusal>) {
        let _ = refused;
    }

    /// Goes on with what was taken and not sent yet. Called whenever the descriptor was ready.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
