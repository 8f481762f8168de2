//! Targets that block, vanish or fail: the guest continues or is stopped, and nothing is left
//! behind.

use std::io::{self, Write};
use std::sync::Weak;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::config::SerialPolicy;
use crate::console::ConsoleShared;
use crate::console::output::{CHUNK, LIMIT, Output};
use crate::console::wake::WakeEvent;

/// Reads a file of the console's thread in /proc.
fn thread_file(console: &Console, name: &str) -> String {
    let tid = || console.0.shared.tid.load(Ordering::SeqCst);
    wait_until("the thread runs", || tid() != 0);
    std::fs::read_to_string(format!("/proc/self/task/{}/{name}", tid())).expect("read")
}

/// Fills a pipe.
fn fill(pipe: &io::PipeWriter) {
    rustix::io::ioctl_fionbio(pipe, true).expect("non-blocking");
    while rustix::io::write(pipe, &[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(pipe, false).expect("blocking");
}

/// The guest prints until it is blocked, and is interrupted as the life cycle does it. Returns the
/// console thread's shared state, if it still exists.
fn stops_promptly(what: &str, console: Console) -> Weak<ConsoleShared> {
    let flood = Flood::start(Guest::new(&console));
    wait_until("the buffer is full", || console.0.shared.output.is_full());
    thread::sleep(Duration::from_millis(20));
    assert!(!flood.thread.is_finished(), "{what}: the guest waits");
    let start = Instant::now();
    flood.stop(&console);
    assert_eq!(console.dropped(), 0, "{what}: what was accepted is kept");
    let shared = Arc::downgrade(&console.0.shared);
    drop(console);
    assert!(start.elapsed() < SOON, "{what}: {:?}", start.elapsed());
    shared
}

#[test]
fn a_guest_that_waits_for_a_pipe_stops_promptly() {
    let (_reader, writer) = io::pipe().expect("a pipe");
    let shared = stops_promptly(
        "a pipe",
        Console::descriptor(writer.into()).expect("console"),
    );
    assert_eq!(shared.strong_count(), 0, "no thread is left");
}

#[test]
fn a_guest_that_waits_for_a_terminal_stops_promptly() {
    let (_screen, end) = terminal();
    let shared = stops_promptly("a terminal", Console::descriptor(end).expect("console"));
    assert_eq!(shared.strong_count(), 0, "no thread is left");
}

#[test]
fn a_guest_that_waits_for_a_pseudo_terminal_stops_promptly() {
    let console = Console::pty().expect("console");
    let _open = open_pty(&console);
    thread::sleep(Duration::from_millis(50));
    let shared = stops_promptly("a pty", console);
    assert_eq!(shared.strong_count(), 0, "no thread is left");
}

#[test]
fn a_guest_that_waits_for_a_socket_stops_promptly() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let console = Console::socket(&path).expect("console");
    let _client = std::os::unix::net::UnixStream::connect(&path).expect("connect");
    thread::sleep(Duration::from_millis(50));
    let shared = stops_promptly("a socket", console);
    assert_eq!(shared.strong_count(), 0, "no thread is left");
    assert!(!path.exists(), "the socket is removed");
}

/// Blocks, uninterruptibly, until the test releases it.
struct Blocked(Receiver<()>);

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_that_blocks_for_ever_holds_up_its_own_thread_only() {
    let (release, blocked) = channel();
    let shared = stops_promptly(
        "a writer",
        Console::writer(Blocked(blocked)).expect("console"),
    );
    assert_eq!(shared.strong_count(), 1, "the thread is left behind");
    drop(release);
    wait_until("the thread ends", || shared.strong_count() == 0);
}

#[test]
fn a_thread_in_a_blocking_write_is_called_out_of_it() {
    // Ready for the first byte, but not for the rest: another process fills the pipe in between.
    let (mut reader, writer) = io::pipe().expect("a pipe");
    fill(&writer);
    reader.read_exact(&mut [0; 4096]).expect("make room");
    let stuck = Stuck(File::from(OwnedFd::from(writer)));
    let console = Console::writer(stuck).expect("console");
    Guest::new(&console).shout(&[b'x'; 8192]);
    let left = console.finish(Duration::from_millis(200));
    assert!((4096..8192).contains(&left), "{left}");
    let shared = Arc::downgrade(&console.0.shared);
    let start = Instant::now();
    drop(console);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert_eq!(shared.strong_count(), 0, "the thread is not left behind");
}

/// Writes without checking whether the pipe has room.
struct Stuck(File);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_interrupted_wait_loses_and_repeats_nothing() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let console = Console::descriptor(writer.into()).expect("console");
    let text = lines(30_000);
    let mut guest = Guest::new(&console);
    let printed = text.clone();
    let printing = thread::spawn(move || guest.print(&printed));
    wait_until("the buffer is full", || console.0.shared.output.is_full());
    for _ in 0..1000 {
        console.interrupt();
        thread::yield_now();
    }
    let reading = collect(reader, text.len());
    printing.join().expect("guest");
    assert_same(&reading.join().expect("reader"), &text, "interrupted");
    assert_eq!(console.dropped(), 0);
}

#[test]
fn output_beyond_the_slack_is_dropped_and_counted() {
    let (_reader, writer) = io::pipe().expect("a pipe");
    fill(&writer);
    let console = Console::descriptor(writer.into()).expect("console");
    // The vCPU is interrupted at every byte.
    let guest = Guest::new(&console);
    guest.shout(&vec![b'y'; 3 * LIMIT]);
    assert_eq!(console.dropped(), LIMIT as u64);
    assert_eq!(console.finish(Duration::ZERO), 2 * LIMIT as u64);
}

