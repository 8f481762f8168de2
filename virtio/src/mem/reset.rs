//! Proof that a device has been reset, without which no buffer in flight is given back.
//!
//! A queue remembers which device it belongs to and when it was set up. A proof names a device and
//! the time of its reset, so neither another device's reset nor an earlier one can free anything.

use core::sync::atomic::{AtomicU32, Ordering};

/// Counts devices and resets, so that each has a number of its own and a later one a larger number.
static CLOCK: AtomicU32 = AtomicU32::new(1);

fn tick() -> u32 {
    CLOCK.fetch_add(1, Ordering::Relaxed)
}

/// One device, as its transport knows it.
#[derive(Debug, PartialEq, Eq)]
pub struct DeviceId(u32);

impl DeviceId {
    /// A new device. Whoever drives the device makes one and keeps it.
    #[expect(clippy::new_without_default, reason = "each call makes another device")]
    pub fn new() -> Self {
        Self(tick())
    }

    /// What a queue of this device that is set up now remembers.
    pub(crate) fn now(&self) -> SetUp {
        SetUp {
            device: self.0,
            at: tick(),
        }
    }

    /// The device has just been reset.
    ///
    /// # Safety
    /// It has: it read back status 0 after 0 was written, say, or there is no device, and it will
    /// not touch any memory it was told of before.
    pub unsafe fn was_reset(&self) -> ResetProof {
        self.reset_seen()
    }

    /// For this crate's transport, which reads the status register through an `unsafe trait`.
    pub(crate) fn reset_seen(&self) -> ResetProof {
        ResetProof {
            device: self.0,
            at: tick(),
        }
    }
}

/// Which device a queue belongs to, and since when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SetUp {
    device: u32,
    at: u32,
}

impl SetUp {
    /// Whether the proof is of this device and later than the set-up.
    pub(crate) const fn ended_by(self, proof: &ResetProof) -> bool {
        // Wrap-safe for a queue that lives through fewer than 2^31 resets.
        self.device == proof.device && proof.at.wrapping_sub(self.at) < 1 << 31
    }

    /// The same device, from now on.
    pub(crate) fn restarted(self) -> Self {
        Self {
            device: self.device,
            at: tick(),
        }
    }
}

/// A device was reset; see [`DeviceId::was_reset`]. Queues of that device which were set up before
/// give their buffers back for it.
#[derive(Debug)]
pub struct ResetProof {
    device: u32,
    at: u32,
}
