//! Scatterlists: lists of owned memory buffers, with end markers and chained lists.
//!
//! The layout is that of Linux's `struct scatterlist`: a fixed array of entries, an end marker on
//! any of them, and a link from the last entry to another list. It also has what the RFC of
//! February 2013 ("virtio: new API for addition of buffers, scatterlist changes") added: lists are
//! walked through their links (patch 1), and a stale end marker can be removed from a recycled list
//! (`sg_unmark_end`, patches 5 and 6). Links own the list that they lead to, so lists can't form a
//! cycle.
//!
//! This module knows neither queues nor devices.

use alloc::boxed::Box;
use core::mem;

use crate::mem::dma::{DmaBuf, DmaBytes};

/// A list of memory buffers, which is recycled: only the constructors allocate.
#[derive(Debug)]
pub struct ScatterList<B: DmaBuf = DmaBytes> {
    entries: Box<[Entry<B>]>,
    /// The list to which the last entry links, if it is a link.
    link: Option<Box<ScatterList<B>>>,
}

#[derive(Debug)]
struct Entry<B: DmaBuf> {
    buffer: Option<B>,
    end: bool,
}

impl<B: DmaBuf> ScatterList<B> {
    /// Creates a list of `entries` empty entries, the last one marked as the end (`sg_init_table`).
    pub fn new(entries: usize) -> Self {
        Self::of((0..entries).map(|_| None))
    }

    /// Creates a list of exactly these buffers, the last one marked as the end.
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

    /// Returns the number of entries of this array, without those of linked lists.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Returns entry `index`, unless it is a link.
    fn entry(&mut self, index: usize) -> Option<&mut Entry<B>> {
        let links = usize::from(self.link.is_some());
        let usable = self.entries.len().saturating_sub(links);
        self.entries.get_mut(index).filter(|_| index < usable)
    }

    /// Stores a buffer in entry `index` and returns the previous one. Markers stay.
    ///
    /// # Errors
    /// There is no such entry, or it is a link; returns the buffer.
    pub fn set(&mut self, index: usize, buffer: B) -> Result<Option<B>, B> {
        match self.entry(index) {
            Some(entry) => Ok(entry.buffer.replace(buffer)),
            None => Err(buffer),
        }
    }

    /// Takes the buffer out of entry `index`. Markers stay.
    pub fn take(&mut self, index: usize) -> Option<B> {
        self.entry(index)?.buffer.take()
    }

    /// Returns the buffer in entry `index`.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut B> {
        self.entry(index)?.buffer.as_mut()
    }

    /// Marks entry `index` as the list's last (`sg_mark_end`). Returns false for a link, which
    /// can't be the end, and for an entry that does not exist.
    pub fn mark_end(&mut self, index: usize) -> bool {
        match self.entry(index) {
            Some(entry) => {
                entry.end = true;
                true
            }
            None => false,
        }
    }

    /// Removes the end marker of entry `index` (`sg_unmark_end`). Otherwise a recycled list would
    /// end at its former end.
    pub fn unmark_end(&mut self, index: usize) {
        if let Some(entry) = self.entry(index) {
            entry.end = false;
        }
    }

    /// Fills the list from entry 0 on and marks the last buffer as the end; returns the number of
    /// buffers. Previous buffers are dropped; previous end markers stay (see
    /// [`unmark_end`](Self::unmark_end)).
    ///
    /// # Errors
    /// There are more buffers than entries. Returns the first that does not fit; those before it
    /// are in the list.
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

    /// Links the last entry to another list (`sg_chain`). The entry loses its end marker.
    ///
    /// # Errors
    /// The last entry holds a buffer or a link, or there is no entry. Returns the list.
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

    /// Removes the link of [`chain`](Self::chain) and returns the list.
    pub fn unchain(&mut self) -> Option<Self> {
        self.link.take().map(|mut next| mem::take(&mut *next))
    }

    /// Returns an iterator over the buffers in order: through links, up to and including the first
    /// entry that is marked as the end. Empty entries are skipped.
    #[inline]
    pub fn iter(&self) -> Iter<'_, B> {
        Iter {
            rest: self.entries.iter(),
            link: self.link.as_deref(),
        }
    }

    /// Calls `each` for the buffers of [`iter`](Self::iter), until it returns an error. A separate
    /// loop, because the compiler generates better code for it; adding a list to a queue spends its
    /// time here.
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

    /// As [`each`](Self::each), with one element of `slots` per buffer, until there are no more
    /// slots. Returns how many slots were used, and what ended the walk.
    ///
    /// A loop with a single counter, for long lists.
    #[inline(always)]
    pub(crate) fn pair<'p, P, E>(
        &self,
        slots: &'p [P],
        mut each: impl FnMut(&B, &'p P) -> Result<(), E>,
    ) -> (usize, Result<Ended, E>) {
        let mut rest = self.iter();
        let mut free = slots;
        loop {
            let entries = rest.rest.as_slice();
            let used = slots.len().wrapping_sub(free.len());
            let mut step = 0usize;
            for (entry, slot) in entries.iter().zip(free) {
                let Some(buffer) = &entry.buffer else {
                    break;
                };
                if let Err(error) = each(buffer, slot) {
                    return (used.wrapping_add(step), Err(error));
                }
                step = step.wrapping_add(1);
                if entry.end {
                    return (used.wrapping_add(step), Ok(Ended::List));
                }
            }
            free = free.get(step..).unwrap_or_default();
            rest.rest = entries.get(step..).unwrap_or_default().iter();
            // An empty entry, the end of an array, or no slot left.
            let ended = match rest.skip_empty() {
                true => Ended::List,
                false if free.is_empty() => Ended::Slots,
                false => continue,
            };
            return (used.wrapping_add(step), Ok(ended));
        }
    }

    /// Returns the number of buffers of [`iter`](Self::iter).
    pub fn segments(&self) -> usize {
        self.iter().count()
    }

    /// Returns the total bytes of the buffers of [`iter`](Self::iter).
    pub fn bytes(&self) -> u64 {
        self.iter().fold(0, |sum, buffer| {
            let len = u64::try_from(buffer.region().len()).unwrap_or(u64::MAX);
            sum.saturating_add(len)
        })
    }

    /// Calls `each` for the buffers of [`iter`](Self::iter), mutably.
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

    /// Takes out every buffer, also behind end markers and through links. Entries, markers and
    /// links stay.
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
    /// Returns a list without entries.
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
    /// Drops link by link: recursion could overflow the stack.
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

/// What ended a walk with slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The end of the list.
    List,
    /// The end of the slots, before that of the list.
    Slots,
}

impl<B: DmaBuf> Iter<'_, B> {
    /// Advances to the next buffer. Returns true if there is none.
    #[cold]
    fn skip_empty(&mut self) -> bool {
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
