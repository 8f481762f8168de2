//! The image, read under a budget.
//!
//! Everything in this crate reads through an [`Image`]. It counts bytes, steps and memory, and
//! remembers the first failure: the file system crates reduce a reader's error to a word, so the
//! cause is taken from here afterwards.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;

use crate::bytes::{number, size};
use crate::error::{BOOT_OTHERWISE, Error, ErrorKind, REPAIR, Result};

/// Why a reader failed, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFault(pub String);

/// Something of a fixed size that can be read at any offset: a disk image, or a file in it.
pub trait ReadAt {
    /// Returns the size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    ///
    /// The bytes cannot be read, or lie behind the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> core::result::Result<(), ReadFault>;
}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        number(self.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> core::result::Result<(), ReadFault> {
        let start = size(offset);
        let end = start.saturating_add(buf.len());
        let piece = self.get(start..end);
        let piece = piece.ok_or_else(|| ReadFault("behind the end".into()))?;
        buf.copy_from_slice(piece);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.as_slice().size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> core::result::Result<(), ReadFault> {
        self.as_slice().read_at(offset, buf)
    }
}

macro_rules! forward {
    ($($pointer:ident)+) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $pointer<T> {
            fn size(&self) -> u64 {
                (**self).size()
            }

            fn read_at(&self, offset: u64, buf: &mut [u8]) -> core::result::Result<(), ReadFault> {
                (**self).read_at(offset, buf)
            }
        }
    )+};
}

forward!(Arc Box Rc);

/// How much may be spent on finding out what an image boots, and how large its files may be.
///
/// Reading the contents of the chosen files is not part of it: that is bounded by their sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Budget {
    /// Bytes read from the image.
    pub bytes: u64,
    /// Reads, directory entries, and commands of boot scripts.
    pub steps: u64,
    /// Bytes of memory for boot descriptions, directories and tables, summed up over the survey.
    pub memory: u64,
    /// The largest kernel or unified kernel image, in bytes.
    pub kernel: u64,
    /// The largest sum of initial ramdisks, in bytes.
    pub initrd: u64,
}

impl Budget {
    /// Returns a budget that every distribution's image keeps many times over.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: 256 << 20,
            steps: 1_000_000,
            memory: 64 << 20,
            kernel: 512 << 20,
            initrd: 1 << 30,
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

/// Blocks that small reads go through, and how many of them are kept.
const BLOCK: u64 = 4096;
const KEPT_BLOCKS: usize = 64;

struct Block {
    index: u64,
    data: Vec<u8>,
}

/// An image with what is left of its budget.
pub(crate) struct Image {
    reader: Box<dyn ReadAt>,
    budget: Budget,
    bytes: Cell<u64>,
    steps: Cell<u64>,
    memory: Cell<u64>,
    fault: RefCell<Option<Error>>,
    blocks: RefCell<Vec<Block>>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("size", &self.reader.size())
            .field("bytes", &self.bytes)
            .field("steps", &self.steps)
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

impl Image {
    pub(crate) fn new(reader: Box<dyn ReadAt>, budget: Budget) -> Rc<Self> {
        Rc::new(Self {
            reader,
            budget,
            bytes: Cell::new(budget.bytes),
            steps: Cell::new(budget.steps),
            memory: Cell::new(budget.memory),
            fault: RefCell::new(None),
            blocks: RefCell::new(Vec::new()),
        })
    }

