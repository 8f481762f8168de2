//! Raw images: byte for byte what the guest sees, in a file or on a block device.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::{Aio, DiskConfig};
use super::image::Image;
use super::immediate::ImmediateQueue;
use super::plain::Plain;
use super::ring::{Ring, RingQueue};
use super::share::Member;
use super::{Disk, DiskError, DiskQueue, Extent, Geometry, ImageId, IoFault};
use crate::ram::Ram;

/// An opened raw image.
pub struct RawDisk {
    image: Arc<Image>,
    /// `None` where requests are blocking calls.
    home: Option<Arc<Home>>,
}

/// Where the rings wait while no queue uses them, one place a stream.
pub(super) struct Home {
    rings: Vec<Mutex<Option<Ring>>>,
    pub(super) depth: u16,
}

impl Home {
    /// `make` makes each of `queues` rings for `depth` requests.
    pub(super) fn new(
        queues: u16,
        depth: u16,
        make: impl Fn(u16) -> io::Result<Ring>,
    ) -> io::Result<Self> {
        let rings = (0..queues).map(|_| make(depth).map(|ring| Mutex::new(Some(ring))));
        Ok(Self {
            rings: rings.collect::<io::Result<_>>()?,
            depth,
        })
    }

    /// Ring number `index`, unless somebody uses it.
    pub(super) fn take(&self, index: u16) -> Option<Ring> {
        self.place(index).and_then(|mut place| place.take())
    }

    fn place(&self, index: u16) -> Option<MutexGuard<'_, Option<Ring>>> {
        let place = self.rings.get(usize::from(index))?;
        Some(place.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn give_back(&self, index: u16, ring: Ring) {
        if let Some(mut place) = self.place(index) {
            *place = Some(ring);
        }
    }
}

impl RawDisk {
    /// Opens and locks the image, with `queues` streams of up to `depth` requests each; none for a disk that is
    /// used through a [`RingShare`](super::RingShare) only.
    ///
    /// # Errors
    /// What is wrong with the image, or with io_uring if `aio=ring` insists on it.
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

    fn with_image(image: Image, aio: Aio, queues: u16, depth: u16) -> Result<Self, DiskError> {
        let path = image.path.display();
        let rings = match aio {
            Aio::Plain => None,
            Aio::Auto if image.in_memory => {
                tracing::debug!(
                    "{path}: lives in memory, where io_uring would hand each request to another thread"
                );
                None
            }
            Aio::Auto | Aio::Ring => {
                Some(Home::new(queues, depth, |depth| Ring::new(&image, depth)))
            }
        };
        let home = match rings {
            None => None,
            Some(Ok(home)) => Some(Arc::new(home)),
            Some(Err(source)) if aio == Aio::Ring => {
                let operation = "make an io_uring for";
                return Err(DiskError::Host {
                    operation,
                    path: image.path.clone(),
                    source,
                });
            }
            Some(Err(error)) => {
                tracing::warn!(
                    "{path}: the host refuses io_uring ({error}), so requests block one another; \
                     see /proc/sys/kernel/io_uring_disabled, seccomp filters and the memlock limit"
                );
                None
            }
        };
        tracing::debug!(
            "{path}: {} backend",
            if home.is_some() { "io_uring" } else { "plain" }
        );
        Ok(Self {
            image: Arc::new(image),
            home,
        })
    }

    /// Whether requests go through io_uring.
    #[must_use]
    pub fn uses_ring(&self) -> bool {
        self.home.is_some()
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
        let image = Arc::clone(&self.image);
        // A disk opened without streams that finds no place in a shared ring is served by blocking calls.
        let Some(home) = self.home.as_ref().filter(|home| !home.rings.is_empty()) else {
            return Ok(ImmediateQueue::open(Plain::new(image, ram), depth));
        };
        let ring = home.take(index).ok_or_else(|| DiskError::NoSuchQueue {
            path: self.image.path.clone(),
            index,
        })?;
        let depth = depth.min(home.depth);
        Ok(Box::new(RingQueue::new(
            Arc::clone(home),
            index,
            ring,
            vec![Some(image)],
            ram,
            depth,
        )))
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
        self.home.as_ref().map(|_| Member(Arc::clone(&self.image)))
    }
}

#[cfg(test)]
mod tests;
