//! A virtio-pci function's interrupts: MSI-X vectors, the interrupt line with the ISR register, NEEDS_RESET and
//! the configuration generation (VIRTIO 1.2 §4.1.4.5, §4.1.5.3, §4.1.5.4).
//!
//! What workers call takes no lock. It doesn't know queues or registers beyond these.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use splitring_virtio::spec::pci::{NO_VECTOR, isr};
use vmm_sys_util::eventfd::EventFd;

use super::config::{COMMAND, COMMAND_INTX_DISABLE, STATUS_INTERRUPT};
use super::msix::Msix;
use super::pages::ConfigPage;
use crate::device::Broken;
use crate::eventfd::eventfd;
use crate::events::{DeviceEvent, EventSink, OncePerSecond};
use crate::interrupt::{ConfigGate, InterruptSink};
use crate::log;
use crate::rings::{Call, CallGate};
use crate::saved::{Layer, StateError};
use crate::throttle::Throttle;
use crate::wiring::{IntxLine, Wiring, WiringError};

pub(super) struct Interrupts {
    label: String,
    pub(super) msix: Msix,
    queue_vectors: Box<[AtomicU16]>,
    config_vector: AtomicU16,
    isr: AtomicU8,
    /// Its command register says whether the line may be asserted, its status register shows that it would.
    page: ConfigPage,
    line: Arc<EventFd>,
    resample: Arc<EventFd>,
    line_bound: AtomicBool,
    /// Keeps it bound.
    line_connection: Mutex<Option<Box<dyn IntxLine>>>,
    needs_reset: AtomicBool,
    driver_ok: AtomicBool,
    /// The function may write and read memory.
    bus_master: AtomicBool,
    generation: AtomicU8,
    /// Held while the configuration changes and while it is read.
    gate: Mutex<()>,
    /// For lines that the guest can cause.
    pub(super) throttle: Throttle,
    events: EventSink,
    /// Of those.
    limit: OncePerSecond,
}

impl Interrupts {
    pub(super) fn new(
        label: String,
        msix: Msix,
        queues: usize,
        page: ConfigPage,
        events: EventSink,
    ) -> io::Result<Self> {
        Ok(Self {
            label,
            msix,
            queue_vectors: std::iter::repeat_with(|| AtomicU16::new(NO_VECTOR))
                .take(queues)
                .collect(),
            config_vector: AtomicU16::new(NO_VECTOR),
            isr: AtomicU8::new(0),
            page,
            line: Arc::new(eventfd()?),
            resample: Arc::new(eventfd()?),
            line_bound: AtomicBool::new(false),
            line_connection: Mutex::default(),
            needs_reset: AtomicBool::new(false),
            driver_ok: AtomicBool::new(false),
            bus_master: AtomicBool::new(false),
            generation: AtomicU8::new(0),
            gate: Mutex::new(()),
            throttle: Throttle::default(),
            events,
            limit: OncePerSecond::default(),
        })
    }

    /// Connects the interrupt line, once, if MSI-X doesn't replace it. Returns the eventfd to listen on, whose
    /// signals are for [`Interrupts::resample`], the first time.
    pub(super) fn bind_line(
        &self,
        wiring: &dyn Wiring,
        gsi: u32,
    ) -> Result<Option<Arc<EventFd>>, WiringError> {
        if self.msix.enabled() || self.line_bound.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let connection = wiring.intx(gsi, &self.line, &self.resample)?;
        *self.line_connection() = Some(connection);
        self.line_is_bound();
        Ok(Some(Arc::clone(&self.resample)))
    }

    fn line_connection(&self) -> MutexGuard<'_, Option<Box<dyn IntxLine>>> {
        let connection = self.line_connection.lock();
        connection.unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives all messages and the line back to the hypervisor, for good. Nobody connects the line meanwhile or later.
    pub(super) fn release(&self) {
        self.msix.release();
        self.line_bound.store(false, Ordering::SeqCst);
        self.line_connection().take();
    }

