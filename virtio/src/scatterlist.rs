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
use core::mem;

use crate::mem::dma::{DmaBuf, DmaBytes};

/// A list of memory pieces, made once and recycled: nothing here allocates but the constructors.
#[derive(Debug)]
pub struct ScatterList<B: DmaBuf = DmaBytes> {
    entries: Box<[Entry<B>]>,
    /// Where the last entry leads, if it is a link.
    link: Option<Box<ScatterList<B>>>,
}

#[derive(Debug)]
struct Entry<B: DmaBuf> {
    buffer: Option<B>,
    end: bool,
}

impl<B: DmaBuf> ScatterList<B> {
    /// A list of `entries` empty entries, the last one marked as the end (`sg_init_table`).
    pub fn new(entries: usize) -> Self {
        Self::of((0..entries).map(|_| None))
    }

    /// A list of exactly these pieces, the last one marked as the end.
    pub fn from_buffers(buffers: impl IntoIterator<Item = B>) -> Self {
        Self::of(buffers.into_iter().map(Some))
    }

    fn of(buffers: impl Iterator<Item = Option<B>>) -> Self {
        let entry = |buffer| Entry { buffer, end: false };
        let mut entries: Box<[Entry<B>]> = buffers.map(entry).collect();
        if let Some(last) = entries.last_mut() {
            last.end = true;
        }
        Self {
            entries,
            link: None,
        }
    }

    /// Entries of this array; those of lists it is chained to don't count.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Entry `index`, unless it is a link.
    fn entry(&mut self, index: usize) -> Option<&mut Entry<B>> {
        let links = usize::from(self.link.is_some());
        let usable = self.entries.len().saturating_sub(links);
        self.entries.get_mut(index).filter(|_| index < usable)
    }

    /// Puts a piece into entry `index` and answers the one that was there. Markers stay.
    ///
    /// # Errors
    /// There is no such entry, or it is a link: the piece comes back.
    pub fn set(&mut self, index: usize, buffer: B) -> Result<Option<B>, B> {
        match self.entry(index) {
            Some(entry) => Ok(entry.buffer.replace(buffer)),
            None => Err(buffer),
        }
    }

    /// Takes the piece out of entry `index`. Markers stay.
    pub fn take(&mut self, index: usize) -> Option<B> {
        self.entry(index)?.buffer.take()
    }

    /// The piece in entry `index`.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut B> {
        self.entry(index)?.buffer.as_mut()
    }

    /// Marks entry `index` as the list's last (`sg_mark_end`). A link can't be the end.
    pub fn mark_end(&mut self, index: usize) -> bool {
        match self.entry(index) {
            Some(entry) => {
                entry.end = true;
                true
            }
            None => false,
        }
    }

    /// Removes the end marker of entry `index` (`sg_unmark_end`): a recycled list would otherwise
    /// be cut short at its former end.
    pub fn unmark_end(&mut self, index: usize) {
        if let Some(entry) = self.entry(index) {
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
            Some(entry) if entry.buffer.is_none() && self.link.is_none() => {
                entry.end = false;
                self.link = Some(Box::new(next));
                Ok(())
            }
            _ => Err(next),
        }
    }

    /// Undoes [`chain`](Self::chain).
    pub fn unchain(&mut self) -> Option<Self> {
        self.link.take().map(|mut next| mem::take(&mut *next))
    }

    /// The pieces in order: through links, up to and including the first entry that is marked as
    /// the end; empty entries are passed over.
    #[inline]
    pub fn iter(&self) -> Iter<'_, B> {
        Iter {
            rest: self.entries.iter(),
            link: self.link.as_deref(),
        }
    }

    /// As [`iter`](Self::iter), until `each` stops it: the same walk as a loop of its own, which is
    /// what adding a list to a queue comes down to.
    #[inline(always)]
    pub(crate) fn each<E>(&self, mut each: impl FnMut(&B) -> Result<(), E>) -> Result<(), E> {
        let mut list = self;
        loop {
            let mut entries = &*list.entries;
            while let [entry, rest @ ..] = entries {
                if let Some(buffer) = &entry.buffer {
                    each(buffer)?;
                }
                if entry.end {
                    return Ok(());
                }
                entries = rest;
            }
            match list.link.as_deref() {
                Some(next) => list = next,
                None => return Ok(()),
            }
        }
    }

    /// The same in step with `places`, one for each piece, until `each` stops it or there are no more
    /// places. Answers how many were used, and how it ended.
    ///
    /// A loop of one counter, for long lists.
    #[inline(always)]
    pub(crate) fn pair<'p, P, E>(
        &self,
        places: &'p [P],
        mut each: impl FnMut(&B, &'p P) -> Result<(), E>,
    ) -> (usize, Result<Ended, E>) {
        let mut rest = self.iter();
        let mut free = places;
        loop {
            let entries = rest.rest.as_slice();
            let used = places.len().wrapping_sub(free.len());
            let mut step = 0usize;
            for (entry, place) in entries.iter().zip(free) {
                let Some(buffer) = &entry.buffer else {
                    break;
                };
                if let Err(error) = each(buffer, place) {
                    return (used.wrapping_add(step), Err(error));
                }
                step = step.wrapping_add(1);
                if entry.end {
                    return (used.wrapping_add(step), Ok(Ended::List));
                }
            }
            free = free.get(step..).unwrap_or_default();
            rest.rest = entries.get(step..).unwrap_or_default().iter();
            // An empty entry, the end of an array, or no place left.
            let ended = match rest.pass_empty() {
                true => Ended::List,
                false if free.is_empty() => Ended::Places,
                false => continue,
            };
            return (used.wrapping_add(step), Ok(ended));
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
            for entry in &mut list.entries {
                if let Some(buffer) = &mut entry.buffer {
                    each(buffer);
                }
                if entry.end {
                    return;
                }
            }
            match list.link.as_deref_mut() {
                Some(next) => list = next,
                None => return,
            }
        }
    }

    /// Takes every piece out, whatever the markers say, through links as well; entries, markers
    /// and links stay.
    pub fn clear(&mut self, mut each: impl FnMut(B)) {
        let mut list = self;
        loop {
            for entry in &mut list.entries {
                if let Some(buffer) = entry.buffer.take() {
                    each(buffer);
                }
            }
            match list.link.as_deref_mut() {
                Some(next) => list = next,
                None => return,
            }
        }
    }
}

impl<B: DmaBuf> Default for ScatterList<B> {
    /// A list without entries.
    fn default() -> Self {
        Self {
            entries: Box::default(),
            link: None,
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
    link: Option<&'a ScatterList<B>>,
}

/// How a walk in step with places ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With the list.
    List,
    /// With the places, before the list.
    Places,
}

impl<B: DmaBuf> Iter<'_, B> {
    /// Moves on to the next piece; true if there is none.
    #[cold]
    fn pass_empty(&mut self) -> bool {
        loop {
            match self.rest.as_slice() {
                [entry, ..] if entry.buffer.is_some() => return false,
                [entry, ..] if entry.end => return true,
                [_, rest @ ..] => self.rest = rest.iter(),
                [] => match self.link {
                    Some(link) => *self = link.iter(),
                    None => return true,
                },
            }
        }
    }
}

impl<'a, B: DmaBuf> Iterator for Iter<'a, B> {
    type Item = &'a B;

    #[inline]
    fn next(&mut self) -> Option<&'a B> {
        loop {
            let Some(entry) = self.rest.next() else {
                *self = self.link?.iter();
                continue;
            };
            if entry.end {
                self.rest = [].iter();
                self.link = None;
            }
            if let Some(buffer) = &entry.buffer {
                return Some(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests;
