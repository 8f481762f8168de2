//! `cargo xtask bench boot`: what it costs to boot a stock kernel, against Debian's QEMU (q35).
//!
//! The whole, in plain runs: from the program's start to the guest's first user-space line. In traced
//! runs: from exec to the first entry into the guest, and the exits until that line. Under the lab's
//! instruction clock a millisecond is a million instructions.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::memory;
use super::stats::Sample;
use super::trace::Tracer;
use crate::assets::Cache;
use crate::guest::GuestKernel;
use crate::kernel::Flavour;
use crate::lab;
use crate::tools;
use crate::vmm;

const FIRST_LINE: &str = "initramfs: first line of user space";
const READY: &str = "@@ ready";
const CMDLINE: &str = "console=ttyS0 quiet";
const GUEST_MIB: u64 = 256;
const DISK_BYTES: u64 = 64 << 20;
/// Traced runs count, and counts hardly differ from run to run.
const TRACED_RUNS: usize = 2;
const LIMIT: Duration = Duration::from_secs(1800);

/// How long and how often.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Runs of each subject
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// The inner half: measure the binary at this path, here and now
    #[arg(long, hide = true, value_name = "PATH", requires = "kernel")]
    splitring: Option<PathBuf>,
    /// The inner half: the kernel's directory
    #[arg(long, hide = true, value_name = "DIR")]
    kernel: Option<PathBuf>,
}

/// Prepares and measures.
pub(crate) fn run(options: &Options, yes: bool) -> Result<()> {
    if let (Some(splitring), Some(kernel)) = (&options.splitring, &options.kernel) {
        return measure(options.runs, splitring, kernel);
    }
    tools::ensure(&[tools::QEMU], "the comparison", yes)?;
    let kernel = GuestKernel::get(&Cache::open()?, Flavour::Cloud612)?;
    let splitring = vmm::build_static()?;
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
        "--kernel".into(),
        kernel.dir().into(),
    ];
    super::inside(&lab, &arguments)
}

/// Where everything a boot reads lies: in memory, so that only the VMMs differ.
#[derive(Debug)]
struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    fn set_up(splitring: &Path, kernel: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in("/dev/shm")
            .context("cannot make a directory in memory")?;
        let stage = Self { dir };
        for name in ["vmlinux", "vmlinuz", "initramfs"] {
            fs::copy(kernel.join(name), stage.file(name))
                .with_context(|| format!("cannot copy {name}"))?;
        }
        fs::copy(splitring, stage.file("splitring")).context("cannot copy splitring")?;
        let disk = fs::File::create(stage.file("disk")).context("cannot make a disk")?;
        disk.set_len(DISK_BYTES).context("cannot make a disk")?;
        Ok(stage)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    /// Splitring on `kernel`, one vCPU.
    fn splitring(&self, kernel: &str, session: &str, disk: bool) -> Command {
        let mut command = Command::new(self.file("splitring"));
        command
            .args(["run", "--rng", "off", "--memory", &format!("{GUEST_MIB}M")])
            .args([
                "--kernel",
                &self.path(kernel),
                "--initrd",
                &self.path("initramfs"),
            ])
            .args(["--cmdline", &format!("{CMDLINE} session={session}")])
            .env("XDG_CACHE_HOME", self.file("cache"));
        if disk {
            command.args(["--disk", &format!("path={}", self.path("disk"))]);
        }
        command
    }

    /// Debian's QEMU on the extracted kernel, as lean as its q35 gets by options alone.
    fn qemu(&self, session: &str, disk: bool) -> Command {
        let mut command = Command::new("/usr/bin/qemu-system-x86_64");
        command
            .args([
                "-M",
                "q35",
                "-accel",
                "kvm",
                "-cpu",
                "host",
                "-m",
                &GUEST_MIB.to_string(),
            ])
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-no-reboot",
                "-serial",
                "stdio",
            ])
            .args([
                "-kernel",
                &self.path("vmlinux"),
                "-initrd",
                &self.path("initramfs"),
            ])
            .args(["-append", &format!("{CMDLINE} session={session}")]);
        if disk {
            command
                .args([
                    "-drive",
                    &format!("file={},format=raw,if=none,id=d", self.path("disk")),
                ])
                .args(["-device", "virtio-blk-pci,drive=d,disable-legacy=on"]);
        }
        command
    }
}

/// What is measured of one subject.
#[derive(Debug, Default)]
struct Figures {
    whole_ms: Sample,
    first_entry_ms: Sample,
    user_exits: Sample,
    exits: Sample,
}

