//! One error type: what was to be done with which object, why it failed, and what to do about it.

use alloc::string::String;
use core::fmt;

/// What kind of failure an [`Error`] is, for programs that react to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum ErrorKind {
    /// The image's reader failed.
    Read,
    /// Something lies behind the end of the image.
    Cut,
    /// The budget for bytes, steps or memory is used up.
    Budget,
    /// The partition table is damaged.
    Table,
    /// There is neither a partition table nor a file system.
    Empty,
    /// A file system is damaged, or has a feature that its reader lacks.
    FileSystem,
    /// The file system or volume manager is one that is not read.
    Unsupported,
    /// A boot description is malformed.
    Config,
    /// A boot description does not end within its limits.
    Endless,
    /// A file that a boot description names does not exist.
    Missing,
    /// A path runs in circles or leaves its file system.
    Path,
    /// A file is larger than its limit.
    TooLarge,
    /// No boot description was found.
    NoEntry,
    /// The caller's choice matches no entry.
    Choice,
}

/// A failure, as an operator needs it: operation, object, cause and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    object: String,
    cause: String,
    remedy: String,
}

/// What most failures leave to the operator.
pub(crate) const BOOT_OTHERWISE: &str =
    "give the kernel with --kernel, or boot through firmware with --firmware";
/// What helps when one entry is broken.
pub(crate) const OTHER_ENTRY: &str =
    "choose another entry with --boot entry= (splitring inspect lists them)";
/// What helps when the image itself is at fault.
pub(crate) const REPAIR: &str = "repair the image, or use an intact copy";

impl Error {
    /// Assembles an error.
    pub(crate) fn new(
        kind: ErrorKind,
        operation: &'static str,
        object: impl Into<String>,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            operation,
            object: object.into(),
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    /// Returns what kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns what was to be done: a verb, such as "read".
    #[must_use]
    pub fn operation(&self) -> &str {
        self.operation
    }

    /// Returns what it was to be done with.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.object
    }

    /// Returns why it failed.
    #[must_use]
    pub fn cause(&self) -> &str {
        &self.cause
    }

    /// Returns what to do about it.
    #[must_use]
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// Whether nothing further can be read after this failure.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.kind, ErrorKind::Budget | ErrorKind::Read)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            object,
            cause,
            remedy,
            ..
        } = self;
        write!(f, "cannot {operation} {object}: {cause}; {remedy}")
    }
}

impl core::error::Error for Error {}

/// The crate's result.
pub type Result<T> = core::result::Result<T, Error>;
