//! What guests do with I/O ports, on small guests.

mod tiny;

use std::path::Path;

use splitring::{Event, ExitReason, Machine, Resources};
use tiny::{POWEROFF, config, directory};

/// A machine that runs `code` and then powers off.
fn build(dir: &Path, code: &[u8]) -> Machine {
    let config = config(dir, &[code, POWEROFF].concat());
    let resources = Resources::options().any_kvm(true).open(&config);
    Machine::new(config, resources.expect("opens")).expect("builds")
}

/// mov dx, 0x505; mov al, 2; out dx, al; mov al, 1; out dx, al
const PANIC_TWICE: &[u8] = &[0x66, 0xba, 0x05, 0x05, 0xb0, 2, 0xee, 0xb0, 1, 0xee];

#[test]
fn a_panic_of_the_guest_is_an_event_and_ends_nothing() {
    let Some(dir) = directory() else { return };
    let machine = build(dir.path(), PANIC_TWICE);
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
