//! The layouts on the wire.

use super::*;
use crate::scsi::wire;

#[test]
fn reports_have_the_layout_of_the_standard() {
    let state = reserved(7);
    assert_eq!(data::keys(&state)[..8], [0, 0, 0, 2, 0, 0, 0, 16]);
    let reservation = data::reservation(&state);
    assert_eq!(
        (
            reservation.len(),
            wire::u64_at(&reservation, 8),
            reservation[21]
        ),
        (24, 0, 7)
    );
    assert_eq!(wire::u64_at(&data::reservation(&reserved(3)), 8), 1);
    assert_eq!(data::reservation(&Reservations::default()).len(), 8);
    assert_eq!(
        data::capabilities(&state, true),
        [0, 8, 1, 0x90, 0xea, 1, 0, 0]
    );
    let full = data::full_status(&state);
    assert_eq!((full.len(), wire::u32_at(&full, 4)), (8 + 2 * 48, 96));
    assert_eq!(
        (
            full[20],
            full[21],
            wire::u16_at(&full, 26),
            wire::u64_at(&full, 36)
        ),
        (1, 7, 1, A.0)
    );
}

#[test]
fn parameter_lists_are_judged_before_anything_happens() {
    let mut list = [0; 24];
    list[7] = 1;
    list[15] = 2;
    let parse = |list: &[u8], keeps| data::parse(Action::Register, 0, 0, list, keeps);
    let parsed = parse(&list, false).unwrap();
    assert_eq!(
        (parsed.key, parsed.service_key, parsed.persist),
        (1, 2, false)
    );
    assert_eq!(
        parse(&list[..23], false).unwrap_err(),
        Sense::LIST_LENGTH.into()
    );
    for (flag, keeps) in [(0x08, true), (0x04, true), (0x01, false)] {
        list[20] = flag;
        assert_eq!(
            parse(&list, keeps).unwrap_err(),
            Sense::list_field(20).into()
        );
    }
    assert!(parse(&list, true).unwrap().persist);
}

#[test]
fn lists_that_hand_over_name_a_port_of_ours() {
    let mut list = [0; 48];
    (list[7], list[15], list[17], list[19], list[23]) = (1, 2, 2, 1, 24);
    // A SAS TransportID.
    (list[24], list[35]) = (6, 0xc);
    let parse = |list: &[u8]| data::parse(Action::RegisterAndMove, 0, 0, list, false);
    let parsed = parse(&list).unwrap();
    assert_eq!(
        (parsed.to, parsed.unregister, parsed.service_key),
        (Some(C), true, 2)
    );
    for len in [0, 20, 23, 24, 47] {
        assert_eq!(parse(&list[..len]).unwrap_err(), Sense::LIST_LENGTH.into());
    }
    for (at, value, field) in [
        (17, 1, 17),
        (17, 4, 17),
        (19, 2, 18),
        (24, 5, 24),
        (24, 0x46, 24),
        (47, 1, 24),
    ] {
        let mut list = list;
        list[at] = value;
        assert_eq!(
            parse(&list).unwrap_err(),
            Sense::list_field(field).into(),
            "byte {at}"
        );
    }
}
