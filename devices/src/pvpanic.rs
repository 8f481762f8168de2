//! The pvpanic device: a guest's kernel says that it has panicked (QEMU, docs/specs/pvpanic.rst).
//!
//! One byte-wide register in port space; the ACPI tables name it QEMU0001. It reports to a sink and ends nothing: what
//! follows a panic is the operator's choice.

use crate::bus::BusDevice;
use crate::events::{DeviceEvent, EventSink, OncePerSecond};
use crate::log;
use crate::throttle::Throttle;

/// Number of registers.
pub const LEN: u64 = 1;

/// The guest panicked, and the host is to deal with it.
const PANICKED: u8 = 1 << 0;
/// The guest panicked, and its crash kernel deals with it.
const CRASH_LOADED: u8 = 1 << 1;
/// What a read says that the register knows. Bit 2, a regular shutdown that the host is to complete, is left out: guests
/// power off by the ACPI register, and a guest must not count on an event for that.
const KNOWN: u8 = PANICKED | CRASH_LOADED;

/// The register.
#[derive(Debug)]
pub struct PvPanic {
    events: EventSink,
    throttle: Throttle,
    /// Each kind has its own limit, so that the panic of a crash kernel is not lost behind the first one.
    panicked: OncePerSecond,
    crash_loaded: OncePerSecond,
}

impl PvPanic {
    /// A register that reports to `events`, at most once a second and kind.
    #[must_use]
    pub fn new(events: EventSink) -> Self {
        Self {
            events,
            throttle: Throttle::default(),
            panicked: OncePerSecond::default(),
            crash_loaded: OncePerSecond::default(),
        }
    }

    fn report(&self, crash_kernel: bool) {
        let (what, limit) = if crash_kernel {
            ("its crash kernel goes on", &self.crash_loaded)
        } else {
            ("it has no crash kernel", &self.panicked)
        };
        log::warn!(self.throttle, "the guest's kernel panicked; {what}");
        if limit.admit() {
            self.events
                .send(|| DeviceEvent::GuestPanicked { crash_kernel });
        }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [byte] = data {
            *byte = KNOWN;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        // Bits that are not known are ignored; of both, the one that asks for more counts.
        if value & PANICKED != 0 {
            self.report(false);
        } else if value & CRASH_LOADED != 0 {
            self.report(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::observed;

    #[test]
    fn reading_says_which_events_are_known() {
        let device = PvPanic::new(EventSink::default());
        let mut byte = [0xff];
        device.read(0, &mut byte);
        assert_eq!(byte, [0b11]);
        let mut wide = [0xff; 4];
        device.read(0, &mut wide);
        assert_eq!(wide, [0; 4]);
    }

    #[test]
    fn each_known_event_is_reported_and_anything_else_is_not() {
        for (written, crash_kernel) in [
            (&[0b01][..], Some(false)),
            (&[0b10], Some(true)),
            (&[0b11], Some(false)),
            (&[0b1111_0110], Some(true)),
            (&[0], None),
            (&[0b100], None),
            (&[1, 0], None),
            (&[], None),
        ] {
            let (sink, seen) = observed();
            PvPanic::new(sink).write(0, written);
            let expected =
                crash_kernel.map(|crash_kernel| DeviceEvent::GuestPanicked { crash_kernel });
            assert!(seen.lock().unwrap().iter().eq(&expected), "{written:?}");
        }
    }

    #[test]
    fn a_guest_that_panics_for_ever_is_reported_once_a_second_and_kind() {
        let (sink, seen) = observed();
        let device = PvPanic::new(sink);
        for _ in 0..1000 {
            device.write(0, &[CRASH_LOADED]);
            device.write(0, &[PANICKED]);
        }
        let panicked = |crash_kernel| DeviceEvent::GuestPanicked { crash_kernel };
        assert_eq!(*seen.lock().unwrap(), [panicked(true), panicked(false)]);
    }
}
