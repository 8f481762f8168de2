//! Consoles between a real UART and real pipes, terminals, sockets and files; the test plays the
//! guest.

mod clients;
mod stuck;
mod volume;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use splitring_devices::bus::BusDevice;
use splitring_devices::eventfd::eventfd;
use splitring_devices::serial::Serial;

use super::{Console, RoomWaiter};

const PATIENCE: Duration = Duration::from_secs(60);
/// The time in which a console must end, with room for a busy host.
const SOON: Duration = Duration::from_secs(3);
const LSR: u64 = 5;

/// A guest with one vCPU and only a UART.
struct Guest {
    uart: Arc<Serial>,
    room: RoomWaiter,
}

impl Guest {
    fn new(console: &Console) -> Self {
        let line = eventfd().expect("eventfd");
        let uart = Arc::new(Serial::new(line, console.output()).expect("a UART"));
        console.attach(Arc::clone(&uart)).expect("attach");
        Self {
            uart,
            room: console.waiter(),
        }
    }

    /// Prints as a vCPU does: one port write per byte, and a wait for room after each.
    fn print(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.uart.write(0, &[*byte]);
            self.room.wait_for_room();
        }
    }

    /// Prints without waiting for room.
    fn shout(&self, bytes: &[u8]) {
        for byte in bytes {
            self.uart.write(0, &[*byte]);
        }
    }

    fn register(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.uart.read(offset, &mut byte);
        byte[0]
    }

    /// Reads `len` bytes of input by polling.
    fn read(&self, len: usize) -> Vec<u8> {
        let start = Instant::now();
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            if self.register(LSR) & 1 != 0 {
                bytes.push(self.register(0));
            } else {
                let read = bytes.len();
                assert!(start.elapsed() < PATIENCE, "{read} of {len} bytes came");
                thread::yield_now();
            }
        }
        bytes
    }
}

/// Reads `len` bytes on another thread.
fn collect(mut from: impl Read + Send + 'static, len: usize) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = vec![0; len];
        from.read_exact(&mut bytes).expect("read");
        bytes
    })
}

/// Returns numbered lines, in which a gap or a repetition can be detected.
fn lines(count: usize) -> Vec<u8> {
    let mut text = Vec::new();
    for number in 0..count {
        text.extend_from_slice(format!("{number}\r\n").as_bytes());
    }
    text
}

/// Asserts that `got` is `wanted`, without printing megabytes if it is not.
fn assert_same(got: &[u8], wanted: &[u8], what: &str) {
    let differs = got
        .iter()
        .zip(wanted)
        .position(|(got, wanted)| got != wanted);
    assert_eq!(differs, None, "{what}: first difference");
    assert_eq!(got.len(), wanted.len(), "{what}: length");
}

/// Returns a terminal in raw mode: its master (keyboard and screen), and the end that programs use.
fn terminal() -> (File, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).expect("a terminal");
    grantpt(&master).expect("grant");
    unlockpt(&master).expect("unlock");
    let slave = ioctl_tiocgptpeer(&master, flags).expect("the other end");
    let mut modes = tcgetattr(&slave).expect("modes");
    modes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &modes).expect("raw mode");
    (File::from(master), slave)
}

fn open_pty(console: &Console) -> File {
    open_terminal(console.pty_path().expect("a path"))
}

fn open_terminal(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .expect("open the pseudo-terminal")
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited too long until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Prints on another thread until it is stopped.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Flood {
    fn start(mut guest: Guest) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut printed = 0;
            while !stopped.load(Ordering::SeqCst) {
                guest.print(b"x");
                printed += 1;
            }
            printed
        });
        Self { stop, thread }
    }

    /// Stops as the life cycle stops a vCPU; returns how many bytes the guest printed.
    fn stop(self, console: &Console) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        console.interrupt();
        self.thread.join().expect("the guest's thread")
    }
}
