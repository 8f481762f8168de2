//! The state machine against SPC-4's rules, action by action.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the tests' own numbers are small"
)]

use super::*;

#[path = "reserve/data_tests.rs"]
mod data_tests;

const A: Port = Port(0xa);
const B: Port = Port(0xb);
const C: Port = Port(0xc);

fn request(action: Action, key: u64, service_key: u64, kind: u8) -> Request {
    Request {
        action,
        scope: 0,
        kind,
        key,
        service_key,
        persist: false,
        to: None,
        unregister: false,
    }
}

fn registered(ports: &[(Port, u64)]) -> Reservations {
    let mut state = Reservations::default();
    for (port, key) in ports {
        state
            .perform(*port, &request(Action::Register, 0, *key, 0))
            .unwrap();
    }
    state
}

fn reserved(kind: u8) -> Reservations {
    let mut state = registered(&[(A, 1), (B, 2)]);
    state
        .perform(A, &request(Action::Reserve, 1, 0, kind))
        .unwrap();
    state
}

#[test]
fn registering_changes_and_drops_keys_and_wants_the_right_one() {
    let mut state = registered(&[(A, 1)]);
    assert_eq!(
        state.perform(A, &request(Action::Register, 0, 5, 0)),
        Err(CONFLICT)
    );
    state
        .perform(A, &request(Action::Register, 1, 5, 0))
        .unwrap();
    assert_eq!(state.key_of(A), Some(5));
    state
        .perform(A, &request(Action::RegisterAndIgnore, 99, 6, 0))
        .unwrap();
    assert_eq!(state.key_of(A), Some(6));
    state
        .perform(A, &request(Action::Register, 6, 0, 0))
        .unwrap();
    assert_eq!((state.key_of(A), state.generation), (None, 4));
    assert_eq!(
        state.perform(B, &request(Action::Register, 7, 1, 0)),
        Err(CONFLICT)
    );
    state
        .perform(B, &request(Action::RegisterAndIgnore, 7, 0, 0))
        .unwrap();
    assert!(state.registrations.is_empty());
}

#[test]
fn registrations_are_limited() {
    let mut state = Reservations::default();
    for n in 0..MAX_REGISTRATIONS as u64 {
        state
            .perform(Port(n), &request(Action::Register, 0, n + 1, 0))
            .unwrap();
    }
    let refused = state.perform(Port(9999), &request(Action::Register, 0, 1, 0));
    assert_eq!(refused, Err(Sense::NO_REGISTRATION_RESOURCES.into()));
}

/// One row of the access tables: kind, then (read, write) of a registrant and of a stranger.
#[test]
fn access_by_type_follows_the_tables() {
    let table = [
        (1, (true, false), (true, false)),
        (3, (false, false), (false, false)),
        (5, (true, true), (true, false)),
        (6, (true, true), (false, false)),
        (7, (true, true), (true, false)),
        (8, (true, true), (false, false)),
    ];
    for (kind, registrant, stranger) in table {
        let state = reserved(kind);
        let may = |port| {
            (
                !state.conflicts(port, Access::Read),
                !state.conflicts(port, Access::Write),
            )
        };
        assert_eq!(may(A), (true, true), "holder, type {kind}");
        assert_eq!(may(B), registrant, "registrant, type {kind}");
        assert_eq!(may(C), stranger, "stranger, type {kind}");
        for access in [Access::Always, Access::Shared, Access::Own] {
            assert!(!state.conflicts(C, access));
        }
    }
}

#[test]
fn ownership_is_of_one_or_of_all_registrants() {
    for (kind, b_holds) in [
        (1, false),
        (3, false),
        (5, false),
        (6, false),
        (7, true),
        (8, true),
    ] {
        let mut state = reserved(kind);
        assert_eq!(state.holds(B), b_holds);
        // A release by who does not hold it is good and changes nothing.
        state
            .perform(B, &request(Action::Release, 2, 0, kind))
            .unwrap();
        assert_eq!(state.held.is_none(), b_holds, "type {kind}");
    }
}

#[test]
fn reserving_again_is_good_for_the_holder_with_the_same_type_only() {
    let mut state = reserved(1);
    state
        .perform(A, &request(Action::Reserve, 1, 0, 1))
        .unwrap();
    assert_eq!(
        state.perform(A, &request(Action::Reserve, 1, 0, 3)),
        Err(CONFLICT)
    );
    assert_eq!(
        state.perform(B, &request(Action::Reserve, 2, 0, 1)),
        Err(CONFLICT)
    );
    assert_eq!(
        state.perform(C, &request(Action::Reserve, 0, 0, 1)),
        Err(CONFLICT)
    );
    assert_eq!(
        state.perform(A, &request(Action::Reserve, 9, 0, 1)),
        Err(CONFLICT)
    );
}

