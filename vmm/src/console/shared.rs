//! The state that a console, its thread, the UART and vCPUs share.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use super::error::ConsoleError;
use super::input::{self, Input};
use super::output::Output;
use super::wake::WakeEvent;
use crate::config::SerialPolicy;
use crate::kick::Kicks;

/// The state that the console shares with its thread, with the UART and with vCPUs.
#[derive(Debug)]
pub(super) struct ConsoleShared {
    pub(super) output: Output,
    pub(super) input: Input,
    pub(super) wake: Arc<WakeEvent>,
    pub(super) closing: AtomicBool,
    pub(super) kicks: Kicks,
    /// The machine's span, once there is a machine: a console exists before its machine.
    pub(super) span: OnceLock<tracing::Span>,
    /// The thread's id, for tests that observe it.
    #[cfg(test)]
    pub(super) tid: std::sync::atomic::AtomicI32,
}

impl ConsoleShared {
    /// Returns the state of a console with a thread, which `wake` wakes.
    pub(super) fn new(history: usize) -> Result<Self, ConsoleError> {
        let event = || WakeEvent::new().map_err(ConsoleError::Descriptor);
        Ok(Self::with(
            event()?,
            history,
            Input::new(input::LIMIT, event()?),
        ))
    }

    /// Returns the state of a console without a thread, which keeps nothing in either direction.
    pub(super) fn idle() -> Self {
        Self::with(WakeEvent::unused(), 0, Input::new(0, WakeEvent::unused()))
    }

    fn with(wake: WakeEvent, history: usize, input: Input) -> Self {
        let wake = Arc::new(wake);
        Self {
            output: Output::new(Arc::clone(&wake), history, SerialPolicy::default()),
            input,
            wake,
            closing: AtomicBool::new(false),
            kicks: Kicks::default(),
            span: OnceLock::new(),
            #[cfg(test)]
            tid: 0.into(),
        }
    }
}
