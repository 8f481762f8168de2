//! MSI-X: the vector table and the pending bits (PCI Local Bus 3.0 §6.8.2).
//!
//! Raising an interrupt takes no lock. A vector's mask and pending bits share one atomic word: who raises a
//! masked vector sets its pending bit and looks at the mask once more, who unmasks it takes the pending bit
//! away, and whoever gets the bit sends the message, so none is lost. It doesn't know virtio.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::eventfd::eventfd;
use crate::log;
use crate::rings::Call;
use crate::saved::{Layer, StateError};
use crate::throttle::Throttle;
use crate::wiring::{MsiLine, MsiMessage, Wiring, WiringError};

/// Most vectors a function can have.
pub(super) const MAX_VECTORS: u16 = 2048;
/// Bytes of a table entry.
pub(super) const ENTRY_SIZE: u64 = 16;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Message control: MSI-X instead of the interrupt line.
const ENABLE: u16 = 1 << 15;

/// Vector state: its message must not be sent now.
const MASKED: u8 = 1;
/// Vector state: it was to be sent.
const PENDING: u8 = 2;

pub(super) struct Msix {
    vectors: Box<[Vector]>,
    enabled: AtomicBool,
    table: Mutex<Table>,
    wiring: Arc<dyn Wiring>,
    label: String,
    throttle: Throttle,
}

struct Vector {
    state: AtomicU8,
    /// Sends its message. Made with the function: a guest that unmasks the vector must not meet a lack of descriptors.
    trigger: Arc<EventFd>,
}

struct Table {
    entries: Box<[Entry]>,
    /// Of the queues that are served outside this process.
    calls: Vec<Wired>,
    function_masked: bool,
    /// The function may send messages at all.
    bus_master: bool,
    /// The function has left the bus, and never sends a message again.
    released: bool,
}

/// A call that a vector's line sends, too, while that may be sent.
struct Wired {
    queue: u16,
    vector: usize,
    call: Arc<Call>,
}

struct Entry {
    message: MsiMessage,
    masked: bool,
    /// Made when the vector is first unmasked, which it isn't without.
    line: Option<Box<dyn MsiLine>>,
    /// What the line sends at present.
    routed: Option<MsiMessage>,
}

impl Msix {
    /// `count` vectors of the function `requester`, all masked; `label` is for messages.
    ///
    /// # Errors
    /// No eventfd for each of them.
    pub(super) fn new(
        count: u16,
        requester: u16,
        wiring: Arc<dyn Wiring>,
        label: String,
    ) -> io::Result<Self> {
        let message = MsiMessage {
            requester,
            ..MsiMessage::default()
        };
        let entry = || Entry {
            message,
            masked: true,
            line: None,
            routed: None,
        };
        let count = usize::from(count.min(MAX_VECTORS));
        Ok(Self {
            vectors: std::iter::repeat_with(Vector::new)
                .take(count)
                .collect::<io::Result<_>>()?,
            enabled: AtomicBool::new(false),
            table: Mutex::new(Table {
                entries: std::iter::repeat_with(entry).take(count).collect(),
                calls: Vec::new(),
                function_masked: false,
                bus_master: false,
                released: false,
            }),
            wiring,
            label,
            throttle: Throttle::default(),
        })
    }

    /// Whether MSI-X replaces the interrupt line.
    pub(super) fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Whether there is a vector `index`.
    pub(super) fn has(&self, index: u16) -> bool {
        usize::from(index) < self.vectors.len()
    }

