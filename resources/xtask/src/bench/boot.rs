//! `cargo xtask bench boot`: the cost of booting a stock kernel, against Debian's QEMU (q35).
//!
//! Plain runs measure from the program's start to the guest's first user-space line; work that a
//! VMM defers until its guest is idle is not included. Traced runs measure from exec to the first
//! entry into the guest, and count the exits until that line. Under the lab's instruction clock a
//! millisecond is a million instructions.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::boot_files::{BootFiles, GUEST_MIB};
use super::memory;
use super::stats::Sample;
use super::trace::{TracedBoot, Tracer};
use crate::assets::Cache;
use crate::guest::GuestKernel;
use crate::initramfs;
use crate::kernel::{Flavour, Kernel};
use crate::lab;
use crate::tools;
use crate::vmm;

const FIRST_LINE: &str = "initramfs: first line of user space";
/// The driver of the disk.
const MODULES: [&str; 1] = ["virtio_blk"];
/// Traced runs count exits, and the counts hardly differ between runs.
const TRACED_RUNS: usize = 2;
/// After this idle time a machine has done all deferred work: its kernel is in the cache.
const SETTLED: Duration = Duration::from_secs(5);
/// Time between the guest's first line and the second measurement of memory.
const LATER: Duration = Duration::from_secs(10);
/// It takes about two minutes on an idle machine.
const LIMIT: Duration = Duration::from_secs(1500);

/// Number of runs, and what to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Runs per program
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Measure this statically linked program instead of building one, for example an older one for
    /// comparison
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// The inner half: measure the binary at this path, without the lab
    #[arg(long, hide = true, value_name = "PATH", requires = "kernel")]
    splitring: Option<PathBuf>,
    /// The inner half: the same program, dynamically linked
    #[arg(long, hide = true, value_name = "PATH", requires = "kernel")]
    dynamic: Option<PathBuf>,
    /// The inner half: the directory with kernel and initramfs
    #[arg(long, hide = true, value_name = "DIR")]
    kernel: Option<PathBuf>,
}

/// Prepares and measures.
pub(crate) fn run(options: &Options, yes: bool) -> Result<()> {
    if let (Some(splitring), Some(dynamic), Some(kernel)) =
        (&options.splitring, &options.dynamic, &options.kernel)
    {
        let files = BootFiles::copy_all(splitring, dynamic, kernel)?;
        return measure(options.runs, &files);
    }
    tools::ensure(&[tools::QEMU], "the comparison", yes)?;
    let cache = Cache::open()?;
    let files = cache.scratch("bench-")?;
    prepare(&cache, files.path())?;
    let (splitring, dynamic) = match &options.program {
        Some(program) => (program.clone(), program.clone()),
        None => (vmm::build_static()?, vmm::build()?),
    };
    let lab = lab::Options {
        icount: true,
        timeout: LIMIT,
        yes,
        ..lab::Options::default()
    };
    let arguments: Vec<OsString> = vec![
        "bench".into(),
        "boot".into(),
        "--runs".into(),
        options.runs.to_string().into(),
        "--splitring".into(),
        splitring.into(),
        "--dynamic".into(),
        dynamic.into(),
        "--kernel".into(),
        files.path().into(),
    ];
    super::inside(&lab, &arguments)
}

/// Copies the kernel's files, and makes an initramfs with no more than these boots need: a larger
/// one costs every VMM the same.
fn prepare(cache: &Cache, into: &Path) -> Result<()> {
    let guest = GuestKernel::get(cache, Flavour::Cloud612)?;
    for name in ["vmlinux", "vmlinuz"] {
        symlink(guest.file(name), into.join(name)).context("cannot make a link")?;
    }
    let kernel = Kernel::get(cache, Flavour::Cloud612)?;
    let busybox = cache.package("busybox-static")?.join("bin/busybox");
    let archive = initramfs::build(&kernel, &busybox, &MODULES)?;
    fs::write(into.join("initramfs"), archive).context("cannot write the initramfs")
}

/// Results of the traced runs of one program.
#[derive(Debug, Default)]
struct Traced {
    first_entry_ms: Sample,
    user_exits: Sample,
    exits: Sample,
}

