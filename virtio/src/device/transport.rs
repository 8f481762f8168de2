//! The virtio status and feature state machine and the configuration of the queues, for any
//! transport.
//!
//! It decides the meaning and the validity of a driver's register writes. It does not know
//! registers, buses, interrupts or how a device is started: the transport performs the returned
//! [`Transition`]. Sections 2.1, 2.2, 3.1.

use alloc::borrow::ToOwned;
use alloc::vec::Vec;

use thiserror::Error;

use super::queue::{QueueConfig, QueueState, RestoreError, RingFeatures};
use crate::spec::{feature, status};

/// A dependency: `feature` may be negotiated only together with at least one bit of `needs_any`.
/// Both are masks; several bits in `feature` share the condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureRule {
    /// The dependent bits.
    pub feature: u64,
    /// The bits on which they depend.
    pub needs_any: u64,
}

impl FeatureRule {
    fn holds(&self, features: u64) -> bool {
        features & self.feature == 0 || features & self.needs_any != 0
    }
}

/// The action that a write to the status register requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the device has to follow the driver"]
pub enum Transition {
    /// No action.
    None,
    /// The driver wrote 0. Quiesce the device, then call [`Transport::reset`].
    Reset,
    /// The driver accepted features that the device does not support together; FEATURES_OK stays
    /// clear.
    Refused {
        /// The accepted bits.
        accepted: u64,
    },
    /// DRIVER_OK: start the device. Features and queues are frozen.
    Start,
}

/// One device's negotiation with its driver as plain numbers, for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportState {
    /// The status register, without NEEDS_RESET.
    pub status: u8,
    /// The features the driver has accepted so far.
    pub accepted: u64,
    /// All queues; where one is live, as it saves itself.
    pub queues: Vec<QueueState>,
}

/// Why a saved [`TransportState`] is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TransportError {
    /// A status register that no sequence of writes leads to.
    #[error("status {0:#04x} is none that a driver can reach")]
    Status(u8),
    /// The device offers other features than the one that was saved.
    #[error(
        "the driver's features {accepted:#x} are not all offered, or need others; offered are {offered:#x}"
    )]
    Features {
        /// What the driver accepted.
        accepted: u64,
        /// What this device offers.
        offered: u64,
    },
    /// The device has another number of queues.
    #[error("the state has {found} queues, the device {known}")]
    Queues {
        /// Queues in the state.
        found: usize,
        /// Queues of this device.
        known: usize,
    },
    /// One queue's state is refused.
    #[error("queue {index}: {error}")]
    Queue {
        /// Which.
        index: usize,
        /// Why.
        error: RestoreError,
    },
}

/// The negotiation of one device with its driver.
#[derive(Clone, Debug)]
pub struct Transport {
    offered: u64,
    rules: Vec<FeatureRule>,
    accepted: u64,
    status: u8,
    queues: Vec<QueueConfig>,
}

/// Status bits that a driver may set.
const DRIVER_BITS: u8 =
    status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK | status::FAILED;

impl Transport {
    /// Returns the state after reset. `features` are the device's own; the ring features and
    /// VERSION_1 are added. Only features in `mask` are offered, but always VERSION_1, and none
    /// whose dependency is masked. `queue_sizes` are the maximum sizes, one per queue.
    #[must_use]
    pub fn new(features: u64, mask: u64, rules: &[FeatureRule], queue_sizes: &[u16]) -> Self {
        let ring = feature::EVENT_IDX | feature::INDIRECT_DESC;
        let mut offered = ((features | ring) & mask) | feature::VERSION_1;
        // Each iteration removes at least one bit, or is the last.
        while let Some(rule) = rules.iter().find(|rule| !rule.holds(offered)) {
            offered &= !rule.feature;
        }
        Self {
            offered,
            rules: rules.to_owned(),
            accepted: 0,
            status: 0,
            queues: queue_sizes
                .iter()
                .map(|&size| QueueConfig::new(size))
                .collect(),
        }
    }

    /// Returns the offered features.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Returns the features that the driver has accepted so far; final after
    /// [`Transport::features_ok`].
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Returns the accepted ring features.
    #[must_use]
    pub fn ring_features(&self) -> RingFeatures {
        RingFeatures::from_bits(self.accepted)
    }

    /// Returns half `select` of the offered features, or 0 for `select` above 1.
    #[must_use]
    pub fn offered_half(&self, select: u32) -> u32 {
        half(self.offered, select)
    }

    /// Returns half `select` of the accepted features, or 0 for `select` above 1.
    #[must_use]
    pub fn accepted_half(&self, select: u32) -> u32 {
        half(self.accepted, select)
    }

