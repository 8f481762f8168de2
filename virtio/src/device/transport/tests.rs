//! Feature negotiation, status and queue configuration.

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
fn a_saved_negotiation_goes_on_in_another_device() {
    let mut saved = negotiated(feature::VERSION_1 | CSUM);
    let queue = saved.open_queue(1).unwrap();
    queue.set_desc(0x1000);
    queue.set_ready(true);
    let _ = saved.write_status(status::DRIVER_OK);
    let mut restored = transport();
    restored.restore(saved.save()).unwrap();
    assert_eq!(restored.save(), saved.save());
    assert!(restored.driver_ok() && restored.queue(1).unwrap().ready());
}

#[test]
fn a_negotiation_that_cannot_have_been_is_refused_and_changes_nothing() {
    let good = negotiated(feature::VERSION_1 | CSUM).save();
    let refused = |change: &dyn Fn(&mut TransportState)| {
        let mut state = good.clone();
        change(&mut state);
        let mut device = transport();
        let error = device.restore(state).unwrap_err();
        assert_eq!(device.save(), transport().save());
        error
    };
    for status in [status::NEEDS_RESET, status::DRIVER_OK, 0xff] {
        let error = refused(&|state| state.status = status);
        assert_eq!(error, TransportError::Status(status));
    }
    for accepted in [0, CSUM, u64::MAX, feature::VERSION_1 | TSO] {
        let error = refused(&|state| state.accepted = accepted);
        assert!(
            matches!(error, TransportError::Features { .. }),
            "{accepted:#x}"
        );
    }
    let error = refused(&|state| state.queues.truncate(1));
    assert_eq!(error, TransportError::Queues { found: 1, known: 2 });
    let error = refused(&|state| state.queues[1].size = 3);
    assert!(matches!(error, TransportError::Queue { index: 1, .. }));
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