    /// Raises a vector, or marks it pending. One that is not there is nobody's.
    pub(super) fn trigger(&self, index: u16) {
        if let Some(vector) = self.vectors.get(usize::from(index)) {
            vector.trigger();
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest wrote message control.
    pub(super) fn set_control(&self, control: u16) {
        let mut table = self.table();
        let enabled = control & ENABLE != 0;
        let was_enabled = self.enabled.swap(enabled, Ordering::AcqRel);
        table.function_masked = control & FUNCTION_MASK != 0;
        for index in 0..self.vectors.len() {
            self.apply(&mut table, index);
        }
        if was_enabled && !enabled {
            for vector in &self.vectors {
                vector.take_pending();
            }
        }
    }

    /// The function may send messages from now on, or not: then they stay pending.
    pub(super) fn set_bus_master(&self, on: bool) {
        let mut table = self.table();
        table.bus_master = on;
        for index in 0..self.vectors.len() {
            self.apply(&mut table, index);
        }
    }

    /// Gives all lines back, for good.
    pub(super) fn release(&self) {
        let mut table = self.table();
        table.released = true;
        for index in 0..self.vectors.len() {
            self.apply(&mut table, index);
        }
        for entry in &mut table.entries {
            entry.line = None;
        }
    }

    /// Brings a vector's line and mask in step with its entry.
    fn apply(&self, table: &mut Table, index: usize) {
        let silent =
            table.function_masked || !table.bus_master || table.released || !self.enabled();
        let (Some(entry), Some(vector)) = (table.entries.get_mut(index), self.vectors.get(index))
        else {
            return;
        };
        let calls = table.calls.iter().filter(|wired| wired.vector == index);
        if silent || entry.masked {
            vector.mask();
            calls.for_each(|wired| self.detach(entry, &wired.call));
            return;
        }
        match self.route(entry, vector) {
            Ok(()) => {
                vector.unmask();
                calls.for_each(|wired| self.attach(entry, &wired.call));
            }
            // The message stays pending, and the next unmasking tries again.
            Err(error) => {
                log::error!(
                    self.throttle,
                    device = self.label,
                    vector = index,
                    %error,
                    "interrupt is held back"
                )
            }
        }
    }

    /// Lets KVM take the signals of `call`, for `queue`, whenever `vector` may be sent.
    pub(super) fn connect(&self, queue: u16, vector: u16, call: &Arc<Call>) {
        let mut table = self.table();
        let index = usize::from(vector);
        table.calls.push(Wired {
            queue,
            vector: index,
            call: Arc::clone(call),
        });
        self.apply(&mut table, index);
    }

    /// Undoes [`Msix::connect`]; returns the call.
    pub(super) fn disconnect(&self, queue: u16) -> Option<Arc<Call>> {
        let mut table = self.table();
        let at = table.calls.iter().position(|wired| wired.queue == queue)?;
        let wired = table.calls.swap_remove(at);
        if let Some(entry) = table.entries.get(wired.vector) {
            self.detach(entry, &wired.call);
        }
        Some(wired.call)
    }

    fn attach(&self, entry: &Entry, call: &Call) {
        let Some(line) = entry.line.as_ref().filter(|_| !call.is_direct()) else {
            return;
        };
        match line.attach(&call.fd) {
            Ok(()) => call.set_direct(true),
            // Its signals come to this process, and are passed on.
            Err(error) => {
                log::warn!(self.throttle, device = self.label, %error, "a queue's interrupt is slow")
            }
        }
    }

    fn detach(&self, entry: &Entry, call: &Call) {
        let Some(line) = entry.line.as_ref().filter(|_| call.is_direct()) else {
            return;
        };
        call.set_direct(false);
        if let Err(error) = line.detach(&call.fd) {
            log::error!(self.throttle, device = self.label, %error, "a masked interrupt may be sent");
        }
    }

    fn route(&self, entry: &mut Entry, vector: &Vector) -> Result<(), WiringError> {
        let line = match entry.line.take() {
            Some(line) => line,
            None => self.wiring.msi(&vector.trigger)?,
        };
        let line = entry.line.insert(line);
        if entry.routed != Some(entry.message) {
            line.route(entry.message)?;
            entry.routed = Some(entry.message);
        }
        Ok(())
    }

    /// A guest's read of the table. Naturally aligned accesses of 1 to 8 bytes; others read as zero.
    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let table = self.table();
        let Some((index, at)) = locate(offset, data.len()) else {
            return;
        };
        if let Some(entry) = table.entries.get(index)
            && let Some(bytes) = entry.bytes().get(at..)
        {
            data.iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
        }
    }

    /// A guest's write of the table; 4 or 8 bytes, naturally aligned, as the specification demands.
    pub(super) fn write_table(&self, offset: u64, data: &[u8]) {
        if data.len() != 4 && data.len() != 8 {
            return;
        }
        let Some((index, at)) = locate(offset, data.len()) else {
            return;
        };
        let mut table = self.table();
        if let Some(entry) = table.entries.get_mut(index) {
            let mut bytes = entry.bytes();
            if let Some(place) = bytes.get_mut(at..) {
                place
                    .iter_mut()
                    .zip(data)
                    .for_each(|(to, from)| *to = *from);
            }
            entry.set_bytes(bytes);
            self.apply(&mut table, index);
        }
    }

    /// A guest's read of the pending bits, a bit a vector.
    pub(super) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            let vectors = self.vectors.get(first..).unwrap_or_default();
            *byte = (0..8).zip(vectors).fold(0, |bits, (bit, vector)| {
                bits | u8::from(vector.is_pending()) << bit
            });
        }
    }
}

