//! The terminal: in raw mode while the guest uses it, with working escape keys, and restored
//! however the program ends.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::session::{
    POWERED_OFF, SOON, STOPPED, Session, Terminal, end, guest, in_session, on_terminal, signal,
    state, wait_until, wait_until_it_runs,
};
use rustix::process::Signal;
use splitring_needs::tiny::{ECHO, POWEROFF, SPIN, directory, kernel};

#[test]
fn ctrl_a_x_stops_the_machine_and_gives_the_terminal_back() {
    let Some(dir) = directory() else { return };
    let mut session = Session::start(dir.path(), SPIN, &[]);
    session.terminal.press(b"\x01c");
    let shown = session.terminal.wait_for_text("power button");
    assert!(shown.contains("Ctrl-A x"), "{shown}");
    session.terminal.press(b"\x01x");
    assert_eq!(session.end("Ctrl-A x").code(), Some(STOPPED));
}

#[test]
fn termination_signals_give_the_terminal_back() {
    let Some(dir) = directory() else { return };
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        let session = Session::start(dir.path(), SPIN, &["--shutdown-timeout", "0"]);
        session.signal(signal);
        assert_eq!(session.end(&format!("{signal:?}")).code(), Some(STOPPED));
    }
}

#[test]
fn a_crash_gives_the_terminal_back() {
    let Some(dir) = directory() else { return };
    for signal in [Signal::SEGV, Signal::ABORT] {
        let session = Session::start(dir.path(), SPIN, &[]);
        session.signal(signal);
        let status = session.end(&format!("{signal:?}"));
        assert_eq!(
            status.signal(),
            Some(signal.as_raw()),
            "it dies of the same signal"
        );
    }
}

#[test]
fn a_refused_start_leaves_the_terminal_alone() {
    let Some(dir) = directory() else { return };
    let kernel = kernel(dir.path(), SPIN).display().to_string();
    let absent = dir.path().join("absent").display().to_string();
    let cases: [(&str, &[&str], i32); 4] = [
        ("a mistyped flag", &["--kernle", &kernel], 2),
        ("no vCPUs", &["--kernel", &kernel, "--cpus", "0"], 2),
        ("a missing kernel", &["--kernel", &absent], 1),
        (
            "a missing disk",
            &["--any-kvm", "--kernel", &kernel, "--disk", &absent],
            1,
        ),
    ];
    for (name, words, code) in cases {
        let words: Vec<_> = words.iter().map(OsStr::new).collect();
        let session = Session::run(&words);
        let mut screen = session.terminal.keyboard.try_clone().expect("clone");
        assert_eq!(session.end(name).code(), Some(code), "{name}");
        let mut shown = [0; 4096];
        let len = screen.read(&mut shown).expect("read the screen");
        let shown = String::from_utf8_lossy(&shown[..len]);
        assert!(shown.contains("error"), "{name}: {shown}");
    }
}

#[test]
fn the_escape_key_works_while_the_guest_reads_nothing() {
    let Some(dir) = directory() else { return };
    let mut session = Session::start(dir.path(), SPIN, &[]);
    // More than the UART's FIFO holds.
    session.terminal.press(&[b'k'; 100]);
    session.terminal.press(b"\x01x");
    assert_eq!(session.end("Ctrl-A x").code(), Some(STOPPED));
}

#[test]
fn input_that_a_guest_never_reads_is_lost_with_a_notice() {
    let Some(dir) = directory() else { return };
    let mut session = Session::start(dir.path(), SPIN, &[]);
    for _ in 0..600 {
        session.terminal.press(&[b'k'; 4096]);
    }
    let shown = session.terminal.wait_for_text("input is lost");
    assert!(shown.contains('\x07'), "a bell");
    session.terminal.press(b"\x01x");
    assert_eq!(session.end("Ctrl-A x").code(), Some(STOPPED));
}

