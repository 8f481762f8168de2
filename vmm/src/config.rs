//! What a virtual machine is made of: one set of serde types behind flags, the TOML file, the API and code that builds a `VmConfig` by hand.
//!
//! `VmConfig` is as typed; `validate` judges what can be judged without opening anything. A device's own keys live beside the device.
//!
//! Each configuration is made by a constructor and changed by chained setters, or field by field:
//!
//! ```
//! use splitring::VmConfig;
//! use splitring::config::{Bytes, Cache, DiskConfig, NetConfig};
//!
//! let config = VmConfig::new("vmlinuz")
//!     .cpus(2)
//!     .memory(Bytes::gib(1))
//!     .disk(DiskConfig::new("root.img").cache(Cache::Writethrough))
//!     .net(NetConfig::tap("tap0").mtu(1500));
//! assert_eq!(VmConfig::from_toml(&config.to_toml()?)?, config);
//! # Ok::<(), splitring::config::ConfigError>(())
//! ```

mod devices;
mod serial;
mod text;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
pub use splitring_devices::balloon::{BalloonConfig, InvalidBalloon};
pub use splitring_devices::bytes::{Bytes, InvalidValue};
pub use splitring_devices::disk::config::{
    Aio, Bus, Cache, DISK_KEYS, DiskConfig, Format, InvalidDisk, Media, Wwn,
};
use splitring_devices::kind::ErrorKind;
pub use splitring_devices::net::{MacAddress, NET_KEYS, NetConfig, NetConfigError};

use crate::registry::devices;

pub use devices::DeviceKey;
pub(crate) use devices::DeviceValue;
use devices::with_devices;
pub use serial::{SerialConfig, SerialConfigError, SerialPolicy, SerialTarget};

/// The most vCPUs a machine may have.
pub const MAX_CPUS: u32 = splitring_arch::cpuid::MAX_VCPUS;
/// The most device threads.
const MAX_WORKERS: u16 = 64;
/// The longest a worker may look for more work: a stretch of a CPU nobody else misses yet.
const MAX_POLL_US: u32 = 1000;
/// The least memory a Linux kernel and its tables fit in.
const MIN_MEMORY: u64 = splitring_arch::layout::MIN_MEMORY;
/// Guest memory ends below the 46-bit address space every x86-64 processor has, with room for 64-bit windows above.
const MAX_MEMORY: u64 = 1 << 45;

/// `memory`: how much, and on what pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct MemoryConfig {
    /// Bytes of guest memory; a multiple of 4096.
    pub size: Bytes,
    /// Backed by a file descriptor that other processes can be given:
    /// [`Machine::shared_memory`](crate::Machine::shared_memory).
    pub shared: bool,
    /// Backed by reserved 2 MiB pages.
    pub hugepages: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: Bytes(512 << 20),
            shared: false,
            hugepages: false,
        }
    }
}

impl From<Bytes> for MemoryConfig {
    fn from(size: Bytes) -> Self {
        Self::new(size)
    }
}

impl MemoryConfig {
    /// This much memory, private to the process and on ordinary pages.
    #[must_use]
    pub fn new(size: Bytes) -> Self {
        Self {
            size,
            ..Self::default()
        }
    }

    splitring_devices::setters! {
        size: Bytes;
        shared: bool;
        hugepages: bool;
    }

    /// The keys with a line of help each.
    pub const KEYS: &[(&str, &str)] = &[
        (
            "size",
            "bytes of guest memory, as 512M or 6G; the key itself may be left out [512M]",
        ),
        (
            "shared",
            "on or off: memory that the library can hand to other processes [off]",
        ),
        ("hugepages", "on or off: on reserved 2 MiB pages [off]"),
    ];
}

/// What happens when the guest asks for a reboot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnReboot {
    /// The machine ends.
    #[default]
    Exit,
    /// A new machine is built from the same configuration.
    Restart,
}