/// The vector table with the pending bits, as a snapshot keeps it. Message control is in the
/// configuration space.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MsixState {
    vectors: Vec<VectorState>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VectorState {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

impl Layer for MsixState {
    const NAME: &'static str = "MSI-X table";
    const VERSION: u32 = 1;
}

impl Msix {
    /// The table as it is.
    pub(super) fn save(&self) -> MsixState {
        let table = self.table();
        let both = table.entries.iter().zip(&self.vectors);
        let vectors = both.map(|(entry, vector)| VectorState {
            address: entry.message.address,
            data: entry.message.data,
            masked: entry.masked,
            pending: vector.is_pending(),
        });
        MsixState {
            vectors: vectors.collect(),
        }
    }

    /// Whether it can be this function's.
    pub(super) fn check(&self, state: &MsixState) -> Result<(), StateError> {
        let (found, known) = (state.vectors.len(), self.vectors.len());
        if found == known {
            return Ok(());
        }
        let problem = format!("it has {found} vectors, the function {known}");
        Err(StateError::refused::<MsixState>(problem))
    }

    /// Takes the table over, of a function whose messages are off: what is pending is sent when
    /// they are turned on.
    pub(super) fn restore(&self, state: &MsixState) {
        let mut table = self.table();
        let both = table.entries.iter_mut().zip(&self.vectors);
        for ((entry, vector), saved) in both.zip(&state.vectors) {
            entry.message.address = saved.address;
            entry.message.data = saved.data;
            entry.masked = saved.masked;
            let pending = if saved.pending { PENDING } else { 0 };
            vector.state.store(MASKED | pending, Ordering::Release);
        }
    }
}

/// Entry and byte in it, if the access is naturally aligned and so within one entry.
fn locate(offset: u64, len: usize) -> Option<(usize, usize)> {
    let len = u64::try_from(len)
        .ok()
        .filter(|len| (1..=8).contains(len))?;
    if !len.is_power_of_two() || offset & len.wrapping_sub(1) != 0 {
        return None;
    }
    let at = usize::try_from(offset & (ENTRY_SIZE - 1)).ok()?;
    let index = usize::try_from(offset / ENTRY_SIZE).ok()?;
    Some((index, at))
}

impl Entry {
    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let address = self.message.address.to_le_bytes();
        let data = self.message.data.to_le_bytes();
        let control = u32::from(self.masked).to_le_bytes();
        let all = address.iter().chain(&data).chain(&control);
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        bytes
    }

    fn set_bytes(&mut self, bytes: [u8; 16]) {
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, control, ..] = bytes;
        self.message.address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        self.message.data = u32::from_le_bytes([d0, d1, d2, d3]);
        self.masked = control & 1 != 0;
    }
}

impl Vector {
    fn new() -> io::Result<Self> {
        Ok(Self {
            state: AtomicU8::new(MASKED),
            trigger: Arc::new(eventfd()?),
        })
    }

    fn trigger(&self) {
        if self.state.load(Ordering::Acquire) & MASKED == 0 {
            return self.send();
        }
        let before = self.state.fetch_or(PENDING, Ordering::AcqRel);
        // Unmasked between the two looks: nobody else would send it.
        if before & MASKED == 0 && self.take_pending() {
            self.send();
        }
    }

    fn mask(&self) {
        self.state.fetch_or(MASKED, Ordering::AcqRel);
    }

    fn unmask(&self) {
        let before = self.state.fetch_and(!MASKED, Ordering::AcqRel);
        if before & PENDING != 0 && self.take_pending() {
            self.send();
        }
    }

    fn take_pending(&self) -> bool {
        self.state.fetch_and(!PENDING, Ordering::AcqRel) & PENDING != 0
    }

    fn is_pending(&self) -> bool {
        self.state.load(Ordering::Acquire) & PENDING != 0
    }

    fn send(&self) {
        // A line is there before the vector is first unmasked. An eventfd at its limit is signalled already.
        let _ = self.trigger.write(1);
    }
}
