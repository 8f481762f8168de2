use super::*;

#[test]
fn only_the_whole_line_counts() {
    assert!(session_succeeded(b"x\r\nsession: ok 6.12\r\n", "6.12"));
    assert!(!session_succeeded(b"not session: ok 6.12\r\n", "6.12"));
    assert!(!session_succeeded(b"session: ok 6.1", "6.12"));
}
