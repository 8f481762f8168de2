//! A 16550A serial port in eight port addresses.
//!
//! The registers are `vm-superio`'s; this adds the interrupt as an eventfd, a writer the embedder
//! chooses, and input that waits until the guest has room for it. It doesn't know what it is
//! connected to.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::log;
use crate::throttle::Throttle;

/// Interrupt enable register; its bit for received data.
const IER: u8 = 1;
const IER_RECEIVED: u8 = 1 << 0;
/// Interrupt identification register; received data as the cause, with the FIFOs on.
const IIR: u8 = 2;
const IIR_RECEIVED: u8 = 0xc4;
/// Modem control register, with the loopback switch.
const MCR: u8 = 4;
/// Line status register; its bit for received data.
const LSR: u8 = 5;
const LSR_DATA_READY: u8 = 1 << 0;

/// Number of port addresses.
pub const LEN: u64 = 8;

/// Where the guest's bytes go.
pub type Output = Box<dyn Write + Send>;

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The event behind [`Serial::room`].
struct Room {
    event: OwnedFd,
    /// Input was refused since the last signal: a guest that polls an empty FIFO wakes nobody.
    wanted: AtomicBool,
}

impl Room {
    fn signal(&self) {
        if self.wanted.swap(false, Ordering::Relaxed) {
            // A counter at its limit is readable already.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.signal();
    }
}

/// The port.
pub struct Serial {
    uart: Mutex<vm_superio::Serial<Line, Room, Output>>,
    throttle: Throttle,
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serial").finish_non_exhaustive()
    }
}

impl Serial {
    /// A port that raises its (edge-triggered) interrupt by writing `line` and sends what the guest
    /// writes to `output`, byte by byte, on the vCPU's thread.
    ///
    /// # Errors
    /// No eventfd to be had.
    pub fn new(line: EventFd, output: Output) -> io::Result<Self> {
        let room = Room {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            wanted: AtomicBool::new(false),
        };
        let uart = vm_superio::Serial::with_events(Line(line), room, output);
        Ok(Self {
            uart: Mutex::new(uart),
            throttle: Throttle::default(),
        })
    }

    fn uart(&self) -> MutexGuard<'_, vm_superio::Serial<Line, Room, Output>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One register's value.
    ///
    /// Received data is a cause as long as some is left, and the first in order: `vm-superio`
    /// forgets it with the first look at IIR, and Linux leaves the FIFO after 256 bytes to look
    /// there whether there is more.
    fn register(&self, offset: u8) -> u8 {
        let mut uart = self.uart();
        let left = offset == IIR
            && uart.read(LSR) & LSR_DATA_READY != 0
            && uart.read(IER) & IER_RECEIVED != 0;
        if left {
            return IIR_RECEIVED;
        }
        uart.read(offset)
    }

