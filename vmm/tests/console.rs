//! Consoles of running machines, with small guests: no output is lost, and a reader that does not
//! read blocks no machine.
//!
//! Skipped without /dev/kvm.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use splitring::config::{OnReboot, SerialConfig, SerialPolicy};
use splitring::{Console, Event, ExitReason, Machine, Resources, VmConfig};
use splitring_needs::tiny::{
    ECHO, FLOOD, PRINT, RESET, directory, kernel, print_lines, printed_lines,
};

const LINES: u32 = 100_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn start(config: VmConfig, console: &Console) -> Machine {
    let options = Resources::options().any_kvm(true).console(console.clone());
    let resources = options.open(&config).expect("opens");
    let machine = Machine::new(config, resources).expect("builds");
    machine.start().expect("starts");
    machine
}

/// A console on a pipe that is not read.
fn unread() -> (io::PipeReader, Console) {
    let (reader, writer) = io::pipe().expect("a pipe");
    let console = Console::descriptor(writer.into()).expect("a console");
    (reader, console)
}

/// Waits until the guest, which prints for ever, is blocked because its output is not read.
fn wait_until_it_waits(machine: &Machine) {
    let start = Instant::now();
    let mut exits = machine.exits().port_out;
    loop {
        thread::sleep(Duration::from_millis(50));
        let now = machine.exits().port_out;
        if now == exits && now > 100_000 {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "the guest does not wait: {now}");
        exits = now;
    }
}

#[test]
fn a_hundred_thousand_lines_arrive_complete() {
    let Some(dir) = directory() else { return };
    let (mut reader, console) = unread();
    let machine = start(
        VmConfig::new(kernel(dir.path(), &print_lines(LINES))),
        &console,
    );
    let reading = thread::spawn(move || {
        // At first the reader is slower than the guest.
        thread::sleep(Duration::from_millis(300));
        let mut text = vec![0; printed_lines(LINES).len()];
        reader.read_exact(&mut text).expect("read");
        text
    });
    assert_eq!(machine.wait(), ExitReason::PowerOff);
    assert!(reading.join().expect("reader") == printed_lines(LINES));
    assert_eq!(console.dropped(), 0);
}

#[test]
fn a_file_is_complete_when_the_machine_has_ended() {
    let Some(dir) = directory() else { return };
    let log = dir.path().join("log");
    let text = format!("file={}", log.display());
    let serial: SerialConfig = text.parse().expect("valid");
    let console = Console::open(&serial).expect("a console");
    let machine = start(
        VmConfig::new(kernel(dir.path(), &print_lines(LINES))),
        &console,
    );
    assert_eq!(machine.wait(), ExitReason::PowerOff);
    assert!(fs::read(&log).expect("read") == printed_lines(LINES));
}

#[test]
fn a_long_paste_comes_back_whole_from_an_echo() {
    let Some(dir) = directory() else { return };
    let path = dir.path().join("socket");
    let console = Console::socket(&path).expect("a console");
    let _machine = start(VmConfig::new(kernel(dir.path(), ECHO)), &console);
    let mut client = UnixStream::connect(&path).expect("connect");
    // The console has accepted the client once the client has received something.
    client.write_all(b"!").expect("type");
    client.read_exact(&mut [0]).expect("read");
    let text = printed_lines(75_000);
    let typed = text.clone();
    let mut keyboard = client.try_clone().expect("clone");
    let typing = thread::spawn(move || keyboard.write_all(&typed).expect("type"));
    let mut echo = vec![0; text.len()];
    client.read_exact(&mut echo).expect("read");
    typing.join().expect("typist");
    assert!(echo == text);
}

#[test]
fn stop_does_not_wait_for_a_console_that_nobody_reads() {
    let Some(dir) = directory() else { return };
    for _ in 0..3 {
        let (_reader, console) = unread();
        let machine = start(VmConfig::new(kernel(dir.path(), FLOOD)), &console);
        wait_until_it_waits(&machine);
        let start = Instant::now();
        machine.stop();
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(machine.try_wait(), Some(ExitReason::Stopped));
        assert_eq!(console.dropped(), 0, "what the guest printed is kept");
    }
}

#[test]
fn pause_and_input_do_not_wait_for_a_console_that_nobody_reads() {
    let Some(dir) = directory() else { return };
    let (mut reader, console) = unread();
    let machine = start(VmConfig::new(kernel(dir.path(), FLOOD)), &console);
    wait_until_it_waits(&machine);
    for _ in 0..100 {
        machine.pause().expect("pauses");
        machine.resume().expect("resumes");
    }
    assert_eq!(machine.input(b"typed"), 5);
    assert_eq!(console.dropped(), 0);
    // Once the pipe is read, the guest continues.
    let before = machine.exits().port_out;
    reader.read_exact(&mut vec![0; 200_000]).expect("read");
    let start = Instant::now();
    while machine.exits().port_out < before + 100_000 {
        assert!(start.elapsed() < PATIENCE, "the guest does not go on");
        thread::yield_now();
    }
}

#[test]
fn a_guest_whose_output_is_dropped_never_waits() {
    let Some(dir) = directory() else { return };
    let (_reader, console) = unread();
    let console = console.with_policy(SerialPolicy::Drop);
    let machine = start(
        VmConfig::new(kernel(dir.path(), &print_lines(LINES * 2))),
        &console,
    );
    assert_eq!(machine.wait(), ExitReason::PowerOff);
    assert!(console.dropped() > 0);
}

#[test]
fn a_console_outlives_reboots() {
    let Some(dir) = directory() else { return };
    let (mut reader, console) = unread();
    // PRINT powers off after its letter; this guest resets instead.
    let mut code = PRINT[..7].to_vec();
    code.extend(RESET);
    let machine = start(
        VmConfig::new(kernel(dir.path(), &code)).on_reboot(OnReboot::Restart),
        &console,
    );
    thread::scope(|scope| {
        scope.spawn(|| machine.wait());
        let mut text = [0; 3];
        reader.read_exact(&mut text).expect("three boots");
        assert_eq!(&text, b"AAA");
        machine.stop();
    });
}

#[test]
fn the_path_of_a_pseudo_terminal_is_an_event() {
    let Some(dir) = directory() else { return };
    let console = Console::pty().expect("a console");
    let config = VmConfig::new(kernel(dir.path(), PRINT));
    let options = Resources::options().any_kvm(true).console(console.clone());
    let resources = options.open(&config).expect("opens");
    let machine = Machine::new(config, resources).expect("builds");
    let events = machine.events().expect("events");
    machine.start().expect("starts");
    let path = console.pty_path().expect("a path").to_owned();
    assert_eq!(events.try_next(), Some(Event::ConsolePty(path)));
    assert_eq!(events.try_next(), Some(Event::Started));
}

#[test]
fn a_console_can_be_shared_between_threads() {
    fn is_shared<T: Clone + std::fmt::Debug + Send + Sync + 'static>(_: &T) {}
    is_shared(&Console::null());
}

#[test]
fn a_dropped_machine_leaves_no_console_behind() {
    let Some(dir) = directory() else { return };
    let path = dir.path().join("socket");
    let machine = {
        let console = Console::socket(&path).expect("a console");
        start(VmConfig::new(kernel(dir.path(), FLOOD)), &console)
    };
    assert!(path.exists());
    drop(machine);
    assert!(!path.exists(), "the socket goes with the last clone");
}
