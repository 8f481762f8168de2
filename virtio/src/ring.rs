//! What both ends share: sizes and offsets of the three parts of a split ring, the wrap-safe event
//! comparison, and the two protocols on which the ends race: publish and notify, and enable
//! notifications and check again.
//!
//! The protocols are the same in both directions. They are written against a trait for the ring's
//! words, so that a model checker can run the same code, with its memory orderings, over its own
//! words. This module knows neither the ring's location nor the meaning of a descriptor. Sections
//! 2.7.5 to 2.7.13.

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

/// Bytes before the entries, and bytes of the event word behind them.
const HEADER: u64 = 4;
const EVENT: u64 = 2;

/// Returns the bytes of the descriptor table of a queue of `size` entries.
#[must_use]
pub fn desc_bytes(size: u16) -> u64 {
    u64::from(size).wrapping_mul(u64::from(DESC_SIZE))
}

/// Returns the bytes of the available ring. It ends with `used_event` only under `EVENT_IDX`.
#[must_use]
pub fn avail_bytes(size: u16, event_idx: bool) -> u64 {
    ring_bytes(size, AVAIL_ELEM_SIZE, event_idx)
}

/// Returns the bytes of the used ring. It ends with `avail_event` only under `EVENT_IDX`.
#[must_use]
pub fn used_bytes(size: u16, event_idx: bool) -> u64 {
    ring_bytes(size, USED_ELEM_SIZE, event_idx)
}

fn ring_bytes(size: u16, elem: u32, event_idx: bool) -> u64 {
    // At most 2^15 × 2^3 + 6: this can't wrap.
    let entries = u64::from(size).wrapping_mul(u64::from(elem));
    entries
        .wrapping_add(HEADER)
        .wrapping_add(if event_idx { EVENT } else { 0 })
}

/// Returns whether moving an index from `old` to `new` passes the index at which the other end
/// requested a notification (section 2.7.10): true if `event` is in `old..new`, modulo 2^16.
/// Linux's `vring_need_event`.
#[must_use]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// A word of a ring. Each end writes the three words of one ring, and reads the three of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Whether notifications are suppressed, without `EVENT_IDX`: `avail.flags` of the driver,
    /// `used.flags` of the device.
    Flags,
    /// The index: `avail.idx` of the driver, `used.idx` of the device.
    Idx,
    /// The index at which a notification is requested, under `EVENT_IDX`: `used_event` of the
    /// driver, `avail_event` of the device.
    Event,
}

/// Access to a queue's ring words by one end.
pub trait Words {
    /// Loads a word that the other end writes.
    fn load(&self, theirs: Word, order: Ordering) -> u16;
    /// Stores a word that this end writes.
    fn store(&self, own: Word, value: u16, order: Ordering);
    /// Executes a sequentially consistent fence: the store before it becomes visible before the
    /// load after it.
    fn fence(&self);
}

/// The flag by which either end suppresses notifications.
const NO_NOTIFY: u16 = AVAIL_F_NO_INTERRUPT;
const _: () = assert!(NO_NOTIFY == USED_F_NO_NOTIFY);

/// Loads the other end's index. The entries before it, and what they refer to, can be read.
#[inline]
pub fn peer_idx(words: &impl Words) -> u16 {
    words.load(Word::Idx, Ordering::Acquire)
}

/// Stores this end's index, which makes the entries before `new` visible to the other end.
#[inline]
pub fn publish_idx(words: &impl Words, new: u16) {
    words.store(Word::Idx, new, Ordering::Release);
}

/// Makes the entries `old..new` visible to the other end, and returns whether it has to be
/// notified.
///
/// The fence pairs with the one in [`enable_notifications`]: either the other end's second check
/// sees the new index, or the load here sees its request for a notification.
#[inline]
pub fn publish(words: &impl Words, event_idx: bool, old: u16, new: u16) -> bool {
    publish_idx(words, new);
    words.fence();
    wants(words, event_idx, old, new)
}

/// Returns whether the other end wants a notification for the entries `old..new`. Without the fence
/// of [`publish`] the answer may be out of date.
#[inline]
pub fn wants(words: &impl Words, event_idx: bool, old: u16, new: u16) -> bool {
    if event_idx {
        need_event(event(words), new, old)
    } else {
        words.load(Word::Flags, Ordering::Relaxed) & NO_NOTIFY == 0
    }
}

/// Returns where the other end wants to be notified, under `EVENT_IDX`.
#[inline]
pub fn event(words: &impl Words) -> u16 {
    words.load(Word::Event, Ordering::Relaxed)
}

/// Suppresses notifications by the other end. Under `EVENT_IDX` nothing is written: an event index
/// that was passed causes no notification for the next 2^16 entries, and `used.flags` must stay 0.
/// Linux's `virtqueue_disable_cb`.
#[inline]
pub fn disable_notifications(words: &impl Words, event_idx: bool) {
    if !event_idx {
        words.store(Word::Flags, NO_NOTIFY, Ordering::Relaxed);
    }
}

/// Requests a notification for the entry at `next`. Returns true if the entry is already there;
/// then there may be no notification, so check the ring again. Linux's `virtqueue_enable_cb`, with
/// the result inverted.
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
mod tests;
