//! What a queue's worker can tell its device's transport: interrupts and failure.
//!
//! It doesn't know how an interrupt reaches the guest; `pci` does.

use std::sync::Arc;

use crate::debug::opaque_debug;
use crate::fault::Broken;

/// The transport's end of a device's interrupts. Callable from any thread; takes no lock.
pub trait InterruptSink: Send + Sync {
    /// Queue `index` has used buffers the driver asked to hear of.
    fn queue(&self, index: u16);
    /// The configuration changed.
    fn config(&self);
    /// The device can't go on: DEVICE_NEEDS_RESET (VIRTIO 1.2 §2.1.2), and no queue of it runs until the reset.
    fn broken(&self, why: &Broken);
    /// Whether [`InterruptSink::broken`] was called since the last reset.
    fn is_broken(&self) -> bool;
    /// Whether the device may reach guest memory now. If not, none of its queues is looked at.
    fn may_run(&self) -> bool {
        true
    }
}

/// How a device announces that its configuration space changed (VIRTIO 1.2 §2.3).
#[derive(Clone)]
pub struct ConfigNotifier(Arc<dyn ConfigGate>);

opaque_debug! { ConfigNotifier |it| {} }

/// The transport's end of [`ConfigNotifier`].
pub trait ConfigGate: Send + Sync {
    /// Runs `apply` while no read of the configuration is under way, then moves the generation on and raises
    /// the configuration interrupt.
    fn change(&self, apply: &mut dyn FnMut());
}

impl ConfigNotifier {
    /// A notifier that reports to `gate`.
    pub fn new(gate: Arc<dyn ConfigGate>) -> Self {
        Self(gate)
    }

    /// Applies a change of the configuration space and tells the driver.
    ///
    /// `apply` excludes configuration reads, so a driver that compares generations around a read of several
    /// accesses never takes a torn value. The caller must not hold a lock that the device's `read_config` takes.
    pub fn change(&self, apply: impl FnOnce()) {
        let mut apply = Some(apply);
        self.0.change(&mut || {
            if let Some(apply) = apply.take() {
                apply();
            }
        });
    }
}
