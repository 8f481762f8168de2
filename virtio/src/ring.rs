//! What both ends share: sizes and offsets of the three parts of a split ring, the wrap-safe event
//! comparison, and the two protocols the ends race on: publish and notify, re-arm and look again.
//!
//! The protocols are written against traits of the index and flag words alone, so that a model
//! checker can run the very code over words of its own. It knows neither where a ring lies nor what
//! a descriptor means. Sections 2.7.5 to 2.7.13.

use crate::spec::ring::{
    AVAIL_ELEM_SIZE, AVAIL_F_NO_INTERRUPT, DESC_SIZE, USED_ELEM_SIZE, USED_F_NO_NOTIFY,
};

/// Offset of the flags in the available and the used ring.
pub const FLAGS_OFFSET: usize = 0;
/// Offset of the index in the available and the used ring.
pub const IDX_OFFSET: usize = 2;
/// Offset of the first entry in the available and the used ring.
pub const ENTRIES_OFFSET: usize = 4;

/// Bytes before the entries, and of the event word behind them.
const HEADER: u64 = 4;
const EVENT: u64 = 2;

/// Bytes of the descriptor table of a queue of `size` entries.
#[must_use]
pub fn desc_bytes(size: u16) -> u64 {
    u64::from(size).wrapping_mul(u64::from(DESC_SIZE))
}

/// Bytes of the available ring; `used_event` lies behind the entries only under `EVENT_IDX`.
#[must_use]
pub fn avail_bytes(size: u16, event_idx: bool) -> u64 {
    ring_bytes(size, AVAIL_ELEM_SIZE, event_idx)
}

/// Bytes of the used ring; `avail_event` lies behind the entries only under `EVENT_IDX`.
#[must_use]
pub fn used_bytes(size: u16, event_idx: bool) -> u64 {
    ring_bytes(size, USED_ELEM_SIZE, event_idx)
}

fn ring_bytes(size: u16, elem: u32, event_idx: bool) -> u64 {
    // At most 2^15 × 2^3 + 6: nothing here can wrap.
    let entries = u64::from(size).wrapping_mul(u64::from(elem));
    entries
        .wrapping_add(HEADER)
        .wrapping_add(if event_idx { EVENT } else { 0 })
}

/// Whether moving an index from `old` to `new` passes the place the other end asked to be told at
/// (section 2.7.10): true when `event` lies in `old..new`, modulo 2^16.
#[must_use]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The words of a ring as the device's end uses them.
pub trait DeviceCells {
    /// Loads `avail.idx` with acquire ordering: entries up to it can be read.
    fn avail_idx(&self) -> u16;
    /// Loads `avail.flags`.
    fn avail_flags(&self) -> u16;
    /// Loads `used_event`; only under `EVENT_IDX`.
    fn used_event(&self) -> u16;
    /// Stores `used.idx` with release ordering: entries before it have been written.
    fn set_used_idx(&self, value: u16);
    /// Stores `used.flags`.
    fn set_used_flags(&self, value: u16);
    /// Stores `avail_event`; only under `EVENT_IDX`.
    fn set_avail_event(&self, value: u16);
    /// A sequentially consistent fence: the store before it is seen before the load after it is made.
    fn fence(&self);
}

/// The words of a ring as the driver's end uses them.
pub trait DriverCells {
    /// Loads `used.idx` with acquire ordering: entries up to it can be read.
    fn used_idx(&self) -> u16;
    /// Loads `used.flags`.
    fn used_flags(&self) -> u16;
    /// Loads `avail_event`; only under `EVENT_IDX`.
    fn avail_event(&self) -> u16;
    /// Stores `avail.idx` with release ordering: entries before it have been written.
    fn set_avail_idx(&self, value: u16);
    /// Stores `avail.flags`.
    fn set_avail_flags(&self, value: u16);
    /// Stores `used_event`; only under `EVENT_IDX`.
    fn set_used_event(&self, value: u16);
    /// A sequentially consistent fence: the store before it is seen before the load after it is made.
    fn fence(&self);
}

/// Publishes used entries `old..new` and says whether the driver asked for an interrupt.
///
/// The fence pairs with the one in [`enable_interrupt`]: either the driver's second look sees the
/// new index, or the load here sees what the driver armed.
pub fn publish_used(cells: &impl DeviceCells, event_idx: bool, old: u16, new: u16) -> bool {
    cells.set_used_idx(new);
    cells.fence();
    if event_idx {
        need_event(cells.used_event(), new, old)
    } else {
        cells.avail_flags() & AVAIL_F_NO_INTERRUPT == 0
    }
}

/// Asks the driver not to notify. Under `EVENT_IDX` nothing is written: an event index that has
/// been passed stays silent for the next 2^16 buffers, and `used.flags` must stay 0.
pub fn disable_notification(cells: &impl DeviceCells, event_idx: bool) {
    if !event_idx {
        cells.set_used_flags(USED_F_NO_NOTIFY);
    }
}

/// Asks the driver to notify about the buffer at `next`, and says whether it is there already, in
/// which case no notification need come: look again.
pub fn enable_notification(cells: &impl DeviceCells, event_idx: bool, next: u16) -> bool {
    if event_idx {
        cells.set_avail_event(next);
    } else {
        cells.set_used_flags(0);
    }
    cells.fence();
    cells.avail_idx() != next
}

/// Publishes available entries `old..new` and says whether the device asked for a notification.
///
/// The fence pairs with the one in [`enable_notification`].
pub fn publish_avail(cells: &impl DriverCells, event_idx: bool, old: u16, new: u16) -> bool {
    cells.set_avail_idx(new);
    cells.fence();
    if event_idx {
        need_event(cells.avail_event(), new, old)
    } else {
        cells.used_flags() & USED_F_NO_NOTIFY == 0
    }
}

/// Asks the device not to interrupt; under `EVENT_IDX` by leaving the event index behind.
pub fn disable_interrupt(cells: &impl DriverCells, event_idx: bool) {
    if !event_idx {
        cells.set_avail_flags(AVAIL_F_NO_INTERRUPT);
    }
}

/// Asks the device to interrupt for the buffer at `next`, and says whether it is used already: look
/// again.
pub fn enable_interrupt(cells: &impl DriverCells, event_idx: bool, next: u16) -> bool {
    if event_idx {
        cells.set_used_event(next);
    } else {
        cells.set_avail_flags(0);
    }
    cells.fence();
    cells.used_idx() != next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn need_event_is_true_exactly_when_the_event_lies_in_the_batch() {
        for base in [0u16, 1, 32767, 65530, 65535] {
            for batch in 0u16..20 {
                let new = base.wrapping_add(batch);
                for distance in 0u16..40 {
                    let event = base.wrapping_sub(10).wrapping_add(distance);
                    let inside = event.wrapping_sub(base) < batch;
                    assert_eq!(
                        need_event(event, new, base),
                        inside,
                        "{event} in {base}..{new}"
                    );
                }
            }
        }
    }

    #[test]
    fn sizes_of_the_parts_are_those_of_the_specification() {
        assert_eq!(desc_bytes(256), 4096);
        assert_eq!(avail_bytes(256, true), 6 + 512);
        assert_eq!(avail_bytes(256, false), 4 + 512);
        assert_eq!(used_bytes(256, true), 6 + 2048);
        assert_eq!(used_bytes(32768, true), 6 + 262_144);
    }
}
