//! An image as one queue has it open.
//!
//! Linux reports a failed write-back once per open file description. Queues that shared one would
//! share that report: whichever asks first gets it, and the others are told that all is well. So
//! each queue has a description of its own. They are made when the disk is opened. Each carries the
//! image's locks, which therefore last until the last request on any of them has left the kernel.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit};

use super::image::Image;
use super::lock;
use crate::debug::opaque_debug;

/// The image, and the description that this queue's requests go to.
#[derive(Debug)]
pub(super) struct Handle {
    image: Arc<Image>,
    /// `None` for the description that the image was opened with.
    own: Option<File>,
}

impl Handle {
    /// The image with the description it was opened with.
    pub(super) fn first(image: Arc<Image>) -> Arc<Self> {
        Arc::new(Self { image, own: None })
    }

    /// The image for each of `queues` queues. Where it can't be opened again they share a
    /// description, which is said.
    pub(super) fn each(image: &Arc<Image>, queues: u16) -> Vec<Arc<Self>> {
        let mut refused = None;
        // Nobody else has the description that was opened here; one that was handed over others may
        // have, too.
        let mut first = (!image.handed_over).then(|| Self::first(Arc::clone(image)));
        let mut next = |_| {
            if let Some(first) = first.take() {
                return first;
            }
            let own = match &refused {
                None => reopen(image).map_err(|error| refused = Some(error)).ok(),
                Some(_) => None,
            };
            let image = Arc::clone(image);
            Arc::new(Self { image, own })
        };
        let handles = (0..queues).map(&mut next).collect();
        if let Some(error) = refused {
            tracing::warn!(
                "{}: cannot be opened once per queue ({error}), so of a failed write-back only one of its queues is \
                 told by the host; see that /proc is mounted and the limit on open files suffices, or use queues=1",
                image.path.display()
            );
        }
        handles
    }

    /// The description.
    pub(super) fn file(&self) -> &File {
        self.own.as_ref().unwrap_or(&self.image.file)
    }
}

/// Opens the image once more as it is open, whatever has become of its path, and locks it.
fn reopen(image: &Image) -> io::Result<File> {
    let kept = OFlags::ACCMODE | OFlags::DIRECT | OFlags::SYNC | OFlags::DSYNC | OFlags::NOATIME;
    let flags = rustix::fs::fcntl_getfl(&image.file)?.intersection(kept);
    let path = format!("/proc/self/fd/{}", image.file.as_raw_fd());
    let file = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
    let file = File::from(file);
    // The lowest free number is given out, so this is how many are open. The other half is for the
    // rest of the machine.
    let limit = getrlimit(Resource::Nofile).current;
    let most = limit.map_or(u64::MAX, |limit| limit / 2);
    if u64::try_from(file.as_raw_fd()).is_ok_and(|number| number > most) {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    if image.locked {
        lock::join(&file, image.intent)?;
    }
    Ok(file)
}

/// A disk as a [`RingShare`](super::RingShare) sees it, from [`Disk::member`](super::Disk::member).
#[derive(Clone)]
pub struct Member(pub(super) Arc<[Arc<Handle>]>);

opaque_debug! { Member |it| {} }

impl Member {
    /// The image as ring number `index` is to use it.
    pub(super) fn handle(&self, index: u16) -> Option<&Arc<Handle>> {
        self.0.get(usize::from(index)).or(self.0.first())
    }
}

impl Deref for Handle {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.image
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // As for the image's own: a ring may have the description open a little longer, with
        // nothing in flight.
        if let Some(own) = &self.own {
            lock::release(own);
        }
    }
}