devices! { with_devices! {
/// A virtual machine, as typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct VmConfig {
    /// The machine's name; what is derived from it (network addresses) is the same at every start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String> = None,
    /// ELF or bzImage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf> = None,
    /// Initial ramdisk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf> = None,
    /// Words for the kernel command line. Default words, which tell Linux what the ACPI tables cannot, stand before
    /// them: `console=`, `panic=`, `reboot=`, `8250.nr_uarts=` and `pci=`. A default gives way to a word with its key;
    /// none can only be left out, and guests other than Linux get them too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String> = None,
    /// Number of vCPUs.
    pub cpus: u32 = 1,
    /// What a reboot does.
    pub on_reboot: OnReboot = OnReboot::default(),
    /// The serial port COM1.
    pub serial: SerialConfig = SerialConfig::default(),
    /// Configuration ports 0xcf8 and 0xcfc. Off: a guest that finds them uses them, an exit each, where the memory-mapped way needs none.
    pub pci_ports: bool = false,
    /// Keep unpacked kernels in the directory that the embedder names
    /// ([`ResourceOptions::kernel_cache`](crate::ResourceOptions::kernel_cache)); the command line names the user's
    /// cache directory. Without a directory nothing is kept.
    pub kernel_cache: bool = true,
    /// Threads that the devices' queues are spread over.
    pub workers: u16 = 1,
    /// Microseconds a worker looks for more work before it sleeps, while that pays. 0 is never; without it, it is what
    /// eight round trips between two threads take on this machine, or 200 with one processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_us: Option<u32> = None,
    /// Guest memory.
    pub memory: MemoryConfig = MemoryConfig::default(),
    /// Disks, in the order the guest finds them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<DiskConfig> = Vec::new(),
    /// Network cards.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetConfig> = Vec::new(),
}
}}

/// A configuration that can't become a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is no configuration: not TOML or JSON, an unknown key, a value of another type.
    #[error("{0}")]
    Text(String),
    /// A value that the text cannot hold, such as a path that is not UTF-8.
    #[error("the configuration cannot be written as text: {0}")]
    NotText(String),
    /// Nothing to run.
    #[error("no kernel is given: name one with --kernel, or `kernel` in the file")]
    NoKernel,
    /// Not a number of vCPUs.
    #[error("cpus: {0} is not possible; give 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// Not an amount of memory.
    #[error("memory: {size} {problem}")]
    Memory {
        /// As typed.
        size: Bytes,
        /// What is wrong and what would be right.
        problem: &'static str,
    },
    /// Two devices of one name.
    #[error("two devices have the id `{0}`: give each its own id=")]
    DuplicateId(String),
    /// A disk's keys.
    #[error("{id}: {error}")]
    Disk {
        /// Its name, given or by number.
        id: String,
        /// What is wrong with it.
        error: InvalidDisk,
    },
    /// A network card's keys.
    #[error("{id}: {error}")]
    Net {
        /// Its name, given or by number.
        id: String,
        /// What is wrong with it.
        error: NetConfigError,
    },
    /// The keys of one of [`VmConfig::DEVICES`].
    #[error("{id}: {problem}")]
    Device {
        /// Its key.
        id: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Not a number of device threads.
    #[error("workers: {0} is not possible; give 1 to {MAX_WORKERS}")]
    Workers(u16),
    /// Not a time to look for work.
    #[error("poll-us: {0} is not possible; give 0 (never) to {MAX_POLL_US} microseconds")]
    Poll(u32),
}

impl ConfigError {
    /// Returns [`ErrorKind::Config`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Config
    }
}

