//! A TAP interface: one file descriptor a queue pair, each carrying frames behind a 12-byte
//! `virtio_net_hdr` (`virtio` 1.2 section 5.1.6), as Linux's tun driver exchanges them.
//!
//! It knows no virtqueue. An interface that exists already and belongs to this user needs no
//! privilege: nothing here asks for one unless the interface has to be created.

#![expect(unsafe_code, reason = "the tun driver is configured by ioctl")]

mod error;
mod port;
mod sends;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use libc::{c_char, c_int, c_short, c_uint, c_ulong};
use rustix::fs::{Mode, OFlags};

use splitring_virtio::spec::net::HEADER_SIZE;

pub use error::{MAX_NAME, TapError};

use super::port::{FramePort, NetBackend, Offloads};
use crate::pool::Pool;
use error::{failed, refusal};
use port::{Gear, TapPort};

const TUN_DEVICE: &CStr = c"/dev/net/tun";

/// `struct ifreq` as the tun ioctls use it: a name and flags.
#[repr(C)]
struct IfReq {
    name: [c_char; libc::IFNAMSIZ],
    flags: c_short,
    rest: [u8; 22],
}

impl IfReq {
    fn new(name: &CStr, flags: c_int) -> Self {
        let mut request = Self {
            name: [0; libc::IFNAMSIZ],
            flags: flags.try_into().unwrap_or(0),
            rest: [0; 22],
        };
        for (to, from) in request.name.iter_mut().zip(name.to_bytes()) {
            *to = from.cast_signed();
        }
        request
    }

    fn name(&self) -> String {
        self.name
            .iter()
            .take_while(|c| **c != 0)
            .map(|c| char::from(c.cast_unsigned()))
            .collect()
    }

    fn has(&self, flag: c_int) -> bool {
        c_int::from(self.flags.cast_unsigned().cast_signed()) & flag == flag
    }
}

/// One opened queue of a TAP interface; closing it detaches the queue.
#[derive(Debug)]
struct TapQueue {
    file: Arc<File>,
}

/// An opened TAP interface.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<TapQueue>,
    /// What the queues' ports work with.
    gear: Arc<Pool<Gear>>,
    supported: Offloads,
}

impl Tap {
    /// Attaches to the interface `name`, or creates it where that is allowed, with `queues` queue pairs.
    pub fn open(name: &str, queues: u16) -> Result<Self, TapError> {
        let c_name = checked_name(name)?;
        let existed = exists(&c_name);
        let queues = (0..queues.max(1))
            .map(|_| attach(&c_name, name, queues, existed))
            .collect::<Result<Vec<_>, _>>()?;
        Self::prepare(name.to_owned(), queues)
    }

    /// Takes over descriptors that somebody with the right to opened, one a queue pair.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Self, TapError> {
        let mut name = String::new();
        let mut queues = Vec::with_capacity(fds.len());
        for fd in fds {
            name = inspect(&fd)?;
            rustix::io::ioctl_fionbio(&fd, true)
                .map_err(|e| failed(&name, "make it non-blocking", e.into()))?;
            queues.push(TapQueue::from(fd));
        }
        Self::prepare(name, queues)
    }

    /// The interface for somebody who reads and writes its queues without ports.
    pub(super) fn into_queues(self) -> (Self, Vec<Arc<File>>) {
        let files = self.queues.iter().map(|queue| Arc::clone(&queue.file));
        let files = files.collect();
        let gear = Pool::new([]);
        (Self { gear, ..self }, files)
    }

    fn prepare(name: String, queues: Vec<TapQueue>) -> Result<Self, TapError> {
        for queue in &queues {
            let len = c_int::try_from(HEADER_SIZE).unwrap_or(0);
            // SAFETY: the ioctl reads one int that lives across the call.
            let done = unsafe {
                libc::ioctl(
                    queue.file.as_raw_fd(),
                    libc::TUNSETVNETHDRSZ,
                    &raw const len,
                )
            };
            checked(done).map_err(|e| failed(&name, "set the header length", e))?;
        }
        let gear = queues.iter().map(|queue| Gear::new(queue.has_room()));
        let mut tap = Self {
            name,
            gear: Pool::new(gear),
            queues,
            supported: Offloads::empty(),
        };
        tap.supported = tap.probe_offloads();
        tap.set_guest_offloads(Offloads::empty())
            .map_err(|e| failed(&tap.name, "set offloads", e))?;
        Ok(tap)
    }

    /// Which offloads this kernel's tun driver knows, found by asking: older ones lack USO, newer ones UFO.
    fn probe_offloads(&self) -> Offloads {
        let candidates = [
            Offloads::empty(),
            Offloads::USO,
            Offloads::UFO,
            Offloads::USO | Offloads::UFO,
        ]
        .map(|lacking| Offloads::all().difference(lacking));
        let known = |offloads: &Offloads| self.set_guest_offloads(*offloads).is_ok();
        candidates
            .into_iter()
            .find(known)
            .unwrap_or(Offloads::empty())
    }
}

