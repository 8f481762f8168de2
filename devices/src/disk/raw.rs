//! Raw images: byte for byte what the guest sees, in a file or on a block device.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::aside::AsideQueue;
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
    /// How many it was opened for.
    streams: u16,
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
            Some(Err(error)) if aio == Aio::Ring => {
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
            if home.is_some() { "io_uring" } else { "plain" }
        );
        Ok(Self {
            image: Arc::new(image),
            streams: queues,
            home,
        })
    }

    /// A queue of blocking calls: on a thread of its own, so that a slow medium holds up no other device; on the caller's
    /// where none of them waits, and for a disk opened without streams, which is one of hundreds perhaps.
    fn open_plain(&self, ram: Ram, depth: u16) -> Result<Box<dyn DiskQueue>, DiskError> {
        let plain = Plain::new(Arc::clone(&self.image), ram);
        if self.image.in_memory || self.streams == 0 {
            return Ok(ImmediateQueue::open(plain, depth));
        }
        let queue = AsideQueue::start(plain, depth).map_err(|source| DiskError::Host {
            operation: "start a thread for",
            path: self.image.path.clone(),
            source,
        })?;
        Ok(Box::new(queue))
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
        // Without streams of its own it has found no place in a shared ring.
        let Some(home) = self.home.as_ref().filter(|home| !home.rings.is_empty()) else {
            return self.open_plain(ram, depth);
        };
        let image = Arc::clone(&self.image);
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
