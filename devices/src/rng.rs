//! Entropy source (VIRTIO 1.2 §5.4): fills whatever the driver offers with the host kernel's random bytes.
//!
//! It knows no PCI and no threads, and asks nobody but the kernel.

use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use splitring_virtio::spec::id;

use crate::debug::opaque_debug;
use crate::device::{
    Broken, Cause, DescriptorChain, DeviceKind, Outcome, QueueHandler, QueueSet, Start, StartError,
    Task, VirtioDevice,
};
use crate::log;
use crate::saved::{Nothing, StateError, Versioned};
use crate::throttle::Throttle;

/// No class of PCI's fits.
const KIND: DeviceKind = DeviceKind {
    type_id: id::ENTROPY,
    pci_class: 0xff_0000,
};

/// Drivers ask for one buffer at a time, or a few.
const QUEUE_SIZE: u16 = 64;
/// Most bytes one request gets; the device need not fill a buffer, and a large one must not hold its worker up.
const MAX_BYTES: u64 = 4096;
/// Bytes taken from the kernel at a time, which below 257 gives all it is asked for.
const BLOCK: usize = 256;

/// An entropy source.
pub struct Rng {
    shared: Arc<Shared>,
}

opaque_debug! { Rng |it| { id: it.shared.id } }

/// What the device and its queue share.
struct Shared {
    id: String,
    throttle: Throttle,
}

impl Rng {
    /// A device called `id`.
    pub fn new(id: &str) -> Self {
        let shared = Shared {
            id: id.to_owned(),
            throttle: Throttle::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> &str {
        &self.shared.id
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn start(&self, start: Start) -> Result<Vec<Task>, StartError> {
        let task = |index| Task {
            queues: vec![index],
            handler: Box::new(RngQueue {
                shared: Arc::clone(&self.shared),
                queue: index,
            }),
        };
        Ok(start.queues.iter().map(|queue| task(queue.index)).collect())
    }

    fn save(&self) -> Result<Versioned, StateError> {
        Versioned::new(&Nothing {})
    }

    fn restore(&self, state: &Versioned) -> Result<(), StateError> {
        state.read::<Nothing>().map(drop)
    }
}

struct RngQueue {
    shared: Arc<Shared>,
    queue: u16,
}

impl QueueHandler for RngQueue {
    fn run(&mut self, queues: &mut QueueSet<'_>, _cause: Cause) -> Result<Outcome, Broken> {
        let Some(queue) = queues.get(self.queue) else {
            return Ok(Outcome::Idle);
        };
        loop {
            match queue.pop() {
                Ok(Some(mut chain)) => {
                    let written = self.fill(&mut chain);
                    queue.complete(chain, written);
                }
                Ok(None) => return Ok(Outcome::Idle),
                Err(error) => return Err(Broken::new(self.queue, error)),
            }
        }
    }

    fn stop(&mut self, _queues: &mut QueueSet<'_>) {}
}

impl RngQueue {
    /// Fills the writable part, as far as one request may go, and returns how far. Readable bytes mean nothing.
    fn fill(&self, chain: &mut DescriptorChain) -> u32 {
        let mut writer = chain.writer();
        let mut left = writer.remaining().min(MAX_BYTES);
        let mut block = [0; BLOCK];
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
            let Some(bytes) = block.get_mut(..len) else {
                break;
            };
            let got = getrandom(&mut *bytes, GetRandomFlags::empty());
            if let Err(error) = got {
                let Shared { id, throttle } = self.shared.as_ref();
                log::warn!(throttle, device = id, %error, "no random bytes from the kernel");
            }
            if got != Ok(len) || writer.write_all(bytes).is_err() {
                break;
            }
            left = left.saturating_sub(u64::try_from(len).unwrap_or(left));
        }
        u32::try_from(writer.written()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pci::Guest;

    const BUFFER: u64 = 0x1_0000;

    fn guest() -> Guest {
        Guest::started(std::sync::Arc::new(Rng::new("rng0")))
    }

    #[test]
    fn a_hostile_chain_breaks_the_device_and_a_reset_heals_it() {
        let mut guest = guest();
        guest.offer(0, &[(u64::MAX - 4, 16, true)]);
        guest.kick(0);
        guest.wait_for_status(0x40);
        guest.restart();
        guest.offer(0, &[(BUFFER, 64, true)]);
        guest.kick(0);
        assert_eq!(guest.wait_used(0, 1), [(0, 64)]);
    }

    #[test]
    fn every_writable_byte_is_filled_up_to_the_limit_and_none_beyond() {
        let mut guest = guest();
        let buffers = [
            (BUFFER, 100, true),
            (BUFFER + 0x1000, 1, true),
            (BUFFER + 0x2000, 8000, true),
        ];
        guest.offer(0, &buffers);
        guest.kick(0);
        assert_eq!(guest.wait_used(0, 1), [(0, 4096)]);
        assert!(guest.peek(BUFFER, 100).iter().any(|&b| b != 0));
        assert_eq!(guest.peek(BUFFER + 100, 8), [0; 8]);
        let filled = guest.peek(BUFFER + 0x2000, 8000);
        assert!(filled[3900..3995].iter().any(|&b| b != 0));
        assert!(filled[3995..].iter().all(|&b| b == 0));
    }

    #[test]
    fn a_buffer_the_device_may_only_read_comes_back_untouched() {
        let mut guest = guest();
        guest.poke(BUFFER, &[7; 64]);
        guest.offer(0, &[(BUFFER, 64, false)]);
        guest.kick(0);
        assert_eq!(guest.wait_used(0, 1), [(0, 0)]);
        assert_eq!(guest.peek(BUFFER, 64), [7; 64]);
    }
}
