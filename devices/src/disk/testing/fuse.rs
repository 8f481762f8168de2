//! A file whose host is this test: a FUSE file system of that one file, served by a thread.
//!
//! It knows as much of the protocol (linux/fuse.h, version 7.31) as a disk image takes: reads
//! return zeroes, writes are forgotten, and one kind of request hangs if the test wants that.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use splitring_needs as needs;

/// Bytes of the file.
const LEN: u64 = 1 << 20;
/// `struct fuse_in_header`.
const HEADER: usize = 40;
/// More than the largest request: a header and what INIT allows a write to have.
const REQUEST: usize = (128 << 10) + 4096;
const MAX_WRITE: u32 = 128 << 10;

/// Operations, as in `enum fuse_opcode`.
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
pub(in crate::disk) const WRITE: u32 = 16;
const RELEASE: u32 = 18;
pub(in crate::disk) const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;

/// The file.
pub(in crate::disk) struct FuseFile {
    path: PathBuf,
    device: File,
    state: Arc<State>,
    _file: tempfile::NamedTempFile,
}

#[derive(Default)]
struct State {
    /// The operation that hangs, or 0.
    hangs: AtomicU32,
    /// How many have begun to hang.
    hung: AtomicU32,
    /// Those that hang, with their answers.
    waiting: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl FuseFile {
    pub(in crate::disk) fn new() -> Option<Self> {
        let mut options = File::options();
        let device = match options.read(true).write(true).open("/dev/fuse") {
            Ok(device) => device,
            Err(error) => {
                needs::lack(format!("/dev/fuse: {error}"));
                return None;
            }
        };
        let file = tempfile::NamedTempFile::new().expect("file");
        let path = file.path().to_owned();
        let mounted = Command::new("mount")
            .args(["-i", "-t", "fuse", "-o"])
            .arg("fd=0,rootmode=100600,user_id=0,group_id=0")
            .args([Path::new("test"), &path])
            .stdin(device.try_clone().expect("a descriptor"))
            .output();
        match mounted {
            Ok(output) if output.status.success() => {}
            other => {
                needs::lack(format!("no FUSE mounts: {other:?}"));
                return None;
            }
        }
        let state = Arc::new(State::default());
        let served = Arc::clone(&state);
        let copy = device.try_clone().expect("a descriptor");
        std::thread::spawn(move || serve(copy, &served));
        Some(Self {
            path,
            device,
            state,
            _file: file,
        })
    }

    pub(in crate::disk) fn path(&self) -> &Path {
        &self.path
    }

    /// Requests of this kind hang from now on, until the kernel interrupts them or
    /// [`Self::recover`] is called.
    pub(in crate::disk) fn hang(&self, opcode: u32) {
        self.state.hangs.store(opcode, Ordering::Release);
    }

    /// How many requests have begun to hang so far.
    pub(in crate::disk) fn hung(&self) -> u32 {
        self.state.hung.load(Ordering::Acquire)
    }

    /// Nothing hangs any more.
    pub(in crate::disk) fn recover(&mut self) {
        self.hang(0);
        for (unique, answer) in self.state.waiting.lock().expect("no panic").drain(..) {
            reply(&mut self.device, unique, Ok(answer));
        }
    }
}

impl Drop for FuseFile {
    fn drop(&mut self) {
        // By force, which ends what hangs: a file left open would be flushed at the end of this
        // process, by whom?
        let mut umount = Command::new("umount");
        drop(umount.args(["-f", "-l"]).arg(&self.path).status());
    }
}

/// Until the file is unmounted.
fn serve(mut device: File, state: &State) {
    let mut request = vec![0; REQUEST];
    while let Ok(len) = device.read(&mut request) {
        let request = &request[..len];
        let (opcode, unique) = (number(request, 4), long(request, 8));
        let body = &request[HEADER..];
        let answer = match opcode {
            INIT => {
                let mut out = [0; 64];
                for (at, value) in [(0, 7), (4, 31), (20, MAX_WRITE)] {
                    out[at..at + 4].copy_from_slice(&u32::to_ne_bytes(value));
                }
                Ok(out.to_vec())
            }
            GETATTR => Ok(attributes()),
            OPEN => Ok(vec![0; 16]),
            READ => Ok(vec![0; usize::try_from(number(body, 16)).expect("small")]),
            WRITE => Ok([&body[16..20], &[0; 4]].concat()),
            FSYNC | RELEASE | FLUSH => Ok(Vec::new()),
            INTERRUPT => {
                let mut waiting = state.waiting.lock().expect("no panic");
                let interrupted = long(body, 0);
                if let Some(place) = waiting.iter().position(|hung| hung.0 == interrupted) {
                    waiting.remove(place);
                    reply(&mut device, interrupted, Err(libc::EINTR));
                }
                continue;
            }
            _ => Err(libc::ENOSYS),
        };
        let hangs = state.hangs.load(Ordering::Acquire);
        if let (true, Ok(answer)) = (opcode == hangs, &answer) {
            let mut waiting = state.waiting.lock().expect("no panic");
            waiting.push((unique, answer.clone()));
            state.hung.fetch_add(1, Ordering::AcqRel);
            continue;
        }
        reply(&mut device, unique, answer);
    }
}

/// `struct fuse_attr_out` of a regular file.
fn attributes() -> Vec<u8> {
    let mut out = vec![0; 104];
    for (at, value) in [(16, 1), (24, LEN), (32, LEN / 512)] {
        out[at..at + 8].copy_from_slice(&u64::to_ne_bytes(value));
    }
    for (at, value) in [(76, libc::S_IFREG | 0o600), (80, 1), (96, 4096)] {
        out[at..at + 4].copy_from_slice(&u32::to_ne_bytes(value));
    }
    out
}

fn reply(device: &mut File, unique: u64, answer: Result<Vec<u8>, i32>) {
    let (error, body) = match answer {
        Ok(body) => (0, body),
        Err(errno) => (-errno, Vec::new()),
    };
    let len = u32::try_from(16 + body.len()).expect("small");
    let header = [
        &len.to_ne_bytes()[..],
        &error.to_ne_bytes(),
        &unique.to_ne_bytes(),
    ];
    // The kernel may have given the request up.
    let _ = device.write(&[&header.concat()[..], &body].concat());
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"))
}
