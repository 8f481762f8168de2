//! Advisory locks on images, so that two machines don't write the same one.
//!
//! Open-file-description locks on single bytes, in the places QEMU uses (its `block/file-posix.c` documents them as
//! byte 100 plus a number for a permission in use and byte 200 plus it for one denied to others), so that each
//! refuses what the other holds. They belong to the open file: they vanish with it, however the process ends.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Byte of the first "I use this permission" lock.
const USED: libc::off_t = 100;
/// Byte of the first "nobody else may use this permission" lock.
const DENIED: libc::off_t = 200;

/// The permissions Splitring uses or denies, by their number in the lock bytes.
const READ: libc::off_t = 0;
const WRITE: libc::off_t = 1;
const RESIZE: libc::off_t = 3;

/// How an image is going to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    /// It is written.
    pub(super) write: bool,
    /// Others may write too.
    pub(super) share: bool,
}

/// Why a lock was not taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// Another open file holds it; the text says for what.
    Held(&'static str),
    /// The host can't lock this file.
    Unsupported(io::Error),
}

/// Takes the locks for `intent` on `file`, or none.
pub(super) fn acquire(file: &File, intent: Use) -> Result<(), Refused> {
    let result = claim(file, intent).and_then(|()| check(file, intent));
    if result.is_err() {
        release(file);
    }
    result
}

/// Takes the same locks on another open file of the same user. Whether others contradict it was
/// looked at before.
pub(super) fn join(file: &File, intent: Use) -> io::Result<()> {
    claim(file, intent).map_err(|refused| match refused {
        Refused::Held(by) => io::Error::other(format!("its lock is held {by}")),
        Refused::Unsupported(error) => error,
    })
}

/// Gives all locks of this open file back. Not needed before closing it.
pub(super) fn release(file: &File) {
    // An unlock can fail only for a file that can't be locked, where there is nothing to give back.
    let _ = operate(file, libc::F_OFD_SETLK, libc::F_UNLCK, USED, 0);
}

/// Announces what is used and what is denied; shared locks, which don't exclude each other.
fn claim(file: &File, intent: Use) -> Result<(), Refused> {
    let mut bytes = vec![USED + READ];
    if intent.write {
        bytes.push(USED + WRITE);
    }
    if !intent.share {
        bytes.extend([DENIED + WRITE, DENIED + RESIZE]);
    }
    for byte in bytes {
        operate(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte, 1).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EACCES) => Refused::Held("exclusively"),
                _ => Refused::Unsupported(error),
            }
        })?;
    }
    Ok(())
}

/// Looks for others whose announcements contradict ours. Both sides announce before they look, so of two that start
/// at once at least one notices.
fn check(file: &File, intent: Use) -> Result<(), Refused> {
    let conflicts = [
        (true, DENIED + READ, "by a user that lets nobody read it"),
        (
            intent.write,
            DENIED + WRITE,
            "by a user that lets nobody else write it",
        ),
        (!intent.share, USED + WRITE, "by a writer"),
        (!intent.share, USED + RESIZE, "by a user that may resize it"),
    ];
    for (matters, byte, by) in conflicts {
        // Asking for an exclusive lock finds anybody else's shared one. Our own don't count.
        if matters
            && operate(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte, 1)
                .map_err(Refused::Unsupported)?
        {
            return Err(Refused::Held(by));
        }
    }
    Ok(())
}

/// One lock call; `true` if F_OFD_GETLK found a lock of somebody else's. A length of 0 means up to any end.
#[expect(
    unsafe_code,
    reason = "rustix and std offer whole-file locks only, which QEMU would not see"
)]
fn operate(
    file: &File,
    command: libc::c_int,
    kind: libc::c_int,
    start: libc::off_t,
    len: libc::off_t,
) -> io::Result<bool> {
    // The constants are ints in one header and shorts in the structure of the other.
    let short = |number: libc::c_int| libc::c_short::try_from(number).unwrap_or(libc::c_short::MAX);
    let mut lock = libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and `lock` outlives the call, which writes
    // nothing but that structure.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(command == libc::F_OFD_GETLK && lock.l_type != short(libc::F_UNLCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITER: Use = Use {
        write: true,
        share: false,
    };
    const READER: Use = Use {
        write: false,
        share: false,
    };
    const SHARING_WRITER: Use = Use {
        write: true,
        share: true,
    };
    const SHARING_READER: Use = Use {
        write: false,
        share: true,
    };

    fn second_after(first: Use, second: Use) -> bool {
        let image = tempfile::NamedTempFile::new().expect("file");
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .open(image.path())
                .expect("open")
        };
        let (a, b) = (open(), open());
        acquire(&a, first).expect("nobody holds it");
        let admitted = acquire(&b, second).is_ok();
        // What the first holds is given back with its file, and a refused attempt left nothing behind.
        if !admitted {
            drop(a);
            acquire(&b, second).expect("free again");
        }
        admitted
    }

    #[test]
    fn only_readers_or_sharers_go_together() {
        let cases = [
            (WRITER, WRITER, false),
            (WRITER, READER, false),
            (READER, WRITER, false),
            (WRITER, SHARING_WRITER, false),
            (SHARING_WRITER, WRITER, false),
            (WRITER, SHARING_READER, true),
            (READER, READER, true),
            (READER, SHARING_WRITER, false),
            (SHARING_WRITER, SHARING_WRITER, true),
            (SHARING_WRITER, SHARING_READER, true),
        ];
        for (first, second, admitted) in cases {
            assert_eq!(
                second_after(first, second),
                admitted,
                "{first:?} then {second:?}"
            );
        }
    }

    #[test]
    fn a_refused_second_leaves_the_first_alone() {
        let image = tempfile::NamedTempFile::new().expect("file");
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .open(image.path())
                .expect("open")
        };
        let (a, b, c) = (open(), open(), open());
        acquire(&a, WRITER).expect("first");
        assert!(acquire(&b, WRITER).is_err());
        assert!(
            acquire(&c, WRITER).is_err(),
            "the first one's lock is still there"
        );
    }
}
