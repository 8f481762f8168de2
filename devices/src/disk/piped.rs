//! A disk for tests whose reads stay with the kernel until the test writes the data: its image is a pipe.

use std::fs::File;
use std::io::{PipeWriter, pipe};
use std::os::fd::OwnedFd;

use super::RawDisk;
use super::config::{Aio, DiskConfig};
use super::image::Image;

/// A disk of `len` bytes with `queues` io_urings, and the end of the pipe that its reads come from, whatever their
/// offsets.
pub(crate) fn piped(len: u64, queues: u16) -> (RawDisk, PipeWriter) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(len).unwrap();
    let mut image = Image::open(&DiskConfig::new(file.path())).unwrap();
    let (reader, writer) = pipe().unwrap();
    image.file = File::from(OwnedFd::from(reader));
    let disk = RawDisk::with_image(image, Aio::IoUring, queues, 256).unwrap();
    (disk, writer)
}
