//! Disks: what a running one counted, and the contract for disks that an embedder implements.
//!
//! A machine opens the images that its configuration names. An embedder that serves a disk itself implements [`Disk`]
//! and hands it over with [`ResourceOptions::disk`](crate::ResourceOptions::disk). Its queues are [`DiskQueue`]s; where
//! a call returns when the request is done, [`Perform`] is all there is to implement:
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use splitring::disk::{
//!     Disk, DiskError, DiskOp, DiskQueue, Geometry, IoFault, Memory, Perform, Ram, queue_of,
//! };
//!
//! /// A disk that reads as zeroes and forgets what is written.
//! struct Zero;
//!
//! impl Disk for Zero {
//!     fn geometry(&self) -> Geometry {
//!         Geometry::new(1 << 30)
//!     }
//!     fn open_queue(&self, ram: Ram, _: u16, depth: u16) -> Result<Box<dyn DiskQueue>, DiskError> {
//!         Ok(queue_of(ZeroQueue(Memory::new(ram)), depth))
//!     }
//! }
//!
//! struct ZeroQueue(Memory);
//!
//! impl Perform for ZeroQueue {
//!     fn perform(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault> {
//!         match op {
//!             DiskOp::Read { data, .. } => {
//!                 let len = self.0.load(data)?;
//!                 self.0.store(&vec![0; usize::try_from(len).unwrap_or(0)]);
//!                 Ok(len)
//!             }
//!             DiskOp::Write { data, .. } => self.0.load(data),
//!             DiskOp::Flush => Ok(0),
//!             _ => Err(IoFault::Unsupported),
//!         }
//!     }
//!     fn release(&mut self) -> Option<Vec<u8>> {
//!         self.0.release()
//!     }
//! }
//! ```
//!
//! The keys of a disk are in [`DiskConfig`](crate::config::DiskConfig).

pub use splitring_devices::blk::BlkHandle;
pub use splitring_devices::disk::config::Hidden;
pub use splitring_devices::disk::metrics::{BUCKETS, DiskTotals, KindTotals};
pub use splitring_devices::disk::{
    Completion, Data, Disk, DiskError, DiskOp, DiskQueue, Extent, Full, Geometry, ImageId, IoFault,
    Memory, Perform, RangeLimits, SECTOR, open, open_file, open_shared, queue_of, queue_on_thread,
};
pub use splitring_devices::ram::Ram;
pub use splitring_virtio::mem::Segment;
