//! Log lines about a machine have its name, on every thread. In a process of its own, because the
//! subscriber is per process.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use splitring::config::OnReboot;
use splitring::{Console, Event, ExitReason, Machine, Resources, VmConfig};
use splitring_needs::tiny::{PRINT, RESET, directory, kernel};
use tracing_subscriber::filter::LevelFilter;

/// All log lines.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A console's target that fails.
struct Broken;

impl io::Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(libc::EPIPE))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints a letter and resets itself, three times.
fn live(name: &str) {
    let Some(dir) = directory() else { return };
    // PRINT powers off after its letter; this guest resets instead.
    let code = [&PRINT[..7], RESET].concat();
    let config = VmConfig::new(kernel(dir.path(), &code))
        .name(name)
        .on_reboot(OnReboot::Restart);
    let options = Resources::options()
        .any_kvm(true)
        .console(Console::writer(Broken).expect("a console"));
    let resources = options.open(&config).expect("opens");
    let machine = Machine::new(config, resources).expect("builds");
    let events = machine.events().expect("events");
    machine.start().expect("starts");
    let mut reboots = 0;
    while reboots < 3 {
        match events.try_next() {
            Some(Event::Rebooted) => reboots += 1,
            _ => thread::yield_now(),
        }
    }
    assert_eq!(machine.stop(), ExitReason::Stopped);
}

#[test]
fn every_line_about_a_machine_has_its_name_whichever_thread_logs_it() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_thread_names(true)
        .with_writer(move || writer.clone())
        .init();
    if !splitring_needs::kvm() {
        return;
    }
    thread::scope(|scope| {
        for name in ["one", "two"] {
            let caller = thread::Builder::new().name(format!("caller:{name}"));
            caller.spawn_scoped(scope, || live(name)).expect("a thread");
        }
    });
    let bytes = log.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let text = String::from_utf8(bytes).expect("text");
    let of = |name: &str| format!("machine{{name=\"{name}\"}}");
    for line in text.lines() {
        let named: Vec<_> = ["one", "two"]
            .into_iter()
            .filter(|name| line.contains(&of(name)))
            .collect();
        assert_eq!(named.len(), 1, "one machine's name in: {line}");
        // Thread names have it, too, except those of threads that existed before their machine.
        let other = if named == ["one"] { ":two" } else { ":one" };
        assert!(!line.contains(other), "the other machine's thread: {line}");
    }
    for name in ["one", "two"] {
        for thread in ["caller:", "control:", "vcpu0:", "console "] {
            let logged = |line: &str| line.contains(&of(name)) && line.contains(thread);
            assert!(text.lines().any(logged), "{thread} of {name}:\n{text}");
        }
    }
}
