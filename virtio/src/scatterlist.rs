//! Scatterlists: lists of owned pieces of memory, with end markers and chained lists.
//!
//! The shape is that of Linux's `struct scatterlist`: a fixed array of entries, an end marker on
//! any of them, and a link from the last entry to a further list. What the February 2013 RFC
//! ("virtio: new API for addition of buffers, scatterlist changes") needed on top of it is here
//! too: lists are walked through their links (patch 1), and a recycled list can have a stale end
//! marker removed (`sg_unmark_end`, patches 5 and 6). Links own what they lead to, so a list never
//! runs in a circle.
//!
//! It knows neither queues nor devices.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem;

use crate::mem::dma::{DmaBuf, DmaBytes};

/// A list of memory pieces, made once and recycled: nothing here allocates but the constructors.
#[derive(Debug)]
pub struct ScatterList<B: DmaBuf = DmaBytes> {
    entries: Box<[Entry<B>]>,
}

#[derive(Debug)]
struct Entry<B: DmaBuf> {
    content: Content<B>,
    end: bool,
}

#[derive(Debug)]
enum Content<B: DmaBuf> {
    Empty,
    Buffer(B),
    Chain(Box<ScatterList<B>>),
}

impl<B: DmaBuf> Entry<B> {
    const fn empty() -> Self {
        Self {
            content: Content::Empty,
            end: false,
        }
    }
}

impl<B: DmaBuf> ScatterList<B> {
    /// A list of `entries` empty entries, the last one marked as the end (`sg_init_table`).
    pub fn new(entries: usize) -> Self {
        let mut entries: Box<[Entry<B>]> = (0..entries).map(|_| Entry::empty()).collect();
        if let Some(last) = entries.last_mut() {
            last.end = true;
        }
        Self { entries }
    }

    /// A list of exactly these pieces, the last one marked as the end.
    pub fn from_buffers(buffers: impl IntoIterator<Item = B>) -> Self {
        let mut entries: Vec<Entry<B>> = buffers
            .into_iter()
            .map(|buffer| Entry {
                content: Content::Buffer(buffer),
                end: false,
            })
            .collect();
        if let Some(last) = entries.last_mut() {
            last.end = true;
        }
        Self {
            entries: entries.into_boxed_slice(),
        }
    }

    /// Entries of this array; those of lists it is chained to don't count.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Puts a piece into entry `index` and answers the one that was there. Markers stay.
    ///
    /// # Errors
    /// There is no such entry, or it is a link: the piece comes back.
    pub fn set(&mut self, index: usize, buffer: B) -> Result<Option<B>, B> {
        match self.entries.get_mut(index).map(|entry| &mut entry.content) {
            None | Some(Content::Chain(_)) => Err(buffer),
            Some(content) => match mem::replace(content, Content::Buffer(buffer)) {
                Content::Buffer(old) => Ok(Some(old)),
                _ => Ok(None),
            },
        }
    }

    /// Takes the piece out of entry `index`. Markers stay.
    pub fn take(&mut self, index: usize) -> Option<B> {
        let content = &mut self.entries.get_mut(index)?.content;
        match mem::replace(content, Content::Empty) {
            Content::Buffer(buffer) => Some(buffer),
            other => {
                *content = other;
                None
            }
        }
    }

