//! One vocabulary for what kind of failure an error is, for programs that react to it.

/// What kind of failure an error is, for programs that react to it. Every error of this library has it: `kind()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The configuration contradicts itself, or asks for what no machine can have.
    Config,
    /// `/dev/kvm` cannot be opened, or this host's KVM lacks something.
    Kvm,
    /// Guest memory cannot be had.
    Memory,
    /// The kernel or the initial ramdisk.
    Kernel,
    /// A disk or its image.
    Disk,
    /// A network card's backend.
    Network,
    /// A device cannot be built or attached.
    Device,
    /// The process has reached a limit: open files, threads.
    Limit,
    /// The operation is not possible in the machine's present state.
    State,
    /// The machine has ended.
    Ended,
    /// Requests were still in flight when the time was up.
    Timeout,
    /// The guest did not do what it was asked: it crashed or hangs.
    Guest,
}
