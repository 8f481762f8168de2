//! The two buses of a machine.

use std::sync::Arc;

use splitring_devices::bus::Bus;

/// Port and memory-mapped I/O.
#[derive(Clone)]
pub(super) struct Buses {
    pub(super) ports: Arc<Bus>,
    pub(super) mmio: Arc<Bus>,
}

impl Buses {
    pub(super) fn clear(&self) {
        self.ports.clear();
        self.mmio.clear();
    }
}
