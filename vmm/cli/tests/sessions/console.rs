//! The serial console on the command line: its targets, and the end of a machine whose console is
//! not read.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::session::{
    POWERED_OFF, SOON, STOPPED, Session, end, guest, on_pipes, signal, wait_until,
    wait_until_it_runs, wait_until_it_waits,
};
use rustix::process::Signal;
use splitring_needs::tiny::{
    BUTTON, ECHO, FLOOD, POWEROFF, PRINT, SPIN, directory, print_lines, printed_lines,
};

#[test]
fn a_machine_whose_pipe_nobody_reads_ends_at_every_signal() {
    let Some(dir) = directory() else { return };
    for what in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let (_reader, writer) = io::pipe().expect("a pipe");
        let mut command = guest(dir.path(), FLOOD, &["--shutdown-timeout", "1"]);
        let mut program = command
            .stdin(Stdio::null())
            .stdout(writer)
            .spawn()
            .expect("start");
        drop(command);
        wait_until_it_waits(&program);
        let start = Instant::now();
        signal(&program, what);
        let status = end(&mut program, &format!("{what:?}"));
        assert_eq!(status.code(), Some(STOPPED), "{what:?}");
        assert!(start.elapsed() < SOON, "{what:?}: {:?}", start.elapsed());
    }
}

#[test]
fn a_machine_whose_terminal_nobody_reads_ends_at_signals_and_keys() {
    let Some(dir) = directory() else { return };
    for action in ["SIGINT", "two SIGTERM", "Ctrl-A x", "Ctrl-A c and x"] {
        let mut session = Session::start(dir.path(), FLOOD, &[]);
        wait_until_it_waits(&session.program);
        let start = Instant::now();
        match action {
            "SIGINT" => session.signal(Signal::INT),
            "Ctrl-A x" => session.terminal.press(b"\x01x"),
            "Ctrl-A c and x" => session.terminal.press(b"\x01c\x01x"),
            _ => {
                session.signal(Signal::TERM);
                thread::sleep(Duration::from_millis(300));
                assert!(session.program.try_wait().expect("wait").is_none());
                session.signal(Signal::TERM);
            }
        }
        assert_eq!(session.end(action).code(), Some(STOPPED), "{action}");
        assert!(start.elapsed() < SOON, "{action}: {:?}", start.elapsed());
    }
}

#[test]
fn sigterm_presses_the_power_button_and_gives_the_guest_time() {
    let Some(dir) = directory() else { return };
    let mut polite = on_pipes(guest(dir.path(), BUTTON, &[]));
    wait_until_it_runs(&polite);
    signal(&polite, Signal::TERM);
    assert_eq!(end(&mut polite, "SIGTERM").code(), Some(POWERED_OFF));

    let mut deaf = on_pipes(guest(dir.path(), SPIN, &["--shutdown-timeout", "1"]));
    wait_until_it_runs(&deaf);
    let start = Instant::now();
    signal(&deaf, Signal::TERM);
    assert_eq!(end(&mut deaf, "SIGTERM").code(), Some(STOPPED));
    assert!(start.elapsed() >= Duration::from_secs(1));
    let mut said = String::new();
    let mut errors = deaf.stderr.take().expect("standard error");
    errors.read_to_string(&mut said).expect("read");
    assert!(said.contains("has not powered off within 1 s"), "{said}");
}

#[test]
fn the_last_output_of_a_guest_that_powered_off_is_waited_for() {
    let Some(dir) = directory() else { return };
    // More than a pipe buffers.
    let lines = 60_000;
    let mut program = on_pipes(guest(dir.path(), &print_lines(lines), &[]));
    wait_until_it_waits(&program);
    thread::sleep(Duration::from_millis(500));
    assert!(program.try_wait().expect("wait").is_none(), "it waits");
    let mut text = Vec::new();
    let mut stdout = program.stdout.take().expect("standard output");
    stdout.read_to_end(&mut text).expect("read");
    assert!(text == printed_lines(lines));
    assert_eq!(end(&mut program, "a reader").code(), Some(POWERED_OFF));

    // A signal ends the wait.
    let mut program = on_pipes(guest(dir.path(), &print_lines(lines), &[]));
    wait_until_it_waits(&program);
    thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    signal(&program, Signal::TERM);
    assert_eq!(end(&mut program, "SIGTERM").code(), Some(POWERED_OFF));
    assert!(start.elapsed() < SOON);
}

#[test]
fn a_paste_through_a_pipe_comes_back_whole() {
    let Some(dir) = directory() else { return };
    let mut program = on_pipes(guest(dir.path(), ECHO, &[]));
    let text = printed_lines(40_000);
    let typed = text.clone();
    let mut stdin = program.stdin.take().expect("standard input");
    let typing = thread::spawn(move || {
        stdin.write_all(&typed).expect("type");
        stdin
    });
    let mut echo = vec![0; text.len()];
    let mut stdout = program.stdout.take().expect("standard output");
    stdout.read_exact(&mut echo).expect("read");
    assert!(echo == text);
    let _stdin = typing.join().expect("typist");
    signal(&program, Signal::INT);
    assert_eq!(end(&mut program, "SIGINT").code(), Some(STOPPED));
}