fn measure(runs: usize, files: &BootFiles) -> Result<()> {
    println!("to the guest's first user-space line, ms; medians of {runs} runs, range");
    let ours = whole("splitring", runs, &|| {
        files.splitring("vmlinux", "line", false)
    })?;
    let qemu = whole("QEMU q35", runs, &|| files.qemu("line", false))?;
    let first = vmlinuz("splitring, vmlinuz first time", runs, files, true)?;
    let again = vmlinuz("splitring, vmlinuz again", runs, files, false)?;
    println!("to the first entry, ms; exits until the first line; {TRACED_RUNS} traced runs");
    // The cache has the other kernel now, and the first trace of all waits until Linux has set up
    // tracing.
    warm(files.splitring("vmlinux", "line", false))?;
    trace(files.splitring("vmlinux", "line", false))?;
    let ours_trace = traced("splitring", &|| files.splitring("vmlinux", "line", false))?;
    let qemu_trace = traced("QEMU q35", &|| files.qemu("line", false))?;
    let ours_disk = traced("splitring, a disk", &|| {
        files.splitring("vmlinux", "line", true)
    })?;
    let qemu_disk = traced("QEMU q35, a disk", &|| files.qemu("line", true))?;
    println!(
        "own memory, without the guest's, with a disk: at the guest's first user-space line, and {} s later",
        LATER.as_secs()
    );
    let build = || files.splitring("vmlinux", "line", true);
    let own = own_memory("splitring, static", build())?;
    let dynamic = own_memory("splitring, dynamic", files.dynamic(build()))?;
    own_memory("QEMU q35", files.qemu("line", true))?;
    let peer = |ours: &Sample, theirs: &Sample| {
        let ratio = ours.median() / theirs.median();
        format!("{ours} to {theirs} = {ratio:.3}")
    };
    println!(
        "bench boot: splitring to QEMU: whole {}; first entry {}, a disk adds {:.2} ms; exits to user space {}, with a disk {}; \
         vmlinuz to vmlinux: first {}, again {}; own memory, static: {}; dynamic: {}",
        peer(&ours, &qemu),
        peer(&ours_trace.first_entry_ms, &qemu_trace.first_entry_ms),
        ours_disk.first_entry_ms.median() - ours_trace.first_entry_ms.median(),
        peer(&ours_trace.user_exits, &qemu_trace.user_exits),
        peer(&ours_disk.user_exits, &qemu_disk.user_exits),
        peer(&first, &ours),
        peer(&again, &ours),
        own,
        dynamic,
    );
    Ok(())
}

/// Boots `runs` times, after one boot that warms the caches.
fn whole(name: &str, runs: usize, build: &dyn Fn() -> Command) -> Result<Sample> {
    warm(build()).with_context(|| format!("{name} does not boot"))?;
    let mut sample = Sample::default();
    for _ in 0..runs {
        sample.add(time(build()).with_context(|| format!("{name} does not boot"))?);
    }
    println!("{name:<30} {sample}");
    Ok(sample)
}

/// Boots with the kernel's trace points enabled.
fn traced(name: &str, build: &dyn Fn() -> Command) -> Result<Traced> {
    let mut figures = Traced::default();
    for _ in 0..TRACED_RUNS {
        let boot = trace(build()).with_context(|| format!("{name} can't be traced"))?;
        figures.first_entry_ms.add(boot.first_entry_ms);
        figures.user_exits.add(boot.user_exits.into());
        figures.exits.add(boot.exits.into());
    }
    println!(
        "{name:<30} first entry {}; exits to user space {}, all {}",
        figures.first_entry_ms, figures.user_exits, figures.exits
    );
    Ok(figures)
}

/// Boots once with the trace points enabled.
fn trace(command: Command) -> Result<TracedBoot> {
    let program = PathBuf::from(command.get_program());
    let tracer = Tracer::start()?;
    let machine = RunningVmm::start(command, FIRST_LINE)?;
    tracer.mark()?;
    drop(machine);
    tracer.finish(&program)
}

/// Boots the compressed kernel, with or without the cache of an earlier boot.
fn vmlinuz(name: &str, runs: usize, files: &BootFiles, first: bool) -> Result<Sample> {
    let boot = || files.splitring("vmlinuz", "line", false);
    if !first {
        warm(boot())?;
    }
    let mut sample = Sample::default();
    for _ in 0..runs {
        if first {
            // There is no cache before the first boot.
            drop(fs::remove_dir_all(files.file("cache")));
        }
        sample.add(time(boot())?);
    }
    println!("{name:<30} {sample}");
    Ok(sample)
}

/// Boots, and waits until the VMM has done the work that it defers until the guest is idle.
fn warm(command: Command) -> Result<()> {
    let machine = RunningVmm::start(command, FIRST_LINE)?;
    std::thread::sleep(SETTLED);
    drop(machine);
    Ok(())
}

/// Returns the milliseconds from start to the first line.
fn time(command: Command) -> Result<f64> {
    let started = Instant::now();
    let machine = RunningVmm::start(command, FIRST_LINE)?;
    let took = started.elapsed();
    drop(machine);
    Ok(took.as_secs_f64() * 1000.0)
}

/// Measures memory at the first line and later. Returns the first.
fn own_memory(name: &str, command: Command) -> Result<memory::OwnMemory> {
    let machine = RunningVmm::start(command, FIRST_LINE)?;
    let measure = || memory::measure(machine.0.id(), GUEST_MIB << 20);
    let own = measure()?;
    std::thread::sleep(LATER);
    println!("{name:<30} {own}; later {}", measure()?);
    Ok(own)
}

/// A VMM whose guest has printed the line that was waited for. It is killed on drop.
#[derive(Debug)]
struct RunningVmm(Child);

impl RunningVmm {
    fn start(mut command: Command, line: &str) -> Result<Self> {
        // Its input stays open: some VMMs end at the end of their input.
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let mut machine = Self(child);
        let output = machine.0.stdout.take().context("no output to read")?;
        let mut reader = BufReader::new(output);
        let mut seen = Vec::new();
        loop {
            let before = seen.len();
            if reader
                .read_until(b'\n', &mut seen)
                .context("cannot read the console")?
                == 0
            {
                bail!("it ended early: {}", String::from_utf8_lossy(&seen).trim());
            }
            let text = String::from_utf8_lossy(seen.get(before..).unwrap_or_default());
            if text.contains(line) {
                // The console's other end stays open as long as the machine.
                machine.0.stdout = Some(reader.into_inner());
                return Ok(machine);
            }
        }
    }
}

impl Drop for RunningVmm {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
