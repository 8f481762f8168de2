//! Raw images: byte for byte what the guest sees, in a file or on a block device.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::blocking::BlockingQueue;
use super::config::{Aio, DiskConfig};
use super::handle::{Handle, Member};
use super::image::Image;
use super::immediate::ImmediateQueue;
use super::plain::Plain;
use super::ring::{Ring, RingQueue, Unbound};
use super::{Disk, DiskError, DiskQueue, Extent, Geometry, ImageId, IoFault};
use crate::debug::opaque_debug;
use crate::pool::Pool;
use crate::ram::Ram;

/// An opened raw image.
pub struct RawDisk {
    image: Arc<Image>,
    /// The image as each queue has it open.
    handles: Vec<Arc<Handle>>,
    /// The rings, one a stream; `None` where requests are blocking calls.
    rings: Option<Arc<Pool<Ring>>>,
    /// Requests each ring was made for.
    depth: u16,
}

opaque_debug! { RawDisk |it| { path: it.image.path, depth: it.depth } }

impl RawDisk {
    /// Opens and locks the image, with `queues` streams of up to `depth` requests each; none for a disk that is
    /// used through a [`RingShare`](super::RingShare) only.
    ///
    /// # Errors
    /// What is wrong with the image, or with io_uring if `aio=io_uring` insists on it.
    pub fn open(config: &DiskConfig, queues: u16, depth: u16) -> Result<Self, DiskError> {
        Self::with_image(Image::open(config)?, config.aio, queues, depth)
    }

    /// As [`open`](Self::open), with a descriptor that somebody else opened as `config` says; its path is a name only.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_file(
        file: File,
        config: &DiskConfig,
        queues: u16,
        depth: u16,
    ) -> Result<Self, DiskError> {
        Self::with_image(Image::from_file(file, config)?, config.aio, queues, depth)
    }

    pub(super) fn with_image(
        image: Image,
        aio: Aio,
        queues: u16,
        depth: u16,
    ) -> Result<Self, DiskError> {
        let image = Arc::new(image);
        let handles = Handle::each(&image, queues);
        let path = image.path.display();
        let rings = match aio {
            Aio::Threads => None,
            Aio::Auto if image.in_memory => {
                tracing::debug!(
                    "{path}: lives in memory, where io_uring would hand each request to another thread"
                );
                None
            }
            Aio::Auto | Aio::IoUring => {
                let rings = handles.iter().map(|handle| Ring::new(handle, depth));
                Some(rings.collect::<io::Result<Vec<_>>>())
            }
        };
        let rings = match rings {
            None => None,
            Some(Ok(rings)) => Some(Pool::new(rings)),
            Some(Err(error)) if aio == Aio::IoUring => {
                return Err(DiskError::Unusable {
                    path: image.path.clone(),
                    problem: format!("the host refuses io_uring ({error})"),
                    remedy: "use aio=auto, or see /proc/sys/kernel/io_uring_disabled, seccomp filters and the \
                             memlock limit",
                });
            }
            Some(Err(error)) => {
                tracing::warn!(
                    "{path}: the host refuses io_uring ({error}), so requests of a queue wait for one another; \
                     see /proc/sys/kernel/io_uring_disabled, seccomp filters and the memlock limit"
                );
                None
            }
        };
        tracing::debug!(
            "{path}: {} backend",
            if rings.is_some() { "io_uring" } else { "plain" }
        );
        Ok(Self {
            image,
            handles,
            rings,
            depth,
        })
    }

    /// The same disk, for a controller that serves its requests on this many threads of its own by
    /// way of [`SharedRings`](super::SharedRings): each thread gets the image with an open file
    /// description of its own.
    #[must_use]
    pub fn shared_by(mut self, threads: u16) -> Self {
        self.handles = Handle::each(&self.image, threads);
        self
    }

    /// The image as queue `index` has it open.
    fn handle(&self, index: u16) -> Arc<Handle> {
        let own = self.handles.get(usize::from(index)).map(Arc::clone);
        own.unwrap_or_else(|| Handle::first(Arc::clone(&self.image)))
    }

    /// A queue of blocking calls: on a thread of its own, so that a slow medium holds up no other
    /// device; on the caller's where none of them waits.
    fn open_plain(
        &self,
        ram: Ram,
        index: u16,
        depth: u16,
    ) -> Result<Box<dyn DiskQueue>, DiskError> {
        let plain = Plain::new(self.handle(index), ram);
        if self.image.in_memory {
            return Ok(ImmediateQueue::open(plain, depth));
        }
        let queue = BlockingQueue::start(plain, depth).map_err(|source| DiskError::Host {
            operation: "start a thread for",
            path: self.image.path.clone(),
            source,
        })?;
        Ok(Box::new(queue))
    }

    fn open_ring(
        &self,
        rings: &Arc<Pool<Ring>>,
        ram: Ram,
        index: u16,
        depth: u16,
    ) -> Result<RingQueue, DiskError> {
        let images = vec![Some(self.handle(index))];
        let depth = depth.min(self.depth);
        let queue = rings
            .take(index)
            .and_then(|ring| RingQueue::new(Unbound::new(ring), images, ram, depth));
        queue.ok_or_else(|| DiskError::NoSuchQueue {
            path: self.image.path.clone(),
            index,
        })
    }

    /// Whether requests go through io_uring.
    #[must_use]
    pub fn uses_ring(&self) -> bool {
        self.rings.is_some()
    }
}

impl Disk for RawDisk {
    fn geometry(&self) -> Geometry {
        self.image.geometry()
    }

    fn open_queue(
        &self,
        ram: Ram,
        index: u16,
        depth: u16,
    ) -> Result<Box<dyn DiskQueue>, DiskError> {
        // Without streams of its own it has found no place in a shared ring.
        let Some(rings) = self.rings.as_ref().filter(|rings| rings.len() > 0) else {
            return self.open_plain(ram, index, depth);
        };
        Ok(Box::new(self.open_ring(rings, ram, index, depth)?))
    }

    fn rescan(&self) -> Result<Geometry, DiskError> {
        self.image.rescan()
    }

    fn extent(&self, offset: u64) -> Result<Extent, IoFault> {
        self.image.extent(offset)
    }

    fn identity(&self) -> Option<ImageId> {
        self.image.identity()
    }

    fn member(&self) -> Option<Member> {
        let handles = || match self.handles.as_slice() {
            [] => vec![self.handle(0)],
            handles => handles.to_vec(),
        };
        // Those that live in memory are served at once, if not asked for otherwise.
        let joins = self.rings.is_some() || !self.image.in_memory;
        joins.then(|| Member(handles().into()))
    }
}

#[cfg(test)]
mod tests;