    /// Accepts features for the driver, half by half. Ignored after FEATURES_OK, and for `select`
    /// above 1.
    pub fn accept_half(&mut self, select: u32, bits: u32) {
        if self.features_ok() {
            return;
        }
        let (kept, shift) = match select {
            0 => (0xffff_ffff_0000_0000, 0),
            1 => (0x0000_0000_ffff_ffff, 32),
            _ => return,
        };
        self.accepted = (self.accepted & kept) | (u64::from(bits) << shift);
    }

    /// Returns the status register, without NEEDS_RESET, which belongs to the data side.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Returns whether negotiation is complete.
    #[must_use]
    pub fn features_ok(&self) -> bool {
        self.status & status::FEATURES_OK != 0
    }

    /// Returns whether DRIVER_OK is set.
    #[must_use]
    pub fn driver_ok(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    /// Writes the status register for the driver. Bits can only be added, except by 0, which
    /// resets; DRIVER_OK counts only after FEATURES_OK.
    pub fn write_status(&mut self, value: u8) -> Transition {
        if value == 0 {
            return Transition::Reset;
        }
        let mut new = value & DRIVER_BITS & !self.status;
        let mut transition = Transition::None;
        if new & status::FEATURES_OK != 0 && !self.acceptable() {
            new &= !status::FEATURES_OK;
            transition = Transition::Refused {
                accepted: self.accepted,
            };
        }
        if new & status::DRIVER_OK != 0 {
            if (self.status | new) & status::FEATURES_OK != 0 {
                transition = Transition::Start;
            } else {
                new &= !status::DRIVER_OK;
            }
        }
        self.status |= new;
        transition
    }

    fn acceptable(&self) -> bool {
        self.accepted & !self.offered == 0
            && self.accepted & feature::VERSION_1 != 0
            && self.rules.iter().all(|rule| rule.holds(self.accepted))
    }

    /// Resets the state. To be called once the device is quiesced.
    pub fn reset(&mut self) {
        self.accepted = 0;
        self.status = 0;
        self.queues.iter_mut().for_each(QueueConfig::reset);
    }

    /// Returns the negotiation as plain numbers. Live queues save themselves; here they are as the
    /// driver configured them.
    #[must_use]
    pub fn save(&self) -> TransportState {
        TransportState {
            status: self.status,
            accepted: self.accepted,
            queues: self.queues.iter().map(QueueConfig::save).collect(),
        }
    }

    /// Takes over what was saved, checked against itself and against what this device offers.
    /// Changes nothing if it fails.
    ///
    /// # Errors
    /// The state contradicts itself or the device.
    pub fn restore(&mut self, state: TransportState) -> Result<(), TransportError> {
        let TransportState {
            status,
            accepted,
            queues,
        } = state;
        let negotiated = status & status::FEATURES_OK != 0;
        if status & !DRIVER_BITS != 0 || (status & status::DRIVER_OK != 0 && !negotiated) {
            return Err(TransportError::Status(status));
        }
        if queues.len() != self.queues.len() {
            let (found, known) = (queues.len(), self.queues.len());
            return Err(TransportError::Queues { found, known });
        }
        let mut next = self.clone();
        (next.status, next.accepted) = (status, accepted);
        if negotiated && !next.acceptable() {
            let offered = self.offered;
            return Err(TransportError::Features { accepted, offered });
        }
        for (index, (queue, state)) in next.queues.iter_mut().zip(queues).enumerate() {
            *queue = QueueConfig::restore(queue.max_size(), state)
                .map_err(|error| TransportError::Queue { index, error })?;
        }
        *self = next;
        Ok(())
    }

    /// Returns the number of queues.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// Returns all queues.
    #[must_use]
    pub fn queues(&self) -> &[QueueConfig] {
        &self.queues
    }

    /// Returns queue `index`, if there is one.
    #[must_use]
    pub fn queue(&self, index: u16) -> Option<&QueueConfig> {
        self.queues.get(usize::from(index))
    }

    /// Returns queue `index` if the driver may still change it: it is not enabled and the device
    /// not running.
    pub fn open_queue(&mut self, index: u16) -> Option<&mut QueueConfig> {
        if self.driver_ok() {
            return None;
        }
        self.queues
            .get_mut(usize::from(index))
            .filter(|queue| !queue.ready())
    }
}

fn half(features: u64, select: u32) -> u32 {
    let shown = match select {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    };
    u32::try_from(shown).unwrap_or(0)
}

#[cfg(test)]
mod tests;
