use super::*;

fn piece(len: usize) -> DmaBytes {
    DmaBytes::from(vec![0; len])
}

fn lengths(list: &ScatterList) -> Vec<usize> {
    list.iter().map(DmaBytes::len).collect()
}

#[test]
fn a_list_ends_at_its_marker_and_passes_over_empty_entries() {
    let mut list = ScatterList::new(5);
    assert_eq!(lengths(&list), []);
    for index in [0, 2, 3, 4] {
        assert!(list.set(index, piece(index + 1)).unwrap().is_none());
    }
    assert_eq!(lengths(&list), [1, 3, 4, 5]);
    assert!(list.mark_end(2));
    assert_eq!(lengths(&list), [1, 3]);
    assert_eq!((list.segments(), list.bytes()), (2, 4));
}

#[test]
fn a_stale_end_marker_truncates_a_recycled_list_until_it_is_removed() {
    let mut list = ScatterList::new(4);
    assert_eq!(list.fill([piece(1), piece(2)]).unwrap(), 2);
    assert_eq!(lengths(&list), [1, 2]);
    assert_eq!(list.fill((3..=6).map(piece)).unwrap(), 4);
    assert_eq!(lengths(&list), [3, 4], "cut short at the former end");
    list.unmark_end(1);
    assert_eq!(lengths(&list), [3, 4, 5, 6]);
}

#[test]
fn links_are_followed_and_what_lies_behind_an_end_marker_is_not() {
    let mut list = ScatterList::new(3);
    let mut middle = ScatterList::new(3);
    middle
        .chain(ScatterList::from_buffers([piece(5), piece(6)]))
        .unwrap();
    middle.set(0, piece(3)).unwrap();
    middle.set(1, piece(4)).unwrap();
    list.set(0, piece(1)).unwrap();
    list.set(1, piece(2)).unwrap();
    list.chain(middle).unwrap();
    assert_eq!(lengths(&list), [1, 2, 3, 4, 5, 6]);
    assert!(!list.mark_end(2), "a link can't be the end");
    list.mark_end(1);
    assert_eq!(lengths(&list), [1, 2]);
    let mut everything = Vec::new();
    list.clear(|piece| everything.push(piece.len()));
    assert_eq!(everything, [1, 2, 3, 4, 5, 6], "clear looks behind markers");
}

#[test]
fn a_link_takes_the_last_entry_only_if_it_is_empty_and_comes_off_again() {
    let mut list = ScatterList::from_buffers([piece(1), piece(2)]);
    let next = list.chain(ScatterList::from(piece(3))).unwrap_err();
    assert_eq!(list.take(1).unwrap().len(), 2);
    list.chain(next).unwrap();
    assert_eq!(
        lengths(&list),
        [1, 3],
        "the link took the end marker's place"
    );
    assert!(list.set(1, piece(9)).is_err(), "a link is not overwritten");
    assert!(list.take(1).is_none());
    assert_eq!(lengths(&list.unchain().unwrap()), [3]);
    assert!(list.unchain().is_none());
    assert!(ScatterList::new(0).chain(list).is_err());
}

#[test]
fn pieces_can_be_written_in_list_order() {
    let mut list = ScatterList::new(3);
    list.chain(ScatterList::from_buffers([piece(1), piece(1)]))
        .unwrap();
    list.set(0, piece(1)).unwrap();
    let mut next = 0u8;
    list.for_each_mut(|piece| {
        piece.bytes_mut()[0] = next;
        next += 1;
    });
    let mut seen = Vec::new();
    list.for_each_mut(|piece| seen.push(piece.bytes()[0]));
    assert_eq!(seen, [0, 1, 2]);
}

#[test]
fn fill_hands_back_what_does_not_fit() {
    let mut list = ScatterList::new(1);
    assert_eq!(list.fill([piece(1), piece(2)]).unwrap_err().len(), 2);
    assert_eq!(lengths(&list), [1]);
}

#[test]
fn a_very_long_chain_is_dropped_without_recursion() {
    let mut list = ScatterList::<DmaBytes>::new(1);
    for _ in 0..200_000 {
        let mut outer = ScatterList::new(1);
        outer.chain(list).unwrap();
        list = outer;
    }
    assert_eq!(list.segments(), 0);
    drop(list);
}
