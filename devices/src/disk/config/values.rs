//! Values of a disk's keys that are more than a number, a word or a switch.

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};
use splitring_virtio::spec::blk::feature;
use splitring_virtio::spec::feature as ring;

use crate::bytes::InvalidValue;

/// A world-wide name: an NAA designator of 64 bits, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wwn(pub u64);

impl std::str::FromStr for Wwn {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let number = u64::from_str_radix(digits, 16)
            .ok()
            .filter(|_| digits.len() == 16);
        // The first digit is the NAA: 2, 3 and 5 are the formats of 64 bits (SPC-4 §7.8.6.6).
        number.filter(|number| matches!(number >> 60, 2 | 3 | 5)).map(Self).ok_or_else(|| {
            InvalidValue::new(format!(
                "`{text}` is not a world-wide name; write 16 hexadecimal digits that begin with 2, 3 or 5"
            ))
        })
    }
}

impl Serialize for Wwn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("0x{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Wwn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// A feature that can be left out, to see what drivers do without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Hidden {
    /// Event indices in the rings.
    EventIdx,
    /// Indirect descriptor tables.
    IndirectDesc,
    /// Flushes.
    Flush,
    /// The switch between writeback and writethrough.
    ConfigWce,
    /// Block sizes beyond the logical one.
    Topology,
    /// More than one queue.
    Mq,
    /// Discards.
    Discard,
    /// Zeroing.
    WriteZeroes,
}

impl Hidden {
    pub(super) fn bit(self) -> u64 {
        match self {
            Self::EventIdx => ring::EVENT_IDX,
            Self::IndirectDesc => ring::INDIRECT_DESC,
            Self::Flush => feature::FLUSH,
            Self::ConfigWce => feature::CONFIG_WCE,
            Self::Topology => feature::TOPOLOGY,
            Self::Mq => feature::MQ,
            Self::Discard => feature::DISCARD,
            Self::WriteZeroes => feature::WRITE_ZEROES,
        }
    }
}
