//! The checklist of a virtio-pci function, line by line, as a guest sees it.

mod hostile;
mod hotplug;
mod interrupts;
mod life;
mod master;
mod registers;
mod saved;
mod space;

use std::sync::Arc;

use crate::testing::pci::Guest;
use crate::testing::probe::{Manner, Probe};

/// A guest with a probe of three queues, not started.
fn guest_of(probe: Probe) -> (Guest, Arc<Probe>) {
    let probe = Arc::new(probe);
    (Guest::new(probe.clone()), probe)
}

fn guest(manner: Manner) -> (Guest, Arc<Probe>) {
    let (guest, probe) = guest_of(Probe::new(&[256, 64, 8], manner));
    guest.decode_memory();
    (guest, probe)
}

fn started(manner: Manner) -> (Guest, Arc<Probe>) {
    let (mut guest, probe) = guest(manner);
    guest.restart();
    (guest, probe)
}
