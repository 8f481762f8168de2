//! Which clients may read and write a console, and what late readers see.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use super::*;
use crate::console::{ConsoleError, HISTORY};

fn socket() -> (tempfile::TempDir, PathBuf, Console) {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let console = Console::socket(&path).expect("console");
    (dir, path, console)
}

fn connect(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).expect("connect");
    client.set_read_timeout(Some(PATIENCE)).expect("timeout");
    client
}

fn read(client: &mut impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    client.read_exact(&mut bytes).expect("read");
    bytes
}

/// Reads until `mark`.
fn read_to(client: &mut impl Read, mark: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(mark) {
        bytes.extend(read(client, 1));
    }
    bytes
}

#[test]
fn several_clients_read_and_the_first_one_writes() {
    let (_dir, path, console) = socket();
    let mut guest = Guest::new(&console);
    let mut clients: Vec<_> = (0..3).map(|_| connect(&path)).collect();
    guest.print(b"hello");
    for client in &mut clients {
        assert_eq!(read(client, 5), b"hello");
    }
    clients[1].write_all(b"second").expect("write");
    clients[2].write_all(b"third").expect("write");
    clients[0].write_all(b"first").expect("write");
    assert_eq!(guest.read(5), b"first");
    // The next client takes over, with its input from then on.
    drop(clients.remove(0));
    wait_until("the second client's input is the guest's", || {
        clients[0].write_all(b"2").expect("write");
        thread::sleep(Duration::from_millis(5));
        guest.register(LSR) & 1 != 0
    });
    while guest.register(LSR) & 1 != 0 {
        assert_eq!(guest.register(0), b'2');
    }
}

#[test]
fn a_client_that_has_ended_its_input_still_reads() {
    let (_dir, path, console) = socket();
    let mut guest = Guest::new(&console);
    let mut reader = connect(&path);
    reader.write_all(b"a").expect("write");
    reader.shutdown(Shutdown::Write).expect("shut down");
    assert_eq!(guest.read(1), b"a");
    let mut writer = connect(&path);
    writer.write_all(b"b").expect("write");
    assert_eq!(guest.read(1), b"b", "the next one writes");
    guest.print(b"output");
    assert_eq!(read(&mut reader, 6), b"output");
}

#[test]
fn a_late_client_sees_the_last_output_first() {
    let (_dir, path, console) = socket();
    let mut text = lines(30_000);
    let mut guest = Guest::new(&console);
    guest.print(&text);
    let mut client = connect(&path);
    guest.print(b"end");
    text.extend(b"end");
    let got = read_to(&mut client, b"end");
    assert!(got.len() >= HISTORY, "{}", got.len());
    assert_same(&got, &text[text.len() - got.len()..], "history");
    assert_eq!(console.dropped(), 0, "nobody was there to miss it");
}

#[test]
fn a_client_that_leaves_lets_a_waiting_guest_go_on() {
    let (_dir, path, console) = socket();
    let mut reader = connect(&path);
    let mut guest = Guest::new(&console);
    guest.print(b"!");
    read(&mut reader, 1);
    let flood = Flood::start(guest);
    wait_until("the buffer is full", || console.0.shared.output.is_full());
    drop(reader);
    wait_until("it goes on", || !console.0.shared.output.is_full());
    flood.stop(&console);
    assert_eq!(console.dropped(), 0);
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    drop(UnixListener::bind(&path).expect("bind"));
    assert!(path.exists(), "as a killed process leaves it");
    let console = Console::socket(&path).expect("a stale one is replaced");
    let live = Console::socket(&path).expect_err("a live one is not");
    assert!(matches!(live, ConsoleError::SocketInUse(_)), "{live}");
    assert!(live.to_string().contains("give another path"), "{live}");
    connect(&path);
    drop(console);
    assert!(!path.exists(), "it is removed at the end");

    fs::write(&path, "precious").expect("write");
    let file = Console::socket(&path).expect_err("a file is refused");
    assert!(matches!(file, ConsoleError::NotASocket(_)), "{file}");
    assert_eq!(fs::read(&path).expect("read"), b"precious");
    let nowhere = Console::socket(dir.path().join("absent/socket")).expect_err("no directory");
    assert!(
        nowhere.to_string().contains("create its directory"),
        "{nowhere}"
    );
    let long = Console::socket(dir.path().join("x".repeat(200))).expect_err("too long");
    assert!(long.to_string().contains("107 bytes"), "{long}");
}

#[test]
fn a_socket_that_was_replaced_by_another_file_is_left_alone() {
    let (_dir, path, console) = socket();
    fs::remove_file(&path).expect("remove");
    fs::write(&path, "another's").expect("write");
    drop(console);
    assert_eq!(fs::read(&path).expect("read"), b"another's");
}

