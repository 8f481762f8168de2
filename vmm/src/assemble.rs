//! From configuration and resources to machine, in the order of a boot: address map, memory, kernel,
//! interrupt controllers, devices, tables, processors.
//!
//! The one place that knows everybody. It opens nothing: a reboot comes through here again, when the
//! process may be confined. Each step is a function that fits a screen; what a step needs to know about a
//! device is the device's own business.

mod buses;
mod vcpus;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use splitring_arch::acpi::{IntxRoute, PciHost, Platform, SerialPort};
use splitring_arch::boot;
use splitring_arch::boot::BootParameters;
use splitring_arch::cpuid;
use splitring_arch::kernel::{Initrd, Kernel};
use splitring_arch::layout::{self, Layout};
use splitring_devices::bus::Bus;
use splitring_devices::eventfd::eventfd;
use splitring_devices::events::EventSink;
use splitring_devices::pci::root::{self, ConfigPorts, PciPlan, PciRoot};
use splitring_devices::power;
use splitring_devices::power::{Power, PowerRequest};
use splitring_devices::pvpanic::{self, PvPanic};
use splitring_devices::serial::{self, Serial};
use splitring_devices::worker::{OnFailure, Worker};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::attach::{DeviceManager, Devices};
use crate::config::{SerialTarget, VmConfig};
use crate::console::Console;
use crate::control::VcpuControl;
use crate::error::BuildError;
use crate::kvm::Vm;
use crate::memory::{self, GuestMemory, LiveMemory};
use crate::resources::{InitrdFile, Resources};
use crate::state::ExitReason;
use crate::vcpu::{Exits, Vcpu};
use buses::Buses;

// The tables and the device must mean the same registers.
const _: () = {
    let base = layout::SLEEP_CONTROL as u64;
    assert!(layout::POWER_PORTS.start == layout::SLEEP_CONTROL && power::SLEEP_CONTROL == 0);
    assert!(layout::SLEEP_STATUS as u64 - base == power::SLEEP_STATUS);
    assert!(
        layout::RESET as u64 - base == power::RESET && layout::RESET_VALUE == power::RESET_VALUE
    );
    assert!(
        layout::GED_EVENTS as u64 - base == power::EVENTS
            && layout::GED_POWER_BUTTON == power::POWER_BUTTON
    );
    assert!((layout::POWER_PORTS.end - layout::POWER_PORTS.start) as u64 == power::LEN);
};

/// KVM's memory slot for PCI configuration space; guest memory has the first ones, and those behind it as it grows.
const CONFIG_SLOT: u32 = 8;

/// An eventfd that never blocks and that no child inherits.
pub(crate) fn event() -> Result<EventFd, BuildError> {
    eventfd().map_err(BuildError::Event)
}

/// One build of a machine: a reboot makes the next.
pub(crate) struct Generation {
    pub(crate) control: Arc<VcpuControl>,
    /// Empty once they run.
    pub(crate) vcpus: Mutex<Vec<Vcpu>>,
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) exits: Vec<Arc<Exits>>,
    pub(crate) power: Arc<Power>,
    pub(crate) serial: Option<Arc<Serial>>,
    pub(crate) devices: Devices,
    buses: Buses,
    workers: Vec<Arc<Worker>>,
    // Last: KVM uses the memory until its descriptors are closed, which the fields above hold.
    pub(crate) memory: LiveMemory,
}

impl Generation {
    /// Takes the devices apart: their queues stop, and nothing of them is in flight any more. To be
    /// called when no vCPU runs.
    pub(crate) fn release(&self) {
        self.buses.clear();
        if let Some(serial) = &self.serial {
            self.control.console().detach(serial);
        }
    }

    /// Switches the log of written pages on or off; see [`LiveMemory::log_dirty`].
    pub(crate) fn log_dirty(&self, on: bool) -> Result<(), BuildError> {
        Ok(self.memory.log_dirty(on, &self.workers)?)
    }

