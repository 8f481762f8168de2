//! Which pages of a region were written: a bitmap that is switched on while the guest runs.
//!
//! Off, a write costs a relaxed load and a branch, and there is no bitmap before the first time. It knows neither
//! where the region is nor who writes.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::bitmap::{AtomicBitmap, Bitmap, RefSlice, WithBitmapSlice};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
const PAGE_BYTES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Pages of one word of a bitmap.
const WORD: u64 = 64;

/// The pages of one region of guest memory that this process wrote.
#[derive(Debug)]
pub struct DirtyPages {
    len: usize,
    on: AtomicBool,
    pages: OnceLock<AtomicBitmap>,
}

impl DirtyPages {
    /// Of a region of `len` bytes; off.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self {
            len,
            on: AtomicBool::new(false),
            pages: OnceLock::new(),
        }
    }

    /// Takes note of writes from now on, with none noted yet; or of none any more.
    pub(crate) fn switch(&self, on: bool) {
        if on {
            self.pages().reset();
        }
        self.on.store(on, Ordering::Release);
    }

    /// The pages written since the last time: a bit each, the first in the lowest.
    pub(crate) fn take(&self) -> Vec<u64> {
        self.pages().get_and_reset()
    }

    fn pages(&self) -> &AtomicBitmap {
        self.pages
            .get_or_init(|| AtomicBitmap::new(self.len, PAGE_BYTES))
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyPages {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyPages {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if self.on.load(Ordering::Relaxed)
            && let Some(pages) = self.pages.get()
        {
            pages.mark_dirty(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let pages = self.pages.get();
        pages.is_some_and(|pages| pages.dirty_at(offset))
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

/// What somebody outside this process writes who serves rings: a bit for each page from address 0 on, as vhost sets
/// them (`VHOST_SET_LOG_BASE`).
#[derive(Debug)]
pub struct OutsideLog(Box<[AtomicU64]>);

impl OutsideLog {
    /// For guest addresses below `top`, all clean.
    pub(crate) fn new(top: u64) -> Self {
        let words = top.div_ceil(PAGE.saturating_mul(WORD));
        let words = usize::try_from(words).unwrap_or(usize::MAX);
        Self(
            std::iter::repeat_with(AtomicU64::default)
                .take(words)
                .collect(),
        )
    }

    /// Where its words are in this process.
    #[must_use]
    pub fn address(&self) -> u64 {
        u64::try_from(self.0.as_ptr().expose_provenance()).unwrap_or(0)
    }

    /// Notes a write to the page at `guest`, as the kernel does.
    #[cfg(test)]
    pub(crate) fn mark(&self, guest: u64) {
        let page = guest / PAGE;
        self.0[usize::try_from(page / WORD).unwrap()]
            .fetch_or(1 << (page % WORD), Ordering::AcqRel);
    }

    /// Takes what was written of the `words` · 64 pages from `guest` on, a multiple of as many.
    pub(crate) fn take(&self, guest: u64, words: usize) -> impl Iterator<Item = u64> {
        let first = guest.checked_div(PAGE.saturating_mul(WORD)).unwrap_or(0);
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        let words = self.0.get(first..).unwrap_or_default().iter().take(words);
        words.map(|word| word.swap(0, Ordering::AcqRel))
    }
}

/// The pages of a region of guest memory that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirty {
    /// Guest-physical address of the region.
    pub guest: u64,
    /// A bit for each of its pages, the first in the lowest of the first word.
    pub pages: Vec<u64>,
}

impl Dirty {
    /// Adds what `pages` has of the same region.
    pub fn add(&mut self, pages: impl IntoIterator<Item = u64>) {
        for (word, more) in self.pages.iter_mut().zip(pages) {
            *word |= more;
        }
    }

    /// Guest-physical addresses of the pages, ascending.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        let words = (0_u64..).zip(&self.pages);
        words.flat_map(move |(at, word)| {
            let set = (0..WORD).filter(move |bit| word >> bit & 1 == 1);
            set.map(move |bit| {
                let page = at.saturating_mul(WORD).saturating_add(bit);
                self.guest.saturating_add(page.saturating_mul(PAGE))
            })
        })
    }
}
