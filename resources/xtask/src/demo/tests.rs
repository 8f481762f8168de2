use super::*;

#[test]
fn only_the_whole_line_counts() {
    assert!(said_ok(b"x\r\nsession: ok 6.12\r\n", "6.12"));
    assert!(!said_ok(b"not session: ok 6.12\r\n", "6.12"));
    assert!(!said_ok(b"session: ok 6.1", "6.12"));
}