impl VmConfig {
    /// A machine that boots `kernel`, an ELF image or a bzImage, with one vCPU, 512 MiB of memory, a serial port and a
    /// random number generator. A machine whose kernel is handed over begins with [`VmConfig::default`].
    #[must_use]
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: Some(kernel.into()),
            ..Self::default()
        }
    }

    splitring_devices::setters! {
        name: some into String;
        kernel: some into PathBuf;
        initrd: some into PathBuf;
        cmdline: some into String;
        cpus: u32;
        on_reboot: OnReboot;
        serial: into SerialConfig;
        pci_ports: bool;
        kernel_cache: bool;
        workers: u16;
        poll_us: some u32;
        memory: into MemoryConfig;
    }

    /// Adds a disk to [`disk`](Self#structfield.disk).
    #[must_use]
    pub fn disk(mut self, disk: DiskConfig) -> Self {
        self.disk.push(disk);
        self
    }

    /// Adds a network card to [`net`](Self#structfield.net).
    #[must_use]
    pub fn net(mut self, net: NetConfig) -> Self {
        self.net.push(net);
        self
    }

    /// Judges everything that can be judged without opening a file.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.kernel.is_none() {
            return Err(ConfigError::NoKernel);
        }
        self.validate_for(&|_| false)
    }

    /// As [`validate`](Self::validate) for a kernel, if it is handed over, and for network cards of the
    /// ids for which `handed_over` is true: those need no key that names a backend.
    pub(crate) fn validate_for(
        &self,
        handed_over: &dyn Fn(&str) -> bool,
    ) -> Result<(), ConfigError> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus(self.cpus));
        }
        self.memory.validate()?;
        for (id, disk) in self.disks() {
            disk.validate()
                .map_err(|error| ConfigError::Disk { id, error })?;
        }
        for (id, net) in self.nets() {
            let valid = if handed_over(&id) {
                net.validate_card()
            } else {
                net.validate()
            };
            valid.map_err(|error| ConfigError::Net { id, error })?;
        }
        self.validate_devices()?;
        if !(1..=MAX_WORKERS).contains(&self.workers) {
            return Err(ConfigError::Workers(self.workers));
        }
        if let Some(us) = self.poll_us.filter(|us| *us > MAX_POLL_US) {
            return Err(ConfigError::Poll(us));
        }
        self.distinct_ids()
    }

    /// Every disk with its name: the given one, or `disk` and its number.
    pub fn disks(&self) -> impl Iterator<Item = (String, &DiskConfig)> {
        self.disk.iter().enumerate().map(|(number, disk)| {
            (
                disk.id.clone().unwrap_or_else(|| format!("disk{number}")),
                disk,
            )
        })
    }

    /// Every disk on the virtio-blk bus with its name.
    pub(crate) fn virtio_disks(&self) -> impl Iterator<Item = (String, &DiskConfig)> {
        self.disks().filter(|(_, disk)| disk.bus == Bus::Virtio)
    }

    /// Every network card with its name: the given one, or `net` and its number.
    pub fn nets(&self) -> impl Iterator<Item = (String, &NetConfig)> {
        self.net.iter().enumerate().map(|(number, net)| {
            (
                net.id.clone().unwrap_or_else(|| format!("net{number}")),
                net,
            )
        })
    }

    fn distinct_ids(&self) -> Result<(), ConfigError> {
        let mut known: Vec<_> = self.device_ids().map(str::to_owned).collect();
        let ids = self
            .disks()
            .map(|(id, _)| id)
            .chain(self.nets().map(|(id, _)| id));
        for id in ids {
            if known.contains(&id) {
                return Err(ConfigError::DuplicateId(id));
            }
            known.push(id);
        }
        Ok(())
    }
}

impl MemoryConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let size = self.size;
        let problem = match size.0 {
            0..MIN_MEMORY => "is too little for a kernel; give at least 16M",
            bytes if !bytes.is_multiple_of(4096) => "is not a multiple of 4096 bytes",
            bytes if bytes > MAX_MEMORY => "is more than a guest can address; the most is 32T",
            bytes if self.hugepages && !bytes.is_multiple_of(2 << 20) => {
                "is not a multiple of the huge page size 2M"
            }
            _ => return Ok(()),
        };
        Err(ConfigError::Memory { size, problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> VmConfig {
        VmConfig {
            kernel: Some("/k".into()),
            ..VmConfig::default()
        }
    }

    #[test]
    fn impossible_machines_are_refused() {
        assert_eq!(valid().validate(), Ok(()));
        assert_eq!(VmConfig::default().validate(), Err(ConfigError::NoKernel));
        for cpus in [0, MAX_CPUS + 1, u32::MAX] {
            assert_eq!(
                VmConfig { cpus, ..valid() }.validate(),
                Err(ConfigError::Cpus(cpus))
            );
        }
        for size in [0, 4096, (64 << 20) + 1, u64::MAX - 4095] {
            let memory = MemoryConfig {
                size: Bytes(size),
                ..Default::default()
            };
            let refused = VmConfig { memory, ..valid() }.validate();
            assert!(matches!(refused, Err(ConfigError::Memory { .. })), "{size}");
        }
    }

    #[test]
    fn a_balloon_that_the_machine_cannot_fill_is_refused_by_name() {
        let refused = |memory: MemoryConfig, size| {
            let balloon = BalloonConfig::new().size(size);
            let config = valid().memory(memory).balloon(balloon);
            config.validate().expect_err("impossible").to_string()
        };
        let memory = || MemoryConfig::new(Bytes::mib(64));
        assert_eq!(
            refused(memory(), Bytes::mib(65)),
            "balloon: size: 65M is more than the guest's memory; the most is 64M"
        );
        assert_eq!(
            refused(memory(), Bytes(4097)),
            "balloon: size: 4097 is not a multiple of 4096 bytes"
        );
        let huge = refused(memory().hugepages(true), Bytes(0));
        assert!(huge.contains("leave out hugepages=on"), "{huge}");
        let taken = valid()
            .balloon(BalloonConfig::new())
            .disk(DiskConfig::new("/d").id("balloon"));
        assert!(matches!(taken.validate(), Err(ConfigError::DuplicateId(_))));
    }
}
