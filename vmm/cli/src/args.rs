//! The command line, and its conversion to a `VmConfig`: flags override the configuration file.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use splitring::config::{
    Bytes, DISK_KEYS, DiskConfig, MemoryConfig, NET_KEYS, NetConfig, OnReboot, SerialConfig,
    VmConfig,
};

use crate::devices::DeviceFlags;
use crate::exit::Failure;
use crate::help::keys;
use crate::keyvalue;

const EXIT_CODES: &str = "\
Exit codes of `splitring run`:
  0  the guest powered off          3  the guest requested a reboot (on-reboot=exit)
  1  failure (reason on stderr)     4  triple fault
  2  usage error                    5  stopped (Ctrl-A x, SIGTERM)";

/// The values of `--serial`, each with one line of help.
const SERIAL: &[(&str, &str)] = &[
    (
        "tty",
        "this terminal, or standard input and output [default]",
    ),
    (
        "file=PATH",
        "write output to a file, which is created or truncated",
    ),
    ("pty", "create a pseudo-terminal and print its path"),
    (
        "socket=PATH",
        "listen on a Unix socket: all clients read, the first one also writes",
    ),
    ("null", "a serial port that is not connected to anything"),
    ("off", "no serial port"),
    (
        "policy=drop",
        "after the target: drop the oldest output, and count it, while the target does not accept output; policy=wait \
         makes the guest wait instead [wait]",
    ),
];

/// Runs virtual machines.
#[derive(Debug, Parser)]
#[command(name = "splitring", version, about = "A KVM-based virtual machine monitor", after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Increase log verbosity: -v information, -vv debugging, -vvv every exit
    #[arg(short, long, global = true, display_order = 1000, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a virtual machine until it ends
    Run(Box<RunArgs>),
    /// Check what this host supports, and how to fix what is missing
    Check(CheckArgs),
    /// List a disk image's partitions, file systems and boot entries, and what it would boot
    Inspect(InspectArgs),
    /// Boot the embedded test guest, which exercises every device
    #[cfg(feature = "selftest")]
    Selftest(crate::selftest::SelftestArgs),
    /// Print a shell completion script
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A raw disk image or a block device; it is only read
    #[arg(value_name = "IMAGE")]
    pub(crate) image: PathBuf,
    /// Show what this entry would boot instead of the default: its id, title or number
    #[arg(long)]
    pub(crate) entry: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Configuration file to check, including the files that it names
    #[arg(value_name = "VM.toml")]
    pub(crate) file: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A switch that can be set either way, so that a flag can override a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reboot {
    Exit,
    Restart,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct RunArgs {
    /// Configuration file; it has the same keys as the flags, and flags override it
    #[arg(value_name = "VM.toml")]
    pub(crate) file: Option<PathBuf>,
    /// Kernel: ELF (vmlinux) or bzImage (vmlinuz)
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial ramdisk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line, added to the default one
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    #[arg(long, value_name = "SIZE[,KEY=VALUE…]", help = keys("Guest memory", MemoryConfig::KEYS))]
    memory: Option<OsString>,
    #[arg(long, value_name = "path=FILE[,KEY=VALUE…]", help = keys("Add a disk; may be repeated. A disk with the id of one in the file replaces it. Double a comma in a value, as in a,,b", DISK_KEYS))]
    disk: Vec<OsString>,
    #[arg(long, value_name = "tap=NAME|passt[,KEY=VALUE…]", help = keys("Add a network card; may be repeated. A card with the id of one in the file replaces it. Double a comma in a value, as in a,,b", NET_KEYS))]
    net: Vec<OsString>,
    /// Name of the machine; MAC addresses are derived from it
    #[arg(long)]
    name: Option<String>,
    /// Number of I/O threads that serve the devices' queues [default: 1]
    #[arg(long, value_name = "N", help_heading = "Tuning")]
    workers: Option<u16>,
    /// Longest time in microseconds that an idle I/O thread busy-polls before it sleeps; 0 disables
    /// polling [default: measured]
    #[arg(long, value_name = "N", help_heading = "Tuning")]
    poll_us: Option<u32>,
    /// Action on a reboot by the guest [default: exit]
    #[arg(long, value_name = "ACTION")]
    on_reboot: Option<Reboot>,
    #[arg(long, value_name = "TARGET[,policy=drop]", help = keys("Target of the serial port. Double a comma in a path, as in a,,b", SERIAL))]
    serial: Option<OsString>,
    /// Seconds to wait after SIGTERM until the guest powers off, before it is stopped; 0 stops it
    /// at once, as a second SIGTERM does
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub(crate) shutdown_timeout: u32,
    #[command(flatten)]
    devices: DeviceFlags,
    /// Also offer PCI configuration through ports 0xcf8 and 0xcfc, which is slower for guests that
    /// use it [default: off]
    #[arg(long, value_name = "SWITCH", help_heading = "Tuning")]
    pci_ports: Option<Switch>,
    /// Keep unpacked kernels in the user's cache directory [default: on]
    #[arg(long, value_name = "SWITCH")]
    kernel_cache: Option<Switch>,
    /// Print the resulting configuration in file format, and exit
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Print exit counts and the counters of disks, network cards and the balloon as JSON on
    /// standard error when the machine ends; latency_us is a histogram: the number of requests by
    /// upper bound in microseconds, in powers of two
    #[arg(long)]
    pub(crate) metrics: bool,
    /// Start even if KVM has no hardware virtualisation; stock kernels do not run then
    #[arg(long)]
    pub(crate) any_kvm: bool,
}

/// The keys of `--memory`. Each given key overrides that of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Memory {
    size: Option<Bytes>,
    shared: Option<bool>,
    hugepages: Option<bool>,
}

