use super::*;

#[test]
fn versions_are_in_the_order_of_the_specification() {
    // Each is older than the next.
    let ascending = [
        "~1",
        "",
        "0",
        "1~rc1",
        "1~rc2",
        "1",
        "1-1",
        "1-2",
        "1^post1",
        "1.1",
        "1.1a",
        "1.2",
        "2",
        "11",
        "122.1",
        "123~rc1-1",
        "123",
        "123-a",
        "123-a.1",
        "123-3",
        "123^patch1",
        "123.a-1",
        "123.1-1",
        "123a-1",
        "124-1",
    ];
    for pair in ascending.windows(2) {
        let [older, newer] = pair else { unreachable!() };
        assert_eq!(compare(older, newer), Ordering::Less, "{older} < {newer}");
        assert_eq!(
            compare(newer, older),
            Ordering::Greater,
            "{newer} > {older}"
        );
    }
}

#[test]
fn leading_zeros_and_unknown_characters_make_no_difference() {
    for (one, other) in [
        ("01", "1"),
        ("a_1", "a1"),
        ("1.01", "1.1"),
        ("6.1+deb", "6.1deb"),
    ] {
        assert_eq!(compare(one, other), Ordering::Equal, "{one} = {other}");
    }
}

#[test]
fn kernel_releases_sort_by_number() {
    let (old, new) = ("6.1.0-9-amd64", "6.1.0-37-amd64");
    assert_eq!(compare(old, new), Ordering::Less);
    assert_eq!(compare("6.12.0", "6.9.1"), Ordering::Greater);
}
