//! For disks that are implemented outside of this crate: a request's memory, from and to which bytes are copied without a
//! pointer, and queues in front of a call per request.

use std::io;

use super::blocking::BlockingQueue;
use super::immediate::{ImmediateQueue, Perform};
use super::transfer::{MemoryAccess, Transfer};
use super::{Data, DiskQueue, IoFault};
use crate::ram::Ram;

/// Copies between the data of a request and buffers of one's own.
///
/// It is made from the `Ram` that [`Disk::open_queue`](super::Disk::open_queue) was given, takes a request's data by
/// [`load`](Self::load), and gives access to it from the front.
#[derive(Debug)]
pub struct Memory {
    access: MemoryAccess,
    transfer: Transfer,
}

impl Memory {
    /// For requests with data in `ram`.
    #[must_use]
    pub fn new(ram: Ram) -> Self {
        Self {
            access: MemoryAccess::new(ram),
            transfer: Transfer::default(),
        }
    }

    /// Takes the data of a request, and returns its length in bytes.
    ///
    /// # Errors
    /// [`IoFault::BadMemory`]: it is not in the `Ram` that this was made for.
    pub fn load(&mut self, data: Data<'_>) -> Result<u64, IoFault> {
        self.transfer.load(data, &self.access)?;
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

/// Returns a queue that carries out each request within [`DiskQueue::submit`], on the device's thread. `performer` must
/// not wait for anything: every device of that thread would wait, too.
#[must_use]
pub fn queue_of(performer: impl Perform + 'static, depth: u16) -> Box<dyn DiskQueue> {
    ImmediateQueue::open(performer, depth)
}

/// Returns a queue that carries out the requests one after the other on a thread of its own, where `performer` may
/// block.
///
/// # Errors
/// The process has reached its limit on threads or descriptors.
pub fn queue_on_thread(
    performer: impl Perform + 'static,
    depth: u16,
) -> io::Result<Box<dyn DiskQueue>> {
    Ok(Box::new(BlockingQueue::start(performer, depth)?))
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