#[test]
fn bad_scope_and_type_are_cdb_errors_and_change_nothing() {
    let mut state = registered(&[(A, 1)]);
    let before = state.clone();
    let scoped = Request {
        scope: 1,
        ..request(Action::Reserve, 1, 0, 1)
    };
    assert_eq!(
        state.perform(A, &scoped),
        Err(Sense::cdb_field(2, Some(7)).into())
    );
    for kind in [0, 2, 4, 9, 15] {
        let refused = state.perform(A, &request(Action::Reserve, 1, 0, kind));
        assert_eq!(refused, Err(Sense::cdb_field(2, Some(3)).into()));
    }
    assert_eq!(state, before);
}

#[test]
fn releasing_with_the_wrong_type_is_an_invalid_release() {
    let mut state = reserved(5);
    assert_eq!(
        state.perform(A, &request(Action::Release, 1, 0, 1)),
        Err(Sense::INVALID_RELEASE.into())
    );
    let effects = state
        .perform(A, &request(Action::Release, 1, 0, 5))
        .unwrap();
    assert_eq!(effects.attentions, [(B, attention::RESERVATIONS_RELEASED)]);
    let mut quiet = reserved(3);
    assert_eq!(
        quiet
            .perform(A, &request(Action::Release, 1, 0, 3))
            .unwrap(),
        Effects::default()
    );
}

#[test]
fn unregistering_the_holder_releases() {
    let mut state = reserved(6);
    let effects = state
        .perform(A, &request(Action::Register, 1, 0, 0))
        .unwrap();
    assert_eq!(
        (state.held, effects.attentions),
        (None, vec![(B, attention::RESERVATIONS_RELEASED)])
    );
    // With all registrants the reservation stays until the last one leaves.
    let mut state = reserved(8);
    state
        .perform(A, &request(Action::Register, 1, 0, 0))
        .unwrap();
    assert!(state.holds(B));
    state
        .perform(B, &request(Action::Register, 2, 0, 0))
        .unwrap();
    assert_eq!(state.held, None);
}

#[test]
fn clear_removes_everything_and_tells_the_others() {
    let mut state = reserved(3);
    let generation = state.generation;
    let effects = state.perform(B, &request(Action::Clear, 2, 0, 0)).unwrap();
    assert_eq!(effects.attentions, [(A, attention::RESERVATIONS_PREEMPTED)]);
    assert!(state.registrations.is_empty() && state.held.is_none());
    assert_eq!(state.generation, generation + 1);
}

#[test]
fn preempting_the_holder_takes_the_reservation_over() {
    let mut state = registered(&[(A, 1), (B, 2), (C, 3)]);
    state
        .perform(A, &request(Action::Reserve, 1, 0, 1))
        .unwrap();
    let effects = state
        .perform(B, &request(Action::PreemptAndAbort, 2, 1, 3))
        .unwrap();
    assert_eq!(
        state.held,
        Some(Held {
            by: B,
            kind: Kind::ExclusiveAccess
        })
    );
    assert_eq!(state.key_of(A), None);
    assert_eq!(effects.abort, [A]);
    let told = [
        (A, attention::REGISTRATIONS_PREEMPTED),
        (C, attention::RESERVATIONS_RELEASED),
    ];
    assert_eq!(effects.attentions, told);
}

#[test]
fn preempting_a_mere_registrant_leaves_the_reservation() {
    let mut state = registered(&[(A, 1), (B, 2), (C, 3)]);
    state
        .perform(A, &request(Action::Reserve, 1, 0, 1))
        .unwrap();
    let effects = state
        .perform(B, &request(Action::Preempt, 2, 3, 3))
        .unwrap();
    assert_eq!(
        state.held,
        Some(Held {
            by: A,
            kind: Kind::WriteExclusive
        })
    );
    assert_eq!(
        effects,
        Effects {
            attentions: vec![(C, attention::REGISTRATIONS_PREEMPTED)],
            abort: vec![]
        }
    );
    assert_eq!(
        state.perform(B, &request(Action::Preempt, 2, 77, 3)),
        Err(CONFLICT)
    );
    assert_eq!(
        state.perform(B, &request(Action::Preempt, 2, 0, 3)),
        Err(Sense::list_field(8).into())
    );
}

