//! What a guest says about its memory.

use std::time::Instant;

use serde::Serialize;
use splitring_virtio::spec::balloon::{Stat, stat};

use crate::device::DescriptorChain;

/// Statistics that are looked at; the specification and Linux know less than a third of them.
const MOST: usize = 64;

/// What a guest says about its memory. What it does not say is `None`. Nothing of it is checked: a
/// guest can say anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BalloonStatistics {
    /// When it was received.
    #[serde(skip)]
    pub received: Instant,
    /// Bytes swapped in since the guest started.
    pub swap_in: Option<u64>,
    /// Bytes swapped out since the guest started.
    pub swap_out: Option<u64>,
    /// Major page faults since the guest started.
    pub major_faults: Option<u64>,
    /// Minor page faults since the guest started.
    pub minor_faults: Option<u64>,
    /// Bytes that are not used for anything.
    pub free: Option<u64>,
    /// Bytes of memory, without what is in the balloon.
    pub total: Option<u64>,
    /// Bytes that new programs could have without swapping.
    pub available: Option<u64>,
    /// Bytes of caches that can be given up.
    pub caches: Option<u64>,
    /// Huge pages allocated since the guest started.
    pub huge_pages: Option<u64>,
    /// Huge pages that could not be allocated since the guest started.
    pub huge_page_failures: Option<u64>,
    /// Processes killed for want of memory since the guest started.
    pub oom_kills: Option<u64>,
}

impl BalloonStatistics {
    /// What stands in the readable part of `chain`. Unknown tags and a broken last entry mean
    /// nothing.
    pub(super) fn read(chain: &DescriptorChain) -> Self {
        let mut read = Self {
            received: Instant::now(),
            swap_in: None,
            swap_out: None,
            major_faults: None,
            minor_faults: None,
            free: None,
            total: None,
            available: None,
            caches: None,
            huge_pages: None,
            huge_page_failures: None,
            oom_kills: None,
        };
        let mut reader = chain.reader();
        for _ in 0..MOST {
            let Ok(entry) = reader.read_obj::<Stat>() else {
                break;
            };
            if let Some(value) = read.field(entry.tag.get()) {
                *value = Some(entry.val.get());
            }
        }
        read
    }

    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            stat::SWAP_IN => &mut self.swap_in,
            stat::SWAP_OUT => &mut self.swap_out,
            stat::MAJOR_FAULTS => &mut self.major_faults,
            stat::MINOR_FAULTS => &mut self.minor_faults,
            stat::FREE => &mut self.free,
            stat::TOTAL => &mut self.total,
            stat::AVAILABLE => &mut self.available,
            stat::CACHES => &mut self.caches,
            stat::HUGE_PAGES => &mut self.huge_pages,
            stat::HUGE_PAGE_FAILURES => &mut self.huge_page_failures,
            stat::OOM_KILLS => &mut self.oom_kills,
            _ => return None,
        })
    }
}
