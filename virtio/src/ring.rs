//! What both ends share: sizes and offsets of the three parts of a split ring, the wrap-safe event
//! comparison, and the two protocols the ends race on: publish and notify, re-arm and look again.
//!
//! The protocols are the same in both directions, and written against a trait of the words alone, so
//! that a model checker can run the very code, with its orderings, over words of its own. It knows
//! neither where a ring lies nor what a descriptor means. Sections 2.7.5 to 2.7.13.

use core::sync::atomic::Ordering;

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

/// What an end tells the other: each has three words of its own, in the ring that it writes, and reads
/// the other's three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Whether it wants to be told, without `EVENT_IDX`: `avail.flags` of the driver, `used.flags` of the
    /// device.
    Flags,
    /// How far it has come: `avail.idx`, `used.idx`.
    Idx,
    /// Where it wants to be told, under `EVENT_IDX`: `used_event` of the driver, `avail_event` of the
    /// device.
    Event,
}

/// The words of a ring as one end sees them.
pub trait Words {
    /// Loads a word of the other end's.
    fn load(&self, theirs: Word, order: Ordering) -> u16;
    /// Stores a word of its own.
    fn store(&self, own: Word, value: u16, order: Ordering);
    /// A sequentially consistent fence: the store before it is seen before the load after it is made.
    fn fence(&self);
}

/// The flag by which either end asks not to be told.
const NO_NOTIFY: u16 = AVAIL_F_NO_INTERRUPT;
const _: () = assert!(NO_NOTIFY == USED_F_NO_NOTIFY);

/// How far the other end has come: entries up to there, and what they stand for, can be read.
#[inline]
pub fn peer_idx(words: &impl Words) -> u16 {
    words.load(Word::Idx, Ordering::Acquire)
}

/// Shows the other end the entries up to `new`, which have been written.
#[inline]
pub fn publish_idx(words: &impl Words, new: u16) {
    words.store(Word::Idx, new, Ordering::Release);
}

/// Shows the other end the entries `old..new` and says whether it asked to be told.
///
/// The fence pairs with the one in [`enable_notifications`]: either the other end's second look sees the new index,
/// or the load here sees what it asked for.
#[inline]
pub fn publish(words: &impl Words, event_idx: bool, old: u16, new: u16) -> bool {
    publish_idx(words, new);
    words.fence();
    if event_idx {
        need_event(words.load(Word::Event, Ordering::Relaxed), new, old)
    } else {
        words.load(Word::Flags, Ordering::Relaxed) & NO_NOTIFY == 0
    }
}

/// Asks the other end not to tell. Under `EVENT_IDX` nothing is written: an event index that has been
/// passed stays silent for the next 2^16 entries, and `used.flags` must stay 0.
#[inline]
pub fn disable_notifications(words: &impl Words, event_idx: bool) {
    if !event_idx {
        words.store(Word::Flags, NO_NOTIFY, Ordering::Relaxed);
    }
}

/// Asks the other end to tell of the entry at `next`, and says whether it is there already, in which
/// case it may not: look again.
#[inline]
pub fn enable_notifications(words: &impl Words, event_idx: bool, next: u16) -> bool {
    if event_idx {
        words.store(Word::Event, next, Ordering::Relaxed);
    } else {
        words.store(Word::Flags, 0, Ordering::Relaxed);
    }
    words.fence();
    peer_idx(words) != next
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
