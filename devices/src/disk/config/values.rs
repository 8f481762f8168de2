//! Values of a disk's keys that are more than a number, a word or a switch.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use splitring_virtio::spec::blk::feature;
use splitring_virtio::spec::feature as ring;

/// A number of bytes: a plain number, or one with K, M, G or T (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("`{text}` is not a number of bytes; write it as 4096, 64K, 10M, 1G or 2T");
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'k' | b'K') => (text.get(..text.len().saturating_sub(1)), 10),
            Some(b'm' | b'M') => (text.get(..text.len().saturating_sub(1)), 20),
            Some(b'g' | b'G') => (text.get(..text.len().saturating_sub(1)), 30),
            Some(b't' | b'T') => (text.get(..text.len().saturating_sub(1)), 40),
            _ => (Some(text), 0),
        };
        let number: u64 = digits
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(refuse)?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(refuse)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrWord;
        impl Visitor<'_> for NumberOrWord {
            type Value = Bytes;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a number of bytes, as 4096, 64K, 10M, 1G or 2T")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Bytes, E> {
                Ok(Bytes(number))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Bytes, E> {
                u64::try_from(number)
                    .map(Bytes)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(NumberOrWord)
    }
}

/// A world-wide name: an NAA designator of 64 bits, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wwn(pub u64);

impl std::str::FromStr for Wwn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let number = u64::from_str_radix(digits, 16)
            .ok()
            .filter(|_| digits.len() == 16);
        // The first digit is the NAA: 2, 3 and 5 are the formats of 64 bits (SPC-4 §7.8.6.6).
        number.filter(|number| matches!(number >> 60, 2 | 3 | 5)).map(Self).ok_or_else(|| {
            format!("`{text}` is not a world-wide name; write 16 hexadecimal digits that begin with 2, 3 or 5")
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
