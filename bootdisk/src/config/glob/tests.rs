use super::*;

#[test]
fn stars_marks_and_sets_match() {
    for (pattern, text) in [
        ("arch-*", "arch-6.1.conf"),
        ("*", ""),
        ("*.conf", "a.b.conf"),
        ("a?c", "abc"),
        ("a[0-9]c", "a5c"),
        ("a[!0-9]c", "axc"),
        ("ARCH", "arch"),
    ] {
        assert!(matches(pattern, text), "{pattern} {text}");
    }
    for (pattern, text) in [
        ("arch-*", "debian"),
        ("a?c", "ac"),
        ("a[0-9]c", "axc"),
        ("", "a"),
    ] {
        assert!(!matches(pattern, text), "{pattern} {text}");
    }
}

#[test]
fn a_pattern_of_stars_ends_soon() {
    assert!(!matches(&"*a".repeat(500), &"a".repeat(499)));
}
