use super::*;

#[test]
fn the_mirror_is_the_one_of_the_release_itself() {
    let targets = "copy:/srv/security main bookworm-security bookworm-security\n\
                   copy:/srv/extra contrib bookworm bookworm\n\
                   copy:/srv/debian main oldstable bookworm\n\
                   copy:/srv/new main trixie trixie\n";
    assert_eq!(mirror(targets, "bookworm"), Some("copy:/srv/debian"));
    assert_eq!(mirror(targets, "trixie"), Some("copy:/srv/new"));
    assert_eq!(mirror(targets, "sid"), None);
    // Before the first update apt knows no codenames.
    assert_eq!(mirror("copy:/a main sid \n", "sid"), Some("copy:/a"));
}

#[test]
fn another_distribution_is_not_taken_for_debian() {
    let debian = "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n";
    let release = parse_release(debian).unwrap();
    assert_eq!(release.codename, "bookworm");
    assert_eq!(release.number, Some(12));
    let other = "ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n";
    assert_eq!(parse_release(other), None);
    let coming = "ID=debian\nVERSION_CODENAME=forky\n";
    assert_eq!(parse_release(coming).unwrap().number, None);
}
