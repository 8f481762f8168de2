//! Large amounts of data arrive completely, on every kind of console, in both directions.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::config::SerialConfig;

const LINES: usize = 100_000;
const PASTE: usize = 1 << 20;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sink = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sink.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints the lines to a reader that is already connected.
fn print_to(what: &str, console: &Console, mut reader: impl Read + Send + 'static) {
    let mut guest = Guest::new(console);
    // The console has accepted the reader once the reader has received something.
    guest.print(b"!");
    let mut first = [0];
    reader.read_exact(&mut first).expect("the first byte");
    let text = lines(LINES);
    let reading = collect(reader, text.len());
    guest.print(&text);
    assert_same(&reading.join().expect("reader"), &text, what);
    assert_eq!(
        (console.finish(PATIENCE), console.dropped()),
        (0, 0),
        "{what}"
    );
}

#[test]
fn a_hundred_thousand_lines_reach_a_pipe() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let console = Console::descriptor(writer.into()).expect("a console");
    print_to("a pipe", &console, reader);
}

#[test]
fn a_hundred_thousand_lines_reach_a_terminal() {
    let (screen, end) = terminal();
    let console = Console::descriptor(end).expect("a console");
    print_to("a terminal", &console, screen);
}

#[test]
fn a_hundred_thousand_lines_reach_a_pseudo_terminal() {
    let console = Console::pty().expect("a console");
    print_to("a pty", &console, open_pty(&console));
}

#[test]
fn a_hundred_thousand_lines_reach_a_socket() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let console = Console::socket(&path).expect("a console");
    let client = UnixStream::connect(&path).expect("connect");
    print_to("a socket", &console, client);
}

#[test]
fn a_hundred_thousand_lines_reach_a_writer_and_a_file() {
    let text = lines(LINES);
    let sink = Sink::default();
    let console = Console::writer(sink.clone()).expect("a console");
    Guest::new(&console).print(&text);
    assert_eq!(console.finish(PATIENCE), 0);
    assert_same(&sink.0.lock().expect("sink"), &text, "a writer");

    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("log, with a comma");
    fs::write(&path, "of an earlier machine").expect("write");
    let escaped = path.display().to_string().replace(',', ",,");
    let config: SerialConfig = format!("file={escaped}").parse().expect("valid");
    let console = Console::open(&config).expect("a console");
    Guest::new(&console).print(&text);
    // Dropping the last clone is enough.
    drop(console);
    assert_same(&fs::read(&path).expect("read"), &text, "a file");
}

fn paste() -> Vec<u8> {
    let mut text = lines(PASTE / 6);
    text.truncate(PASTE);
    text
}

/// Writes to `keyboard` the input that the guest must receive.
fn paste_into(what: &str, console: &Console, mut keyboard: impl Write + Send + 'static) {
    let guest = Guest::new(console);
    let text = paste();
    let typed = text.clone();
    let typing = thread::spawn(move || keyboard.write_all(&typed).expect("type"));
    assert_same(&guest.read(text.len()), &text, what);
    typing.join().expect("typist");
}

#[test]
fn a_paste_of_a_mebibyte_comes_from_a_pseudo_terminal() {
    let console = Console::pty().expect("a console");
    paste_into("a pty", &console, open_pty(&console));
}

#[test]
fn a_paste_of_a_mebibyte_comes_from_a_socket() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let console = Console::socket(&path).expect("a console");
    paste_into(
        "a socket",
        &console,
        UnixStream::connect(&path).expect("connect"),
    );
}

#[test]
fn a_paste_of_a_mebibyte_by_the_embedder_is_accepted_at_once() {
    let console = Console::writer(io::sink()).expect("a console");
    let guest = Guest::new(&console);
    let text = paste();
    assert_eq!(console.input(&text), text.len());
    assert_same(&guest.read(text.len()), &text, "input");
}

#[test]
fn input_beyond_the_queue_is_refused_and_asked_for_when_there_is_room() {
    let console = Console::writer(io::sink()).expect("a console");
    let guest = Guest::new(&console);
    let text = lines(1_000_000);
    let ready = |wait: i64| {
        let room = console.input_room().expect("a descriptor");
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            room,
            rustix::event::PollFlags::IN,
        )];
        let wait = rustix::event::Timespec {
            tv_sec: wait,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut fds, Some(&wait)).expect("poll") > 0
    };
    let taken = console.input(&text);
    assert!((2 << 20..text.len()).contains(&taken), "{taken}");
    assert_eq!(console.input(&text[taken..]), 0);
    assert!(!ready(0), "no room");
    // Half of the queue, and more than the UART's FIFO may hold in addition.
    let mut got = guest.read((1 << 20) + 4096);
    assert!(ready(60), "the guest has made room");
    let more = console.input(&text[taken..]);
    assert!(more >= 1 << 20, "{more}");
    got.extend(guest.read(taken + more - got.len()));
    assert_same(&got, &text[..taken + more], "input");
}

#[test]
fn what_a_pasting_program_leaves_behind_is_read_after_it_has_gone() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let socket = Console::socket(&path).expect("a console");
    let pty = Console::pty().expect("a console");
    let text = paste();
    let few = &text[..3000];
    // It has disconnected before the guest has a port.
    open_pty(&pty).write_all(few).expect("type");
    assert_same(&Guest::new(&pty).read(few.len()), few, "a pty");
    let mut client = UnixStream::connect(&path).expect("connect");
    client.write_all(&text[..100_000]).expect("type");
    drop(client);
    let guest = Guest::new(&socket);
    assert_same(&guest.read(100_000), &text[..100_000], "a socket");
}
