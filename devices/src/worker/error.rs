//! What goes wrong with a worker: what ends it, and what a request to it comes to.

use std::sync::Arc;

use thiserror::Error;

/// Called once when a worker can't go on; the machine has to end.
pub type OnFailure = Arc<dyn Fn(Failure) + Send + Sync>;

/// Why a worker can't go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    /// A handler panicked: a bug in this program.
    #[error("device thread {worker} panicked: {message}")]
    Panic {
        /// The worker's name.
        worker: String,
        /// What the panic said.
        message: String,
    },
    /// The loop doesn't answer: a backend hangs.
    #[error("device thread {worker} does not answer, a backend must be hanging")]
    Stuck {
        /// The worker's name.
        worker: String,
    },
    /// The event loop failed.
    #[error("device thread {worker} cannot wait for events: {message}")]
    Loop {
        /// The worker's name.
        worker: String,
        /// What the loop said.
        message: String,
    },
}

/// A request to a worker failed.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// A task that is to be saved is not paused.
    #[error("it is running")]
    Runs,
    /// A task that is to be saved has requests that have begun and wait for something.
    #[error("requests have begun and wait for something else than the host")]
    Holds,
    /// The worker has failed; see [`OnFailure`].
    #[error("device thread {0} has ended")]
    Gone(String),
    /// A descriptor can't be waited for.
    #[error("cannot wait for a descriptor of {task}: {message}")]
    Watch {
        /// The task's label.
        task: String,
        /// What the kernel said.
        message: String,
    },
    /// No task has this identifier.
    #[error("no such task")]
    NoTask,
}