impl NetBackend for Tap {
    fn offloads(&self) -> Offloads {
        self.supported
    }

    fn max_pairs(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    fn open_port(&self, pair: u16) -> io::Result<Box<dyn FramePort>> {
        let queue = self
            .queues
            .get(usize::from(pair))
            .ok_or(io::ErrorKind::NotFound)?;
        let together = queue.has_room();
        let gear = self.gear.take(pair).ok_or(io::ErrorKind::ResourceBusy)?;
        let file = Arc::clone(&queue.file);
        Ok(Box::new(TapPort::new(file, gear, together)))
    }

    fn interface(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn set_guest_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.queues
            .iter()
            .try_for_each(|queue| queue.set_offloads(offloads))
    }

    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        if self.queues.len() < 2 {
            return Ok(());
        }
        self.queues
            .iter()
            .enumerate()
            .try_for_each(|(index, queue)| {
                match queue.attach(index < usize::from(pairs)) {
                    // Already as asked for.
                    Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
                    other => other,
                }
            })
    }
}

impl From<OwnedFd> for TapQueue {
    fn from(fd: OwnedFd) -> Self {
        Self {
            file: Arc::new(File::from(fd)),
        }
    }
}

impl TapQueue {
    /// Stops (`false`) or resumes the kernel's use of this queue for received frames.
    fn attach(&self, on: bool) -> io::Result<()> {
        let flag = if on {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        let request = IfReq::new(c"", flag);
        // SAFETY: the ioctl reads an ifreq that lives across the call.
        checked(unsafe {
            libc::ioctl(self.file.as_raw_fd(), libc::TUNSETQUEUE, &raw const request)
        })
    }

    /// Whether a frame never has to wait to be sent, as it is unless somebody limited what an interface has under way.
    fn has_room(&self) -> bool {
        let mut limit: c_int = 0;
        // SAFETY: the ioctl writes one int that lives across the call.
        let done =
            unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNGETSNDBUF, &raw mut limit) };
        done == 0 && limit == c_int::MAX
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let flags = c_ulong::from(tun_flags(offloads));
        // SAFETY: the argument is a plain integer.
        checked(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) })
    }
}

/// The tun driver's flags for a set of offloads. Segmentation is refused without checksums.
fn tun_flags(offloads: Offloads) -> c_uint {
    if !offloads.contains(Offloads::CSUM) {
        return 0;
    }
    let table = [
        (Offloads::CSUM, libc::TUN_F_CSUM),
        (Offloads::TSO4, libc::TUN_F_TSO4),
        (Offloads::TSO6, libc::TUN_F_TSO6),
        (Offloads::ECN, libc::TUN_F_TSO_ECN),
        (Offloads::UFO, libc::TUN_F_UFO),
        (Offloads::USO, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ];
    table
        .iter()
        .filter(|(offload, _)| offloads.contains(*offload))
        .fold(0, |flags, (_, flag)| flags | flag)
}

fn checked(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn checked_name(name: &str) -> Result<CString, TapError> {
    let fits = !name.is_empty()
        && name.len() <= MAX_NAME
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b'%');
    let refused = || TapError::Name(name.to_owned());
    if !fits {
        return Err(refused());
    }
    CString::new(name).map_err(|_| refused())
}

fn exists(name: &CStr) -> bool {
    // SAFETY: the name is a C string that lives across the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

fn open_driver() -> Result<OwnedFd, TapError> {
    rustix::fs::open(
        TUN_DEVICE,
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| TapError::Driver(e.into()))
}

fn attach(c_name: &CStr, name: &str, queues: u16, existed: bool) -> Result<TapQueue, TapError> {
    let fd = open_driver()?;
    let multi = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let request = IfReq::new(
        c_name,
        libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi,
    );
    // SAFETY: the ioctl reads and writes an ifreq that lives across the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    match checked(done) {
        Ok(()) => Ok(TapQueue::from(fd)),
        Err(e) => Err(refusal(name, queues, existed, e)),
    }
}

/// Reads what a descriptor handed over is, and the interface's name.
fn inspect(fd: &OwnedFd) -> Result<String, TapError> {
    let refused = |why| TapError::Descriptor {
        fd: fd.as_raw_fd(),
        why,
    };
    let mut request = IfReq::new(c"", 0);
    // SAFETY: the ioctl fills an ifreq that lives across the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    checked(done).map_err(|_| refused("not a TAP interface"))?;
    if !request.has(libc::IFF_TAP)
        || !request.has(libc::IFF_NO_PI)
        || !request.has(libc::IFF_VNET_HDR)
    {
        return Err(refused("its flags do not fit"));
    }
    Ok(request.name())
}