#[test]
fn files_that_cannot_be_written_are_refused_with_a_remedy() {
    let dir = tempfile::tempdir().expect("dir");
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .expect("a pipe");
    let cases = [
        (dir.path().to_owned(), "name a file in it"),
        (dir.path().join("absent/log"), "create its directory"),
        (fifo, "start what reads the pipe first"),
    ];
    for (path, remedy) in cases {
        let error = Console::file(&path).expect_err("refused").to_string();
        assert!(error.contains(remedy), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}

#[test]
fn a_pseudo_terminal_that_nobody_opened_keeps_the_last_output() {
    let console = Console::pty().expect("console");
    let text = lines(30_000);
    let mut guest = Guest::new(&console);
    guest.print(&text);
    let mut reader = open_pty(&console);
    assert_same(
        &read(&mut reader, HISTORY),
        &text[text.len() - HISTORY..],
        "history",
    );
    guest.print(b"more");
    assert_eq!(read(&mut reader, 4), b"more");
    reader.write_all(b"typed").expect("type");
    assert_eq!(guest.read(5), b"typed");
    assert_eq!(console.dropped(), 0);
}

#[test]
fn a_pseudo_terminal_can_be_opened_again_and_again() {
    let console = Console::pty().expect("console");
    let mut guest = Guest::new(&console);
    let mut printed = lines(20_000);
    guest.print(&printed);
    for round in b'A'..=b'F' {
        let mut reader = open_pty(&console);
        let mark = [b'\n', round];
        guest.print(&mark);
        printed.extend(mark);
        let got = read_to(&mut reader, &mark);
        assert!(got.len() >= HISTORY, "{}", got.len());
        // The history, exactly once, whatever the previous program has left unread.
        assert_same(&got, &printed[printed.len() - got.len()..], "history");
        reader.write_all(&[round]).expect("type");
        assert_eq!(guest.read(1), [round]);
        let unread = [round; 5000];
        guest.print(&unread);
        printed.extend(unread);
        drop(reader);
        let left = || console.0.shared.output.readers() == 0;
        wait_until("the console knows that nobody reads", left);
    }
}

#[test]
fn output_never_comes_back_as_input() {
    let console = Console::pty().expect("console");
    let mut guest = Guest::new(&console);
    // A program leaves it in cooked mode with echo.
    let other = open_pty(&console);
    let mut modes = tcgetattr(&other).expect("modes");
    modes.local_modes |= rustix::termios::LocalModes::ECHO | rustix::termios::LocalModes::ICANON;
    tcsetattr(&other, OptionalActions::Now, &modes).expect("cooked mode");
    drop(other);
    let mut reader = open_pty(&console);
    guest.print(b"a login: ");
    assert_eq!(read(&mut reader, 9), b"a login: ");
    reader.write_all(b"r").expect("type");
    assert_eq!(guest.read(1), b"r", "not its own output");
}

#[test]
fn a_console_without_port_takes_everything_and_null_what_the_uart_takes() {
    assert_eq!(Console::off().input(b"typed"), 5);
    assert!(!Console::off().has_port());
    let null = Console::null();
    let mut guest = Guest::new(&null);
    guest.print(&lines(100_000));
    assert_eq!((null.finish(PATIENCE), null.dropped()), (0, 0));
    assert_eq!(null.input(&[b'x'; 100]), 64);
    assert_eq!(guest.read(64), [b'x'; 64]);
}

#[test]
fn input_waits_for_the_next_port_while_a_machine_restarts() {
    let console = Console::writer(io::sink()).expect("console");
    let first = Guest::new(&console);
    console.detach(&first.uart);
    assert_eq!(console.input(b"typed"), 5);
    let second = Guest::new(&console);
    assert_eq!(second.read(5), b"typed");
    // A late detach of the old port does not disconnect the new one.
    console.detach(&first.uart);
    assert_eq!(console.input(b"more"), 4);
    assert_eq!(second.read(4), b"more");
    assert_eq!(first.register(LSR) & 1, 0);
}

#[test]
fn a_client_too_many_is_turned_away() {
    let (_dir, path, console) = socket();
    let mut guest = Guest::new(&console);
    let mut clients: Vec<_> = (0..64).map(|_| connect(&path)).collect();
    guest.print(b"!");
    for client in &mut clients {
        assert_eq!(read(client, 1), b"!");
    }
    let mut more = connect(&path);
    let end = more.read(&mut [0]);
    assert!(
        matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    );
}
