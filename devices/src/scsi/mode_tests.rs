//! MODE SENSE layouts, and MODE SELECT lists good and bad.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the tests' own numbers are small"
)]

use super::*;
use crate::scsi::cdb::Profile;
use crate::scsi::identity::tests::FACTS;

const MODES: Modes = Modes {
    write_cache: true,
    write_protect: false,
    descriptor_sense: false,
};
const QUERY: Query = Query {
    form: ModeForm::Six,
    long_lba: false,
    no_blocks: false,
    control: 0,
    page: ALL_PAGES,
    subpage: 0,
};
const BLOCKS: u64 = 1 << 33;

fn ask(query: Query) -> Result<Vec<u8>, Sense> {
    sense(&query, &FACTS, Some(BLOCKS), &MODES, &MODES)
}

#[test]
fn all_pages_are_the_single_ones_in_order() {
    let all = ask(QUERY).unwrap();
    assert_eq!(
        (usize::from(all[0]), all[2], all[3]),
        (all.len() - 1, 0x10, 8)
    );
    // More blocks than the short descriptor can say.
    assert_eq!(&all[4..12], [0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0]);
    let mut joined = Vec::new();
    for page in [1, 8, 10] {
        joined.extend_from_slice(
            &ask(Query {
                page,
                no_blocks: true,
                ..QUERY
            })
            .unwrap()[4..],
        );
    }
    assert_eq!(&all[12..], joined);
}

#[test]
fn ten_byte_form_has_the_long_descriptor_on_request() {
    let long = ask(Query {
        form: ModeForm::Ten,
        long_lba: true,
        ..QUERY
    })
    .unwrap();
    assert_eq!(
        (
            wire::u16_at(&long, 0) as usize,
            long[4],
            wire::u16_at(&long, 6)
        ),
        (long.len() - 2, 1, 16)
    );
    assert_eq!(
        (wire::u64_at(&long, 8), wire::u32_at(&long, 20)),
        (BLOCKS, 512)
    );
    let short = ask(Query {
        form: ModeForm::Ten,
        ..QUERY
    })
    .unwrap();
    assert_eq!((short[4], wire::u16_at(&short, 6)), (0, 8));
}

#[test]
fn changeable_values_are_exactly_three_bits() {
    let masks = ask(Query {
        control: 1,
        no_blocks: true,
        ..QUERY
    })
    .unwrap();
    let bits: u32 = masks[4..].iter().map(|byte| byte.count_ones()).sum();
    let codes: u32 = [1u8, 10, 8, 18, 10, 10]
        .iter()
        .map(|byte| byte.count_ones())
        .sum();
    assert_eq!(bits - codes, 3);
}

#[test]
fn unknown_pages_subpages_and_saved_values_are_refused() {
    assert_eq!(
        ask(Query {
            page: 0x1c,
            ..QUERY
        }),
        Err(Sense::cdb_field(2, None))
    );
    assert_eq!(
        ask(Query {
            subpage: 1,
            ..QUERY
        }),
        Err(Sense::cdb_field(3, None))
    );
    assert!(
        ask(Query {
            subpage: 0xff,
            ..QUERY
        })
        .is_ok()
    );
    assert_eq!(
        ask(Query {
            control: 3,
            ..QUERY
        }),
        Err(Sense::SAVING_NOT_SUPPORTED)
    );
}

fn list(page: u8, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut list = ask(Query { page, ..QUERY }).unwrap();
    list[0] = 0;
    list[2] = 0;
    change(&mut list);
    list
}

fn apply(list: &[u8]) -> Result<Modes, Sense> {
    select(ModeForm::Six, list, &FACTS, BLOCKS, &MODES)
}

#[test]
fn what_was_sensed_can_be_selected_and_changes_nothing() {
    for page in [1, 8, 10, 0x3f] {
        assert_eq!(apply(&list(page, |_| ())), Ok(MODES), "page {page:#x}");
    }
    assert_eq!(apply(&[]), Ok(MODES));
    // PS comes back as it was sensed by some hosts; it is ignored.
    assert_eq!(apply(&list(10, |l| l[12] |= 0x80)), Ok(MODES));
}

#[test]
fn each_changeable_bit_takes_effect() {
    assert_eq!(
        apply(&list(8, |l| l[14] = 0)),
        Ok(Modes {
            write_cache: false,
            ..MODES
        })
    );
    assert_eq!(
        apply(&list(10, |l| l[16] = 8)),
        Ok(Modes {
            write_protect: true,
            ..MODES
        })
    );
    assert_eq!(
        apply(&list(10, |l| l[14] |= 4)),
        Ok(Modes {
            descriptor_sense: true,
            ..MODES
        })
    );
}

#[test]
fn bad_lists_are_refused_whole() {
    // The first page is good and the second is not: nothing of either is taken.
    let both = list(0x3f, |l| {
        l[12 + 12 + 2] = 0;
        l[12 + 12 + 20 + 5] = 1;
    });
    assert_eq!(apply(&both), Err(Sense::list_field(12 + 12 + 20 + 5)));
    assert_eq!(apply(&list(10, |l| l[13] = 9)), Err(Sense::list_field(13)));
    assert_eq!(
        apply(&list(10, |l| l[12] = 0x4a)),
        Err(Sense::list_field(12))
    );
    assert_eq!(
        apply(&list(10, |l| l[12] = 0x0b)),
        Err(Sense::list_field(12))
    );
    assert_eq!(
        apply(&list(10, |l| l.truncate(20))),
        Err(Sense::LIST_LENGTH)
    );
    assert_eq!(apply(&list(10, |l| l[10] = 4)), Err(Sense::list_field(8)));
    assert_eq!(apply(&list(10, |l| l[7] = 1)), Err(Sense::list_field(4)));
    assert_eq!(apply(&list(10, |l| l[3] = 7)), Err(Sense::list_field(3)));
    assert_eq!(apply(&[0, 0, 0, 8, 0]), Err(Sense::LIST_LENGTH));
    assert_eq!(apply(&[0, 0]), Err(Sense::LIST_LENGTH));
}

#[test]
fn write_cache_of_a_writethrough_disk_can_not_be_switched_on() {
    let facts = Facts {
        write_cache: false,
        ..FACTS
    };
    let modes = Modes {
        write_cache: false,
        ..MODES
    };
    let mut list = sense(&Query { page: 8, ..QUERY }, &facts, Some(8), &modes, &modes).unwrap();
    list[0] = 0;
    list[14] = WCE;
    assert_eq!(
        select(ModeForm::Six, &list, &facts, 8, &modes),
        Err(Sense::list_field(14))
    );
}

#[test]
fn a_cdrom_reports_its_capabilities() {
    let facts = Facts {
        profile: Profile {
            kind: Kind::Cdrom,
            thin: false,
        },
        block: 2048,
        ..FACTS
    };
    let data = sense(
        &Query {
            page: 0x2a,
            ..QUERY
        },
        &facts,
        Some(100),
        &MODES,
        &MODES,
    )
    .unwrap();
    assert_eq!(
        (data[2], data[12], usize::from(data[13])),
        (0, 0x2a, data.len() - 14)
    );
}
