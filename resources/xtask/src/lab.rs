//! The lab: a level-1 guest under QEMU's software emulation that has a complete hardware KVM.
//!
//! Its root is the host's whole file system over virtio-fs, so that programs built on the host run
//! there unchanged. A command's output is sent over virtio-serial ports, its exit status through a
//! file. A lab uses one core; as many run at the same time as the machine has cores and memory for.

mod channel;
mod emulator;
mod erratum;
mod script;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::assets::Cache;
use crate::cleanup::{Process, RawTerminal};
use crate::host::{self, HostKvm};
use crate::kernel::{Flavour, Kernel};
use crate::progress::{Step, say};
use crate::tools;
use channel::Channels;
use emulator::Emulator;

const MEMORY_MIB: u32 = 8192;
/// SVM with nested paging, for Debian's kvm-amd. QEMU's emulation does not intercept XSETBV, so
/// that a guest would change the lab's own XSAVE state. Therefore XSAVE and what depends on it are
/// disabled.
const CPU: &str = "EPYC,+svm,+npt,-xsave,-avx,-avx2,-f16c,-fma";
/// A lab whose heartbeat stops for this long hangs: it beats every ten seconds.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(180);
/// Ten seconds on a clock that counts instructions take 40 on an idle machine, minutes on a busy
/// one.
const HEARTBEAT_LIMIT_ICOUNT: Duration = Duration::from_secs(300);
/// The exit status of `timeout(1)`.
const TIMED_OUT: i32 = 124;
/// The exit status of a command that was ended by a signal.
const KILLED: i32 = 128;
const SLOT_POLL: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(20);
/// How long the last output may take to arrive after the command has ended.
const DRAIN: Duration = Duration::from_secs(10);
const VIRTIOFSD_START: Duration = Duration::from_secs(10);

/// Configuration of a lab.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// One CPU whose clock counts instructions.
    pub(crate) icount: bool,
    /// Virtual CPUs, unless `icount`. More than one is faster, but occasionally fails under a QEMU
    /// before 10.0: its emulation keeps a breakpoint instruction that another CPU has already
    /// removed again, as kvm's static keys do at each guest's start, and the lab crashes.
    pub(crate) cpus: u32,
    /// Run no other lab at the same time, for measurements.
    pub(crate) alone: bool,
    /// Time limit of the whole run.
    pub(crate) timeout: Duration,
    /// Kernel modules in addition to KVM's, each followed by its parameters, as for modprobe(8).
    pub(crate) modules: Vec<String>,
    /// Install missing packages without asking.
    pub(crate) yes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            icount: false,
            cpus: 1,
            alone: false,
            timeout: Duration::from_secs(1800),
            modules: Vec::new(),
            yes: false,
        }
    }
}

/// What to do with the command's standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Forward it; interactive on a terminal.
    Pass,
    /// Forward it, never interactive.
    Watch,
    /// Forward and capture it.
    PassAndKeep,
    /// Capture it.
    Keep,
}

/// How the command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its exit status; 124 after a timeout.
    pub(crate) code: i32,
    /// Its standard output, if captured.
    pub(crate) output: Vec<u8>,
}

/// The programs and files of the lab.
#[derive(Debug)]
pub(crate) struct LabFiles {
    cache: Cache,
    kernel: Kernel,
    busybox: PathBuf,
    emulator: &'static Emulator,
}

/// Installs the missing programs of the lab.
pub(crate) fn ensure_programs(yes: bool) -> Result<()> {
    tools::ensure(&[tools::QEMU, emulator::virtiofsd()], "the lab", yes)
}

/// Gets the programs and files of the lab; fetches them if necessary.
pub(crate) fn prepare(yes: bool) -> Result<LabFiles> {
    ensure_programs(yes)?;
    if !host::is_root() {
        bail!(
            "the lab shares the host's files with its guest through virtiofsd, which needs root; run this command as root:\n  \
             sudo -E env \"PATH=$PATH\" cargo xtask {}{}",
            arguments_shown(std::env::args().skip(1)),
            HostKvm::detect().hint()
        );
    }
    let cache = Cache::open()?;
    let kernel = Kernel::get(&cache, Flavour::Cloud612)?;
    let busybox = cache.package("busybox-static")?.join("bin/busybox");
    let emulator = Emulator::get(&cache);
    Ok(LabFiles {
        cache,
        kernel,
        busybox,
        emulator,
    })
}

