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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use splitring_virtio::spec::feature as ring;
use splitring_virtio::spec::net::feature;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{
    VHOST_F_LOG_ALL, VHOST_NET_SET_BACKEND, VHOST_VRING_F_LOG, vhost_vring_file,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::dirty::OutsideLog;
use crate::eventfd::eventfd;
use crate::kind::ErrorKind;
use crate::ram::{Mapping, Mirror};
use crate::rings::{HandedQueue, Ring};

const DEVICE: &str = "/dev/vhost-net";
/// What concerns the rings and the frames in them. Everything else is between the driver and this process.
const RING_FEATURES: u64 =
    ring::VERSION_1 | ring::EVENT_IDX | ring::INDIRECT_DESC | feature::MRG_RXBUF;

/// The kernel notes what it writes.
const LOG_ALL: u64 = 1 << VHOST_F_LOG_ALL;

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
    /// What it serves now.
    served: Mutex<Option<Served>>,
}

/// What a device serves, with what it reaches by address.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) rings: Vec<Ring>,
    /// Those that the driver accepted.
    pub(super) features: u64,
    pub(super) memory: Arc<Mapping>,
    /// Where its writes are noted.
    pub(super) log: Option<Arc<OutsideLog>>,
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
            served: Mutex::default(),
        };
        let fd = pair.device.as_raw_fd();
        let unusable = |source| VhostError::Descriptor { fd, source };
        let session = pair.session(&Arc::default());
        let offered = session.get_features().map_err(io_error).map_err(unusable)?;
        session.set_owner().map_err(io_error).map_err(unusable)?;
        drop(session);
        pair.offered = offered;
        Ok(pair)
    }

    fn session(&self, memory: &Arc<Mapping>) -> Session<'_> {
        Session {
            device: &self.device,
            memory: Arc::clone(memory),
        }
    }

    fn served(&self) -> MutexGuard<'_, Option<Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the kernel move frames between `queues`, which `served` describes, and `tap` from now on.
    ///
    /// # Errors
    /// What the kernel refused; then it serves none of them.
    pub(super) fn start(
        &self,
        queues: &[HandedQueue],
        served: Served,
        tap: &File,
    ) -> Result<(), VhostError> {
        let mut place = self.served();
        let session = self.session(&served.memory);
        let started = self.try_start(&session, queues, &served, tap);
        if started.is_ok() {
            *place = Some(served);
            return Ok(());
        }
        for ring in &served.rings {
            // Refused where there was nothing to stop.
            let _ = session.set_backend(ring, None);
        }
        started
    }

    fn try_start(
        &self,
        session: &Session<'_>,
        queues: &[HandedQueue],
        served: &Served,
        tap: &File,
    ) -> Result<(), VhostError> {
        session.follow_log(served)?;
        session.share_memory()?;
        // One that the last driver caused.
        let _ = self.faults.read();
        for queue in queues {
            let ring = queue.ring();
            let vring = vring(&ring);
            let sized = session.set_vring_num(vring, ring.size);
            refused("set the size of a ring", sized)?;
            session.place(&ring, served.log.is_some())?;
            let based = session.set_vring_base(vring, ring.base);
            refused("set the index of a ring", based)?;
            let connected = session
                .set_vring_kick(vring, queue.kick())
                .and_then(|()| session.set_vring_call(vring, queue.call()))
                .and_then(|()| session.set_vring_err(vring, &self.faults));
            refused("connect kicks and interrupts", connected)?;
        }
        for queue in queues {
            let connected = session.set_backend(&queue.ring(), Some(tap));
            connected.map_err(|source| VhostError::Refused {
                operation: "connect the interface",
                source,
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
        let mut place = self.served();
        let session = self.session(&Arc::default());
        let mut result = Ok(());
        for queue in queues {
            let ring = queue.ring();
            let stopped = session.set_backend(&ring, None);
            let stopped = stopped.map_err(|source| VhostError::Refused {
                operation: "disconnect the interface",
                source,
            });
            let base = session.get_vring_base(vring(&ring));
            match refused("read the index of a ring", base) {
                // A split ring's index has 16 bits.
                Ok(base) => queue.take_back(u16::try_from(base & 0xffff).unwrap_or(0)),
                Err(error) => result = result.and(Err(error)),
            }
            result = result.and(stopped);
        }
        // Memory and log are the kernel's up to here.
        *place = None;
        result
    }
}

impl Mirror for KernelPair {
    fn remap(&self, mapping: &Arc<Mapping>) -> io::Result<()> {
        let mut served = self.served();
        let Some(served) = served.as_mut() else {
            return Ok(());
        };
        let shared = self.session(mapping).share_memory();
        shared.map_err(io::Error::other)?;
        served.memory = Arc::clone(mapping);
        Ok(())
    }

    fn log(&self, log: Option<&Arc<OutsideLog>>) -> io::Result<()> {
        if log.is_some() && self.offered & LOG_ALL == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut served = self.served();
        let Some(served) = served.as_mut() else {
            return Ok(());
        };
        // Kept until the kernel has another one, or none.
        let old = std::mem::replace(&mut served.log, log.cloned());
        let session = self.session(&served.memory);
        let mut rings = served.rings.iter();
        let followed = session
            .follow_log(served)
            .and_then(|()| rings.try_for_each(|ring| session.place(ring, log.is_some())));
        drop(old);
        followed.map_err(io::Error::other)
    }
}

/// Number of a queue in its pair's device.
fn vring(ring: &Ring) -> usize {
    usize::from(ring.index & 1)
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

    /// Has the kernel note its writes where `served` says, and work by the features that go with it.
    fn follow_log(&self, served: &Served) -> Result<(), VhostError> {
        let mut features = served.features & RING_FEATURES;
        if let Some(log) = &served.log {
            features |= LOG_ALL;
            let base = self.set_log_base(log.address(), None);
            refused("share the dirty log", base)?;
        }
        refused("set the features", self.set_features(features))
    }

    /// Says where a ring is, and whether writes of its used part are noted.
    fn place(&self, ring: &Ring, logged: bool) -> Result<(), VhostError> {
        let addresses = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: if logged { 1 << VHOST_VRING_F_LOG } else { 0 },
            desc_table_addr: ring.desc,
            used_ring_addr: ring.used,
            avail_ring_addr: ring.avail,
            log_addr: logged.then_some(ring.used),
        };
        refused("place a ring", self.set_vring_addr(vring(ring), &addresses))
    }

    /// Connects a ring to the interface, or to nothing: then the kernel is done with it when this returns.
    fn set_backend(&self, ring: &Ring, tap: Option<&File>) -> io::Result<()> {
        let backend = vhost_vring_file {
            index: u32::from(ring.index & 1),
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
