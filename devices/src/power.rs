//! The machine's power block: ACPI sleep and reset registers, and the power button's event register (ACPI 6.5 §4.8.3.7, §4.8.3.6, §5.6.9).
//!
//! Eight byte-wide registers in port space. It doesn't know where they are, what ends a machine, or how an interrupt gets to the guest: it is given an eventfd and a callback.

use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::debug::opaque_debug;

/// Sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Reset register.
pub const RESET: u64 = 2;
/// Pending events; reading clears them.
pub const EVENTS: u64 = 4;
/// Number of registers.
pub const LEN: u64 = 8;
/// What a write to [`RESET`] must say.
pub const RESET_VALUE: u8 = 1;
/// In [`EVENTS`]: the power button was pressed.
pub const POWER_BUTTON: u8 = 1;

/// In the sleep control register: go to sleep now.
const SLEEP_ENABLE: u8 = 1 << 5;

/// What the guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Soft-off, the only sleep state the tables declare.
    Off,
    /// Reset.
    Reset,
}

/// The registers.
pub struct Power {
    events: AtomicU8,
    line: EventFd,
    ask: Box<dyn Fn(PowerRequest) + Send + Sync>,
}

opaque_debug! { Power |it| {} }

impl Power {
    /// A power block that raises its interrupt by writing `line` and reports what the guest asks for to `ask`, on the vCPU's thread.
    pub fn new(line: EventFd, ask: impl Fn(PowerRequest) + Send + Sync + 'static) -> Self {
        Self {
            events: AtomicU8::new(0),
            line,
            ask: Box::new(ask),
        }
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// That of the eventfd.
    pub fn press_button(&self) -> std::io::Result<()> {
        // The event must be there when the interrupt's handler reads the register.
        self.events.fetch_or(POWER_BUTTON, Ordering::SeqCst);
        self.line.write(1)
    }
}

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([byte], EVENTS) = (data, offset) {
            *byte = self.events.swap(0, Ordering::SeqCst);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, [value]) if value & SLEEP_ENABLE != 0 => (self.ask)(PowerRequest::Off),
            (RESET, [RESET_VALUE]) => (self.ask)(PowerRequest::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::eventfd::eventfd;

    fn power() -> (Power, EventFd, Arc<Mutex<Vec<PowerRequest>>>) {
        let line = eventfd().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&asked);
        let power = Power::new(line.try_clone().unwrap(), move |request| {
            sink.lock().unwrap().push(request);
        });
        (power, line, asked)
    }

    #[test]
    fn only_the_documented_writes_ask_for_anything() {
        let (power, _, asked) = power();
        for (offset, data) in [
            (SLEEP_CONTROL, &[0x14][..]),
            (SLEEP_CONTROL, &[0x34, 0]),
            (SLEEP_STATUS, &[0x80]),
            (RESET, &[0]),
            (RESET, &[1, 0]),
            (7, &[0xff]),
        ] {
            power.write(offset, data);
        }
        assert_eq!(*asked.lock().unwrap(), []);
        power.write(SLEEP_CONTROL, &[0x34]);
        power.write(RESET, &[RESET_VALUE]);
        assert_eq!(
            *asked.lock().unwrap(),
            [PowerRequest::Off, PowerRequest::Reset]
        );
    }

    #[test]
    fn the_button_interrupts_and_its_event_is_read_once() {
        let (power, line, _) = power();
        power.press_button().unwrap();
        assert_eq!(line.read().unwrap(), 1);
        let mut data = [0xff];
        power.read(EVENTS, &mut data);
        assert_eq!(data, [POWER_BUTTON]);
        power.read(EVENTS, &mut data);
        assert_eq!(data, [0]);
        let mut wide = [0xff; 4];
        power.read(SLEEP_CONTROL, &mut wide);
        assert_eq!(wide, [0; 4]);
    }
}
