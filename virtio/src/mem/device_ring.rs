//! The three parts of a virtqueue, translated and bounds-checked once, as accessed by the device's
//! end.

use core::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use super::translate::{Desc, Descs};
use crate::mem::{Access, GuestRam, Segment};
use crate::ring::{self, ENTRIES_OFFSET, FLAGS_OFFSET, IDX_OFFSET, Word, Words};
use crate::spec::ring::{AVAIL_ALIGN, DESC_ALIGN, USED_ALIGN};

/// Why a part of a ring can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingFault {
    /// Its address is not aligned, in the guest or in the host.
    Misaligned,
    /// It is not in one region of memory.
    OutsideRam,
}

/// The ring of one queue. Indices are taken modulo the size, so no access can leave it.
pub(crate) struct DeviceRing<M> {
    desc: *const u8,
    avail: *const u8,
    used: *mut u8,
    /// Size less one; the size is a power of two.
    mask: u16,
    /// Offsets of `used_event` in the available and of `avail_event` in the used ring. Without
    /// `EVENT_IDX` they are not used, and are the offset of the index, which is always inside.
    used_event_at: usize,
    avail_event_at: usize,
    used_segment: Segment,
    /// Keeps the three pointers mapped.
    ram: M,
}

// SAFETY: the pointers are into guest memory, which may be accessed from any thread, and `ram`,
// which keeps them valid, is Send.
unsafe impl<M: GuestRam> Send for DeviceRing<M> {}

impl<M: GuestRam> DeviceRing<M> {
    /// Checks and translates the parts of a ring of `size` entries, a power of two. The error has
    /// the number of the part: 0 descriptors, 1 available, 2 used.
    pub(crate) fn map(
        ram: M,
        size: u16,
        event_idx: bool,
        parts: [u64; 3],
    ) -> Result<Self, (usize, RingFault)> {
        let [desc, avail, used] = parts;
        let part = |index, addr, len, align, access| {
            map_part(&ram, addr, len, align, access).map_err(|fault| (index, fault))
        };
        let desc = part(0, desc, ring::desc_bytes(size), DESC_ALIGN, Access::Read)?;
        let bytes = ring::avail_bytes(size, event_idx);
        let avail = part(1, avail, bytes, AVAIL_ALIGN, Access::Read)?;
        let bytes = ring::used_bytes(size, event_idx);
        let used = part(2, used, bytes, USED_ALIGN, Access::Write)?;
        Ok(Self {
            desc: desc.as_ptr(),
            avail: avail.as_ptr(),
            used: used.as_ptr(),
            mask: size.wrapping_sub(1),
            used_event_at: event_offset(size, 2, event_idx),
            avail_event_at: event_offset(size, 8, event_idx),
            used_segment: used,
            ram,
        })
    }

    pub(crate) fn ram(&self) -> &M {
        &self.ram
    }

    pub(crate) fn size(&self) -> u16 {
        self.mask.wrapping_add(1)
    }

    /// Reads descriptor `index`, modulo the size.
    #[inline]
    pub(crate) fn desc(&self, index: u16) -> Desc {
        let table = self.table();
        // SAFETY: the masked index is below the size.
        unsafe { table.get_unchecked(u32::from(index & self.mask)) }
    }

    /// Returns the descriptor table.
    #[inline]
    pub(crate) fn table(&self) -> Descs<'_> {
        // SAFETY: `map` checked size × 16 bytes at `desc`, aligned to 16, and `ram` keeps them
        // mapped for as long as the borrow of `self`.
        unsafe { Descs::new(self.desc, u32::from(self.mask).wrapping_add(1)) }
    }

    /// Reads entry `position` of the available ring, modulo the size: the head of a chain.
    #[inline]
    pub(crate) fn avail_entry(&self, position: u16) -> u16 {
        let slot = usize::from(position & self.mask);
        let at = ENTRIES_OFFSET.wrapping_add(slot.wrapping_mul(2));
        self.avail_word(at, Ordering::Relaxed)
    }

    /// Writes entry `position` of the used ring, modulo the size.
    #[inline]
    pub(crate) fn set_used_entry(&self, position: u16, id: u16, len: u32) {
        let slot = usize::from(position & self.mask);
        let at = ENTRIES_OFFSET.wrapping_add(slot.wrapping_mul(8));
        // SAFETY: `map` checked 4 + size × 8 bytes at `used`, aligned to 4; the masked position is
        // below size; `ram` keeps them mapped.
        unsafe {
            let entry = self.used.add(at).cast::<u32>();
            AtomicU32::from_ptr(entry).store(u32::from(id).to_le(), Ordering::Relaxed);
            AtomicU32::from_ptr(entry.add(1)).store(len.to_le(), Ordering::Relaxed);
        }
    }

    /// Marks the used ring dirty, if dirty pages are tracked.
    #[inline]
    pub(crate) fn mark_used_dirty(&self) {
        if self.ram.tracks_dirty() {
            self.ram
                .mark_dirty(&self.used_segment, self.used_segment.len());
        }
    }

    /// Reads the 16-bit word at `at` of the available ring.
    #[inline]
    fn avail_word(&self, at: usize, order: Ordering) -> u16 {
        // SAFETY: private, and called with offsets that `map` checked: the header, an entry below
        // size, or `used_event_at`; all even.
        let word = unsafe { AtomicU16::from_ptr(self.avail.add(at).cast_mut().cast()) };
        u16::from_le(word.load(order))
    }

    /// Returns the 16-bit word at `at` of the used ring.
    #[inline]
    fn used_word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: private, and called with offsets that `map` checked: the header or
        // `avail_event_at`; all even. The reference is to an atomic and does not outlive `self`.
        unsafe { AtomicU16::from_ptr(self.used.add(at).cast()) }
    }
}

/// Returns the offset of the event word behind `size` entries of `elem` bytes.
fn event_offset(size: u16, elem: usize, event_idx: bool) -> usize {
    if event_idx {
        ENTRIES_OFFSET.wrapping_add(usize::from(size).wrapping_mul(elem))
    } else {
        IDX_OFFSET
    }
}

fn map_part<M: GuestRam>(
    ram: &M,
    addr: u64,
    len: u64,
    align: u64,
    access: Access,
) -> Result<Segment, RingFault> {
    if !addr.is_multiple_of(align) {
        return Err(RingFault::Misaligned);
    }
    let segment = usize::try_from(len)
        .ok()
        .and_then(|len| ram.region(addr, access)?.segment(addr, len))
        .ok_or(RingFault::OutsideRam)?;
    // A mapping is page-aligned, so this follows from the guest address; the atomics depend on it.
    if !u64::try_from(segment.as_ptr().addr()).is_ok_and(|host| host.is_multiple_of(align)) {
        return Err(RingFault::Misaligned);
    }
    Ok(segment)
}

impl<M: GuestRam> Words for DeviceRing<M> {
    #[inline]
    fn load(&self, theirs: Word, order: Ordering) -> u16 {
        let at = match theirs {
            Word::Flags => FLAGS_OFFSET,
            Word::Idx => IDX_OFFSET,
            Word::Event => self.used_event_at,
        };
        self.avail_word(at, order)
    }

    #[inline]
    fn store(&self, own: Word, value: u16, order: Ordering) {
        let at = match own {
            Word::Flags => FLAGS_OFFSET,
            Word::Idx => IDX_OFFSET,
            Word::Event => self.avail_event_at,
        };
        self.used_word(at).store(value.to_le(), order);
    }

    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}
