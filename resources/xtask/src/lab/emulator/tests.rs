use anyhow::anyhow;

use super::*;

#[test]
fn versions_are_read_as_qemu_prints_them() {
    let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
    assert_eq!(Version::parse(text), Some(Version(10, 0, 2)));
    let text = "QEMU emulator version 11.0\n";
    assert_eq!(Version::parse(text), Some(Version(11, 0, 0)));
    assert_eq!(Version::parse("QEMU"), None);
    assert!(Version(7, 2, 22) < RELIABLE);
}

#[test]
fn the_reliable_emulator_is_used_if_there_is_one() {
    let from_backports = || Ok(((), Version(10, 0, 2), "bookworm-backports".to_owned()));
    let none = || -> Result<((), Version, String)> { Err(anyhow!("no network\nat all")) };
    let old = || Ok(Version(7, 2, 22));
    assert_eq!(
        choose(old(), from_backports),
        (Some(()), "QEMU 10.0.2 (from bookworm-backports)".to_owned())
    );
    assert_eq!(
        choose(old(), none),
        (
            None,
            "QEMU 7.2.22 (installed; no newer one: no network; at all)".to_owned()
        )
    );
    // Nothing is fetched if the installed one is new enough.
    let untouched = || -> Result<((), Version, String)> { unreachable!() };
    assert_eq!(
        choose(Ok(Version(10, 0, 13)), untouched),
        (None, "QEMU 10.0.13 (installed)".to_owned())
    );
}
