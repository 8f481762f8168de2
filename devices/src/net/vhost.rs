//! vhost-net: the kernel moves a TAP interface's frames to and from the guest's rings, one `/dev/vhost-net` per queue
//! pair (`include/uapi/linux/vhost.h`).
//!
//! The devices are opened once, with the machine's other resources. What a start does with one is here, too; when, is
//! decided by `kernel_pair`. It doesn't know the card.
#![expect(
    unsafe_code,
    reason = "`vhost` has this ioctl only for a device that it opens itself"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use splitring_virtio::spec::feature as ring;
use splitring_virtio::spec::net::feature;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::eventfd::eventfd;
use crate::kind::ErrorKind;
use crate::ram::{Mapping, Ram};
use crate::rings::HandedQueue;

const DEVICE: &str = "/dev/vhost-net";
/// What concerns the rings and the frames in them. Everything else is between the driver and this process.
const RING_FEATURES: u64 =
    ring::VERSION_1 | ring::EVENT_IDX | ring::INDIRECT_DESC | feature::MRG_RXBUF;

/// Why the kernel can't move a card's frames. The messages say what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhostError {
    /// The device is not there or not ours to open.
    #[error("vhost=on: cannot open {DEVICE}: {source}; {remedy}", source = .0, remedy = remedy(.0))]
    Open(#[source] io::Error),
    /// A descriptor handed over is no vhost-net device, or another process has it.
    #[error(
        "vhost=on: fd {fd} cannot be used: {source}; it must be {DEVICE}, opened for this card alone"
    )]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Too few or too many descriptors handed over.
    #[error("vhost=on: {given} descriptors of {DEVICE} for {pairs} queue pairs; give one for each")]
    Count {
        /// Descriptors.
        given: usize,
        /// Queue pairs.
        pairs: u16,
    },
    /// The kernel's vhost-net lacks what every driver of this card uses.
    #[error(
        "vhost=on: the host's vhost-net knows no virtio 1.0; leave vhost=on out, or use a newer kernel"
    )]
    Old,
    /// Anything else that the kernel refused.
    #[error("vhost=on: cannot {operation}: {source}; leave vhost=on out")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What helps where the device can't be opened.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            "give this user read and write access to it, or leave vhost=on out"
        }
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit on open files (`ulimit -n`)",
        _ => "load the module (`modprobe vhost_net`), or leave vhost=on out",
    }
}

impl VhostError {
    /// Returns what kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Count { .. } => ErrorKind::Config,
            _ => ErrorKind::Network,
        }
    }
}

/// The kernel's devices of one card.
#[derive(Debug)]
pub struct Vhost {
    pairs: Vec<Arc<KernelPair>>,
    /// Those of [`RING_FEATURES`] that the kernel has.
    features: u64,
}

impl Vhost {
    /// Opens a device for each of `pairs` queue pairs, or uses `given`, which are open already, if there are any.
    ///
    /// # Errors
    /// A device can't be opened, or one handed over is none.
    pub fn open(pairs: u16, given: Vec<OwnedFd>) -> Result<Self, VhostError> {
        let devices = if given.is_empty() {
            let open = |_| open_device().map_err(VhostError::Open);
            (0..pairs).map(open).collect::<Result<Vec<_>, _>>()?
        } else if given.len() == usize::from(pairs) {
            given
        } else {
            let given = given.len();
            return Err(VhostError::Count { given, pairs });
        };
        let mut features = RING_FEATURES;
        let mut pairs = Vec::with_capacity(devices.len());
        for device in devices {
            let pair = KernelPair::claim(device)?;
            features &= pair.offered;
            pairs.push(Arc::new(pair));
        }
        if features & ring::VERSION_1 == 0 {
            return Err(VhostError::Old);
        }
        Ok(Self { pairs, features })
    }

    /// What can't be offered to a driver, since the kernel lacks it.
    pub(super) fn lacking(&self) -> u64 {
        RING_FEATURES & !self.features
    }

