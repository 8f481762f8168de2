//! Unusual but valid paths: not UTF-8, with commas.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use crate::files::{FAILURE, Files, PROGRAM, REBOOT, USAGE, check};
use splitring_needs::tiny;

#[test]
fn paths_need_not_be_utf_8_and_may_have_commas() {
    let Some(_) = tiny::directory() else { return };
    let files = Files::new();
    let dir = files.dir.path().as_os_str().as_bytes();
    let name = |name: &[u8]| [dir, b"/", name].concat();
    let odd = name(b"disk \xff, the first");
    fs::write(OsStr::from_bytes(&odd), vec![0; 1 << 20]).expect("write");
    let kernel = name(b"kernel \xfe");
    fs::write(OsStr::from_bytes(&kernel), tiny::elf(tiny::RESET)).expect("write");
    let escaped = name(b"disk \xff,, the first");
    let log = name(b"log \xff");
    let serial = [b"file=", &log[..]].concat();
    let run = |disk: &[u8]| {
        Command::new(PROGRAM)
            .args(["run", "--any-kvm", "--kernel-cache", "off", "--kernel"])
            .args([&kernel[..], b"--serial", &serial[..], b"--disk", disk].map(OsStr::from_bytes))
            .output()
            .expect("run")
    };
    for disk in [escaped.clone(), [b"path=", &escaped[..]].concat()] {
        let output = run(&disk);
        assert_eq!(output.status.code(), Some(REBOOT), "{output:?}");
    }
    assert!(fs::exists(OsStr::from_bytes(&log)).expect("look"));
    check(
        "a single comma",
        &run(&odd),
        USAGE,
        &["is not key=value", "double a comma in a value"],
    );
    let printed = Command::new(PROGRAM)
        .args(["run", "--print-config", "--kernel"])
        .arg(OsStr::from_bytes(&kernel))
        .output()
        .expect("run");
    check("no text for it", &printed, FAILURE, &["invalid UTF-8"]);
}