#[test]
fn the_policy_to_drop_never_waits_and_counts_exactly() {
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let console = Console::descriptor(writer.into())
        .expect("console")
        .with_policy(SerialPolicy::Drop);
    let mut guest = Guest::new(&console);
    let text = lines(100_000);
    guest.print(&text);
    // The pipe's and the buffer's contents are still there; the rest is counted.
    let reading = thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).expect("read");
        got
    });
    assert_eq!(console.finish(PATIENCE), 0);
    let dropped = usize::try_from(console.dropped()).expect("a count");
    drop((guest, console));
    let got = reading.join().expect("reader");
    assert_eq!(got.len() + dropped, text.len());
    assert!(dropped > 0, "the pipe can't hold all of it");
    assert_same(
        &got[got.len() - LIMIT..],
        &text[text.len() - LIMIT..],
        "the newest",
    );
}

#[test]
fn bytes_that_were_being_written_when_they_were_given_up_count_as_written() {
    let output = Output::new(Arc::new(WakeEvent::unused()), 0, SerialPolicy::Drop);
    let reader = output.add_reader();
    output.push(&[b'x'; CHUNK]);
    let (at, len) = output.peek(reader, &mut [0; CHUNK]);
    assert_eq!((at, len), (0, CHUNK));
    output.push(&vec![b'y'; LIMIT + 100]);
    assert_eq!(output.dropped(), CHUNK as u64 + 100);
    output.advance(reader, at, len);
    assert_eq!(output.dropped(), 100);
    let (next, _) = output.peek(reader, &mut [0; CHUNK]);
    assert_eq!(next, CHUNK as u64 + 100);
}

#[test]
fn a_pipe_without_reader_drops_and_the_machine_goes_on() {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    vanishes(Console::descriptor(writer.into()).expect("console"));
}

#[test]
fn a_terminal_that_hung_up_drops_and_the_machine_goes_on() {
    let (screen, end) = terminal();
    drop(screen);
    vanishes(Console::descriptor(end).expect("console"));
}

#[test]
fn a_full_file_system_drops_and_the_machine_goes_on() {
    vanishes(Console::file("/dev/full").expect("console"));
}

fn vanishes(console: Console) {
    let text = lines(50_000);
    Guest::new(&console).print(&text);
    assert_eq!(console.finish(PATIENCE), 0);
    assert_eq!(console.dropped(), text.len() as u64);
    // Without output there is no attempt to write.
    let before = thread_time(&console);
    thread::sleep(Duration::from_millis(200));
    assert!(thread_time(&console) - before < 5, "the thread sleeps");
}

/// Returns the CPU time of the console's thread in clock ticks.
fn thread_time(console: &Console) -> u64 {
    let stat = thread_file(console, "stat");
    let (_, numbers) = stat.rsplit_once(')').expect("a name");
    let numbers: Vec<_> = numbers.split_whitespace().collect();
    [11, 12]
        .map(|at| numbers[at].parse::<u64>().expect("a number"))
        .iter()
        .sum()
}

/// Fails until the test lets it succeed.
struct Flaky {
    works: Arc<AtomicBool>,
    file: File,
}

impl Write for Flaky {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.works.load(Ordering::SeqCst) {
            self.file.write(bytes)
        } else {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_target_that_recovers_gets_output_again() {
    let works = Arc::new(AtomicBool::new(false));
    let file = tempfile::tempfile().expect("file");
    let flaky = Flaky {
        works: Arc::clone(&works),
        file: file.try_clone().expect("clone"),
    };
    let console = Console::writer(flaky).expect("console");
    let mut guest = Guest::new(&console);
    guest.print(b"lost");
    assert_eq!(console.finish(PATIENCE), 0);
    works.store(true, Ordering::SeqCst);
    guest.print(b"kept");
    assert_eq!(console.finish(PATIENCE), 0);
    let mut bytes = [0; 5];
    let len = std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 0).expect("read");
    assert_eq!((&bytes[..len], console.dropped()), (&b"kept"[..], 4));
}

#[test]
fn a_writer_that_panics_leaves_nobody_waiting() {
    struct Bomb;
    impl Write for Bomb {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            panic!("as this test wants");
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let console = Console::writer(Bomb).expect("console");
    let text = lines(50_000);
    Guest::new(&console).print(&text);
    assert_eq!(console.finish(PATIENCE), 0);
    assert_eq!(console.dropped(), text.len() as u64);
}

#[test]
fn finish_gives_up_on_a_target_without_progress_and_not_on_a_slow_one() {
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let console = Console::descriptor(writer.into()).expect("console");
    Guest::new(&console).shout(&[b'x'; 2 * LIMIT]);
    let left = console.finish(Duration::from_millis(50));
    assert_eq!(left, console.finish(Duration::ZERO));
    assert!(left > 0);
    assert_eq!(console.dropped(), 0, "it is kept");
    let slow = thread::spawn(move || {
        let mut read = 0;
        let mut bytes = [0; 4096];
        while read < 2 * LIMIT {
            read += reader.read(&mut bytes).expect("read");
            thread::sleep(Duration::from_millis(5));
        }
    });
    assert_eq!(console.finish(PATIENCE), 0);
    slow.join().expect("reader");
}

#[test]
fn an_idle_console_does_not_wake() {
    let console = Console::pty().expect("console");
    let mut guest = Guest::new(&console);
    guest.print(b"hello");
    // Also after a client was connected.
    open_pty(&console).read_exact(&mut [0; 5]).expect("read");
    wait_until("it sleeps for 300 ms", || {
        let before = voluntary_switches(&console);
        thread::sleep(Duration::from_millis(300));
        voluntary_switches(&console) == before
    });
}

/// Returns how often the console's thread went to sleep.
fn voluntary_switches(console: &Console) -> u64 {
    let status = thread_file(console, "status");
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok())
        .expect("a count")
}
