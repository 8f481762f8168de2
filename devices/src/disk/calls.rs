//! One read, write or flush of an image by blocking calls.

use super::IoFault;
use super::bounce;
use super::handle::Handle;
use super::transfer::Transfer;

/// Fills `transfer` from `offset` on.
pub(super) fn read(image: &Handle, transfer: &mut Transfer, offset: u64) -> Result<(), IoFault> {
    if bounce::fits(image, transfer, offset) {
        transfer.read_at(image.file(), offset)
    } else {
        bounce::read(image, transfer, offset)
    }
}

/// Stores `transfer` at `offset`; stable at the return if `fua`.
pub(super) fn write(
    image: &Handle,
    transfer: &mut Transfer,
    offset: u64,
    fua: bool,
) -> Result<(), IoFault> {
    if !bounce::fits(image, transfer, offset) {
        return bounce::write(image, transfer, offset, fua);
    }
    let _shared = image.share(transfer.span(offset));
    let mark = image.mark();
    let written = transfer.write_at(image.file(), offset, fua);
    if !fua {
        return written;
    }
    written.inspect_err(|fault| image.sync_failed(*fault))?;
    // Where queues share a description, another may have been told what this one should have been.
    image.admit_sync(mark)
}

/// Makes all that was written stable.
pub(super) fn flush(image: &Handle) -> Result<(), IoFault> {
    image.admit_flush()?;
    image
        .file()
        .sync_data()
        .map_err(IoFault::from)
        .inspect_err(|fault| image.sync_failed(*fault))?;
    // Another queue may have been told of a loss meanwhile.
    image.admit_flush()
}
