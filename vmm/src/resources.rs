//! Everything a machine has that needs a path, a descriptor or a privilege, opened once.
//!
//! A machine is assembled from its configuration and this, and assembled again from the same after a
//! reboot: images stay locked, a TAP interface stays open, and the kernel is the one that was opened.
//! Nothing is opened afterwards, so the process can be confined in between.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use splitring_arch::kernel::{CachePolicy, Initrd, Kernel};
use splitring_devices::disk::config::Bus as DiskBus;
use splitring_devices::disk::{self, Disk, DiskError};
use splitring_devices::net::{self, NetBackend, NetConfigError};
use splitring_devices::scsi::{self, OpenController};

use crate::config::{ConfigError, VmConfig};
use crate::console::Console;
use crate::error::{AttachError, BuildError, Error};
use crate::kvm::Host;

/// The span of what is logged about a machine: its name, if it has one.
pub(crate) fn machine_span(config: &VmConfig) -> tracing::Span {
    match &config.name {
        Some(name) => tracing::error_span!("machine", name),
        None => tracing::Span::none(),
    }
}

/// An initial ramdisk, opened.
pub(crate) struct InitrdFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
}

/// What a machine is assembled from besides its configuration.
pub struct Resources {
    pub(crate) host: Host,
    pub(crate) kernel: Kernel,
    pub(crate) initrd: Option<InitrdFile>,
    /// Images of the virtio disks, by id.
    pub(crate) disks: Disks,
    /// The SCSI controllers with their images, by number.
    pub(crate) controllers: Vec<OpenController>,
    /// Backends of the network cards, by id.
    pub(crate) nets: BTreeMap<String, Arc<dyn NetBackend>>,
    pub(crate) console: Console,
    pub(crate) any_kvm: bool,
}

impl std::fmt::Debug for Resources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resources")
            .field("kernel", &self.kernel)
            .field("disks", &self.disks.keys())
            .field("nets", &self.nets.keys())
            .finish_non_exhaustive()
    }
}

impl Resources {
    /// Opens everything that `config` names.
    ///
    /// # Errors
    /// What cannot be opened or used, by name. Nothing stays open then.
    pub fn open(config: &VmConfig) -> Result<Self, Error> {
        Self::options().open(config)
    }

    /// Returns options to hand over what is open already.
    #[must_use]
    pub fn options() -> ResourceOptions {
        ResourceOptions::default()
    }
}

/// What a network card's frames go through, handed over by the embedder.
enum NetSource {
    Descriptors(Vec<OwnedFd>),
    Backend(Arc<dyn NetBackend>),
}

/// What a disk is served from, handed over by the embedder.
enum DiskSource {
    Descriptor(OwnedFd),
    Disk(Arc<dyn Disk>),
}

/// Resources that the embedder hands over instead of paths and names in the configuration.
///
/// Devices are meant by their ids: those given in the configuration, or else `disk0`, `net0` and so on
/// by their order.
#[derive(Default)]
pub struct ResourceOptions {
    kvm: Option<OwnedFd>,
    kernel: Option<File>,
    initrd: Option<File>,
    disks: BTreeMap<String, DiskSource>,
    nets: BTreeMap<String, NetSource>,
    vhosts: BTreeMap<String, Vec<OwnedFd>>,
    console: Option<Console>,
    kernel_cache: Option<PathBuf>,
    any_kvm: bool,
}

impl std::fmt::Debug for ResourceOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResourceOptions")
            .field("kvm", &self.kvm)
            .field("kernel", &self.kernel)
            .field("initrd", &self.initrd)
            .field("disks", &self.disks.keys())
            .field("nets", &self.nets.keys())
            .field("vhosts", &self.vhosts.keys())
            .field("kernel_cache", &self.kernel_cache)
            .field("any_kvm", &self.any_kvm)
            .finish_non_exhaustive()
    }
}

impl ResourceOptions {
    /// Uses this descriptor of `/dev/kvm`.
    #[must_use]
    pub fn kvm(mut self, kvm: impl Into<OwnedFd>) -> Self {
        self.kvm = Some(kvm.into());
        self
    }

    /// Boots the kernel in this file; the path in the configuration, if any, is used in messages only.
    #[must_use]
    pub fn kernel(mut self, kernel: impl Into<OwnedFd>) -> Self {
        self.kernel = Some(kernel.into().into());
        self
    }

    /// Loads the initial ramdisk in this file, as [`kernel`](Self::kernel).
    #[must_use]
    pub fn initrd(mut self, initrd: impl Into<OwnedFd>) -> Self {
        self.initrd = Some(initrd.into().into());
        self
    }

