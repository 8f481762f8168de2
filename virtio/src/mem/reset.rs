//! Proof that a device has been reset, which is required to return buffers in flight.
//!
//! A queue records its device and when it was set up. A proof names a device and the time of its
//! reset, so neither another device's reset nor an earlier one can return buffers.

use core::sync::atomic::{AtomicU32, Ordering};

/// Counts devices and resets, so that each has a unique number and later ones have larger numbers.
static CLOCK: AtomicU32 = AtomicU32::new(1);

fn tick() -> u32 {
    CLOCK.fetch_add(1, Ordering::Relaxed)
}

/// The identity of a device.
#[derive(Debug, PartialEq, Eq)]
pub struct DeviceId(u32);

impl DeviceId {
    /// Returns a new identity. The driver of the device creates one and keeps it.
    #[expect(clippy::new_without_default, reason = "each call makes another device")]
    pub fn new() -> Self {
        Self(tick())
    }

    /// Returns the record of a queue of this device that is set up now.
    pub(crate) fn now(&self) -> SetUp {
        SetUp {
            device: self.0,
            at: tick(),
        }
    }

    /// Returns the proof that the device has just been reset.
    ///
    /// # Safety
    /// The device must have been reset: for example it returned status 0 after 0 was written, or
    /// there is no device; and it must not access any memory that it was given before.
    pub unsafe fn was_reset(&self) -> ResetProof {
        self.reset_seen()
    }

    /// As [`was_reset`](Self::was_reset), for this crate's transport, which reads the status
    /// register through an `unsafe trait`.
    pub(crate) fn reset_seen(&self) -> ResetProof {
        ResetProof {
            device: self.0,
            at: tick(),
        }
    }
}

/// The device of a queue, and when the queue was set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SetUp {
    device: u32,
    at: u32,
}

impl SetUp {
    /// Returns whether the proof is of this device and later than the set-up.
    pub(crate) const fn ended_by(self, proof: &ResetProof) -> bool {
        // Wrap-safe for a queue that exists during fewer than 2^31 resets.
        self.device == proof.device && proof.at.wrapping_sub(self.at) < 1 << 31
    }

    /// Returns the record of the same device, from now on.
    pub(crate) fn restarted(self) -> Self {
        Self {
            device: self.device,
            at: tick(),
        }
    }
}

/// The proof that a device was reset; see [`DeviceId::was_reset`]. It makes queues of that device
/// that were set up earlier return their buffers.
#[derive(Debug)]
pub struct ResetProof {
    device: u32,
    at: u32,
}
