//! The result of a command: its exit code, or why it failed.

use splitring::ExitReason;

/// Why a command failed.
pub(crate) enum Failure {
    /// A usage error: exit code 2.
    Usage(anyhow::Error),
    /// Any other failure: exit code 1.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Returns the exit code of `splitring run`. `--help` lists them, too.
pub(crate) fn exit_code(reason: &ExitReason) -> u8 {
    match reason {
        ExitReason::PowerOff => 0,
        ExitReason::Reboot => 3,
        ExitReason::TripleFault { .. } => 4,
        ExitReason::Stopped => 5,
        // Reasons that the library adds later are failures until they have a code.
        _ => 1,
    }
}