#[test]
fn preempting_all_registrants_with_key_zero_removes_the_others() {
    let mut state = registered(&[(A, 1), (B, 2), (C, 3)]);
    state
        .perform(A, &request(Action::Reserve, 1, 0, 7))
        .unwrap();
    let effects = state
        .perform(B, &request(Action::Preempt, 2, 0, 1))
        .unwrap();
    assert_eq!(
        state.held,
        Some(Held {
            by: B,
            kind: Kind::WriteExclusive
        })
    );
    assert_eq!(state.registrations, [Registration { port: B, key: 2 }]);
    assert_eq!(effects.attentions.len(), 2);
}

#[test]
fn preempting_ones_own_key_keeps_the_registration_when_the_reservation_is_taken() {
    let mut state = reserved(1);
    state
        .perform(A, &request(Action::Preempt, 1, 1, 3))
        .unwrap();
    assert_eq!(
        state.held,
        Some(Held {
            by: A,
            kind: Kind::ExclusiveAccess
        })
    );
    assert_eq!(state.key_of(A), Some(1));
}

#[test]
fn legacy_reservations_exclude_others_and_persistent_ones() {
    let mut state = Reservations::default();
    assert_eq!(state.reserve(A), Status::Good);
    assert_eq!(state.reserve(B), CONFLICT);
    for access in [Access::Shared, Access::Read, Access::Write] {
        assert!(state.conflicts(B, access) && !state.conflicts(A, access));
    }
    assert!(!state.conflicts(B, Access::Always) && !state.conflicts(B, Access::Own));
    assert_eq!(state.release_legacy(B), Status::Good);
    assert_eq!(state.legacy, Some(A));
    assert_eq!(
        state.perform(A, &request(Action::Register, 0, 1, 0)),
        Err(CONFLICT)
    );
    assert_eq!(state.release_legacy(A), Status::Good);
    state
        .perform(A, &request(Action::Register, 0, 1, 0))
        .unwrap();
    assert_eq!(
        (state.reserve(A), state.release_legacy(A)),
        (CONFLICT, CONFLICT)
    );
}

#[test]
fn the_holder_hands_its_reservation_over() {
    let give = |to, unregister| Request {
        to: Some(to),
        unregister,
        ..request(Action::RegisterAndMove, 1, 9, 0)
    };
    let mut state = registered(&[(A, 1), (B, 2)]);
    // Nothing to give, and not one's own to give.
    let nothing = Sense::cdb_field(1, Some(4)).into();
    assert_eq!(state.perform(A, &give(C, false)), Err(nothing));
    state
        .perform(A, &request(Action::Reserve, 1, 0, 3))
        .unwrap();
    let before = state.clone();
    let wrong_key = Request {
        key: 7,
        ..give(C, false)
    };
    let no_key = Request {
        service_key: 0,
        ..give(C, false)
    };
    for (port, refused, why) in [
        (A, wrong_key, Status::ReservationConflict),
        (C, give(B, false), Status::ReservationConflict),
        (
            B,
            Request {
                key: 2,
                ..give(C, false)
            },
            Status::ReservationConflict,
        ),
        (A, no_key, Sense::list_field(8).into()),
        (A, give(A, false), Sense::list_field(24).into()),
    ] {
        assert_eq!(state.perform(port, &refused), Err(why));
        assert_eq!(state, before);
    }
    // To one that was not registered, and on to one that was, whose key changes.
    state.perform(A, &give(C, false)).unwrap();
    assert_eq!((state.key_of(A), state.key_of(C)), (Some(1), Some(9)));
    assert!(state.holds(C) && !state.holds(A));
    assert_eq!(state.generation, before.generation + 1);
    state
        .perform(
            C,
            &Request {
                key: 9,
                ..give(B, true)
            },
        )
        .unwrap();
    assert_eq!((state.key_of(B), state.key_of(C)), (Some(9), None));
    assert!(state.holds(B) && state.conflicts(C, Access::Write));
    // What all registrants hold nobody can hand over.
    let mut state = registered(&[(A, 1)]);
    state
        .perform(A, &request(Action::Reserve, 1, 0, 7))
        .unwrap();
    assert_eq!(
        state.perform(A, &give(C, false)),
        Err(Status::ReservationConflict)
    );
}