/// Returns arguments in a form that can be typed into a shell.
fn arguments_shown(arguments: impl Iterator<Item = String>) -> String {
    let shown: Vec<_> = arguments
        .map(|word| {
            match word.contains(|c: char| !c.is_ascii_alphanumeric() && !"-_./=,:".contains(c)) {
                true => format!("'{}'", word.replace('\'', "'\\''")),
                false => word,
            }
        })
        .collect();
    shown.join(" ")
}

/// Runs `command` in the lab, or as a child process if this is the lab already.
pub(crate) fn run(options: &Options, command: &[OsString], output: Output) -> Result<Outcome> {
    if host::in_lab() {
        return run_here(command, output);
    }
    let LabFiles {
        cache,
        kernel,
        busybox,
        emulator,
    } = prepare(options.yes)?;
    let mut wanted = vec!["kvm_amd"];
    wanted.extend(options.modules.iter().map(|line| module(line).0));
    let modules: Vec<_> = kernel
        .modules(&wanted)?
        .into_iter()
        .map(|path| {
            let own = |line: &&String| path.file_stem().is_some_and(|stem| stem == module(line).0);
            let parameters = options.modules.iter().find(own);
            (path.clone(), parameters.map_or("", |line| module(line).1))
        })
        .collect();

    let _slot = take_slot(options.alone)?;
    let scratch = cache.scratch("lab-")?;
    let dir = scratch.path();
    let interactive =
        output == Output::Pass && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    script::write(dir, &busybox, &modules, command, interactive)?;

    let channels = Channels::listen(dir, interactive)?;
    let _virtiofsd = start_virtiofsd(dir)?;
    let mut qemu = Process::spawn(
        emulator
            .command()
            .args(arguments(options, dir, &kernel, &channels))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(create(&dir.join("qemu.log"))?),
        "QEMU",
    )?;
    let raw = if interactive {
        Some(RawTerminal::enter()?)
    } else {
        None
    };
    let pumps = channels
        .start(&mut qemu, output)
        .with_context(|| tail(&dir.join("qemu.log")))?;
    if let Err(why) = erratum::patch(qemu.id()) {
        say(format!("guests in the lab may crash occasionally: {why:#}"));
    }
    let ended = wait(dir, &mut qemu, options);
    let since = Instant::now();
    while ended.is_ok() && !pumps.finished() && since.elapsed() < DRAIN && qemu.ended()?.is_none() {
        std::thread::sleep(POLL);
    }
    drop(qemu);
    let output = pumps.join();
    drop(raw);
    Ok(Outcome {
        code: ended?,
        output,
    })
}

/// Splits the name of a module from its parameters.
fn module(line: &str) -> (&str, &str) {
    line.split_once(' ').unwrap_or((line, ""))
}

/// Runs `command` as a child process on this machine.
pub(crate) fn run_here(command: &[OsString], output: Output) -> Result<Outcome> {
    let (program, arguments) = command.split_first().context("no command to run")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::inherit())
        .stderr(Stdio::inherit());
    if matches!(output, Output::Pass | Output::Watch) {
        command.stdout(Stdio::inherit());
    }
    let result = command
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if output == Output::PassAndKeep {
        std::io::stdout()
            .write_all(&result.stdout)
            .context("cannot write the output")?;
    }
    Ok(Outcome {
        code: result.status.code().unwrap_or(KILLED),
        output: result.stdout,
    })
}

/// A lab's share of the machine, held until dropped.
#[derive(Debug)]
struct LabSlot {
    _locks: Vec<File>,
}

/// Waits for a free slot: a lab keeps one core and its memory busy, so that their number is
/// limited. A lab for measurements takes all slots, in order, so that two such labs can't deadlock.
fn take_slot(alone: bool) -> Result<LabSlot> {
    let locks: Vec<_> = (0..host::slots(MEMORY_MIB))
        .map(|slot| open_lock(&std::env::temp_dir().join(format!("splitring-lab{slot}.lock"))))
        .collect::<Result<_>>()?;
    let _step = Step::start("waiting for other labs to end");
    if alone {
        for lock in &locks {
            lock.lock().context("cannot wait for the other labs")?;
        }
        return Ok(LabSlot { _locks: locks });
    }
    loop {
        // The files that are not locked are closed with the list.
        if let Some(at) = locks.iter().position(|lock| lock.try_lock().is_ok()) {
            return Ok(LabSlot {
                _locks: locks.into_iter().skip(at).take(1).collect(),
            });
        }
        std::thread::sleep(SLOT_POLL);
    }
}

