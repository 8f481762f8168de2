//! Numbers of bytes as operators write them.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::kind::ErrorKind;

/// Units and the powers of two they stand for, largest first.
const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// A number of bytes, written `4096`, `64K`, `512M`, `2G` or `1T` (powers of 1024; `MB` and `MiB` are understood as `M`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `number` times 1024 bytes.
    #[must_use]
    pub const fn kib(number: u64) -> Self {
        Self(number.saturating_mul(1 << 10))
    }

    /// `number` times 1024 KiB.
    #[must_use]
    pub const fn mib(number: u64) -> Self {
        Self(number.saturating_mul(1 << 20))
    }

    /// `number` times 1024 MiB.
    #[must_use]
    pub const fn gib(number: u64) -> Self {
        Self(number.saturating_mul(1 << 30))
    }
}

impl From<u64> for Bytes {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// A text that is not the value of a key. Its message names the text and what can be written instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl InvalidValue {
    pub(crate) fn new(message: String) -> Self {
        Self(message)
    }

    /// Returns [`ErrorKind::Config`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Config
    }
}

impl FromStr for Bytes {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let refuse = || {
            InvalidValue(format!(
                "`{text}` is not a number of bytes; write it as 4096, 64K, 10M, 1G or 2T"
            ))
        };
        let trimmed = text
            .trim()
            .trim_end_matches(['B', 'b'])
            .trim_end_matches('i');
        let unit = UNITS.into_iter().find_map(|(unit, shift)| {
            let digits = trimmed.strip_suffix([unit, unit.to_ascii_lowercase()])?;
            Some((digits, shift))
        });
        let (digits, shift) = unit.unwrap_or((trimmed, 0));
        let number: u64 = digits.trim_end().parse().map_err(|_| refuse())?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| InvalidValue(format!("`{text}` is more than 64 bits can count")))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, shift): &(char, u32)| self.0 != 0 && self.0.trailing_zeros() >= *shift;
        match UNITS.into_iter().find(whole) {
            Some((unit, shift)) => write!(out, "{}{unit}", self.0 >> shift),
            None => write!(out, "{}", self.0),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrWord;
        impl Visitor<'_> for NumberOrWord {
            type Value = Bytes;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a number of bytes, as 4096, \"64K\", \"512M\" or \"2G\"")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes_are_read_and_written_in_binary_units() {
        for (text, bytes, written) in [
            ("4096", 4096, "4K"),
            ("512M", 512 << 20, "512M"),
            ("6G", 6 << 30, "6G"),
            ("1GiB", 1 << 30, "1G"),
            ("2t", 2 << 40, "2T"),
            ("1000", 1000, "1000"),
            ("0", 0, "0"),
        ] {
            let number: Bytes = text.parse().expect(text);
            assert_eq!((number.0, number.to_string().as_str()), (bytes, written));
        }
        for text in ["", "M", "-1", "1.5G", "12X", "99999999999T"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
