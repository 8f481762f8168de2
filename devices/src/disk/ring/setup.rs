//! Making a ring: its size, its files and what it may do. Needs no guest and no thread of its own.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread::ThreadId;

use io_uring::register::{Probe, Restriction};
use io_uring::{IoUring, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};

use crate::disk::handle::Handle;
use crate::throttle::Throttle;

/// Operations the ring may do.
const OPERATIONS: [u8; 7] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::AsyncCancel::CODE,
];
/// A registered file that is not there.
pub(super) const NO_FILE: RawFd = -1;
/// IORING_REGISTER_FILES_UPDATE: what a shared ring may still do once it is restricted.
const UPDATE_FILES: u8 = 6;

/// A ring, made and restricted; see `bind` for whose it is.
pub(in crate::disk) struct Ring {
    /// `None` once it is lost, and where the host refuses io_uring.
    pub(super) io: Option<IoUring>,
    /// The host refuses io_uring: a blocking thread does everything.
    pub(super) refused: bool,
    /// Signalled by its completions.
    pub(super) event: Arc<OwnedFd>,
    /// The kernel takes entries from its owner alone.
    pub(super) single_issuer: bool,
    /// The thread that enabled it.
    pub(super) owner: Option<ThreadId>,
    /// For log lines about it that a guest can cause.
    pub(super) throttle: Arc<Throttle>,
}

impl Ring {
    /// Makes a ring for `depth` requests to `image`.
    pub(in crate::disk) fn new(image: &Handle, depth: u16) -> io::Result<Self> {
        Self::with_files(&[image.file().as_raw_fd()], false, depth)
    }

    /// Makes a ring for `depth` requests to disks that take one of `seats` later.
    pub(in crate::disk) fn shared(seats: u16, depth: u16) -> io::Result<Self> {
        Self::with_files(&vec![NO_FILE; usize::from(seats)], true, depth)
    }

    /// Stands for a ring where the host refuses io_uring.
    pub(in crate::disk) fn refused() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            io: None,
            refused: true,
            event: Arc::new(event),
            single_issuer: false,
            owner: None,
            throttle: Arc::default(),
        })
    }

    fn with_files(files: &[RawFd], change: bool, depth: u16) -> io::Result<Self> {
        let entries = u32::from(depth).max(1).next_power_of_two();
        let io = IoUring::builder()
            .setup_r_disabled()
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries);
        let single_issuer = io.is_ok();
        // Before Linux 6.1.
        let io = io.or_else(|_| IoUring::builder().setup_r_disabled().build(entries))?;
        let mut probe = Probe::new();
        io.submitter().register_probe(&mut probe)?;
        if !OPERATIONS
            .iter()
            .all(|operation| probe.is_supported(*operation))
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        io.submitter().register_files(files)?;
        io.submitter().register_eventfd(event.as_raw_fd())?;
        let fixed = squeue::Flags::FIXED_FILE.bits();
        let mut rules: Vec<Restriction> = OPERATIONS.into_iter().map(Restriction::sqe_op).collect();
        rules.push(Restriction::sqe_flags_allowed(fixed));
        rules.push(Restriction::sqe_flags_required(fixed));
        if change {
            rules.push(Restriction::register_op(UPDATE_FILES));
        }
        io.submitter().register_restrictions(&mut rules)?;
        Ok(Self {
            io: Some(io),
            refused: false,
            event: Arc::new(event),
            single_issuer,
            owner: None,
            throttle: Arc::default(),
        })
    }
}
