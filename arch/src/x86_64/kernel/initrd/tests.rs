use super::*;

#[test]
fn an_initrd_goes_to_the_highest_page_that_holds_it() {
    for (size, floor, limit, expected) in [
        (1, 0, PAGE, Some(0)),
        (PAGE + 1, 0, 4 * PAGE, Some(2 * PAGE)),
        (PAGE, 3 * PAGE, 4 * PAGE, Some(3 * PAGE)),
        (PAGE + 1, 3 * PAGE, 4 * PAGE, None),
        (u64::MAX, 0, LIMIT, None),
        (LIMIT, 0, LIMIT, Some(0)),
    ] {
        assert_eq!(
            highest_page(size, floor, limit)
                .ok()
                .map(|range| range.start),
            expected,
            "{size} {floor} {limit}"
        );
    }
}
