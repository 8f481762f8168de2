//! Why an interface can't be used, told from what the kernel answered.

use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use crate::kind::ErrorKind;

/// Name bytes an interface has at the most, without the closing zero (`IFNAMSIZ - 1`).
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// Why a TAP interface can't be used. The messages say what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// The tun driver is not there or not ours to open.
    #[error(
        "cannot open /dev/net/tun: {0}; load the module `tun` and give this user read and write access to the device"
    )]
    Driver(#[source] io::Error),
    /// The name is empty, too long or has a character no interface has.
    #[error("`{0}` is no interface name: 1 to {MAX_NAME} characters without blanks, `/` or `%`")]
    Name(String),
    /// No interface has this name and this user may not make one.
    #[error(
        "tap {name}: there is no such interface and creating one is not permitted; create it first: `ip tuntap add dev {name} mode tap vnet_hdr user $USER{multi}`"
    )]
    Missing {
        /// The interface asked for.
        name: String,
        /// ` multi_queue` where several queue pairs were asked for.
        multi: &'static str,
    },
    /// The interface exists and another program has it.
    #[error(
        "tap {0}: in use by another program; stop it, or give each machine an interface of its own"
    )]
    Busy(String),
    /// The interface exists and belongs to somebody else.
    #[error(
        "tap {0}: not permitted: it belongs to another user or group; `ip tuntap` shows its owner, and root can make it anew with `user $USER`"
    )]
    NotPermitted(String),
    /// The interface is of another kind.
    #[error(
        "tap {0}: it is no TAP interface; name one, or a name no interface has to have one made"
    )]
    Other(String),
    /// The interface is a TUN, or single-queue where several queues were asked for, or the other way round.
    #[error(
        "tap {name}: its flags do not fit: a TAP interface made {wanted} is needed for queues={queues}"
    )]
    Flags {
        /// The interface asked for.
        name: String,
        /// How it has to be made.
        wanted: &'static str,
        /// Queue pairs asked for.
        queues: u16,
    },
    /// A descriptor handed over is no TAP with the flags needed.
    #[error("fd {fd}: {why}; it must be a TAP opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR")]
    Descriptor {
        /// The descriptor's number.
        fd: RawFd,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Any other refusal of the kernel.
    #[error("tap {name}: cannot {operation}: {source}")]
    Ioctl {
        /// The interface.
        name: String,
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl TapError {
    /// Returns [`ErrorKind::Network`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Network
    }
}

/// An operation on the interface `name` that has no error of its own.
pub(super) fn failed(name: &str, operation: &'static str, source: io::Error) -> TapError {
    TapError::Ioctl {
        name: name.to_owned(),
        operation,
        source,
    }
}

/// What the kernel's refusal to attach to `name` means; `existed` tells whether the interface was there before.
pub(super) fn refusal(name: &str, queues: u16, existed: bool, error: io::Error) -> TapError {
    let name = name.to_owned();
    match error.raw_os_error() {
        Some(libc::EPERM) if !existed => TapError::Missing {
            name,
            multi: if queues > 1 { " multi_queue" } else { "" },
        },
        Some(libc::EPERM) => TapError::NotPermitted(name),
        Some(libc::EBUSY) => TapError::Busy(name),
        Some(libc::EINVAL) if existed && !is_tun(&name) => TapError::Other(name),
        Some(libc::EINVAL) if existed => {
            let wanted = if queues > 1 {
                "with `multi_queue`"
            } else {
                "without `multi_queue`"
            };
            TapError::Flags {
                name,
                wanted,
                queues,
            }
        }
        _ => failed(&name, "attach to it", error),
    }
}

/// Whether the tun driver made the interface `name`, as far as sysfs tells.
fn is_tun(name: &str) -> bool {
    let interface = Path::new("/sys/class/net").join(name);
    !interface.exists() || interface.join("tun_flags").exists()
}