fn open_lock(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o666)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))
}

fn fs_socket(dir: &Path) -> PathBuf {
    dir.join("fs.sock")
}

fn start_virtiofsd(dir: &Path) -> Result<Process> {
    let log = dir.join("virtiofsd.log");
    let socket = fs_socket(dir);
    let mut process = Process::spawn(
        emulator::virtiofsd_command(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(create(&log)?),
        "virtiofsd",
    )?;
    let started = Instant::now();
    while !socket.exists() {
        if process.ended()?.is_some() || started.elapsed() > VIRTIOFSD_START {
            bail!("virtiofsd did not start: {}", tail(&log));
        }
        std::thread::sleep(POLL);
    }
    Ok(process)
}

fn arguments(options: &Options, dir: &Path, kernel: &Kernel, channels: &Channels) -> Vec<OsString> {
    let (accel, cpus) = if options.icount {
        ("tcg,thread=single", 1)
    } else {
        ("tcg,thread=multi", options.cpus)
    };
    let mut list: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(OsString::from));
    add(&[
        "-M",
        "q35",
        "-accel",
        accel,
        "-cpu",
        CPU,
        "-smp",
        &cpus.to_string(),
    ]);
    if options.icount {
        add(&["-icount", "shift=0,sleep=off"]);
    }
    add(&[
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-m",
        &format!("{MEMORY_MIB}M"),
    ]);
    add(&[
        "-object",
        &format!("memory-backend-memfd,id=m,size={MEMORY_MIB}M,share=on"),
    ]);
    add(&["-numa", "node,memdev=m"]);
    add(&[
        "-chardev",
        &format!("socket,id=fs,path={}", fs_socket(dir).display()),
    ]);
    add(&["-device", "vhost-user-fs-pci,chardev=fs,tag=root"]);
    add(&[
        "-serial",
        &format!("file:{}", dir.join("console.log").display()),
    ]);
    add(&[
        "-kernel",
        &kernel.vmlinuz().display().to_string(),
        "-append",
    ]);
    // The emulated machine can lose a one-shot timer and then halt forever; a periodic timer wakes
    // it up. Not when instructions are counted, because ticks would be counted as well: there a run
    // is retried.
    let ticks = if options.icount {
        ""
    } else {
        "nohz=off highres=off"
    };
    add(&[&format!(
        "console=ttyS0 panic=-1 quiet no_timer_check tsc=reliable {ticks} rootfstype=virtiofs root=root rw init={}",
        script::init(dir).display()
    )]);
    list.extend(channels.arguments());
    list
}

/// Waits for the command's exit status, the end of the lab, or the timeout.
fn wait(dir: &Path, qemu: &mut Process, options: &Options) -> Result<i32> {
    let timeout = options.timeout;
    let standstill = if options.icount {
        HEARTBEAT_LIMIT_ICOUNT
    } else {
        HEARTBEAT_LIMIT
    };
    let started = Instant::now();
    let (mut beat, mut alive) = (None, started);
    loop {
        let ended = qemu.ended()?.is_some();
        if let Some(code) = script::status(dir) {
            return Ok(code);
        }
        if ended {
            bail!(
                "the lab ended before the command did\n{}\n{}",
                tail(&dir.join("qemu.log")),
                tail(&dir.join("console.log"))
            );
        }
        let now = script::heartbeat(dir);
        if now.is_some() && now != beat {
            (beat, alive) = (now, Instant::now());
        }
        if alive.elapsed() > standstill {
            bail!(
                "the lab made no progress for {} s\n{}",
                standstill.as_secs(),
                tail(&dir.join("console.log"))
            );
        }
        if started.elapsed() > timeout {
            eprintln!("error: the lab was stopped after {} s", timeout.as_secs());
            eprintln!("{}", tail(&dir.join("console.log")));
            return Ok(TIMED_OUT);
        }
        std::thread::sleep(POLL);
    }
}

/// Returns the last lines of a log, for an error message.
fn tail(path: &Path) -> String {
    const LINES: usize = 40;
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.contains("TCG doesn't support"))
        .map(|line| line.trim_end_matches('\r'))
        .collect();
    lines
        .get(lines.len().saturating_sub(LINES)..)
        .unwrap_or_default()
        .join("\n")
}

#[cfg(test)]
mod tests;