    /// The device of queue pair `pair`.
    pub(super) fn pair(&self, pair: u16) -> Option<Arc<KernelPair>> {
        self.pairs.get(usize::from(pair)).cloned()
    }

    /// Has every running pair look at the link again.
    pub(super) fn link_changed(&self) {
        for pair in &self.pairs {
            // An eventfd at its limit is signalled already.
            let _ = pair.bell.write(1);
        }
    }
}

fn open_device() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(DEVICE, flags, Mode::empty())?)
}

/// One device: it serves the two queues of a pair, received frames first.
#[derive(Debug)]
pub(super) struct KernelPair {
    device: File,
    /// What it offers.
    offered: u64,
    /// Signalled when the link may have changed.
    pub(super) bell: Arc<EventFd>,
    /// Signalled when the kernel finds a ring broken.
    pub(super) faults: Arc<EventFd>,
}

impl KernelPair {
    /// Makes `device` this process's.
    fn claim(device: OwnedFd) -> Result<Self, VhostError> {
        let refused = |operation| move |source| VhostError::Refused { operation, source };
        let event = || {
            eventfd()
                .map(Arc::new)
                .map_err(refused("create an eventfd"))
        };
        let mut pair = Self {
            device: device.into(),
            offered: 0,
            bell: event()?,
            faults: event()?,
        };
        let fd = pair.device.as_raw_fd();
        let unusable = |source| VhostError::Descriptor { fd, source };
        let session = pair.session(Arc::default());
        let offered = session.get_features().map_err(io_error).map_err(unusable)?;
        session.set_owner().map_err(io_error).map_err(unusable)?;
        pair.offered = offered;
        Ok(pair)
    }

    fn session(&self, memory: Arc<Mapping>) -> Session<'_> {
        Session {
            device: &self.device,
            memory,
        }
    }

    /// Has the kernel serve `queues` between the guest's memory and `tap` from now on.
    ///
    /// # Errors
    /// What the kernel refused; then it serves none of them.
    pub(super) fn start(
        &self,
        queues: &[HandedQueue],
        features: u64,
        ram: &Ram,
        tap: &File,
    ) -> Result<(), VhostError> {
        let started = self.try_start(queues, features, ram, tap);
        if started.is_err() {
            let session = self.session(Arc::default());
            for queue in queues {
                // Refused where there was nothing to stop.
                let _ = session.set_backend(queue, None);
            }
        }
        started
    }

    fn try_start(
        &self,
        queues: &[HandedQueue],
        features: u64,
        ram: &Ram,
        tap: &File,
    ) -> Result<(), VhostError> {
        let memory = Arc::clone(ram.mapping());
        let session = self.session(memory);
        refused(
            "set the features",
            session.set_features(features & RING_FEATURES),
        )?;
        session.share_memory()?;
        // One that the last driver caused.
        let _ = self.faults.read();
        for queue in queues {
            let (vring, ring) = (vring(queue), queue.ring());
            let addresses = VringConfigData {
                queue_max_size: ring.size,
                queue_size: ring.size,
                desc_table_addr: ring.desc,
                used_ring_addr: ring.used,
                avail_ring_addr: ring.avail,
                ..VringConfigData::default()
            };
            refused(
                "set the size of a ring",
                session.set_vring_num(vring, ring.size),
            )?;
            refused("place a ring", session.set_vring_addr(vring, &addresses))?;
            refused(
                "set the index of a ring",
                session.set_vring_base(vring, ring.base),
            )?;
            refused("connect kicks", session.set_vring_kick(vring, queue.kick()))?;
            refused(
                "connect interrupts",
                session.set_vring_call(vring, queue.call()),
            )?;
            refused("connect faults", session.set_vring_err(vring, &self.faults))?;
        }
        for queue in queues {
            session.set_backend(queue, Some(tap)).map_err(|source| {
                let operation = "connect the interface";
                VhostError::Refused { operation, source }
            })?;
            // For buffers whose kick came while nobody served the ring.
            let _ = queue.kick().write(1);
        }
        Ok(())
    }

    /// Stops serving `queues`, and tells each how far it got. Blocks until the kernel is done with what it had.
    ///
    /// # Errors
    /// The kernel does not say where a ring stands. All of them are stopped all the same.
    pub(super) fn stop(&self, queues: &mut [HandedQueue]) -> Result<(), VhostError> {
        let session = self.session(Arc::default());
        let mut result = Ok(());
        for queue in queues {
            let stopped = session.set_backend(queue, None).map_err(|source| {
                let operation = "disconnect the interface";
                VhostError::Refused { operation, source }
            });
            let base = refused(
                "read the index of a ring",
                session.get_vring_base(vring(queue)),
            );
            match base {
                // A split ring's index has 16 bits.
                Ok(base) => queue.take_back(u16::try_from(base & 0xffff).unwrap_or(0)),
                Err(error) => result = result.and(Err(error)),
            }
            result = result.and(stopped);
        }
        result
    }
}