    /// Serves the disk `id` from `disk`, which the embedder implements or has opened. The
    /// configuration says everything else about it; its path is a name only.
    #[must_use]
    pub fn disk(mut self, id: &str, disk: Arc<dyn Disk>) -> Self {
        self.disks.insert(id.to_owned(), DiskSource::Disk(disk));
        self
    }

    /// Uses this raw image for the disk `id`, opened as the configuration says: for writing unless
    /// `readonly`, with O_DIRECT if `direct`. The path in the configuration is a name only.
    #[must_use]
    pub fn disk_fd(mut self, id: &str, image: impl Into<OwnedFd>) -> Self {
        let source = DiskSource::Descriptor(image.into());
        self.disks.insert(id.to_owned(), source);
        self
    }

    /// Connects the network card `id` through these descriptors: TAP queues, one per queue pair, or with
    /// `passt` one connected stream socket.
    #[must_use]
    pub fn net_fds(mut self, id: &str, descriptors: Vec<OwnedFd>) -> Self {
        let source = NetSource::Descriptors(descriptors);
        self.nets.insert(id.to_owned(), source);
        self
    }

    /// Uses these descriptors of `/dev/vhost-net`, one per queue pair, for the network card `id`, whose configuration has
    /// `vhost` on. Nobody else may use them. Without them the device is opened.
    #[must_use]
    pub fn vhost_fds(mut self, id: &str, descriptors: Vec<OwnedFd>) -> Self {
        self.vhosts.insert(id.to_owned(), descriptors);
        self
    }

    /// Connects the network card `id` to a backend that the embedder implements.
    #[must_use]
    pub fn net(mut self, id: &str, backend: Arc<dyn NetBackend>) -> Self {
        self.nets.insert(id.to_owned(), NetSource::Backend(backend));
        self
    }

    /// Connects the serial port to this console. Without one, output is discarded.
    #[must_use]
    pub fn console(mut self, console: Console) -> Self {
        self.console = Some(console);
        self
    }

    /// Keeps unpacked kernels in this directory, if the configuration's `kernel-cache` is on. Without a
    /// directory nothing is kept.
    #[must_use]
    pub fn kernel_cache(mut self, directory: impl Into<PathBuf>) -> Self {
        self.kernel_cache = Some(directory.into());
        self
    }

    /// Starts machines even where KVM has no hardware virtualisation, which stock kernels do not survive.
    #[must_use]
    pub fn any_kvm(mut self, allowed: bool) -> Self {
        self.any_kvm = allowed;
        self
    }

    /// Opens everything that `config` names and that was not handed over.
    ///
    /// # Errors
    /// What cannot be opened or used, by name; or something was handed over for a device that `config`
    /// does not have. Nothing stays open then.
    pub fn open(self, config: &VmConfig) -> Result<Resources, Error> {
        Ok(self.open_all(config)?)
    }

    fn open_all(mut self, config: &VmConfig) -> Result<Resources, BuildError> {
        if self.kernel.is_none() && config.kernel.is_none() {
            return Err(ConfigError::NoKernel.into());
        }
        let span = machine_span(config);
        let _in_span = span.enter();
        config.validate_for(&|id| self.nets.contains_key(id))?;
        let host = match self.kvm.take() {
            Some(kvm) => Host::from_fd(kvm)?,
            None => Host::open()?,
        };
        let kernel = self.open_kernel(config)?;
        let initrd = self.open_initrd(config)?;
        let mut given = self.take_disks(config)?;
        let disks = open_disks(config, &mut given)?;
        let controllers = open_controllers(config, &mut given)?;
        let nets = self.open_nets(config)?;
        let console = self.console.unwrap_or_else(Console::null);
        console.log_within(&span);
        Ok(Resources {
            host,
            kernel,
            initrd,
            disks,
            controllers,
            nets,
            console,
            any_kvm: self.any_kvm,
        })
    }

    fn open_kernel(&mut self, config: &VmConfig) -> Result<Kernel, BuildError> {
        let cache = match self.kernel_cache.take() {
            Some(directory) if config.kernel_cache => CachePolicy::Directory(directory),
            _ => CachePolicy::Off,
        };
        let path = config.kernel.as_deref().unwrap_or(Path::new("the kernel"));
        Ok(match self.kernel.take() {
            Some(file) => Kernel::from_file(file, path, &cache)?,
            None => Kernel::open(path, &cache)?,
        })
    }

    fn open_initrd(&mut self, config: &VmConfig) -> Result<Option<InitrdFile>, BuildError> {
        let path = config.initrd.clone();
        Ok(match (self.initrd.take(), path) {
            (Some(file), path) => Some(InitrdFile {
                path: path.unwrap_or_else(|| "the initrd".into()),
                file,
            }),
            (None, Some(path)) => Some(InitrdFile {
                file: Initrd::open(&path)?,
                path,
            }),
            (None, None) => None,
        })
    }

