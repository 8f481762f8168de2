//! Which features a card has, which of them need others, and what they let either side leave undone (section 5.1.3).

use splitring_virtio::spec::net::feature;

use super::port::Offloads;
use crate::device::FeatureRule;

/// What a feature needs (section 5.1.3.1).
pub(super) const RULES: &[FeatureRule] = &[
    rule(feature::GUEST_TSO4, feature::GUEST_CSUM),
    rule(feature::GUEST_TSO6, feature::GUEST_CSUM),
    rule(
        feature::GUEST_ECN,
        feature::GUEST_TSO4 | feature::GUEST_TSO6,
    ),
    rule(feature::GUEST_UFO, feature::GUEST_CSUM),
    rule(feature::GUEST_USO4, feature::GUEST_CSUM),
    rule(feature::GUEST_USO6, feature::GUEST_CSUM),
    rule(feature::HOST_TSO4, feature::CSUM),
    rule(feature::HOST_TSO6, feature::CSUM),
    rule(feature::HOST_ECN, feature::HOST_TSO4 | feature::HOST_TSO6),
    rule(feature::HOST_UFO, feature::CSUM),
    rule(feature::HOST_USO, feature::CSUM),
    rule(feature::CTRL_RX, feature::CTRL_VQ),
    rule(feature::CTRL_RX_EXTRA, feature::CTRL_VQ),
    rule(feature::CTRL_VLAN, feature::CTRL_VQ),
    rule(feature::GUEST_ANNOUNCE, feature::CTRL_VQ),
    rule(feature::MQ, feature::CTRL_VQ),
    rule(feature::CTRL_MAC_ADDR, feature::CTRL_VQ),
    rule(feature::CTRL_GUEST_OFFLOADS, feature::CTRL_VQ),
];

const fn rule(feature: u64, needs_any: u64) -> FeatureRule {
    FeatureRule { feature, needs_any }
}

/// An offload and the features that offer it: what the device takes, what the driver takes.
pub(super) const OFFLOADS: [(Offloads, u64, u64); 6] = [
    (Offloads::CSUM, feature::CSUM, feature::GUEST_CSUM),
    (Offloads::TSO4, feature::HOST_TSO4, feature::GUEST_TSO4),
    (Offloads::TSO6, feature::HOST_TSO6, feature::GUEST_TSO6),
    (Offloads::ECN, feature::HOST_ECN, feature::GUEST_ECN),
    (Offloads::UFO, feature::HOST_UFO, feature::GUEST_UFO),
    (
        Offloads::USO,
        feature::HOST_USO,
        feature::GUEST_USO4 | feature::GUEST_USO6,
    ),
];

/// `hidden` and every feature that is nothing without them.
pub(super) fn with_dependents(hidden: u64) -> u64 {
    let lost = |hidden: u64| {
        let dependents = RULES.iter().filter(|rule| rule.needs_any & !hidden == 0);
        dependents.fold(hidden, |all, rule| all | rule.feature)
    };
    // Two steps is as deep as the rules go: a checksum, its segmentation, ECN.
    lost(lost(hidden))
}

/// What the host may leave to a driver with these features.
pub(super) fn guest_offloads(features: u64) -> Offloads {
    let taken = OFFLOADS.iter().filter(|row| features & row.2 == row.2);
    taken.fold(Offloads::empty(), |all, row| all | row.0)
}
