//! `serial`: what is connected to the serial port COM1, as one word for flag, file and API.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Once;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use splitring_devices::kind::ErrorKind;

/// What the serial port's output goes to and its input comes from, and what happens when the output
/// is not taken.
///
/// As text: `tty`, `file=PATH`, `pty`, `socket=PATH`, `null` or `off`, followed by `,policy=drop`
/// or nothing. A comma in a path is written twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SerialConfig {
    /// The other end of the port.
    pub target: SerialTarget,
    /// What happens when the target does not take the output.
    pub policy: SerialPolicy,
}

/// The other end of a serial port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SerialTarget {
    /// Output to the process's standard output; the embedder brings the input.
    #[default]
    Tty,
    /// Output to a file, which is created or truncated. No input of its own.
    File(PathBuf),
    /// A new pseudo-terminal; its path is reported.
    Pty,
    /// A Unix stream socket that is made at this path: several clients read, the first one writes.
    Socket(PathBuf),
    /// A port that nothing is connected to: output is discarded.
    Null,
    /// No port.
    Off,
}

/// What happens when a console's buffer is full, because its target does not take the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SerialPolicy {
    /// The guest waits. Commands such as `stop` and `pause` do not.
    #[default]
    Wait,
    /// The guest goes on. The oldest output that was not taken is dropped and counted.
    Drop,
}

/// Why a word does not describe a serial port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SerialConfigError {
    /// Not one of the targets.
    #[error("`{0}` is not known; give tty, file=PATH, pty, socket=PATH, null or off")]
    Target(String),
    /// `file` or `socket` alone.
    #[error("{0}= needs a path")]
    NoPath(&'static str),
    /// Not a policy.
    #[error("policy={0} is not known; give wait or drop")]
    Policy(String),
    /// Something else behind the target.
    #[error("`{0}` is not known; only policy= may follow, and a comma in a path is written twice")]
    Key(String),
}

impl SerialConfig {
    /// Returns a port connected to `target`, with the policy [`SerialPolicy::Wait`].
    #[must_use]
    pub fn new(target: SerialTarget) -> Self {
        Self {
            target,
            policy: SerialPolicy::default(),
        }
    }

    /// Returns the configuration of a machine without a serial port.
    #[must_use]
    pub fn off() -> Self {
        Self::new(SerialTarget::Off)
    }

    splitring_devices::setters! {
        target: SerialTarget;
        policy: SerialPolicy;
    }

    /// Reads the textual form. Unlike [`FromStr`], it takes paths that are not UTF-8.
    ///
    /// # Errors
    /// The part that is not known.
    pub fn from_os_str(text: &OsStr) -> Result<Self, SerialConfigError> {
        let mut items = split(text.as_bytes()).into_iter();
        let mut config = Self::new(target(&items.next().unwrap_or_default())?);
        for item in items {
            config.policy = match item.as_slice() {
                b"policy=wait" => SerialPolicy::Wait,
                b"policy=drop" => SerialPolicy::Drop,
                item => {
                    let text = String::from_utf8_lossy(item).into_owned();
                    return Err(match text.strip_prefix("policy=") {
                        Some(policy) => SerialConfigError::Policy(policy.to_owned()),
                        None => SerialConfigError::Key(text),
                    });
                }
            };
        }
        Ok(config)
    }
}

impl From<SerialTarget> for SerialConfig {
    fn from(target: SerialTarget) -> Self {
        Self::new(target)
    }
}

impl SerialConfigError {
    /// Returns [`ErrorKind::Config`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Config
    }
}

fn target(word: &[u8]) -> Result<SerialTarget, SerialConfigError> {
    let path = |name, path: &[u8]| match path {
        [] => Err(SerialConfigError::NoPath(name)),
        path => Ok(PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()))),
    };
    Ok(match word {
        b"tty" => SerialTarget::Tty,
        b"pty" => SerialTarget::Pty,
        b"null" => SerialTarget::Null,
        b"off" => SerialTarget::Off,
        b"console" => renamed("console", "tty", SerialTarget::Tty, &CONSOLE),
        b"none" => renamed("none", "off", SerialTarget::Off, &NONE),
        b"file" => return Err(SerialConfigError::NoPath("file")),
        b"socket" => return Err(SerialConfigError::NoPath("socket")),
        word => {
            if let Some(rest) = word.strip_prefix(b"file=") {
                SerialTarget::File(path("file", rest)?)
            } else if let Some(rest) = word.strip_prefix(b"socket=") {
                SerialTarget::Socket(path("socket", rest)?)
            } else {
                let word = String::from_utf8_lossy(word).into_owned();
                return Err(SerialConfigError::Target(word));
            }
        }
    })
}

