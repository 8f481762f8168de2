//! The lab's standard streams: virtio-serial ports, or one console when a terminal is attached.
//!
//! QEMU connects to sockets that exist before it starts, so that no byte is lost.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Output;
use crate::cleanup::Process;

const CHUNK: usize = 64 * 1024;
const RETRY: Duration = Duration::from_millis(5);
/// Ctrl-]. Typed three times in a row it ends an interactive lab.
const ESCAPE: u8 = 0x1d;
const ESCAPES: usize = 3;

/// One stream between the lab and this process.
#[derive(Debug)]
struct Channel {
    name: &'static str,
    path: PathBuf,
    listener: UnixListener,
}

/// All streams, before QEMU starts.
#[derive(Debug)]
pub(crate) struct Channels {
    interactive: bool,
    channels: Vec<Channel>,
}

impl Channels {
    /// Creates the sockets in `dir`.
    pub(crate) fn listen(dir: &Path, interactive: bool) -> Result<Self> {
        let names: &[_] = if interactive {
            &["console"]
        } else {
            &["in", "out", "err"]
        };
        let channels = names
            .iter()
            .map(|&name| {
                let path = dir.join(name);
                let listener = UnixListener::bind(&path)
                    .with_context(|| format!("cannot make the socket {}", path.display()))?;
                Ok(Channel {
                    name,
                    path,
                    listener,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            interactive,
            channels,
        })
    }

    /// Returns QEMU's arguments for the streams.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let device = if self.interactive {
            "virtconsole"
        } else {
            "virtserialport"
        };
        let mut list = vec!["-device".into(), "virtio-serial-pci".into()];
        for Channel { name, path, .. } in &self.channels {
            list.push("-chardev".into());
            list.push(format!("socket,id={name},path={}", path.display()).into());
            list.push("-device".into());
            list.push(format!("{device},chardev={name},name={name}").into());
        }
        list
    }

    /// Waits until QEMU connects, and starts to copy bytes.
    pub(crate) fn start(self, qemu: &mut Process, output: Output) -> Result<Pumps> {
        let running = Arc::new(AtomicUsize::new(0));
        let kept = Arc::new(Mutex::new(Vec::new()));
        let mut threads = Vec::new();
        let mut carry = |work: Box<dyn FnOnce() + Send>| {
            running.fetch_add(1, Ordering::Relaxed);
            let running = Arc::clone(&running);
            threads.push(std::thread::spawn(move || {
                work();
                running.fetch_sub(1, Ordering::Relaxed);
            }));
        };
        for Channel {
            name,
            path,
            listener,
        } in self.channels
        {
            let stream = accept(&listener, qemu)
                .with_context(|| format!("QEMU did not connect to {}", path.display()))?;
            match name {
                "in" => from_stdin(stream, false),
                "err" => carry(Box::new(move || copy(stream, std::io::stderr()))),
                "console" => {
                    from_stdin(stream.try_clone().context("cannot clone a socket")?, true);
                    carry(Box::new(move || copy(stream, std::io::stdout())));
                }
                _ => {
                    let kept = Arc::clone(&kept);
                    carry(Box::new(move || copy(stream, Stdout { output, kept })));
                }
            }
        }
        Ok(Pumps {
            running,
            kept,
            threads,
        })
    }
}

/// Waits for the connection as long as QEMU runs.
fn accept(listener: &UnixListener, qemu: &mut Process) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(why) if why.kind() == ErrorKind::WouldBlock => {}
            Err(why) => return Err(why.into()),
        }
        if qemu.ended()?.is_some() {
            bail!("it has ended");
        }
        std::thread::sleep(RETRY);
    }
}

/// The threads that copy output.
#[derive(Debug)]
pub(crate) struct Pumps {
    running: Arc<AtomicUsize>,
    kept: Arc<Mutex<Vec<u8>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pumps {
    /// Returns whether all output has arrived: QEMU has closed its ends.
    pub(crate) fn finished(&self) -> bool {
        self.running.load(Ordering::Relaxed) == 0
    }

    /// Waits for the remaining output and returns what was captured. QEMU must have ended.
    pub(crate) fn join(self) -> Vec<u8> {
        for thread in self.threads {
            // A panic in it has been printed.
            drop(thread.join());
        }
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The command's standard output: forwarded, captured, or both.
struct Stdout {
    output: Output,
    kept: Arc<Mutex<Vec<u8>>>,
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if matches!(self.output, Output::Keep | Output::PassAndKeep) {
            self.kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(bytes);
        }
        if self.output != Output::Keep {
            std::io::stdout().write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()
    }
}

fn copy(mut from: UnixStream, mut to: impl Write) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                // If nobody reads the output any more, the lab still runs to its end.
                drop(to.write_all(buffer.get(..count).unwrap_or_default()));
                drop(to.flush());
            }
        }
    }
}

/// Copies standard input into the lab. The thread is blocked in a read until the process ends.
fn from_stdin(mut to: UnixStream, escapable: bool) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        let mut escapes = 0;
        while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
            let bytes = buffer.get(..count).unwrap_or_default();
            for &byte in bytes {
                escapes = if byte == ESCAPE { escapes + 1 } else { 0 };
            }
            if escapable && escapes >= ESCAPES {
                // As if interrupted: the signal thread cleans up.
                drop(signal_hook::low_level::raise(signal_hook::consts::SIGINT));
            }
            if to.write_all(bytes).is_err() {
                return;
            }
        }
        // The command sees the end of its input.
        drop(to.shutdown(Shutdown::Write));
    });
}
