//! The state of a device that stands still, layer by layer, as a snapshot keeps it.
//!
//! Each layer writes its own state down beside the number of its own format: the transport with its
//! queues, MSI-X, the configuration space, the interrupts, the function around them, and the
//! device. So one format can change without the others. The state is a tree of JSON values: it is
//! small (some KiB a device), it can be read when something does not fit, and its fields have
//! names, so that one which this program does not know is refused instead of forgotten. How the
//! tree is stored, and guest memory, are a snapshot's business.
//!
//! What is read back is judged like what a guest writes: it can lead to an error, and to nothing
//! worse.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The state of one layer in the format that this program writes. Implementations refuse unknown
/// fields.
pub trait Layer: Serialize + DeserializeOwned {
    /// What it is the state of, for messages.
    const NAME: &'static str;
    /// The number of its format. Another one is refused.
    const VERSION: u32;
}

/// The state of one layer with the number of its format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versioned {
    version: u32,
    state: Value,
}

/// Why a state can't be saved or is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StateError {
    /// Its format is newer, or older than what this program still reads.
    #[error(
        "the state of the {layer} has format {found}, and this program reads {known} only; restore it with the version \
         that saved it"
    )]
    Version {
        /// Of what.
        layer: &'static str,
        /// Its format.
        found: u32,
        /// The one that is known.
        known: u32,
    },
    /// It is not what a state of this format looks like.
    #[error("the state of the {layer} is damaged: {problem}; use another snapshot")]
    Malformed {
        /// Of what.
        layer: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// It contradicts itself or the device that is to take it over.
    #[error(
        "the state of the {layer} does not fit: {problem}; restore it with the configuration it was saved with"
    )]
    Refused {
        /// Of what.
        layer: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The device does not stand still.
    #[error("{device} cannot be saved now: {problem}; pause the machine and save it again")]
    Busy {
        /// Its name.
        device: String,
        /// Why not.
        problem: String,
    },
    /// Nobody has said what the state of such a device is.
    #[error("{device} cannot be saved or restored; remove it before")]
    Unsupported {
        /// Its name.
        device: String,
    },
}

impl StateError {
    /// A value in the state of `L` does not fit.
    pub fn refused<L: Layer>(problem: impl ToString) -> Self {
        Self::Refused {
            layer: L::NAME,
            problem: problem.to_string(),
        }
    }
}

impl Versioned {
    /// Writes a layer's state down.
    ///
    /// # Errors
    /// None with states that are structures of numbers, names and lists of such.
    pub fn new<L: Layer>(state: &L) -> Result<Self, StateError> {
        let state = serde_json::to_value(state).map_err(malformed::<L>)?;
        let version = L::VERSION;
        Ok(Self { version, state })
    }

    /// Reads it back.
    ///
    /// # Errors
    /// Another format, a field that is missing or not known, or a value of another kind.
    pub fn read<L: Layer>(&self) -> Result<L, StateError> {
        if self.version != L::VERSION {
            return Err(StateError::Version {
                layer: L::NAME,
                found: self.version,
                known: L::VERSION,
            });
        }
        L::deserialize(&self.state).map_err(malformed::<L>)
    }
}

fn malformed<L: Layer>(error: serde_json::Error) -> StateError {
    StateError::Malformed {
        layer: L::NAME,
        problem: error.to_string(),
    }
}

/// The state of a layer that has none.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

impl Layer for Nothing {
    const NAME: &'static str = "device";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Two {
        number: u64,
        list: Vec<u8>,
    }

    impl Layer for Two {
        const NAME: &'static str = "test";
        const VERSION: u32 = 2;
    }

    fn read(text: &str) -> Result<Two, StateError> {
        serde_json::from_str::<Versioned>(text).unwrap().read()
    }

    #[test]
    fn what_was_written_is_read_back() {
        let state = Two {
            number: u64::MAX,
            list: vec![1],
        };
        let text = serde_json::to_string(&Versioned::new(&state).unwrap()).unwrap();
        assert_eq!(read(&text), Ok(state));
    }

    #[test]
    fn another_format_and_unknown_missing_or_odd_fields_are_refused() {
        let newer = read(r#"{"version":3,"state":{"number":1,"list":[],"more":1}}"#);
        let version = StateError::Version {
            layer: "test",
            found: 3,
            known: 2,
        };
        assert_eq!(newer, Err(version));
        for state in [
            r#"{"number":1,"list":[],"more":1}"#,
            r#"{"number":1}"#,
            r#"{"number":-1,"list":[]}"#,
            r#"{"number":1,"list":[256]}"#,
            "null",
        ] {
            let damaged = read(&format!(r#"{{"version":2,"state":{state}}}"#));
            assert!(
                matches!(damaged, Err(StateError::Malformed { layer: "test", .. })),
                "{state}"
            );
        }
        assert!(serde_json::from_str::<Versioned>(r#"{"version":2,"state":1,"x":1}"#).is_err());
    }
}