/// Number of a queue in its pair's device.
fn vring(queue: &HandedQueue) -> usize {
    usize::from(queue.ring().index & 1)
}

fn refused<T>(operation: &'static str, result: vhost::Result<T>) -> Result<T, VhostError> {
    result.map_err(|error| VhostError::Refused {
        operation,
        source: io_error(error),
    })
}

fn io_error(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::IoctlError(error)
        | vhost::Error::IOError(error)
        | vhost::Error::VhostOpen(error) => error,
        other => io::Error::other(other),
    }
}

/// A device with the guest memory that its rings are in, which is what `vhost` does its calls on.
struct Session<'a> {
    device: &'a File,
    memory: Arc<Mapping>,
}

impl AsRawFd for Session<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

impl VhostKernBackend for Session<'_> {
    type AS = Arc<Mapping>;

    fn mem(&self) -> &Arc<Mapping> {
        &self.memory
    }

    /// A handed-over ring was checked when it was activated; the check here would refuse one at the end of a region.
    fn is_valid(&self, _: &VringConfigData) -> bool {
        true
    }
}

impl Session<'_> {
    /// Tells the kernel where guest memory is.
    fn share_memory(&self) -> Result<(), VhostError> {
        let region = |region: &vm_memory::GuestRegionMmap<_>| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: u64::try_from(region.as_ptr().expose_provenance()).unwrap_or(0),
            ..VhostUserMemoryRegionInfo::default()
        };
        let regions: Vec<_> = self.memory.iter().map(region).collect();
        refused("share guest memory", self.set_mem_table(&regions)).map(drop)
    }

    /// Connects a ring to the interface, or to nothing: then the kernel is done with it when this returns.
    fn set_backend(&self, queue: &HandedQueue, tap: Option<&File>) -> io::Result<()> {
        let backend = vhost_vring_file {
            index: u32::from(queue.ring().index & 1),
            fd: tap.map_or(-1, File::as_raw_fd),
        };
        // SAFETY: the ioctl reads a vhost_vring_file that lives across the call.
        match unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &backend) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_is_refused_with_what_to_do_about_it() {
        let cases = [
            (libc::ENOENT, "modprobe vhost_net"),
            (libc::ENODEV, "modprobe vhost_net"),
            (libc::EACCES, "read and write access"),
            (libc::EMFILE, "ulimit -n"),
        ];
        for (errno, remedy) in cases {
            let error = VhostError::Open(io::Error::from_raw_os_error(errno)).to_string();
            assert!(error.contains(DEVICE) && error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn descriptors_that_are_none_or_too_many_are_refused() {
        let null = || {
            OwnedFd::from(
                File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/null")
                    .unwrap(),
            )
        };
        let refused = Vhost::open(1, vec![null()]).unwrap_err();
        assert!(
            matches!(refused, VhostError::Descriptor { .. }),
            "{refused}"
        );
        let refused = Vhost::open(1, vec![null(), null()]).unwrap_err();
        assert!(refused.to_string().contains("2 descriptors"), "{refused}");
    }
}
