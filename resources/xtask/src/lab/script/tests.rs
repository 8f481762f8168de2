use super::*;

#[test]
fn a_quote_survives_the_shell() {
    let mut text = Vec::new();
    quote(OsStr::new("it's $HOME"), &mut text);
    assert_eq!(text, br"'it'\''s $HOME'");
}

#[test]
fn a_partly_written_number_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(heartbeat(dir.path()), None);
    for (text, number) in [("", None), ("12", None), ("12\n", Some(12))] {
        fs::write(dir.path().join("beat"), text).unwrap();
        assert_eq!(heartbeat(dir.path()), number);
    }
}

#[test]
fn names_that_no_shell_accepts_are_left_out() {
    assert!(is_shell_name(OsStr::new("_A1")));
    assert!(!is_shell_name(OsStr::new("1A")));
    assert!(!is_shell_name(OsStr::new("BASH_FUNC_x%%")));
    assert!(!is_shell_name(OsStr::new("")));
}
