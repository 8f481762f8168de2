//! The virtio status and feature state machine and the configuration of the queues, for any
//! transport.
//!
//! It decides the meaning and the validity of a driver's register writes. It does not know
//! registers, buses, interrupts or how a device is started: the transport performs the returned
//! [`Transition`]. Sections 2.1, 2.2, 3.1.

use alloc::borrow::ToOwned;
use alloc::vec::Vec;

use super::queue::{QueueConfig, RingFeatures};
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
mod tests {
    use super::*;

    const CSUM: u64 = 1;
    const TSO: u64 = 1 << 11;
    const ECN: u64 = 1 << 13;
    const RULES: [FeatureRule; 2] = [
        FeatureRule {
            feature: ECN,
            needs_any: TSO,
        },
        FeatureRule {
            feature: TSO,
            needs_any: CSUM,
        },
    ];

    fn transport() -> Transport {
        Transport::new(CSUM | TSO | ECN, u64::MAX, &RULES, &[256, 64])
    }

    fn accept(transport: &mut Transport, features: u64) {
        for select in 0..2 {
            transport.accept_half(select, half(features, select));
        }
    }

    fn negotiated(features: u64) -> Transport {
        let mut transport = transport();
        accept(&mut transport, features);
        let _ = transport.write_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        transport
    }

    #[test]
    fn features_outside_the_offer_without_version_1_or_without_their_dependency_are_refused() {
        let v1 = feature::VERSION_1;
        for (features, ok) in [
            (v1, true),
            (v1 | CSUM | TSO | ECN, true),
            (v1 | feature::EVENT_IDX | feature::INDIRECT_DESC, true),
            (0, false),
            (CSUM, false),
            (v1 | 1 << 5, false),
            (v1 | feature::RING_PACKED, false),
            (v1 | TSO, false),
            (v1 | CSUM | ECN, false),
            (u64::MAX, false),
        ] {
            let mut transport = transport();
            accept(&mut transport, features);
            let transition = transport.write_status(status::DRIVER | status::FEATURES_OK);
            assert_eq!(transport.features_ok(), ok, "{features:#x}");
            let refused = Transition::Refused { accepted: features };
            let wanted = if ok { Transition::None } else { refused };
            assert_eq!(transition, wanted, "{features:#x}");
            // The driver may try again with less.
            if !ok {
                accept(&mut transport, v1);
                let _ = transport.write_status(status::FEATURES_OK);
                assert!(transport.features_ok());
            }
        }
    }

    #[test]
    fn a_mask_takes_dependents_away_too_but_never_version_1() {
        let masked = Transport::new(CSUM | TSO | ECN, !CSUM, &RULES, &[]);
        assert_eq!(
            masked.offered(),
            feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC
        );
        let none = Transport::new(CSUM, 0, &RULES, &[]);
        assert_eq!(none.offered(), feature::VERSION_1);
    }

    #[test]
    fn selects_beyond_the_second_half_read_zero_and_accept_nothing() {
        let mut transport = transport();
        for select in [2, 3, u32::MAX] {
            assert_eq!(transport.offered_half(select), 0);
            transport.accept_half(select, u32::MAX);
            assert_eq!(transport.accepted(), 0);
            assert_eq!(transport.accepted_half(select), 0);
        }
        assert_eq!(transport.offered_half(1), 1);
    }

    #[test]
    fn accepted_features_are_frozen_by_features_ok() {
        let mut transport = negotiated(feature::VERSION_1 | CSUM);
        accept(&mut transport, feature::VERSION_1 | CSUM | TSO);
        assert_eq!(transport.accepted(), feature::VERSION_1 | CSUM);
    }

    #[test]
    fn status_bits_are_never_cleared_but_by_reset() {
        let mut transport = negotiated(feature::VERSION_1);
        let again = transport.write_status(status::ACKNOWLEDGE);
        assert_eq!(again, Transition::None);
        assert_eq!(transport.status(), 0b1011);
        assert_eq!(transport.write_status(0), Transition::Reset);
        assert_eq!(transport.status(), 0b1011, "the caller finishes the reset");
        transport.reset();
        assert_eq!((transport.status(), transport.accepted()), (0, 0));
    }

    #[test]
    fn the_driver_cannot_set_needs_reset_or_reserved_bits() {
        let mut transport = transport();
        let _ = transport.write_status(status::NEEDS_RESET | 0x30 | status::ACKNOWLEDGE);
        assert_eq!(transport.status(), status::ACKNOWLEDGE);
    }

    #[test]
    fn driver_ok_counts_only_after_features_ok_and_once() {
        let mut transport = transport();
        assert_eq!(transport.write_status(status::DRIVER_OK), Transition::None);
        assert!(!transport.driver_ok());
        accept(&mut transport, feature::VERSION_1);
        let all = status::FEATURES_OK | status::DRIVER_OK;
        assert_eq!(transport.write_status(all), Transition::Start);
        assert_eq!(transport.write_status(all), Transition::None);
    }

    #[test]
    fn refused_features_do_not_start_the_device_in_the_same_write() {
        let mut transport = transport();
        let transition = transport.write_status(status::FEATURES_OK | status::DRIVER_OK);
        assert_eq!(transition, Transition::Refused { accepted: 0 });
        assert_eq!(transport.status(), 0);
    }

    #[test]
    fn freebsd_negotiates_after_a_reset_without_probing_anew() {
        let mut transport = negotiated(feature::VERSION_1);
        assert_eq!(transport.write_status(status::DRIVER_OK), Transition::Start);
        assert_eq!(transport.write_status(0), Transition::Reset);
        transport.reset();
        for bit in [status::ACKNOWLEDGE, status::DRIVER] {
            let value = transport.status() | bit;
            assert_eq!(transport.write_status(value), Transition::None);
        }
        accept(&mut transport, feature::VERSION_1);
        let _ = transport.write_status(transport.status() | status::FEATURES_OK);
        assert!(transport.features_ok());
    }

    #[test]
    fn queues_are_open_until_enabled_or_started() {
        let mut transport = negotiated(feature::VERSION_1);
        assert!(transport.open_queue(2).is_none());
        let queue = transport.open_queue(0).unwrap();
        assert!(queue.set_size(128));
        assert!(!queue.set_size(512) && !queue.set_size(96) && !queue.set_size(0));
        queue.set_ready(true);
        assert!(transport.open_queue(0).is_none());
        let _ = transport.write_status(status::DRIVER_OK);
        assert!(transport.open_queue(1).is_none());
        transport.reset();
        assert_eq!(transport.open_queue(0).unwrap().size(), 256);
    }
}
