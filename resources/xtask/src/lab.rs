//! The lab: a level-1 guest under QEMU's software emulation that offers a complete hardware KVM.
//!
//! The host's whole file system is its root, by virtio-fs, so whatever was built here runs there
//! as it is. A command's output travels over virtio-serial ports, its exit status by a file.
//! Each takes one core; as many run at a time as the machine has cores and memory for.

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
/// Emulates SVM with nested paging, which Debian's kvm-amd drives. It does not intercept XSETBV, so
/// that a guest would change the lab's own XSAVE state: there is none, nor what depends on it.
const CPU: &str = "EPYC,+svm,+npt,-xsave,-avx,-avx2,-f16c,-fma";
/// A lab without a sign of life for so long hangs: it gives one every ten seconds.
const STANDSTILL: Duration = Duration::from_secs(180);
/// Ten seconds of a clock that counts instructions take 40 on a quiet machine, minutes on a busy one.
const STANDSTILL_ICOUNT: Duration = Duration::from_secs(300);
/// What `timeout(1)` answers, too.
const TIMED_OUT: i32 = 124;
/// For a command that a signal ended.
const KILLED: i32 = 128;
const TURN_POLL: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(20);
/// How long the last output may take to arrive once the command has ended.
const DRAIN: Duration = Duration::from_secs(10);
const VIRTIOFSD_START: Duration = Duration::from_secs(10);

/// How a lab is to be.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// One CPU whose clock counts instructions.
    pub(crate) icount: bool,
    /// Virtual CPUs, unless `icount`. More than one is faster, and now and then wrong under a QEMU before
    /// 10.0: its emulation keeps a breakpoint instruction that another CPU has patched away again, which
    /// kvm's static keys do at every guest's start, and the lab dies of it.
    pub(crate) cpus: u32,
    /// No other lab at the same time, for the sake of measurements.
    pub(crate) alone: bool,
    /// The whole run is bounded by this.
    pub(crate) timeout: Duration,
    /// Kernel modules besides KVM's, each with its parameters behind its name, as for modprobe(8).
    pub(crate) modules: Vec<String>,
    /// Install what is missing without asking.
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

/// What becomes of the command's standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Passed on; interactive if this is a terminal.
    Pass,
    /// Passed on, never interactive.
    Watch,
    /// Passed on and kept.
    PassAndKeep,
    /// Kept only.
    Keep,
}

/// How the command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its exit status; 124 after a timeout.
    pub(crate) code: i32,
    /// Its standard output, if that was to be kept.
    pub(crate) output: Vec<u8>,
}

/// What the lab itself is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    cache: Cache,
    kernel: Kernel,
    busybox: PathBuf,
    emulator: &'static Emulator,
}

/// Installs the programs of the lab that are missing.
pub(crate) fn ensure_programs(yes: bool) -> Result<()> {
    tools::ensure(&[tools::QEMU, emulator::virtiofsd()], "the lab", yes)
}

/// Gets what the lab is made of, from the network if need be.
pub(crate) fn prepare(yes: bool) -> Result<Parts> {
    ensure_programs(yes)?;
    if !host::is_root() {
        bail!(
            "the lab shows the host's files to its guest through virtiofsd, which needs root; run this command as root:\n  \
             sudo -E env \"PATH=$PATH\" cargo xtask {}{}",
            arguments_shown(std::env::args().skip(1)),
            HostKvm::detect().hint()
        );
    }
    let cache = Cache::open()?;
    let kernel = Kernel::get(&cache, Flavour::Cloud612)?;
    let busybox = cache.package("busybox-static")?.join("bin/busybox");
    let emulator = Emulator::get(&cache);
    Ok(Parts {
        cache,
        kernel,
        busybox,
        emulator,
    })
}

/// Arguments as they can be typed again.
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

/// Runs `command` in the lab, or right here if this is the lab already.
pub(crate) fn run(options: &Options, command: &[OsString], output: Output) -> Result<Outcome> {
    if host::in_lab() {
        return run_here(command, output);
    }
    let Parts {
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

    let _turn = take_turn(options.alone)?;
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
    if let Err(why) = erratum::mend(qemu.id()) {
        say(format!("the lab's guests may die now and then: {why:#}"));
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

/// Name and parameters of a module.
fn module(line: &str) -> (&str, &str) {
    line.split_once(' ').unwrap_or((line, ""))
}

/// Runs `command` on this machine: inside the lab a lab is no more than the command itself.
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

/// A lab's claim to a part of the machine; held until dropped.
#[derive(Debug)]
struct Turn {
    _locks: Vec<File>,
}

/// Waits for a free slot: a lab keeps one core and its memory busy, so there are only so many.
/// A lab that measures time takes them all, in order, so that two such can't block each other.
fn take_turn(alone: bool) -> Result<Turn> {
    let locks: Vec<_> = (0..host::slots(MEMORY_MIB))
        .map(|slot| open_lock(&std::env::temp_dir().join(format!("splitring-lab{slot}.lock"))))
        .collect::<Result<_>>()?;
    let _step = Step::start("waiting for other labs to end");
    if alone {
        for lock in &locks {
            lock.lock().context("cannot wait for the other labs")?;
        }
        return Ok(Turn { _locks: locks });
    }
    loop {
        // Those that stay unlocked are closed with the list.
        if let Some(at) = locks.iter().position(|lock| lock.try_lock().is_ok()) {
            return Ok(Turn {
                _locks: locks.into_iter().skip(at).take(1).collect(),
            });
        }
        std::thread::sleep(TURN_POLL);
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
    // The emulated machine can lose a timer that fires once and then halts for good: a periodic one
    // wakes it again. Not where instructions are counted, since ticks would be counted too: there it is tried again.
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

/// Waits for the command's exit status, the lab's end, or the timeout.
fn wait(dir: &Path, qemu: &mut Process, options: &Options) -> Result<i32> {
    let timeout = options.timeout;
    let standstill = if options.icount {
        STANDSTILL_ICOUNT
    } else {
        STANDSTILL
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
        let now = script::beat(dir);
        if now.is_some() && now != beat {
            (beat, alive) = (now, Instant::now());
        }
        if alive.elapsed() > standstill {
            bail!(
                "the lab stood still for {} s\n{}",
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

/// The last lines of a log, for an error message.
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
