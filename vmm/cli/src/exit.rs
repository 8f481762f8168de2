//! How a command ends: its exit code, or why it did not do what it was asked.

use splitring::ExitReason;

/// Why a command did not do what it was asked.
pub(crate) enum Failure {
    /// What was typed makes no sense: exit code 2.
    Usage(anyhow::Error),
    /// It made sense and went wrong: exit code 1.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Exit codes of `splitring run`, in `--help` too.
pub(crate) fn exit_code(reason: &ExitReason) -> u8 {
    match reason {
        ExitReason::PowerOff => 0,
        ExitReason::Reboot => 3,
        ExitReason::TripleFault { .. } => 4,
        ExitReason::Stopped => 5,
        // What the library may add: a failure until it has a code of its own.
        _ => 1,
    }
}
