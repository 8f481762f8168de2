//! What the driver may still change about a queue, and its check when the device goes live.
//!
//! It does not know the registers the fields are set through. Sections 2.6 and 2.7.

use thiserror::Error;

use super::queue::ActiveQueue;
use super::state::{ActivateError, InFlight, Part, QueueState, RingFeatures};
use crate::mem::{DeviceRing, GuestRam, RingFault};
use crate::spec::ring::MAX_SIZE;

/// Why a saved state is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// The size is no power of two, or above the device's maximum.
    #[error("queue size {size} is not a power of two up to {max}")]
    Size {
        /// Size in the state.
        size: u16,
        /// The device's maximum.
        max: u16,
    },
    /// The indices are further apart than the queue is long.
    #[error("the indices {next_avail}, {next_used} and {published} do not fit a queue of {size}")]
    Indices {
        /// Next entry of the available ring.
        next_avail: u16,
        /// Next entry of the used ring.
        next_used: u16,
        /// Published used index.
        published: u16,
        /// Queue size.
        size: u16,
    },
    /// A request in flight with an impossible or repeated head or position.
    #[error(
        "request in flight with head {head} at position {position} is out of range or repeated"
    )]
    InFlight {
        /// Its head.
        head: u16,
        /// Its place in the available ring's sequence.
        position: u16,
    },
}

/// What the driver may still change about a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    max_size: u16,
    state: QueueState,
}

impl QueueConfig {
    /// A queue after reset, of at most `max_size` entries: rounded down to a power of two, at least
    /// one and at most [`MAX_SIZE`].
    #[must_use]
    pub fn new(max_size: u16) -> Self {
        let max_size = 1 << max_size.clamp(1, MAX_SIZE).ilog2();
        let state = QueueState {
            size: max_size,
            ..QueueState::default()
        };
        Self { max_size, state }
    }

    /// A queue as it was saved; the state is checked here against itself and, at activation, against
    /// memory and features.
    ///
    /// # Errors
    /// The state contradicts itself or the device.
    pub fn restore(max_size: u16, state: QueueState) -> Result<Self, RestoreError> {
        let mut config = Self::new(max_size);
        let size = state.size;
        if !config.set_size(size) {
            let max = config.max_size;
            return Err(RestoreError::Size { size, max });
        }
        let pending = state.next_avail.wrapping_sub(state.next_used);
        if pending > size || state.next_used.wrapping_sub(state.published) > size {
            return Err(RestoreError::Indices {
                next_avail: state.next_avail,
                next_used: state.next_used,
                published: state.published,
                size,
            });
        }
        let mut heads = alloc::vec![false; usize::from(size)];
        for &InFlight { position, head } in &state.in_flight {
            let refused = RestoreError::InFlight { head, position };
            let head = heads.get_mut(usize::from(head)).ok_or(refused)?;
            if core::mem::replace(head, true) {
                return Err(refused);
            }
        }
        config.state = state;
        Ok(config)
    }

    /// Largest size the device offers.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.state.size
    }

    /// Sets the size; false, and nothing changes, unless it is a power of two up to the maximum.
    pub fn set_size(&mut self, size: u16) -> bool {
        let fits = size.is_power_of_two() && size <= self.max_size;
        if fits {
            self.state.size = size;
        }
        fits
    }

    /// Whether the driver has enabled the queue.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.state.ready
    }

    /// Enables the queue, or not.
    pub fn set_ready(&mut self, ready: bool) {
        self.state.ready = ready;
    }

    /// Guest-physical address of the descriptor table.
    #[must_use]
    pub fn desc(&self) -> u64 {
        self.state.desc
    }

    /// Sets the address of the descriptor table.
    pub fn set_desc(&mut self, addr: u64) {
        self.state.desc = addr;
    }

    /// Guest-physical address of the available ring.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.state.avail
    }

    /// Sets the address of the available ring.
    pub fn set_avail(&mut self, addr: u64) {
        self.state.avail = addr;
    }

    /// Guest-physical address of the used ring.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.state.used
    }

    /// Sets the address of the used ring.
    pub fn set_used(&mut self, addr: u64) {
        self.state.used = addr;
    }

    /// Back to the state after reset.
    pub fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// The configuration as plain numbers; a live queue saves itself.
    #[must_use]
    pub fn save(&self) -> QueueState {
        self.state.clone()
    }

    /// Checks the whole ring against memory and makes it live. What the driver writes into the
    /// registers from now on changes nothing about it.
    ///
    /// # Errors
    /// The queue is not enabled, a part of it is misaligned or outside memory, or a restored state
    /// does not match the features.
    pub fn activate<M: GuestRam>(
        &self,
        ram: M,
        features: RingFeatures,
    ) -> Result<ActiveQueue<M>, ActivateError> {
        let state = &self.state;
        if !state.ready {
            return Err(ActivateError::NotReady);
        }
        state.check_in_flight(features.in_order)?;
        let parts = [state.desc, state.avail, state.used];
        let ring = DeviceRing::map(ram, state.size, features.event_idx, parts);
        let ring = ring.map_err(|(part, fault)| {
            let (part, addr) = match part {
                0 => (Part::Descriptors, state.desc),
                1 => (Part::Available, state.avail),
                _ => (Part::Used, state.used),
            };
            match fault {
                RingFault::Misaligned => ActivateError::Misaligned { part, addr },
                RingFault::OutsideRam => ActivateError::OutsideRam { part, addr },
            }
        })?;
        Ok(ActiveQueue::new(ring, self.max_size, features, state))
    }
}
