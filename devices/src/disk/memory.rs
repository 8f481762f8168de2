//! A request's memory for disks that are implemented outside of this crate: bytes are copied, nobody gets a pointer.

use super::transfer::{Reach, Transfer};
use super::{Data, IoFault};
use crate::ram::Ram;

/// Copies between the data of a request and buffers of one's own.
///
/// It is made from the `Ram` that [`Disk::open_queue`](super::Disk::open_queue) was given, takes a request's data by
/// [`load`](Self::load), and gives access to it from the front.
#[derive(Debug)]
pub struct Memory {
    reach: Reach,
    transfer: Transfer,
}

impl Memory {
    /// For requests with data in `ram`.
    #[must_use]
    pub fn new(ram: Ram) -> Self {
        Self {
            reach: Reach::new(ram),
            transfer: Transfer::default(),
        }
    }

    /// Takes the data of a request, and returns its length in bytes.
    ///
    /// # Errors
    /// [`IoFault::BadMemory`]: it is not in the `Ram` that this was made for.
    pub fn load(&mut self, data: Data<'_>) -> Result<u64, IoFault> {
        self.transfer.load(data, &self.reach)?;
        Ok(self.transfer.len())
    }

    /// Stores `bytes` in the data of a read, behind what was stored before. What is beyond its end is left out.
    pub fn store(&mut self, bytes: &[u8]) {
        self.transfer.fill_from(bytes);
    }

    /// Fetches the next `bytes.len()` bytes of a write. What is beyond its end stays as it is.
    ///
    /// The guest may write its memory meanwhile: fetch once, judge the copy.
    pub fn fetch(&mut self, bytes: &mut [u8]) {
        self.transfer.copy_into(bytes);
    }

    /// Lets go of the data. Returns the buffer of [`Data::Host`], which goes back with the completion.
    pub fn release(&mut self) -> Option<Vec<u8>> {
        self.transfer.clear()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn bytes_go_in_and_out_from_the_front_and_never_beyond_the_end() {
        let mut memory = Memory::new(testing::memory());
        assert_eq!(memory.load(Data::Host(vec![0; 4])), Ok(4));
        memory.store(&[1, 2, 3]);
        memory.store(&[4, 5]);
        assert_eq!(memory.release(), Some(vec![1, 2, 3, 4]));
        assert_eq!(memory.load(Data::Host(vec![6, 7, 8])), Ok(3));
        let mut fetched = [0; 5];
        memory.fetch(&mut fetched[..2]);
        memory.fetch(&mut fetched[2..]);
        assert_eq!(fetched, [6, 7, 8, 0, 0]);
        assert_eq!(memory.release(), Some(vec![6, 7, 8]));
        assert_eq!(memory.release(), None);
    }
}