    /// The disks that were handed over, as disks.
    fn take_disks(&mut self, config: &VmConfig) -> Result<Disks, BuildError> {
        let mut given = std::mem::take(&mut self.disks);
        let mut disks = BTreeMap::new();
        for (id, disk) in config.disks() {
            let opened = match given.remove(&id) {
                None => continue,
                Some(DiskSource::Disk(own)) => own,
                Some(DiskSource::Descriptor(fd)) => {
                    // A disk without limits takes a seat in its SCSI controller's rings.
                    let queues = if disk.bus == DiskBus::Scsi {
                        0
                    } else {
                        disk.queue_count()
                    };
                    disk::open_file(fd.into(), disk, queues).map_err(in_disk(&id))?
                }
            };
            disks.insert(id, opened);
        }
        match given.pop_first() {
            None => Ok(disks),
            Some((id, _)) => Err(BuildError::NotInConfig { id, what: "a disk" }),
        }
    }

    fn open_nets(
        &mut self,
        config: &VmConfig,
    ) -> Result<BTreeMap<String, Arc<dyn NetBackend>>, BuildError> {
        let mut nets = BTreeMap::new();
        for (id, net) in config.nets() {
            let failed = |error| AttachError::Net {
                id: id.clone(),
                error,
            };
            let vhost = match self.vhosts.remove(&id) {
                Some(_) if !net.vhost => {
                    let what = "a vhost-net descriptor";
                    return Err(BuildError::NotInConfig { id, what });
                }
                given => given.unwrap_or_default(),
            };
            let backend = match self.nets.remove(&id) {
                Some(NetSource::Backend(backend)) if net.vhost && backend.vhost().is_none() => {
                    let own = NetConfigError::Vhost("a backend of the embedder's");
                    return Err(failed(own.into()).into());
                }
                Some(NetSource::Backend(backend)) => backend,
                Some(NetSource::Descriptors(fds)) => {
                    net::from_fds(net, fds, vhost).map_err(failed)?
                }
                None => net::open(net, vhost).map_err(failed)?,
            };
            nets.insert(id, backend);
        }
        let backend = std::mem::take(&mut self.nets).pop_first();
        let vhost = std::mem::take(&mut self.vhosts).pop_first();
        let backend = backend.map(|(id, _)| (id, "a network backend"));
        let vhost = vhost.map(|(id, _)| (id, "a vhost-net descriptor"));
        match backend.or(vhost) {
            None => Ok(nets),
            Some((id, what)) => Err(BuildError::NotInConfig { id, what }),
        }
    }
}

type Disks = BTreeMap<String, Arc<dyn Disk>>;

/// The image of every virtio disk: one of `given`, or opened.
fn open_disks(config: &VmConfig, given: &mut Disks) -> Result<Disks, BuildError> {
    let mut disks = BTreeMap::new();
    for (id, disk) in config.virtio_disks() {
        let opened = match given.remove(&id) {
            Some(given) => given,
            None => disk::open(disk).map_err(in_disk(&id))?,
        };
        disks.insert(id, opened);
    }
    Ok(disks)
}

fn open_controllers(
    config: &VmConfig,
    given: &mut Disks,
) -> Result<Vec<OpenController>, BuildError> {
    let machine = config.name.as_deref().unwrap_or_default();
    let opened = scsi::open_controllers(machine, config.disks(), given);
    Ok(opened.map_err(AttachError::from)?)
}

fn in_disk(id: &str) -> impl FnOnce(DiskError) -> BuildError {
    let id = id.to_owned();
    move |error| AttachError::Disk { id, error }.into()
}

/// Opens the files that `config` names as a start would, all of them at once, and closes them again.
/// Works without KVM, too. Network backends are left alone: opening them has effects.
///
/// # Errors
/// The first that cannot be used, by name.
pub fn check_files(config: &VmConfig) -> Result<(), Error> {
    check_all(config)?;
    Ok(())
}

fn check_all(config: &VmConfig) -> Result<(), BuildError> {
    use splitring_arch::layout::Layout;
    config.validate()?;
    let supported = Host::open().and_then(|host| host.supported_cpuid()).ok();
    let leaves = supported
        .as_ref()
        .map_or(&[][..], kvm_bindings::CpuId::as_slice);
    let bits = splitring_arch::cpuid::physical_bits(leaves);
    let layout = Layout::new(config.memory.size.0, bits)?;
    let mut options = ResourceOptions::default();
    let kernel = options.open_kernel(config)?;
    kernel.check_fits(&layout)?;
    if let Some(InitrdFile { path, file }) = options.open_initrd(config)? {
        Initrd::place(file, &path, &layout, &kernel)?;
    }
    let disks = open_disks(config, &mut BTreeMap::new());
    let controllers = open_controllers(config, &mut BTreeMap::new());
    disks?;
    controllers?;
    Ok(())
}
