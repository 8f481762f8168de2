//! The key `aio`: how the host's storage is accessed.

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use crate::bytes::InvalidValue;

/// Backend of raw images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Aio {
    /// io_uring, unless the host refuses it or the image is in memory, where plain system calls are
    /// faster.
    #[default]
    Auto,
    /// io_uring; opening the disk fails if the host refuses it.
    #[serde(rename = "io_uring")]
    IoUring,
    /// Blocking system calls, one after the other: on a thread of the queue's own, unless the image
    /// is in memory.
    Threads,
}

#[expect(non_upper_case_globals, reason = "former names of variants")]
impl Aio {
    /// The former name of [`Aio::IoUring`].
    #[deprecated = "renamed to `IoUring`"]
    pub const Ring: Self = Self::IoUring;
    /// The former name of [`Aio::Threads`].
    #[deprecated = "renamed to `Threads`"]
    pub const Plain: Self = Self::Threads;
}

impl std::str::FromStr for Aio {
    type Err = InvalidValue;

    /// Reads a value of the key. The former words `ring` and `plain` are accepted with a warning.
    fn from_str(word: &str) -> Result<Self, InvalidValue> {
        let renamed = |aio, new| {
            tracing::warn!("aio: `{word}` is now called `{new}`; it still works");
            Ok(aio)
        };
        match word {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::IoUring),
            "threads" => Ok(Self::Threads),
            "ring" => renamed(Self::IoUring, "io_uring"),
            "plain" => renamed(Self::Threads, "threads"),
            _ => Err(InvalidValue::new(format!(
                "aio can't be `{word}`; give io_uring, threads or auto"
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for Aio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;

    use super::*;
    use crate::testing::logged;

    fn read(word: &str) -> Result<Aio, de::value::Error> {
        Aio::deserialize(word.into_deserializer())
    }

    #[test]
    fn every_value_reads_back_as_it_is_written() {
        for aio in [Aio::Auto, Aio::IoUring, Aio::Threads] {
            let written = serde_json::to_value(aio).unwrap();
            assert_eq!(read(written.as_str().unwrap()), Ok(aio));
        }
        let error = read("uring").unwrap_err().to_string();
        assert!(error.contains("io_uring, threads or auto"), "{error}");
    }

    #[test]
    fn former_words_are_accepted_and_their_successors_named() {
        for (old, aio, new) in [
            ("ring", Aio::IoUring, "now called `io_uring`"),
            ("plain", Aio::Threads, "now called `threads`"),
        ] {
            let lines = logged(|| assert_eq!(read(old), Ok(aio)));
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].contains(new), "{lines:?}");
        }
        assert!(logged(|| drop(read("io_uring"))).is_empty());
    }
}