fn measure(runs: usize, splitring: &Path, kernel: &Path) -> Result<()> {
    let stage = Stage::set_up(splitring, kernel)?;
    println!("to the guest's first user-space line, ms; medians of {runs} runs, range");
    let figures = |name: &str, build: &dyn Fn() -> Command| -> Result<Figures> {
        let figures = subject(runs, build).with_context(|| format!("{name} does not boot"))?;
        println!(
            "{name:<24} whole {}; to first entry {}; exits to user space {}; all exits {}",
            figures.whole_ms, figures.first_entry_ms, figures.user_exits, figures.exits
        );
        Ok(figures)
    };
    let ours = figures("splitring", &|| stage.splitring("vmlinux", "line", false))?;
    let ours_disk = figures("splitring, a disk", &|| {
        stage.splitring("vmlinux", "line", true)
    })?;
    let qemu = figures("QEMU q35", &|| stage.qemu("line", false))?;
    let qemu_disk = figures("QEMU q35, a disk", &|| stage.qemu("line", true))?;
    let first = vmlinuz(runs, &stage, true)?;
    println!("{:<24} whole {first}", "vmlinuz, first time");
    let again = vmlinuz(runs, &stage, false)?;
    println!("{:<24} whole {again}", "vmlinuz, again");
    let own = own_memory(stage.splitring("vmlinux", "typed", true))?;
    let theirs = own_memory(stage.qemu("typed", true))?;
    for (name, own) in [("splitring, a disk", own), ("QEMU q35, a disk", theirs)] {
        println!(
            "{name:<24} own resident memory {} KiB, {} threads",
            own.resident_kib, own.threads
        );
    }
    let ratio = |ours: &Sample, theirs: &Sample| ours.median() / theirs.median();
    println!(
        "bench boot: to QEMU's: whole {:.3}, with a disk {:.3}; first entry {:.3}; exits to user space \
         {:.4}, with a disk {:.4}; vmlinuz to vmlinux: first {:.3}, again {:.3}; own memory {} KiB",
        ratio(&ours.whole_ms, &qemu.whole_ms),
        ratio(&ours_disk.whole_ms, &qemu_disk.whole_ms),
        ratio(&ours.first_entry_ms, &qemu.first_entry_ms),
        ratio(&ours.user_exits, &qemu.user_exits),
        ratio(&ours_disk.user_exits, &qemu_disk.user_exits),
        ratio(&first, &ours.whole_ms),
        ratio(&again, &ours.whole_ms),
        own.resident_kib,
    );
    Ok(())
}

/// Boots `runs` times plainly and a few times traced; the first boot of all only warms caches.
fn subject(runs: usize, build: &dyn Fn() -> Command) -> Result<Figures> {
    let mut figures = Figures::default();
    time(build())?;
    for _ in 0..runs {
        figures.whole_ms.add(time(build())?);
    }
    for _ in 0..TRACED_RUNS {
        let command = build();
        let program = PathBuf::from(command.get_program());
        let tracer = Tracer::start()?;
        let machine = Machine::start(command, FIRST_LINE)?;
        tracer.mark()?;
        drop(machine);
        let boot = tracer.finish(&program)?;
        figures.first_entry_ms.add(boot.first_entry_ms);
        figures.user_exits.add(boot.user_exits.into());
        figures.exits.add(boot.exits.into());
    }
    Ok(figures)
}

/// The compressed kernel, with or without what an earlier boot left in the cache.
fn vmlinuz(runs: usize, stage: &Stage, first: bool) -> Result<Sample> {
    let mut sample = Sample::default();
    for _ in 0..runs {
        if first {
            // There is none before the first boot.
            drop(fs::remove_dir_all(stage.file("cache")));
        }
        sample.add(time(stage.splitring("vmlinuz", "line", false))?);
    }
    Ok(sample)
}

/// Milliseconds from start to the first line.
fn time(command: Command) -> Result<f64> {
    let started = Instant::now();
    let machine = Machine::start(command, FIRST_LINE)?;
    let took = started.elapsed();
    drop(machine);
    Ok(took.as_secs_f64() * 1000.0)
}

fn own_memory(command: Command) -> Result<memory::Own> {
    let machine = Machine::start(command, READY)?;
    memory::measure(machine.0.id(), GUEST_MIB << 20)
}

/// A VMM whose guest has printed what was waited for; killed on drop.
#[derive(Debug)]
struct Machine(Child);

impl Machine {
    fn start(mut command: Command, line: &str) -> Result<Self> {
        // Its input stays open: a VMM may take the end of input as a reason to end.
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

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