    /// The piece in entry `index`.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut B> {
        match &mut self.entries.get_mut(index)?.content {
            Content::Buffer(buffer) => Some(buffer),
            _ => None,
        }
    }

    /// Marks entry `index` as the list's last (`sg_mark_end`). A link can't be the end.
    pub fn mark_end(&mut self, index: usize) -> bool {
        match self.entries.get_mut(index) {
            Some(entry) if !matches!(entry.content, Content::Chain(_)) => {
                entry.end = true;
                true
            }
            _ => false,
        }
    }

    /// Removes the end marker of entry `index` (`sg_unmark_end`): a recycled list would otherwise
    /// be cut short at its former end.
    pub fn unmark_end(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.end = false;
        }
    }

    /// Fills the list from entry 0 and marks the last piece as the end; pieces that were there are
    /// dropped, older end markers stay (see [`unmark_end`](Self::unmark_end)).
    ///
    /// # Errors
    /// More pieces than entries: the first one too many comes back, the others are in the list.
    pub fn fill(&mut self, buffers: impl IntoIterator<Item = B>) -> Result<usize, B> {
        let mut filled = 0usize;
        for buffer in buffers {
            drop(self.set(filled, buffer)?);
            filled = filled.wrapping_add(1);
        }
        if let Some(last) = filled.checked_sub(1) {
            self.mark_end(last);
        }
        Ok(filled)
    }

    /// Links the last entry to a further list (`sg_chain`). The entry loses its end marker.
    ///
    /// # Errors
    /// The last entry holds a piece or a link already, or there is no entry: the list comes back.
    pub fn chain(&mut self, next: Self) -> Result<(), Self> {
        match self.entries.last_mut() {
            Some(entry) if matches!(entry.content, Content::Empty) => {
                entry.content = Content::Chain(Box::new(next));
                entry.end = false;
                Ok(())
            }
            _ => Err(next),
        }
    }

    /// Undoes [`chain`](Self::chain).
    pub fn unchain(&mut self) -> Option<Self> {
        let content = &mut self.entries.last_mut()?.content;
        match mem::replace(content, Content::Empty) {
            Content::Chain(mut next) => Some(mem::take(&mut *next)),
            other => {
                *content = other;
                None
            }
        }
    }

    /// The pieces in order: through links, up to and including the first entry that is marked as
    /// the end; empty entries are passed over.
    #[inline]
    pub fn iter(&self) -> Iter<'_, B> {
        Iter {
            rest: self.entries.iter(),
        }
    }

    /// Number of pieces [`iter`](Self::iter) gives.
    pub fn segments(&self) -> usize {
        self.iter().count()
    }

    /// Bytes of the pieces [`iter`](Self::iter) gives.
    pub fn bytes(&self) -> u64 {
        self.iter().fold(0, |sum, buffer| {
            let len = u64::try_from(buffer.region().len()).unwrap_or(u64::MAX);
            sum.saturating_add(len)
        })
    }

    /// The pieces in order, to read and write; as [`iter`](Self::iter).
    pub fn for_each_mut(&mut self, mut each: impl FnMut(&mut B)) {
        let mut list = self;
        loop {
            let mut next = None;
            for entry in &mut list.entries {
                match &mut entry.content {
                    Content::Empty => {}
                    Content::Buffer(buffer) => each(buffer),
                    Content::Chain(chained) => next = Some(chained),
                }
                if entry.end {
                    return;
                }
            }
            match next {
                Some(chained) => list = chained,
                None => return,
            }
        }
    }

    /// Takes every piece out, whatever the markers say, through links as well; entries, markers
    /// and links stay.
    pub fn clear(&mut self, mut each: impl FnMut(B)) {
        let mut list = self;
        loop {
            for index in 0..list.entries.len() {
                if let Some(buffer) = list.take(index) {
                    each(buffer);
                }
            }
            match list.entries.last_mut().map(|entry| &mut entry.content) {
                Some(Content::Chain(next)) => list = next,
                _ => return,
            }
        }
    }
}

impl<B: DmaBuf> Default for ScatterList<B> {
    /// A list without entries.
    fn default() -> Self {
        Self {
            entries: Box::default(),
        }
    }
}

impl<B: DmaBuf> From<B> for ScatterList<B> {
    fn from(buffer: B) -> Self {
        Self::from_buffers([buffer])
    }
}

impl<B: DmaBuf> Drop for ScatterList<B> {
    /// Link by link: a long chain must not recurse as deep as it is long.
    fn drop(&mut self) {
        let mut next = self.unchain();
        while let Some(mut list) = next {
            next = list.unchain();
        }
    }
}

impl<'a, B: DmaBuf> IntoIterator for &'a ScatterList<B> {
    type Item = &'a B;
    type IntoIter = Iter<'a, B>;

    fn into_iter(self) -> Iter<'a, B> {
        self.iter()
    }
}

/// See [`ScatterList::iter`].
#[derive(Debug)]
pub struct Iter<'a, B: DmaBuf> {
    rest: core::slice::Iter<'a, Entry<B>>,
}

impl<'a, B: DmaBuf> Iterator for Iter<'a, B> {
    type Item = &'a B;

    #[inline]
    fn next(&mut self) -> Option<&'a B> {
        loop {
            let entry = self.rest.next()?;
            if entry.end {
                self.rest = [].iter();
            }
            match &entry.content {
                Content::Buffer(buffer) => return Some(buffer),
                Content::Chain(next) => self.rest = next.entries.iter(),
                Content::Empty => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "scatterlist_tests.rs"]
mod tests;
