//! The keys of a balloon.

use serde::{Deserialize, Serialize};
use splitring_virtio::spec::balloon::PAGE_SIZE;

use crate::bytes::Bytes;
use crate::kind::ErrorKind;

/// A balloon, as typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct BalloonConfig {
    /// What the guest is to give up of its memory from the beginning, a multiple of 4096 bytes.
    pub size: Bytes,
    /// The guest takes memory out of the balloon rather than kill processes for want of memory.
    pub deflate_on_oom: bool,
    /// The guest reports memory that is free, and the host gets it until the guest uses it again.
    pub free_page_reporting: bool,
    /// Seconds between two requests for the guest's statistics; 0 is only on request.
    pub stats_interval: u32,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self {
            size: Bytes(0),
            deflate_on_oom: false,
            free_page_reporting: false,
            stats_interval: 0,
        }
    }
}

/// Why a balloon is not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidBalloon {
    /// Not a size.
    #[error("size: {size} {problem}")]
    Size {
        /// As asked for.
        size: Bytes,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The machine's memory can't be given back.
    #[error(
        "reserved huge pages stay reserved, or the host might have none left when the guest needs them again; leave out \
         hugepages=on, or the balloon"
    )]
    HugePages,
}

impl InvalidBalloon {
    /// Returns [`ErrorKind::Config`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Config
    }
}

impl BalloonConfig {
    /// An empty balloon.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    crate::setters! {
        size: into Bytes;
        deflate_on_oom: bool;
        free_page_reporting: bool;
        stats_interval: u32;
    }

    /// The keys with a line of help each.
    pub const KEYS: &[(&str, &str)] = &[
        (
            "size",
            "what the guest gives up from the beginning, as 512M [0]",
        ),
        (
            "deflate-on-oom",
            "on or off: the guest takes memory out of the balloon rather than run out of it [off]",
        ),
        (
            "free-page-reporting",
            "on or off: the host gets what is free in the guest, until the guest uses it again [off]",
        ),
        (
            "stats-interval",
            "seconds between two requests for the guest's statistics, which --metrics prints; 0 is never [0]",
        ),
    ];

    /// Judges the keys, for a machine with so much `memory`, on reserved huge pages or not.
    ///
    /// # Errors
    /// The balloon is larger than the memory, or no multiple of 4096; or the memory is on reserved
    /// huge pages.
    pub fn validate(&self, memory: Bytes, hugepages: bool) -> Result<(), InvalidBalloon> {
        if hugepages {
            return Err(InvalidBalloon::HugePages);
        }
        self.target(memory).map(|_| ())
    }

    /// The pages that are to be in the balloon.
    pub(super) fn target(&self, memory: Bytes) -> Result<u32, InvalidBalloon> {
        let most = u32::try_from(memory.0 / PAGE_SIZE).unwrap_or(u32::MAX);
        pages(self.size, most)
    }
}

/// `size` in pages, at most `most`.
pub(super) fn pages(size: Bytes, most: u32) -> Result<u32, InvalidBalloon> {
    let invalid = |problem| InvalidBalloon::Size { size, problem };
    if !size.0.is_multiple_of(PAGE_SIZE) {
        return Err(invalid(format!("is not a multiple of {PAGE_SIZE} bytes")));
    }
    u32::try_from(size.0 / PAGE_SIZE)
        .ok()
        .filter(|pages| *pages <= most)
        .ok_or_else(|| {
            let most = Bytes(u64::from(most).saturating_mul(PAGE_SIZE));
            invalid(format!(
                "is more than the guest's memory; the most is {most}"
            ))
        })
}
