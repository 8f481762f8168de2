//! A queue as plain data: its features, its state in a snapshot, and why it can't be activated.

use alloc::vec::Vec;

use thiserror::Error;

use crate::spec::feature;

/// The negotiated features that change how a ring works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// Event indices instead of flags (section 2.7.10).
    pub event_idx: bool,
    /// Indirect descriptor tables (section 2.7.5.3).
    pub indirect: bool,
    /// Buffers are used in the order in which they became available (section 2.7.9).
    pub in_order: bool,
}

impl RingFeatures {
    /// The feature bits an [`ActiveQueue`](super::queue::ActiveQueue) can honour.
    pub const SUPPORTED: u64 = feature::EVENT_IDX | feature::INDIRECT_DESC | feature::IN_ORDER;

    /// Selects them from a device's negotiated features.
    #[must_use]
    pub const fn from_bits(features: u64) -> Self {
        Self {
            event_idx: features & feature::EVENT_IDX != 0,
            indirect: features & feature::INDIRECT_DESC != 0,
            in_order: features & feature::IN_ORDER != 0,
        }
    }
}

/// A part of a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Descriptor table.
    Descriptors,
    /// Available ring.
    Available,
    /// Used ring.
    Used,
}

impl core::fmt::Display for Part {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptor table",
            Self::Available => "available ring",
            Self::Used => "used ring",
        })
    }
}

/// Why a queue can't be activated: an error of the driver, or an inconsistent saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ActivateError {
    /// The driver has not enabled it.
    #[error("the driver has not enabled the queue")]
    NotReady,
    /// An address is not aligned as required by section 2.7.
    #[error("the {part} at {addr:#x} is misaligned")]
    Misaligned {
        /// Which part.
        part: Part,
        /// Its guest-physical address.
        addr: u64,
    },
    /// A part is not completely inside one region of guest memory.
    #[error("the {part} at {addr:#x} does not lie in one region of guest memory")]
    OutsideRam {
        /// Which part.
        part: Part,
        /// Its guest-physical address.
        addr: u64,
    },
    /// The requests in flight of a restored state do not match its indices.
    #[error("the saved state lists {listed} requests in flight where its indices say {counted}")]
    InFlight {
        /// Requests listed.
        listed: u16,
        /// Requests between the two indices.
        counted: u16,
    },
    /// A request in flight of a restored state, with IN_ORDER, is outside the indices or repeated.
    #[error("the saved request with head {head} can't be at position {position}")]
    Position {
        /// Its head.
        head: u16,
        /// Its place in the available ring's sequence.
        position: u16,
    },
}

/// A request that was popped and not completed when a queue was saved, and on which nobody had
/// begun to work: a receive buffer without a frame, or a request that a rate limit holds back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Its place in the available ring's sequence.
    pub position: u16,
    /// Its head.
    pub head: u16,
}

/// A queue as plain data, for a snapshot. Guest memory has the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Entries.
    pub size: u16,
    /// Whether the driver has enabled the queue.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// Next entry of the available ring to pop.
    pub next_avail: u16,
    /// Next entry of the used ring to fill.
    pub next_used: u16,
    /// The published used index.
    pub published: u16,
    /// Entries were published without a decision about an interrupt: the restored queue decides
    /// when it publishes next.
    pub undecided: bool,
    /// Requests popped and not completed: a restored queue returns them first. The available ring
    /// no longer says which they are, since the driver may have reused their entries.
    pub in_flight: Vec<InFlight>,
    /// The queue was broken, and stays so until it is reset; no request is in flight then.
    pub broken: bool,
}

impl QueueState {
    /// Compares the requests in flight with the indices.
    pub(super) fn check_in_flight(&self, in_order: bool) -> Result<(), ActivateError> {
        let counted = self.next_avail.wrapping_sub(self.next_used);
        if !in_order {
            let listed = u16::try_from(self.in_flight.len()).unwrap_or(u16::MAX);
            return if listed == counted {
                Ok(())
            } else {
                Err(ActivateError::InFlight { listed, counted })
            };
        }
        // With IN_ORDER, a position missing from the list is completed and waits for an earlier
        // one.
        let mut taken = alloc::vec![false; usize::from(counted)];
        for &InFlight { position, head } in &self.in_flight {
            let age = usize::from(position.wrapping_sub(self.next_used));
            match taken.get_mut(age) {
                Some(taken) if !*taken => *taken = true,
                _ => return Err(ActivateError::Position { head, position }),
            }
        }
        Ok(())
    }

    /// Sorts the requests in flight by the order in which they became available.
    pub(super) fn sort_in_flight(&mut self) {
        let next = self.next_avail;
        self.in_flight
            .sort_unstable_by_key(|it| core::cmp::Reverse(next.wrapping_sub(it.position)));
    }
}
