//! What a snapshot keeps of a block device.

use serde::{Deserialize, Serialize};

use crate::disk::Geometry;
use crate::saved::{Layer, StateError};

/// The state of a block device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlkState {
    /// Bytes of a logical block, which the driver goes by.
    pub(super) block: u32,
    /// Bytes that the driver knows of.
    pub(super) capacity: u64,
    /// The field of that name in the configuration space.
    pub(super) writeback: bool,
}

impl Layer for BlkState {
    const NAME: &'static str = "block device";
    const VERSION: u32 = 1;
}

impl BlkState {
    /// Whether a device on such an image can take it over.
    pub(super) fn check(&self, geometry: &Geometry) -> Result<(), StateError> {
        if self.block != geometry.logical_block {
            let (was, is) = (self.block, geometry.logical_block);
            let problem = format!("the image had blocks of {was} bytes and has blocks of {is}");
            return Err(StateError::refused::<Self>(problem));
        }
        if self.writeback && !geometry.write_cache {
            return Err(StateError::refused::<Self>("the image has no write cache"));
        }
        Ok(())
    }
}
