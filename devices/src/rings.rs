//! Rings that are served outside this process: by the kernel (vhost), or by another process (vhost-user).
//!
//! A device takes such a queue out of what its start offers it ([`Rings::take`]) and passes on what the other side
//! needs: where the ring is, the eventfd that the driver kicks, and the one that interrupts the driver. It knows
//! neither who serves a ring nor PCI.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::debug::opaque_debug;
use crate::interrupt::InterruptSink;

/// A ring, as the driver set it up: guest-physical addresses, each part checked to lie in one region of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Number of the queue in its device.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// The descriptor table.
    pub desc: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
    /// The next entry of both rings: nothing is in flight while a ring changes hands.
    pub base: u16,
}

/// The eventfd that interrupts the driver for one queue.
///
/// While its interrupt is a message that may be sent, KVM sends it at each signal, and nobody in this process notices.
/// Otherwise (a masked vector, an interrupt line, no vector at all) the signals are for [`HandedQueue::forward`].
pub(crate) struct Call {
    pub(crate) fd: Arc<EventFd>,
    /// KVM takes the signals.
    direct: AtomicBool,
}

impl Call {
    pub(crate) fn new(fd: Arc<EventFd>) -> Self {
        Self {
            fd,
            direct: AtomicBool::new(false),
        }
    }

    /// Says whether KVM takes the signals. To be told before KVM stops, and after it has begun: in between, a signal
    /// may interrupt twice, but none is lost.
    pub(crate) fn set_direct(&self, direct: bool) {
        self.direct.store(direct, Ordering::SeqCst);
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::SeqCst)
    }
}

/// The transport's end of the calls.
pub(crate) trait CallGate: InterruptSink {
    /// Lets KVM take the signals of `call`, for queue `index`, whenever its interrupt may be sent.
    fn connect(&self, index: u16, call: &Arc<Call>);
    /// Undoes [`CallGate::connect`]; does nothing if it was not called.
    fn disconnect(&self, index: u16);
}

/// A queue that somebody else serves. Dropping it takes its interrupt back: whoever serves it has stopped by then.
pub struct HandedQueue {
    ring: Ring,
    kick: Arc<EventFd>,
    call: Arc<Call>,
    gate: Arc<dyn CallGate>,
}

opaque_debug! { HandedQueue |it| { ring: it.ring } }

impl HandedQueue {
    /// A queue whose calls go to `gate`.
    pub(crate) fn new(
        ring: Ring,
        kick: Arc<EventFd>,
        call: Arc<EventFd>,
        gate: Arc<dyn CallGate>,
    ) -> Self {
        Self {
            ring,
            kick,
            call: Arc::new(Call::new(call)),
            gate,
        }
    }

    /// Where the ring is, and from which entry on it is to be served.
    pub fn ring(&self) -> Ring {
        self.ring
    }

    /// Signalled by the driver when it has made buffers available.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// To be signalled when buffers have been used and the driver wants to know.
    pub fn call(&self) -> &EventFd {
        &self.call.fd
    }

    /// Interrupts the driver for a signal of [`HandedQueue::call`] that reached this process. Does nothing where KVM has
    /// taken it.
    pub fn forward(&self) {
        if !self.call.is_direct() && self.call.fd.read().is_ok() {
            self.gate.queue(self.ring.index);
        }
    }

    /// Takes the ring back from whoever served it up to entry `base`, with nothing in flight.
    pub fn take_back(&mut self, base: u16) {
        self.ring.base = base;
    }
}

impl AsFd for HandedQueue {
    /// The call, to be waited for.
    fn as_fd(&self) -> BorrowedFd<'_> {
        crate::eventfd::borrow(&self.call.fd)
    }
}

impl Drop for HandedQueue {
    fn drop(&mut self) {
        self.gate.disconnect(self.ring.index);
    }
}

/// The queues that a start offers, for those that are to be served outside this process. Empty where the device does
/// not ask for that ([`VirtioDevice::hands_over`](crate::device::VirtioDevice::hands_over)).
#[derive(Debug, Default)]
pub struct Rings {
    offered: Vec<HandedQueue>,
    taken: Taken,
}

/// The numbers of the queues that a device has taken.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken(Arc<Mutex<Vec<u16>>>);

impl Taken {
    pub(crate) fn has(&self, index: u16) -> bool {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.contains(&index)
    }

    fn add(&self, index: u16) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.push(index);
    }
}

impl Rings {
    /// Offers `queues`.
    pub(crate) fn new(queues: Vec<HandedQueue>) -> Self {
        Self {
            offered: queues,
            taken: Taken::default(),
        }
    }

    /// Which of them the device takes.
    pub(crate) fn taken(&self) -> Taken {
        self.taken.clone()
    }

    /// Takes queue `index` out, so that no task of this process gets it. `None` if it is not offered: the driver did
    /// not enable it, or it was taken before.
    pub fn take(&mut self, index: u16) -> Option<HandedQueue> {
        let at = self.offered.iter().position(|it| it.ring.index == index)?;
        let queue = self.offered.swap_remove(at);
        self.taken.add(index);
        queue.gate.connect(index, &queue.call);
        Some(queue)
    }
}
