//! The configuration of a queue, which the driver may change, and its validation when the queue is
//! activated.
//!
//! This module does not know the registers through which the fields are set. Sections 2.6 and 2.7.

use thiserror::Error;

use super::queue::ActiveQueue;
use super::state::{ActivateError, InFlight, Part, QueueState, RingFeatures};
use crate::mem::{DeviceRing, GuestRam, RingFault};
use crate::spec::ring::MAX_SIZE;

/// Why a saved state is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// The size is not a power of two, or exceeds the device's maximum.
    #[error("queue size {size} is not a power of two up to {max}")]
    Size {
        /// Size in the state.
        size: u16,
        /// The device's maximum.
        max: u16,
    },
    /// The indices are further apart than the queue size.
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
    /// A request in flight has an impossible or repeated head or position.
    #[error(
        "request in flight with head {head} at position {position} is out of range or repeated"
    )]
    InFlight {
        /// Its head.
        head: u16,
        /// Its position in the available ring.
        position: u16,
    },
}

/// The configuration of a queue, which the driver may change until activation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    max_size: u16,
    state: QueueState,
}

impl QueueConfig {
    /// Returns the configuration after reset. `max_size` is rounded down to a power of two, at
    /// least one and at most [`MAX_SIZE`].
    #[must_use]
    pub fn new(max_size: u16) -> Self {
        let max_size = 1 << max_size.clamp(1, MAX_SIZE).ilog2();
        let state = QueueState {
            size: max_size,
            ..QueueState::default()
        };
        Self { max_size, state }
    }

    /// Returns the configuration of a saved queue. The state is checked for consistency here, and
    /// against memory and features at activation.
    ///
    /// # Errors
    /// The state is inconsistent, or impossible for the device.
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

    /// Returns the maximum size that the device offers.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Returns the number of entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.state.size
    }

    /// Sets the size. Returns false, and changes nothing, unless it is a power of two up to the
    /// maximum.
    pub fn set_size(&mut self, size: u16) -> bool {
        let fits = size.is_power_of_two() && size <= self.max_size;
        if fits {
            self.state.size = size;
        }
        fits
    }

    /// Returns whether the driver has enabled the queue.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.state.ready
    }

    /// Enables or disables the queue.
    pub fn set_ready(&mut self, ready: bool) {
        self.state.ready = ready;
    }

    /// Returns the guest-physical address of the descriptor table.
    #[must_use]
    pub fn desc(&self) -> u64 {
        self.state.desc
    }

    /// Sets the address of the descriptor table.
    pub fn set_desc(&mut self, addr: u64) {
        self.state.desc = addr;
    }

    /// Returns the guest-physical address of the available ring.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.state.avail
    }

    /// Sets the address of the available ring.
    pub fn set_avail(&mut self, addr: u64) {
        self.state.avail = addr;
    }

    /// Returns the guest-physical address of the used ring.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.state.used
    }

    /// Sets the address of the used ring.
    pub fn set_used(&mut self, addr: u64) {
        self.state.used = addr;
    }

    /// Resets the configuration.
    pub fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Returns the configuration as plain data. An active queue is saved by [`ActiveQueue::save`].
    #[must_use]
    pub fn save(&self) -> QueueState {
        self.state.clone()
    }

    /// Checks the whole ring against memory and activates the queue. Later register writes of the
    /// driver have no effect on the active queue.
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