    /// Puts as much of `bytes` into the receive FIFO (64 bytes) as fits and returns how much did.
    /// The rest is to be offered again when [`Serial::room`] is readable.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut uart = self.uart();
        let taken = if uart.fifo_capacity() == 0 {
            0
        } else {
            match uart.enqueue_raw_bytes(bytes) {
                Ok(taken) => taken,
                Err(error) => {
                    log::warn!(self.throttle, %error, "serial input is lost");
                    bytes.len()
                }
            }
        };
        if taken < bytes.len() {
            uart.events().wanted.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// Returns an eventfd that becomes readable when [`Serial::input`] took less than it was given
    /// and the guest has emptied the receive FIFO since. The listener reads it.
    ///
    /// # Errors
    /// The process has no more descriptors.
    pub fn room(&self) -> io::Result<OwnedFd> {
        self.uart().events().event.try_clone()
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.register(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(offset) = u8::try_from(offset) else {
            return;
        };
        // A string instruction arrives as several bytes for the one register.
        for byte in data {
            let mut uart = self.uart();
            if let Err(error) = uart.write(offset, *byte) {
                log::debug!(self.throttle, %error, "serial output is lost");
            }
            // The end of loopback, in which the FIFO takes no input and may be left empty.
            if offset == MCR {
                uart.events().signal();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::eventfd::eventfd;

    /// Whether the event is signalled; it no longer is.
    fn signalled(room: &OwnedFd) -> bool {
        rustix::io::read(room, &mut [0; 8]).is_ok()
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serial() -> (Serial, Sink, EventFd) {
        let line = eventfd().unwrap();
        let sink = Sink::default();
        let serial = Serial::new(line.try_clone().unwrap(), Box::new(sink.clone())).unwrap();
        (serial, sink, line)
    }

    #[test]
    fn what_the_guest_writes_comes_out() {
        let (serial, sink, _) = serial();
        serial.write(0, b"h");
        serial.write(0, b"ey");
        assert_eq!(*sink.0.lock().unwrap(), b"hey");
    }

    #[test]
    fn input_waits_until_the_guest_has_room() {
        let (serial, _, _) = serial();
        let room = serial.room().unwrap();
        let taken = serial.input(&[b'x'; 100]);
        assert_eq!(taken, 64);
        assert_eq!(serial.input(b"y"), 0);
        assert!(!signalled(&room));
        let mut byte = [0];
        for _ in 0..64 {
            serial.read(0, &mut byte);
            assert_eq!(byte, *b"x");
        }
        assert!(signalled(&room));
        assert_eq!(serial.input(b"y"), 1);
    }

    #[test]
    fn a_guest_that_polls_an_empty_fifo_wakes_nobody() {
        let (serial, _, _) = serial();
        let room = serial.room().unwrap();
        serial.input(b"x");
        serial.read(0, &mut [0]);
        serial.read(0, &mut [0]);
        assert!(!signalled(&room));
    }

    #[test]
    fn input_refused_in_loopback_is_asked_for_when_it_ends() {
        let (serial, _, _) = serial();
        let room = serial.room().unwrap();
        serial.write(MCR.into(), &[1 << 4]);
        assert_eq!(serial.input(b"x"), 0);
        assert!(!signalled(&room));
        serial.write(MCR.into(), &[0]);
        assert!(signalled(&room), "the end of loopback is reported");
        assert_eq!(serial.input(b"x"), 1);
    }

    fn register(serial: &Serial, offset: u8) -> u8 {
        let mut byte = [0];
        serial.read(offset.into(), &mut byte);
        byte[0]
    }

    /// Linux's handler: at most 256 bytes, then again while IIR names a cause.
    fn interrupt(serial: &Serial, mut refill: impl FnMut()) -> usize {
        let mut taken = 0;
        while register(serial, IIR) & 1 == 0 {
            for _ in 0..256 {
                if register(serial, LSR) & LSR_DATA_READY == 0 {
                    break;
                }
                register(serial, 0);
                refill();
                taken += 1;
            }
        }
        taken
    }

    #[test]
    fn data_left_in_the_fifo_stays_a_cause() {
        let (serial, _, line) = serial();
        serial.write(IER.into(), &[IER_RECEIVED]);
        assert_eq!(serial.input(&[b'x'; 64]), 64);
        let mut left = 500;
        let taken = interrupt(&serial, || left -= serial.input(&vec![b'x'; left.min(1)]));
        assert_eq!((taken, left), (564, 0));
        line.read().unwrap();
        serial.input(b"y");
        line.read().expect("the next byte is told of");
    }

    #[test]
    fn an_empty_transmitter_waits_behind_received_data() {
        let (serial, _, _) = serial();
        serial.write(IER.into(), &[IER_RECEIVED | 1 << 1]);
        serial.input(b"x");
        assert_eq!(register(&serial, IIR), IIR_RECEIVED);
        assert_eq!(register(&serial, 0), b'x');
        assert_eq!(register(&serial, IIR), 0xc2);
        assert_eq!(register(&serial, IIR), 0xc1);
    }

    #[test]
    fn odd_widths_and_offsets_do_no_harm() {
        let (serial, sink, _) = serial();
        serial.read(0, &mut [0; 4]);
        serial.read(300, &mut [0]);
        serial.write(300, &[1]);
        assert!(sink.0.lock().unwrap().is_empty());
    }
}
