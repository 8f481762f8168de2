//! Numbers of bytes as operators write them.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

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