    /// Waits until the threads of its vCPUs are gone. To be called after [`VcpuControl::end`].
    pub(crate) fn join_vcpus(&self) {
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // Panics are caught inside and reported as the reason of the end.
            let _ = thread.join();
        }
        self.control.discard_jobs();
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.control.end(ExitReason::Stopped);
        self.join_vcpus();
        self.release();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Builds the machine; its vCPUs do what `control` says once their threads run, its devices are served
/// by `workers` and report to `events`.
pub(crate) fn assemble(
    config: &VmConfig,
    resources: &Resources,
    workers: &[Arc<Worker>],
    events: &EventSink,
    control: Arc<VcpuControl>,
) -> Result<Generation, BuildError> {
    let supported = resources.host.supported_cpuid()?;
    let layout = Layout::new(
        config.memory.size.0,
        cpuid::physical_bits(supported.as_slice()),
    )?;

    let kernel = &resources.kernel;
    let memory = create_memory(&layout, config)?;
    let initrd = load(resources, &layout, &memory)?;

    let vm = resources
        .host
        .create_vm(layout::KVM_TSS, layout::KVM_IDENTITY_MAP)?;
    let live = LiveMemory::new(
        vm.clone(),
        memory,
        config.memory.clone(),
        layout.spare(),
        CONFIG_SLOT + 1,
    )?;
    let memory = live.mapping();

    let buses = Buses {
        ports: Arc::new(Bus::new()),
        mmio: Arc::new(Bus::new()),
    };
    let power = add_power(&vm, &buses, &control)?;
    let console = &resources.console;
    let serial = if has_serial(config, console) {
        Some(add_serial(&vm, &buses, console)?)
    } else {
        None
    };

    add_pvpanic(&buses, events)?;
    let root = add_pci(config, &layout, &vm, &buses)?;
    let manager = DeviceManager {
        root: &root,
        ram: live.ram().clone(),
        wiring: Arc::new(vm.clone()),
        workers,
        events,
    };
    let devices = manager.attach_all(config, resources)?;

    let rsdp = write_tables(
        &platform(config, &layout, serial.is_some(), &root, &devices),
        &memory,
    )?;
    write_parameters(config, &layout, kernel, initrd, rsdp, &memory)?;

    let fds = vcpus::create(&vm, config.cpus)?;
    let exits: Vec<Arc<Exits>> = fds.iter().map(|_| Arc::default()).collect();
    let vcpus = vcpus::set_up(fds, &supported, kernel.entry(), &buses, &exits)?;
    Ok(Generation {
        control,
        vcpus: Mutex::new(vcpus),
        threads: Mutex::default(),
        exits,
        power,
        serial,
        devices,
        buses,
        workers: workers.to_vec(),
        memory: live,
    })
}

fn create_memory(layout: &Layout, config: &VmConfig) -> Result<GuestMemory, BuildError> {
    let host = rustix::system::sysinfo();
    let installed = host.totalram.saturating_mul(u64::from(host.mem_unit));
    if layout.memory() > installed {
        tracing::warn!(
            "the guest has {} MiB of memory, the host {} MiB: it will swap, or be killed, when the guest uses it all",
            layout.memory() >> 20,
            installed >> 20
        );
    }
    let ranges: Vec<(u64, u64)> = layout
        .ram()
        .iter()
        .map(|range| (range.start, range.end - range.start))
        .collect();
    Ok(memory::create(&ranges, &config.memory)?)
}

/// Puts kernel and initrd into memory; returns where the initrd is.
fn load(
    resources: &Resources,
    layout: &Layout,
    memory: &GuestMemory,
) -> Result<Option<std::ops::Range<u64>>, BuildError> {
    let kernel = &resources.kernel;
    kernel.check_fits(layout)?;
    kernel.copy_into(memory)?;
    let Some(InitrdFile { path, file }) = &resources.initrd else {
        return Ok(None);
    };
    let file = file.try_clone().map_err(BuildError::Event)?;
    let initrd = Initrd::place(file, path, layout, kernel)?;
    initrd.copy_into(memory)?;
    Ok(Some(initrd.range()))
}

fn add_power(vm: &Vm, buses: &Buses, control: &Arc<VcpuControl>) -> Result<Arc<Power>, BuildError> {
    let line = event()?;
    vm.bind_edge(layout::GED_GSI, &line)?;
    let control = Arc::clone(control);
    let power = Arc::new(Power::new(line, move |request| {
        control.end(match request {
            PowerRequest::Off => ExitReason::PowerOff,
            PowerRequest::Reset => ExitReason::Reboot,
        });
    }));
    place(
        &buses.ports,
        "the power block",
        layout::POWER_PORTS.start,
        power::LEN,
        power.clone(),
    )?;
    Ok(power)
}

fn add_pvpanic(buses: &Buses, events: &EventSink) -> Result<(), BuildError> {
    let device = Arc::new(PvPanic::new(events.clone()));
    place(
        &buses.ports,
        "the pvpanic device",
        layout::PVPANIC,
        pvpanic::LEN,
        device,
    )
}

/// Whether there is a serial port: both the configuration and the embedder's console can leave it out.
fn has_serial(config: &VmConfig, console: &Console) -> bool {
    config.serial.target != SerialTarget::Off && console.has_port()
}

fn add_serial(vm: &Vm, buses: &Buses, console: &Console) -> Result<Arc<Serial>, BuildError> {
    let line = event()?;
    vm.bind_edge(layout::COM1_GSI, &line)?;
    let serial = Arc::new(Serial::new(line, console.output()).map_err(BuildError::Event)?);
    place(
        &buses.ports,
        "the serial port",
        layout::COM1,
        serial::LEN,
        serial.clone(),
    )?;
    Ok(serial)
}

fn place(
    bus: &Bus,
    what: &'static str,
    base: impl Into<u64>,
    len: u64,
    device: Arc<dyn splitring_devices::bus::BusDevice>,
) -> Result<(), BuildError> {
    bus.insert(base.into(), len, device)
        .map_err(|error| BuildError::Place { what, error })
}

/// The PCI bus, its configuration space readable without exits.
fn add_pci(
    config: &VmConfig,
    layout: &Layout,
    vm: &Vm,
    buses: &Buses,
) -> Result<Arc<PciRoot>, BuildError> {
    let root = PciRoot::new(PciPlan {
        mmio: Arc::clone(&buses.mmio),
        windows: vec![layout::MMIO32, layout.mmio64()],
        intx: layout::PCI_INTX_GSI,
    })?;
    let len = layout::ECAM.end - layout::ECAM.start;
    place(
        &buses.mmio,
        "PCI configuration space",
        layout::ECAM.start,
        len,
        root.clone(),
    )?;
    if config.pci_ports {
        let ports = Arc::new(ConfigPorts::new(Arc::clone(&root)));
        place(
            &buses.ports,
            "the PCI configuration ports",
            layout::CF8.start,
            root::PORTS_LEN,
            ports,
        )?;
    } else {
        // Linux looks for them, and on AMD processors behind them, a hundred times before it believes that they are not there.
        vm.absorb_port(layout::CF8.start)?;
    }
    show_config_pages(&root, vm)?;
    Ok(root)
}

/// Shows the guest configuration space as read-only memory: reads don't exit, writes do.
#[expect(unsafe_code, reason = "KVM is given PCI configuration pages")]
fn show_config_pages(root: &PciRoot, vm: &Vm) -> Result<(), BuildError> {
    let pages = root.pages();
    let len = layout::ECAM.end - layout::ECAM.start;
    // SAFETY: the pages live as long as the root bus, which the MMIO bus holds until no vCPU runs any more.
    unsafe {
        vm.map(
            CONFIG_SLOT,
            layout::ECAM.start,
            pages.host_address().cast_mut(),
            len,
            false,
            false,
        )
    }?;
    let vm = vm.clone();
    pages.set_exit_on_read(Box::new(move || {
        if let Err(error) = vm.unmap(CONFIG_SLOT) {
            tracing::warn!(%error, "a guest's reads of PCI configuration space stay direct");
        }
    }));
    Ok(())
}

/// Starts the threads that serve the devices' queues. They outlive a reboot: io_urings are bound to the
/// thread that used them first.
pub(crate) fn start_workers(
    config: &VmConfig,
    failed: &OnFailure,
) -> Result<Vec<Arc<Worker>>, BuildError> {
    let poll_window = config.poll_us.map(|us| Duration::from_micros(us.into()));
    (0..config.workers)
        .map(|number| {
            let name = thread_name("worker", number, config.name.as_deref());
            Worker::spawn(&name, poll_window, Arc::clone(failed))
                .map_err(|error| BuildError::Thread { what: name, error })
        })
        .collect()
}

/// A thread's name: its role, its number and the machine's name, as far as the kernel's 15 bytes go.
pub(crate) fn thread_name(
    role: &str,
    number: impl std::fmt::Display,
    machine: Option<&str>,
) -> String {
    match machine {
        Some(machine) => format!("{role}{number}:{machine}"),
        None => format!("{role}{number}"),
    }
}

/// What the ACPI tables say.
fn platform(
    config: &VmConfig,
    layout: &Layout,
    serial: bool,
    root: &PciRoot,
    devices: &Devices,
) -> Platform {
    let serial = serial.then_some(SerialPort {
        port: layout::COM1,
        gsi: layout::COM1_GSI,
    });
    let intx = devices.slots().map(|slot| IntxRoute {
        device: slot,
        pin: 0,
        gsi: root.intx(slot),
    });
    let pci = PciHost {
        ecam: layout::ECAM,
        mmio32: layout::MMIO32,
        mmio64: layout.mmio64(),
        io: layout::PCI_IO,
        cf8: config.pci_ports,
        intx: intx.collect(),
    };
    Platform {
        vcpus: config.cpus,
        pci: Some(pci),
        serial: serial.into_iter().collect(),
        pvpanic: true,
    }
}

fn write_tables(platform: &Platform, memory: &GuestMemory) -> Result<u64, BuildError> {
    let tables = platform.build()?;
    write(memory, "the ACPI tables", tables.rsdp, &tables.bytes)?;
    Ok(tables.rsdp)
}

fn write(
    memory: &GuestMemory,
    what: &'static str,
    guest: u64,
    bytes: &[u8],
) -> Result<(), BuildError> {
    memory
        .write_slice(bytes, GuestAddress(guest))
        .map_err(|_| BuildError::Write { what, guest })
}

fn write_parameters(
    config: &VmConfig,
    layout: &Layout,
    kernel: &Kernel,
    initrd: Option<std::ops::Range<u64>>,
    rsdp: u64,
    memory: &GuestMemory,
) -> Result<(), BuildError> {
    let command_line = boot::command_line(config.cmdline.as_deref());
    tracing::info!(%command_line, entry = ?kernel.entry(), "booting");
    BootParameters {
        layout,
        initrd,
        command_line: &command_line,
        rsdp,
    }
    .write(kernel, memory)?;
    Ok(())
}