    /// Lets the line be asserted from now on, and asserts it for a reason that came before.
    ///
    /// `raise` stores a reason and then asks whether the line is bound; this stores that it is and then asks for a
    /// reason. One of them must see the other's store, or nobody asserts the line. Release and acquire allow both to be
    /// late (each store may stay in its processor's buffer while the load goes ahead), so the four accesses are
    /// sequentially consistent.
    fn line_is_bound(&self) {
        self.line_bound.store(true, Ordering::SeqCst);
        self.resample();
    }

    /// The guest ended the interrupt, or may have the line again: assert it if there is still a reason.
    pub(super) fn resample(&self) {
        if self.isr.load(Ordering::SeqCst) != 0 {
            self.assert_line();
        }
    }

    fn assert_line(&self) {
        let held_back = self.page.load(COMMAND) & COMMAND_INTX_DISABLE != 0;
        // The order is explained at `line_is_bound`.
        if !held_back && !self.msix.enabled() && self.line_bound.load(Ordering::SeqCst) {
            // An eventfd at its limit is signalled already.
            let _ = self.line.write(1);
        }
    }

    /// Sends `vector`, or with MSI-X off sets `reason` in the ISR register and asserts the line.
    fn raise(&self, vector: &AtomicU16, reason: u8) {
        if self.msix.enabled() {
            self.msix.trigger(vector.load(Ordering::Acquire));
            return;
        }
        self.isr.fetch_or(reason, Ordering::SeqCst);
        self.show_pending();
        self.assert_line();
    }

    fn show_pending(&self) {
        self.page
            .update(COMMAND, STATUS_INTERRUPT, STATUS_INTERRUPT);
    }

    /// The guest reads the ISR register, which clears it.
    pub(super) fn read_isr(&self) -> u8 {
        let reasons = self.isr.swap(0, Ordering::AcqRel);
        self.page.update(COMMAND, STATUS_INTERRUPT, 0);
        // A reason that arrived between the two must show.
        if self.isr.load(Ordering::Acquire) != 0 {
            self.show_pending();
        }
        reasons
    }

    /// The driver assigns a vector to a queue, or to configuration changes (`None`). One that is not there is
    /// refused: the register reads back as no vector.
    pub(super) fn set_vector(&self, queue: Option<u16>, vector: u16) {
        let vector = if self.msix.has(vector) {
            vector
        } else {
            NO_VECTOR
        };
        if let Some(place) = self.vector_place(queue) {
            place.store(vector, Ordering::Release);
        }
        // A queue that is served elsewhere moves to the new one, too.
        if let Some(queue) = queue
            && let Some(call) = self.msix.disconnect(queue)
        {
            self.msix.connect(queue, vector, &call);
        }
    }

    pub(super) fn vector(&self, queue: Option<u16>) -> u16 {
        self.vector_place(queue)
            .map_or(NO_VECTOR, |place| place.load(Ordering::Acquire))
    }

    fn vector_place(&self, queue: Option<u16>) -> Option<&AtomicU16> {
        match queue {
            Some(index) => self.queue_vectors.get(usize::from(index)),
            None => Some(&self.config_vector),
        }
    }

    /// From now on workers may run the queues, or must not.
    pub(super) fn set_bus_master(&self, on: bool) {
        self.bus_master.store(on, Ordering::Release);
    }

    pub(super) fn set_driver_ok(&self) {
        self.driver_ok.store(true, Ordering::Release);
    }

    /// Everything as after power-on; the MSI-X table is PCI's and stays. The workers are quiet.
    pub(super) fn reset(&self) {
        self.driver_ok.store(false, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.read_isr();
    }

    pub(super) fn generation(&self) -> u8 {
        self.read_config(|| self.generation.load(Ordering::Acquire))
    }

    /// Reads the configuration while it doesn't change.
    pub(super) fn read_config<T>(&self, read: impl FnOnce() -> T) -> T {
        let _still = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        read()
    }
}

/// Which vectors are whose, and what the driver has not taken note of yet, as a snapshot keeps it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InterruptState {
    config_vector: u16,
    queue_vectors: Vec<u16>,
    isr: u8,
    pub(super) needs_reset: bool,
    generation: u8,
}

