//! A queue pair that the kernel's vhost-net serves: when it does, and what becomes of frames and faults meanwhile.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Weak};

use super::metrics::{Drop, PairMetrics};
use super::state::State;
use super::vhost::{KernelPair, Served};
use crate::device::{Broken, Source};
use crate::eventfd::borrow;
use crate::handed_over::RingServer;
use crate::log;
use crate::ram::{Mirror, Ram};
use crate::rings::HandedQueue;

/// The link may have changed.
const BELL: u32 = 0;
/// The kernel found a ring broken.
const FAULTS: u32 = 1;
/// Frames that an interface can have kept for a card whose link was down: more than its queue is long, so that this
/// ends whatever comes in meanwhile.
const MOST_STALE: usize = 1 << 14;
/// Enough to see that there was a frame; the rest of it is lost, as it should be.
const PREFIX: usize = 64;

/// See the module.
pub(super) struct PairServer {
    pub(super) kernel: Arc<KernelPair>,
    pub(super) tap: Arc<File>,
    pub(super) ram: Ram,
    pub(super) features: u64,
    pub(super) state: Arc<State>,
    pub(super) metrics: Arc<PairMetrics>,
    /// Frames that wait came while the link was down.
    pub(super) stale: bool,
}

impl PairServer {
    /// Drops the frames that came while the link was down.
    fn discard(&self) {
        let mut prefix = [0; PREFIX];
        let mut tap: &File = &self.tap;
        // It ends where there is no other frame, or no interface any more.
        let read = |_| tap.read(&mut prefix).ok().filter(|len| *len > 0);
        for _ in (0..MOST_STALE).map_while(read) {
            self.metrics.received.drop_one(Drop::LinkDown);
        }
    }
}

impl RingServer for PairServer {
    fn wanted(&self) -> bool {
        self.state.link_up()
    }

    fn start(&mut self, queues: &[HandedQueue]) -> Result<(), Broken> {
        if std::mem::take(&mut self.stale) {
            self.discard();
        }
        let mirror: Weak<dyn Mirror> = Arc::<KernelPair>::downgrade(&self.kernel);
        let rings = queues.iter().map(HandedQueue::ring).collect();
        let started = self.ram.mirror(mirror, |memory, log| {
            let served = Served {
                rings,
                features: self.features,
                memory: Arc::clone(memory),
                log: log.cloned(),
            };
            self.kernel.start(queues, served, &self.tap)
        });
        started.map_err(Broken::device)
    }

    fn stop(&mut self, queues: &mut [HandedQueue]) -> Result<(), Broken> {
        let stopped = self.kernel.stop(queues);
        stopped.map_err(|error| {
            let state = &self.state;
            log::error!(state.throttle, device = state.id, %error, "vhost-net did not stop in order");
            Broken::device(error)
        })
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![
            Source::edge(borrow(&self.kernel.bell), BELL),
            Source::edge(borrow(&self.kernel.faults), FAULTS),
        ]
    }

    fn event(&mut self, token: u32) -> Result<(), Broken> {
        if token == FAULTS && self.kernel.faults.read().is_ok() {
            return Err(Broken::device(
                "the host's vhost-net found a ring or a buffer of it broken",
            ));
        }
        if token == BELL {
            self.stale |= !self.state.link_up();
        }
        Ok(())
    }
}
