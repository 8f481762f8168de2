//! A real crash of a process on a terminal.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::tcgetattr;

use crate::terminal::RawMode;

const OVERFLOW: &str = "SPLITRING_TEST_OVERFLOW";

#[expect(unconditional_recursion, reason = "the test needs a stack overflow")]
fn overflow(depth: &mut [u8; 4096]) -> u8 {
    let mut more = *depth;
    more[0] = more[0].wrapping_add(1);
    overflow(&mut more) + std::hint::black_box(more[1])
}

#[test]
fn a_stack_overflow_is_reported_and_gives_the_terminal_back() {
    // This test runs itself as the crashing program.
    if std::env::var_os(OVERFLOW).is_some() {
        let _raw = RawMode::enter().expect("raw mode").expect("a terminal");
        overflow(&mut [0; 4096]);
    }
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).expect("a terminal");
    grantpt(&master).expect("grant");
    unlockpt(&master).expect("unlock");
    let terminal = ioctl_tiocgptpeer(&master, flags).expect("the other end");
    let modes = || format!("{:?}", tcgetattr(&terminal).expect("modes"));
    let before = modes();
    let stdin = terminal.as_fd().try_clone_to_owned().expect("clone");
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "--nocapture"])
        .arg("crash::tests::a_stack_overflow_is_reported_and_gives_the_terminal_back")
        .env(OVERFLOW, "1")
        .stdin(Stdio::from(stdin))
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("has overflowed its stack"), "{said}");
    assert_eq!(output.status.signal(), Some(libc::SIGABRT));
    assert_eq!(modes(), before);
}
