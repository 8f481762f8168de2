//! The guest's input: a bounded queue before the UART's receive FIFO.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use splitring_devices::serial::Serial;

use super::wake::WakeEvent;

/// The most input that is queued: enough for a long paste on a terminal, which has no flow control.
pub(super) const LIMIT: usize = 2 << 20;
/// The most input that is queued from a pseudo-terminal or a socket, which have flow control.
const SOURCE_LIMIT: usize = 64 << 10;

#[derive(Debug)]
struct AttachedUart {
    serial: Arc<Serial>,
    room: Arc<OwnedFd>,
}

#[derive(Debug)]
struct InputState {
    pending: VecDeque<u8>,
    port: Option<AttachedUart>,
    /// The most bytes that are queued.
    limit: usize,
    /// Less was accepted than offered since `room` was signalled.
    short: bool,
}

/// A bounded queue of input; see the module.
#[derive(Debug)]
pub(super) struct Input {
    state: Mutex<InputState>,
    room: WakeEvent,
}

impl Input {
    /// Returns an empty queue that keeps at most `limit` bytes and signals `room`.
    pub(super) fn new(limit: usize, room: WakeEvent) -> Self {
        let state = InputState {
            pending: VecDeque::new(),
            port: None,
            limit,
            short: false,
        };
        Self {
            state: Mutex::new(state),
            room,
        }
    }

    fn state(&self) -> MutexGuard<'_, InputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects a UART, which gets the queued input.
    pub(super) fn attach(&self, serial: Arc<Serial>) -> io::Result<()> {
        let room = Arc::new(serial.room()?);
        self.state().port = Some(AttachedUart { serial, room });
        Ok(())
    }

    /// Disconnects a UART, if it is this one.
    pub(super) fn detach(&self, serial: &Arc<Serial>) {
        let mut state = self.state();
        state.port.take_if(|port| Arc::ptr_eq(&port.serial, serial));
    }

    /// Disconnects the UART, if there is one.
    pub(super) fn disconnect(&self) {
        let port = self.state().port.take();
        // Dropped without the lock: it may be the last reference.
        drop(port);
    }

    /// Accepts input: as much as the UART takes at once if the queue is empty, then as much as the
    /// queue has room for. Returns how many bytes were accepted.
    pub(super) fn accept(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let mut taken = 0;
        if state.pending.is_empty()
            && let Some(port) = &state.port
        {
            taken = port.serial.input(bytes);
        }
        let left = bytes.get(taken..).unwrap_or_default();
        let queued = left
            .len()
            .min(state.limit.saturating_sub(state.pending.len()));
        state.pending.extend(left.iter().take(queued));
        if queued < left.len() {
            state.short = true;
            self.room.clear();
        }
        taken + queued
    }

    /// Moves queued input to the UART, as far as it takes it. Returns whether some is left.
    pub(super) fn offer(&self) -> bool {
        let mut state = self.state();
        let InputState {
            pending,
            port: Some(port),
            limit,
            short,
        } = &mut *state
        else {
            return false;
        };
        if pending.is_empty() {
            return false;
        }
        // Clear the event first: the UART is tried right after.
        let _ = rustix::io::read(&port.room, &mut [0; 8]);
        loop {
            let (first, _) = pending.as_slices();
            let len = first.len();
            if len == 0 {
                break;
            }
            let taken = port.serial.input(first);
            pending.drain(..taken.min(len));
            if taken < len {
                break;
            }
        }
        if *short && pending.len() <= *limit / 2 {
            *short = false;
            self.room.signal();
        }
        if pending.is_empty() {
            // Free the memory after a long paste.
            pending.shrink_to(SOURCE_LIMIT);
        }
        !pending.is_empty()
    }

    /// Returns how many bytes a source with flow control may read now.
    pub(super) fn space(&self) -> usize {
        SOURCE_LIMIT.saturating_sub(self.state().pending.len())
    }

    /// Returns the descriptor that becomes readable when refused input can be offered again.
    pub(super) fn room(&self) -> Option<BorrowedFd<'_>> {
        self.room.fd()
    }

    /// Returns the descriptor that becomes readable when the UART has room again.
    pub(super) fn port_room(&self) -> Option<Arc<OwnedFd>> {
        self.state()
            .port
            .as_ref()
            .map(|port| Arc::clone(&port.room))
    }
}