/// Reads a configuration file.
pub(crate) fn read_file(path: &Path) -> Result<VmConfig, Failure> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| anyhow!("cannot read the configuration {shown}: {error}"))?;
    VmConfig::from_toml(&text)
        .with_context(|| format!("the configuration {shown} is not valid"))
        .map_err(|error| Failure::Usage(one_line(&error)))
}

/// Formats an error of the TOML parser. Its messages end in a newline and show the line of the
/// file, which is indented below the first line.
fn one_line(error: &anyhow::Error) -> anyhow::Error {
    let cause = error.root_cause().to_string();
    anyhow!(cause.trim_end().replace('\n', "\n  ")).context(error.to_string())
}

impl RunArgs {
    /// Returns the configuration: the file, overridden by the flags.
    pub(crate) fn config(&self) -> Result<VmConfig, Failure> {
        let mut config = match &self.file {
            Some(path) => read_file(path)?,
            None => VmConfig::default(),
        };
        set(&mut config.kernel, self.kernel.clone().map(Some));
        set(&mut config.initrd, self.initrd.clone().map(Some));
        set(&mut config.cmdline, self.cmdline.clone().map(Some));
        set(&mut config.cpus, self.cpus);
        set(&mut config.name, self.name.clone().map(Some));
        set(&mut config.workers, self.workers);
        set(&mut config.poll_us, self.poll_us.map(Some));
        set(&mut config.pci_ports, self.pci_ports.map(is_on));
        set(&mut config.kernel_cache, self.kernel_cache.map(is_on));
        set(
            &mut config.on_reboot,
            self.on_reboot.map(|what| match what {
                Reboot::Exit => OnReboot::Exit,
                Reboot::Restart => OnReboot::Restart,
            }),
        );
        if let Some(text) = &self.serial {
            config.serial = SerialConfig::from_os_str(text)
                .map_err(|error| usage("--serial", text, &error.to_string()))?;
        }
        if let Some(text) = &self.memory {
            let flags: Memory = keyvalue::parse(text, Some("size"))
                .map_err(|error| usage("--memory", text, &error))?;
            set(&mut config.memory.size, flags.size);
            set(&mut config.memory.shared, flags.shared);
            set(&mut config.memory.hugepages, flags.hugepages);
        }
        for (device, text) in self.devices.given() {
            let value = keyvalue::parse_device(device.key, !device.keys.is_empty(), text)
                .map_err(|error| usage(&format!("--{}", device.key), text, &error))?;
            config.take_device(device.key, value);
        }
        for text in &self.disk {
            let (mut disk, path): (DiskConfig, _) =
                keyvalue::parse_with_path(text, Some("path"), Some("path"))
                    .map_err(|error| usage("--disk", text, &error))?;
            set(&mut disk.path, path.map(PathBuf::from));
            put(&mut config.disk, disk, |disk| disk.id.as_deref());
        }
        for text in &self.net {
            let (mut net, socket): (NetConfig, _) =
                keyvalue::parse_with_path(&passt_on(text), None, Some("socket"))
                    .map_err(|error| usage("--net", text, &error))?;
            set(&mut net.socket, socket.map(|path| Some(path.into())));
            put(&mut config.net, net, |net| net.id.as_deref());
        }
        Ok(config)
    }
}

/// Expands `--net passt,…` to `--net passt=on,…`.
fn passt_on(text: &OsStr) -> OsString {
    match text.as_bytes().strip_prefix(b"passt") {
        Some(rest) if rest.is_empty() || rest.starts_with(b",") => {
            OsString::from_vec([b"passt=on", rest].concat())
        }
        _ => text.to_owned(),
    }
}

/// Replaces the device with the same id, or else appends the device.
fn put<T>(devices: &mut Vec<T>, device: T, id: impl Fn(&T) -> Option<&str>) {
    match devices
        .iter_mut()
        .find(|known| id(known).is_some() && id(known) == id(&device))
    {
        Some(known) => *known = device,
        None => devices.push(device),
    }
}

fn set<T>(field: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *field = value;
    }
}

fn is_on(switch: Switch) -> bool {
    switch == Switch::On
}

fn usage(flag: &str, text: &OsStr, error: &str) -> Failure {
    let text = text.to_string_lossy();
    Failure::Usage(
        anyhow!("{error}; see `splitring run --help`")
            .context(format!("{flag} {text} is not valid")),
    )
}

#[cfg(test)]
mod tests;
