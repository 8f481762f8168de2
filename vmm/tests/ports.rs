//! I/O ports, with small guests.

use std::os::unix::fs::FileExt;
use std::path::Path;

use splitring::{Console, Event, ExitReason, Machine, Resources, VmConfig};
use splitring_needs::tiny::{POWEROFF, directory, kernel};

/// A machine that runs `code` and then powers off.
fn build(dir: &Path, code: &[u8], console: Console) -> Machine {
    let config = VmConfig::new(kernel(dir, &[code, POWEROFF].concat()));
    let options = Resources::options().any_kvm(true).console(console);
    Machine::new(config.clone(), options.open(&config).expect("opens")).expect("builds")
}

/// mov dx, 0x505; mov al, 2; out dx, al; mov al, 1; out dx, al
const PANIC_TWICE: &[u8] = &[0x66, 0xba, 0x05, 0x05, 0xb0, 2, 0xee, 0xb0, 1, 0xee];

#[test]
fn a_panic_of_the_guest_is_an_event_and_ends_nothing() {
    let Some(dir) = directory() else { return };
    let machine = build(dir.path(), PANIC_TWICE, Console::null());
    let events = machine.events().expect("events");
    machine.start().expect("starts");
    assert_eq!(machine.wait(), ExitReason::PowerOff);
    let seen = std::iter::from_fn(|| events.try_next());
    let seen: Vec<_> = seen
        .filter(|event| matches!(event, Event::GuestPanicked { .. }))
        .collect();
    let panicked = |crash_kernel| Event::GuestPanicked { crash_kernel };
    assert_eq!(seen, [panicked(true), panicked(false)]);
}

/// Returns the console output of a guest that reads or writes 100 bytes with one instruction.
fn printed(dir: &Path, code: &[u8]) -> Vec<u8> {
    let file = tempfile::tempfile().expect("file");
    let console = Console::writer(file.try_clone().expect("clone")).expect("a console");
    let machine = build(dir, code, console);
    machine.start().expect("starts");
    assert_eq!(machine.wait(), ExitReason::PowerOff);
    let len = file.metadata().expect("metadata").len();
    let mut bytes = vec![0; usize::try_from(len).expect("short")];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

/// mov ecx, 100; mov dx, 0x3f8; rep outsb
const PRINT_STRING: &[u8] = &[0xb9, 100, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e];

#[test]
fn a_string_written_to_the_serial_port_is_printed_byte_by_byte() {
    let Some(dir) = directory() else { return };
    let text: Vec<u8> = (b' '..b' ' + 90).chain(0..10).collect();
    // lea rsi, [rip + distance to the text]; the rest of the code follows.
    let between = u8::try_from(PRINT_STRING.len() + POWEROFF.len()).expect("short");
    let code = [
        &[0x48, 0x8d, 0x35, between, 0, 0, 0],
        PRINT_STRING,
        POWEROFF,
        &text,
    ]
    .concat();
    assert_eq!(printed(dir.path(), &code), text);
}

/// KVM reports many elements in one exit; each is a read of its own.
#[test]
fn a_string_read_from_a_port_is_read_byte_by_byte() {
    let Some(dir) = directory() else { return };
    let code = [
        // mov edi, 0x300000; mov esi, edi; mov ecx, 100; mov dx, 0x505; rep insb
        &[
            0xbf, 0, 0, 0x30, 0, 0x89, 0xfe, 0xb9, 100, 0, 0, 0, 0x66, 0xba, 0x05, 0x05, 0xf3, 0x6c,
        ][..],
        PRINT_STRING,
    ];
    assert_eq!(printed(dir.path(), &code.concat()), [0b11; 100]);
}
