//! Volatile copies between guest memory and ordinary memory, a word at a time where alignment
//! permits.

use core::ptr;

const WORD: usize = size_of::<u64>();

/// Copies `dst.len()` bytes from guest memory.
///
/// # Safety
/// `src` must be valid for volatile reads of `dst.len()` bytes.
pub(super) unsafe fn from_guest(dst: &mut [u8], src: *const u8) {
    let mut src = src;
    let (head, words, tail) = shape(src.addr(), dst.len());
    let mut dst = dst.as_mut_ptr();
    // SAFETY: head + words × 8 + tail is dst.len(), so neither pointer leaves its range; guest
    // words are aligned because `shape` put the unaligned bytes into `head`; ours are written
    // unaligned.
    unsafe {
        for _ in 0..head {
            dst.write(ptr::read_volatile(src));
            (src, dst) = (src.add(1), dst.add(1));
        }
        for _ in 0..words {
            dst.cast::<u64>()
                .write_unaligned(ptr::read_volatile(src.cast::<u64>()));
            (src, dst) = (src.add(WORD), dst.add(WORD));
        }
        for _ in 0..tail {
            dst.write(ptr::read_volatile(src));
            (src, dst) = (src.add(1), dst.add(1));
        }
    }
}

/// Copies `src` into guest memory.
///
/// # Safety
/// `dst` must be valid for volatile writes of `src.len()` bytes.
pub(super) unsafe fn to_guest(dst: *mut u8, src: &[u8]) {
    let mut dst = dst;
    let (head, words, tail) = shape(dst.addr(), src.len());
    let mut src = src.as_ptr();
    // SAFETY: as in `from_guest`, with the sides exchanged.
    unsafe {
        for _ in 0..head {
            ptr::write_volatile(dst, src.read());
            (src, dst) = (src.add(1), dst.add(1));
        }
        for _ in 0..words {
            ptr::write_volatile(dst.cast::<u64>(), src.cast::<u64>().read_unaligned());
            (src, dst) = (src.add(WORD), dst.add(WORD));
        }
        for _ in 0..tail {
            ptr::write_volatile(dst, src.read());
            (src, dst) = (src.add(1), dst.add(1));
        }
    }
}

/// Splits `len` bytes at guest address `at` into bytes up to alignment, aligned words, and
/// remaining bytes.
fn shape(at: usize, len: usize) -> (usize, usize, usize) {
    let head = at.wrapping_neg().wrapping_rem(WORD).min(len);
    let rest = len.saturating_sub(head);
    (head, rest.wrapping_div(WORD), rest.wrapping_rem(WORD))
}

#[cfg(test)]
mod tests;