static CONSOLE: Once = Once::new();
static NONE: Once = Once::new();

/// Returns what a word of earlier versions stands for, and names its successor once per process.
fn renamed(old: &str, new: &str, target: SerialTarget, once: &Once) -> SerialTarget {
    once.call_once(|| tracing::warn!("serial: `{old}` is now called `{new}`; it still works"));
    target
}

/// Splits at single commas; a doubled one stands for itself.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut items = vec![Vec::new()];
    let mut bytes = text.iter().peekable();
    while let Some(&byte) = bytes.next() {
        if byte == b',' && bytes.next_if_eq(&&b',').is_none() {
            items.push(Vec::new());
        } else if let Some(last) = items.last_mut() {
            last.push(byte);
        }
    }
    items
}

impl FromStr for SerialConfig {
    type Err = SerialConfigError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_os_str(text.as_ref())
    }
}

/// The textual form. What is not UTF-8 in a path is replaced.
impl fmt::Display for SerialConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, path) = match &self.target {
            SerialTarget::Tty => ("tty", None),
            SerialTarget::File(path) => ("file=", Some(path)),
            SerialTarget::Pty => ("pty", None),
            SerialTarget::Socket(path) => ("socket=", Some(path)),
            SerialTarget::Null => ("null", None),
            SerialTarget::Off => ("off", None),
        };
        f.write_str(name)?;
        if let Some(path) = path {
            f.write_str(&path.to_string_lossy().replace(',', ",,"))?;
        }
        match self.policy {
            SerialPolicy::Wait => Ok(()),
            SerialPolicy::Drop => f.write_str(",policy=drop"),
        }
    }
}

impl Serialize for SerialConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.target {
            SerialTarget::File(path) | SerialTarget::Socket(path) if path.to_str().is_none() => {
                Err(ser::Error::custom("path contains invalid UTF-8 characters"))
            }
            _ => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for SerialConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|error| de::Error::custom(format!("serial: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back_as_itself() {
        for text in [
            "tty",
            "file=/a b=c,,d",
            "pty,policy=drop",
            "socket=x,policy=drop",
            "null",
            "off",
        ] {
            let config: SerialConfig = text.parse().expect(text);
            assert_eq!(config.to_string(), text);
            let json = serde_json::to_string(&config).expect("serialises");
            assert_eq!(
                serde_json::from_str::<SerialConfig>(&json).expect("reads back"),
                config
            );
        }
        let wait: SerialConfig = "tty,policy=wait".parse().expect("valid");
        assert_eq!(wait, SerialConfig::default());
    }

    #[test]
    fn old_words_mean_their_successors() {
        for (old, new) in [("console", "tty"), ("none", "off")] {
            assert_eq!(
                old.parse::<SerialConfig>().expect(old),
                new.parse().expect(new)
            );
        }
    }

    #[test]
    fn mistakes_are_refused_by_name() {
        for (text, wanted) in [
            ("", "`` is not known"),
            ("ttyS0", "`ttyS0` is not known; give tty, file=PATH"),
            ("file", "file= needs a path"),
            ("socket=", "socket= needs a path"),
            ("tty,policy=block", "policy=block is not known"),
            ("file=/a,b", "`b` is not known"),
        ] {
            let error = text.parse::<SerialConfig>().expect_err(text).to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn a_path_need_not_be_utf_8() {
        let config = SerialConfig::from_os_str(OsStr::from_bytes(b"file=/\xff")).expect("valid");
        let path = PathBuf::from(OsStr::from_bytes(b"/\xff"));
        assert_eq!(config.target, SerialTarget::File(path));
        assert!(
            serde_json::to_string(&config).is_err(),
            "no text says this path"
        );
    }
}