    pub(crate) fn size(&self) -> u64 {
        self.reader.size()
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Lets `bytes` more be read: contents that have been found within the budget.
    pub(crate) fn allow(&self, bytes: u64) {
        self.bytes.set(self.bytes.get().saturating_add(bytes));
        self.steps.set(self.steps.get().saturating_add(bytes / 64));
    }

    /// Takes the failure that was remembered since the last call.
    pub(crate) fn take_fault(&self) -> Option<Error> {
        self.fault.borrow_mut().take()
    }

    fn fail(&self, error: Error) -> Error {
        self.fault.borrow_mut().get_or_insert_with(|| error.clone());
        error
    }

    fn charge(&self, left: &Cell<u64>, amount: u64, what: &str, limit: u64) -> Result<()> {
        if let Some(rest) = left.get().checked_sub(amount) {
            left.set(rest);
            return Ok(());
        }
        // Nothing that comes later gets through a gap that a large request left.
        left.set(0);
        Err(self.fail(Error::new(
            ErrorKind::Budget,
            "survey",
            "the disk image",
            format!("it takes more than the limit of {limit} {what}"),
            BOOT_OTHERWISE,
        )))
    }

    /// Takes `amount` steps from the budget.
    pub(crate) fn step(&self, amount: u64) -> Result<()> {
        self.charge(&self.steps, amount, "steps", self.budget.steps)
    }

    /// Takes `amount` bytes of memory from the budget.
    pub(crate) fn memory(&self, amount: u64) -> Result<()> {
        self.charge(&self.memory, amount, "bytes of memory", self.budget.memory)
    }

    /// Fills `buf` from `offset` on.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.step(1)?;
        let length = number(buf.len());
        let end = offset.saturating_add(length);
        if end > self.size() {
            return Err(self.fail(Error::new(
                ErrorKind::Cut,
                "read",
                "the disk image",
                format!(
                    "bytes {offset} to {end} are behind its end at {}",
                    self.size()
                ),
                "the image is cut short: copy or download it again",
            )));
        }
        let index = offset / BLOCK;
        if length > 0 && end.saturating_sub(1) / BLOCK == index {
            return self.read_through_cache(index, offset % BLOCK, buf);
        }
        self.read_plainly(offset, buf)
    }

    fn read_plainly(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.charge(
            &self.bytes,
            number(buf.len()),
            "bytes read",
            self.budget.bytes,
        )?;
        self.reader.read_at(offset, buf).map_err(|fault| {
            self.fail(Error::new(
                ErrorKind::Read,
                "read",
                "the disk image",
                format!("{} bytes at {offset}: {}", buf.len(), fault.0),
                REPAIR,
            ))
        })
    }

    fn read_through_cache(&self, index: u64, within: u64, buf: &mut [u8]) -> Result<()> {
        let mut blocks = self.blocks.borrow_mut();
        let place = blocks.iter().position(|block| block.index == index);
        if let Some(place) = place {
            let block = blocks.remove(place);
            blocks.push(block);
        } else {
            let start = index.saturating_mul(BLOCK);
            let mut data = vec![0; size(BLOCK.min(self.size().saturating_sub(start)))];
            self.read_plainly(start, &mut data)?;
            if blocks.len() >= KEPT_BLOCKS {
                blocks.remove(0);
            }
            blocks.push(Block { index, data });
        }
        let block = blocks.last().map(|block| block.data.as_slice());
        let start = size(within);
        let piece = block.and_then(|data| data.get(start..start.saturating_add(buf.len())));
        if let Some(piece) = piece {
            buf.copy_from_slice(piece);
        }
        Ok(())
    }
}

/// A part of the image: a partition, or the whole of it.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    image: Rc<Image>,
    start: u64,
    size: u64,
}

impl Region {
    pub(crate) fn new(image: &Rc<Image>, start: u64, size: u64) -> Self {
        Self {
            image: Rc::clone(image),
            start,
            size,
        }
    }

    pub(crate) fn image(&self) -> &Rc<Image> {
        &self.image
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` from `offset` on, counted from the region's start.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(number(buf.len()));
        if end > self.size {
            return Err(self.image.fail(Error::new(
                ErrorKind::FileSystem,
                "read",
                "the file system",
                format!("it refers to byte {end} of a partition of {}", self.size),
                REPAIR,
            )));
        }
        self.image.read(self.start.saturating_add(offset), buf)
    }

    /// Reads `N` bytes at `offset`, or nothing if they lie behind the end of region or image.
    pub(crate) fn peek<const N: usize>(&self, offset: u64) -> Result<Option<[u8; N]>> {
        let end = offset.saturating_add(number(N));
        if end > self.size || self.start.saturating_add(end) > self.image.size() {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.read(offset, &mut bytes)?;
        Ok(Some(bytes))
    }
}