#[test]
fn the_terminal_is_raw_too_when_output_goes_to_a_pipe() {
    let Some(dir) = directory() else { return };
    let mut terminal = Terminal::new();
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = guest(dir.path(), ECHO, &[]);
    let mut program = command
        .stdin(terminal.stdio())
        .stdout(writer)
        .spawn()
        .expect("start");
    drop(command);
    wait_until("raw mode", || terminal.is_raw());
    // Ctrl-C goes to the guest.
    terminal.press(b"\x03ls\r");
    let mut echo = [0; 4];
    reader.read_exact(&mut echo).expect("read");
    assert_eq!(&echo, b"\x03ls\r");
    terminal.press(b"\x01x");
    assert_eq!(end(&mut program, "Ctrl-A x").code(), Some(STOPPED));
    assert!(terminal.is_as_before());
}

#[test]
fn a_console_elsewhere_leaves_the_terminal_alone_and_ctrl_c_ends_the_machine() {
    let Some(dir) = directory() else { return };
    let log = format!("file={}", dir.path().join("log").display());
    for serial in ["null", "off", "pty", &log] {
        let mut terminal = Terminal::new();
        let command = guest(dir.path(), SPIN, &["--serial", serial]);
        let mut program = on_terminal(in_session(&command), &terminal);
        wait_until_it_runs(&program);
        thread::sleep(Duration::from_millis(50));
        assert!(terminal.is_as_before(), "{serial}");
        terminal.press(b"\x03");
        assert_eq!(
            end(&mut program, "Ctrl-C").code(),
            Some(STOPPED),
            "{serial}"
        );
        assert!(terminal.is_as_before(), "{serial}");
    }
}

#[test]
fn a_background_job_with_its_console_elsewhere_is_not_stopped() {
    let Some(dir) = directory() else { return };
    for serial in ["null", "off"] {
        let terminal = Terminal::new();
        let command = guest(dir.path(), POWEROFF, &["--serial", serial]);
        let mut shell = Command::new("bash");
        shell.args(["-c", "set -m; stty tostop; \"$0\" \"$@\" & wait $!"]);
        shell.arg(command.get_program()).args(command.get_args());
        let mut shell = on_terminal(in_session(&shell), &terminal);
        let status = end(&mut shell, "the guest's power-off");
        assert_eq!(status.code(), Some(POWERED_OFF), "{serial}");
    }
}

#[test]
fn a_stopped_and_continued_machine_takes_the_terminal_over_again() {
    let Some(dir) = directory() else { return };
    let mut session = Session::start(dir.path(), ECHO, &[]);
    session.signal(Signal::STOP);
    wait_until("the stop", || state(&session.program) == 'T');
    session.terminal.make_sane();
    session.signal(Signal::CONT);
    wait_until("raw mode again", || session.terminal.is_raw());
    session.terminal.press(b"still there");
    session.terminal.wait_for_text("still there");
    session.terminal.press(b"\x01x");
    assert_eq!(session.end("Ctrl-A x").code(), Some(STOPPED));
}

#[test]
fn a_suspended_machine_gives_the_terminal_back_meanwhile() {
    let Some(dir) = directory() else { return };
    let mut session = Session::start(dir.path(), SPIN, &[]);
    for _ in 0..2 {
        session.signal(Signal::TSTP);
        wait_until("the stop", || state(&session.program) == 'T');
        assert!(session.terminal.is_as_before());
        session.signal(Signal::CONT);
        wait_until("raw mode again", || session.terminal.is_raw());
    }
    session.terminal.press(b"\x01x");
    assert_eq!(session.end("Ctrl-A x").code(), Some(STOPPED));
}

#[test]
fn signals_that_are_ignored_at_the_start_stay_ignored() {
    let Some(dir) = directory() else { return };
    let command = guest(
        dir.path(),
        SPIN,
        &["--serial", "null", "--shutdown-timeout", "0"],
    );
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' HUP INT QUIT; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    let mut program = shell.spawn().expect("start");
    wait_until_it_runs(&program);
    for ignored in [Signal::HUP, Signal::INT, Signal::QUIT] {
        signal(&program, ignored);
    }
    thread::sleep(Duration::from_millis(300));
    assert!(program.try_wait().expect("wait").is_none(), "it goes on");
    let start = Instant::now();
    signal(&program, Signal::TERM);
    assert_eq!(end(&mut program, "SIGTERM").code(), Some(STOPPED));
    assert!(start.elapsed() < SOON);
}