impl Layer for InterruptState {
    const NAME: &'static str = "virtio interrupts";
    const VERSION: u32 = 1;
}

impl Interrupts {
    /// As they are while nothing of the device runs.
    pub(super) fn save(&self) -> InterruptState {
        let vectors = self.queue_vectors.iter();
        InterruptState {
            config_vector: self.vector(None),
            queue_vectors: vectors.map(|one| one.load(Ordering::Acquire)).collect(),
            isr: self.isr.load(Ordering::SeqCst),
            needs_reset: self.is_broken(),
            generation: self.generation(),
        }
    }

    /// Whether they can be this function's.
    pub(super) fn check(&self, state: &InterruptState) -> Result<(), StateError> {
        let refused = |problem: String| Err(StateError::refused::<InterruptState>(problem));
        let (found, known) = (state.queue_vectors.len(), self.queue_vectors.len());
        if found != known {
            return refused(format!("{found} queues have vectors, of {known}"));
        }
        let mut vectors = state.queue_vectors.iter().chain([&state.config_vector]);
        if let Some(odd) = vectors.find(|one| **one != NO_VECTOR && !self.msix.has(**one)) {
            return refused(format!("there is no vector {odd}"));
        }
        if state.isr & !(isr::QUEUE | isr::CONFIG) != 0 {
            return refused(format!("its status is {:#04x}", state.isr));
        }
        Ok(())
    }

    /// Takes them over. The line is asserted when it is bound, if there is a reason.
    pub(super) fn restore(&self, state: &InterruptState) {
        self.set_vector(None, state.config_vector);
        for (place, vector) in self.queue_vectors.iter().zip(&state.queue_vectors) {
            place.store(*vector, Ordering::Release);
        }
        self.generation.store(state.generation, Ordering::Release);
        self.needs_reset.store(state.needs_reset, Ordering::Release);
        self.isr.store(state.isr, Ordering::SeqCst);
        if state.isr != 0 {
            self.show_pending();
        }
    }
}

impl InterruptSink for Interrupts {
    fn queue(&self, index: u16) {
        if let Some(vector) = self.queue_vectors.get(usize::from(index)) {
            self.raise(vector, isr::QUEUE);
        }
    }

    fn config(&self) {
        self.raise(&self.config_vector, isr::CONFIG);
    }

    fn broken(&self, why: &Broken) {
        if self.needs_reset.swap(true, Ordering::AcqRel) {
            return;
        }
        log::warn!(
            self.throttle,
            device = self.label,
            %why,
            "the device needs a reset by its driver"
        );
        if self.limit.admit() {
            self.events.send(|| DeviceEvent::NeedsReset {
                device: self.label.clone(),
                reason: why.to_string(),
            });
        }
        if self.driver_ok.load(Ordering::Acquire) {
            self.config();
        }
    }

    fn is_broken(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    fn may_run(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }
}

impl CallGate for Interrupts {
    fn connect(&self, index: u16, call: &Arc<Call>) {
        self.msix.connect(index, self.vector(Some(index)), call);
    }

    fn disconnect(&self, index: u16) {
        self.msix.disconnect(index);
    }
}

impl ConfigGate for Interrupts {
    fn change(&self, apply: &mut dyn FnMut()) {
        self.read_config(|| {
            apply();
            self.generation.fetch_add(1, Ordering::AcqRel);
        });
        if self.driver_ok.load(Ordering::Acquire) {
            self.config();
        }
    }
}

/// The parts that several threads share.
pub(super) type Shared = Arc<Interrupts>;