#[test]
fn a_paste_on_a_terminal_comes_back_whole() {
    let Some(dir) = directory() else { return };
    let mut session = Session::start(dir.path(), ECHO, &[]);
    let text = printed_lines(20_000);
    let mut keyboard = session.terminal.keyboard.try_clone().expect("clone");
    let typed = text.clone();
    let typing = thread::spawn(move || keyboard.write_all(&typed).expect("type"));
    // The terminal translates a line feed to CR LF.
    let shown: Vec<u8> = text
        .iter()
        .flat_map(|byte| match byte {
            b'\n' => vec![b'\r', b'\n'],
            byte => vec![*byte],
        })
        .collect();
    let mut echo = vec![0; shown.len()];
    session
        .terminal
        .keyboard
        .read_exact(&mut echo)
        .expect("read");
    assert!(echo == shown);
    typing.join().expect("typist");
    session.terminal.press(b"\x01x");
    assert_eq!(session.end("Ctrl-A x").code(), Some(STOPPED));
}

#[test]
fn the_path_of_a_pseudo_terminal_is_printed() {
    let Some(dir) = directory() else { return };
    let mut program = on_pipes(guest(dir.path(), ECHO, &["--serial", "pty"]));
    let mut line = String::new();
    BufReader::new(program.stderr.take().expect("standard error"))
        .read_line(&mut line)
        .expect("read");
    let path = line
        .trim()
        .strip_prefix("serial console: ")
        .expect("a path");
    let mut terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open(PathBuf::from(path))
        .expect("open");
    terminal.write_all(b"hello").expect("type");
    let mut echo = [0; 5];
    terminal.read_exact(&mut echo).expect("read");
    assert_eq!(&echo, b"hello");
    signal(&program, Signal::INT);
    assert_eq!(end(&mut program, "SIGINT").code(), Some(STOPPED));
}

#[test]
fn a_socket_is_there_while_the_machine_runs() {
    let Some(dir) = directory() else { return };
    let path = dir.path().join("console, of this machine");
    let serial = format!("socket={}", path.display()).replace(',', ",,");
    let mut program = on_pipes(guest(dir.path(), ECHO, &["--serial", &serial]));
    wait_until("the socket", || path.exists());
    let mut client = UnixStream::connect(&path).expect("connect");
    client.write_all(b"hello").expect("type");
    let mut echo = [0; 5];
    client.read_exact(&mut echo).expect("read");
    assert_eq!(&echo, b"hello");

    let second = guest(dir.path(), ECHO, &["--serial", &serial])
        .output()
        .expect("run");
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("another process listens"), "{said}");

    signal(&program, Signal::INT);
    assert_eq!(end(&mut program, "SIGINT").code(), Some(STOPPED));
    assert!(!path.exists(), "it is removed");
}

#[test]
fn a_file_has_everything_when_the_program_has_ended() {
    let Some(dir) = directory() else { return };
    let log = dir.path().join("log");
    let serial = format!("file={}", log.display());
    let command = guest(dir.path(), &print_lines(5000), &["--serial", &serial]);
    let mut program = on_pipes(command);
    assert_eq!(end(&mut program, "nothing").code(), Some(POWERED_OFF));
    assert!(fs::read(&log).expect("read") == printed_lines(5000));
}

#[test]
fn output_that_is_dropped_is_not_waited_for_and_is_counted_in_the_metrics() {
    let Some(dir) = directory() else { return };
    let (_reader, writer) = io::pipe().expect("a pipe");
    let words = ["--serial", "tty,policy=drop", "--metrics"];
    let mut command = guest(dir.path(), &print_lines(100_000), &words);
    let mut program = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    drop(command);
    // Nor does the end wait for the output in the buffer.
    let status = end(&mut program, "the guest's power-off");
    assert_eq!(status.code(), Some(POWERED_OFF));
    let mut said = String::new();
    let mut errors = program.stderr.take().expect("standard error");
    errors.read_to_string(&mut said).expect("read");
    let metrics: serde_json::Value = serde_json::from_str(said.trim()).expect("JSON");
    assert!(
        metrics["serial"]["dropped"].as_u64() > Some(10_000),
        "{said}"
    );
}

#[test]
fn old_words_work_and_name_their_successors_once() {
    let Some(dir) = directory() else { return };
    for (old, new) in [("none", "off"), ("console", "tty")] {
        let output = guest(dir.path(), PRINT, &["--serial", old])
            .stdin(Stdio::null())
            .output()
            .expect("run");
        assert_eq!(output.status.code(), Some(POWERED_OFF));
        let said = String::from_utf8_lossy(&output.stderr);
        let wanted = format!("`{old}` is now called `{new}`");
        assert_eq!(said.matches(&wanted).count(), 1, "{said}");
        let shown: &[u8] = if new == "tty" { b"A" } else { b"" };
        assert_eq!(output.stdout, shown);
    }
    let output = guest(dir.path(), POWEROFF, &["--serial", "ttyS0"])
        .output()
        .expect("run");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("give tty, file=PATH"), "{said}");
}
