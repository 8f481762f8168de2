#![expect(
    unsafe_code,
    reason = "KVM maps host memory into a guest; reads of the kvm_run union"
)]
//! Every ioctl on KVM: opening it, one virtual machine's memory, interrupts and notify addresses.
//!
//! The one module that talks to KVM (`vcpu.rs` runs what is created here). Knows no device and no boot protocol. Kernel documentation: Documentation/virt/kvm/api.rst.

mod routes;

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    CpuId, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY, KvmIrqRouting, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use splitring_devices::eventfd::eventfd;
use splitring_devices::wiring::{IntxLine, MsiLine, MsiMessage, Wiring, WiringError};
use vm_allocator::IdAllocator;
use vmm_sys_util::eventfd::EventFd;

use crate::config::MAX_CPUS;
use crate::host;
use routes::{Routes, message_entry, pin_routes};

/// Pins of the in-kernel I/O APIC; the first GSIs are theirs.
pub(crate) const IOAPIC_PINS: u32 = 24;
/// GSIs handed out for message interrupts: the least any KVM offers beyond the pins.
const LAST_GSI: u32 = 1023;

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KvmError {
    /// /dev/kvm can't be opened.
    #[error("cannot open /dev/kvm: {source}; {remedy}", source = .0, remedy = host::kvm_remedy(.0))]
    Open(io::Error),
    /// Another API version or a missing capability.
    #[error("the host's KVM has no {0}; Splitring needs Linux 5.10 or later on x86-64")]
    Missing(&'static str),
    /// No descriptor.
    #[error("cannot create an event descriptor: {0}; raise the limit on open files")]
    Event(io::Error),
    /// An ioctl failed.
    #[error("KVM refused to {operation}: {error}; {remedy}", remedy = remedy(error))]
    Ioctl {
        /// In words.
        operation: String,
        /// Its errno.
        error: io::Error,
    },
}

/// What may help against an ioctl's errno.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error().unwrap_or(0) {
        libc::ENOMEM => "free memory on the host, or give the machine less",
        libc::EMFILE | libc::ENFILE => "raise the limit on open files (`ulimit -n`)",
        libc::EBUSY => "end the other hypervisor that holds the processor's virtualisation",
        _ => {
            "a newer host kernel may allow it; please report it with the output of `splitring check`"
        }
    }
}

/// Adds what was attempted to an errno.
pub(crate) fn refused(operation: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    let operation = operation.into();
    move |error| KvmError::Ioctl {
        operation,
        error: io::Error::from_raw_os_error(error.errno()),
    }
}

/// The host's KVM.
pub(crate) struct Host {
    kvm: Kvm,
}

impl Host {
    /// Opens /dev/kvm and checks what Splitring can't do without.
    pub(crate) fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new()
            .map_err(|error| KvmError::Open(io::Error::from_raw_os_error(error.errno())))?;
        Self::check(kvm)
    }

    /// Uses a descriptor of /dev/kvm that somebody else opened.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Self, KvmError> {
        // SAFETY: the descriptor is owned here and goes into `Kvm`, which closes it.
        Self::check(unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) })
    }

    fn check(kvm: Kvm) -> Result<Self, KvmError> {
        if kvm.get_api_version() != 12 {
            return Err(KvmError::Missing("API version 12"));
        }
        let needed = [
            (Cap::Irqchip, "interrupt controller"),
            (Cap::Irqfd, "irqfd"),
            (Cap::Ioeventfd, "ioeventfd"),
            (Cap::IoeventfdNoLength, "ioeventfd of any length"),
            (Cap::UserMemory, "user memory regions"),
            (Cap::ReadonlyMem, "read-only memory regions"),
            (Cap::ImmediateExit, "immediate exit"),
            (Cap::TscDeadlineTimer, "TSC deadline timer"),
            (Cap::IrqRouting, "interrupt routing"),
        ];
        match needed
            .into_iter()
            .find(|(cap, _)| !kvm.check_extension(*cap))
        {
            Some((_, name)) => Err(KvmError::Missing(name)),
            None => Ok(Self { kvm }),
        }
    }

    /// CPUID leaves KVM can give a guest.
    pub(crate) fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("list the CPU features it supports"))
    }

    /// Returns how many vCPUs a machine can have here: the lesser of KVM's limit and this library's.
    pub(crate) fn max_vcpus(&self) -> u32 {
        u32::try_from(self.kvm.get_max_vcpus()).map_or(MAX_CPUS, |most| most.min(MAX_CPUS))
    }

    /// A virtual machine with interrupt controllers, without memory and vCPUs.
    pub(crate) fn create_vm(&self, tss: u64, identity_map: u64) -> Result<Vm, KvmError> {
        let fd = self
            .create_uninterrupted()
            .map_err(refused("create a virtual machine"))?;
        let tss = usize::try_from(tss).map_err(|_| KvmError::Missing("64-bit address space"))?;
        fd.set_identity_map_address(identity_map)
            .map_err(refused("place its identity map"))?;
        fd.set_tss_address(tss)
            .map_err(refused("place its task state segment"))?;
        fd.create_irq_chip()
            .map_err(refused("create the interrupt controllers"))?;
        let gsis = IdAllocator::new(IOAPIC_PINS, LAST_GSI)
            .map_err(|_| KvmError::Missing("interrupt lines"))?;
        let requester = fd.check_extension(Cap::MsiDevid);
        let interrupts = Interrupts {
            gsis,
            routes: pin_routes(IOAPIC_PINS),
            requester,
        };
        Ok(Vm(Arc::new(Shared {
            fd,
            interrupts: Mutex::new(interrupts),
        })))
    }

    /// KVM_CREATE_VM, again when something interrupted it: the kernel takes every lock of the address space there and gives up for any signal or completed io_uring request.
    fn create_uninterrupted(&self) -> Result<VmFd, kvm_ioctls::Error> {
        loop {
            match self.kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                other => return other,
            }
        }
    }
}

/// One virtual machine; clones are the same machine.
#[derive(Clone)]
pub(crate) struct Vm(Arc<Shared>);

struct Shared {
    fd: VmFd,
    interrupts: Mutex<Interrupts>,
}

struct Interrupts {
    gsis: IdAllocator,
    routes: Routes,
    /// Whether KVM wants to know which function sent a message.
    requester: bool,
}

impl Shared {
    fn interrupts(&self) -> MutexGuard<'_, Interrupts> {
        self.interrupts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vm {
    /// Gives the guest `len` bytes of host memory at `guest` as slot number `slot`; again, to change whether KVM notes
    /// which pages the guest writes (`log`).
    ///
    /// # Safety
    /// `host` stays mapped for `len` bytes, and is used by this process as memory a guest writes at any time, until the last clone of this machine is gone.
    pub(crate) unsafe fn map(
        &self,
        slot: u32,
        guest: u64,
        host: *mut u8,
        len: u64,
        writable: bool,
        log: bool,
    ) -> Result<(), KvmError> {
        let access = if writable { 0 } else { KVM_MEM_READONLY };
        let logged = if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        let region = kvm_userspace_memory_region {
            slot,
            flags: access | logged,
            guest_phys_addr: guest,
            memory_size: len,
            userspace_addr: host.expose_provenance() as u64,
        };
        // SAFETY: the caller keeps the memory mapped; slots do not overlap because the address map they come from does not.
        unsafe { self.0.fd.set_user_memory_region(region) }.map_err(refused(format!(
            "map {} MiB of guest memory at {guest:#x}",
            len >> 20
        )))
    }

    /// Takes the pages of slot `slot`, of `len` bytes, that the guest wrote since the last time: a bit each.
    pub(crate) fn take_dirty(&self, slot: u32, len: u64) -> Result<Vec<u64>, KvmError> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let taken = self.0.fd.get_dirty_log(slot, len);
        taken.map_err(refused(format!("read the dirty log of slot {slot}")))
    }

    /// Takes the memory of slot `slot` away again.
    pub(crate) fn unmap(&self, slot: u32) -> Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot,
            ..Default::default()
        };
        // SAFETY: a region of no bytes deletes the slot; no host memory is named.
        unsafe { self.0.fd.set_user_memory_region(region) }
            .map_err(refused(format!("unmap slot {slot}")))
    }

    /// Lets KVM itself take in what the guest writes to `port`, where no device answers: without an exit.
    pub(crate) fn absorb_port(&self, port: u16) -> Result<(), KvmError> {
        // KVM keeps what it needs of the descriptor; nobody listens.
        let fd = eventfd().map_err(KvmError::Event)?;
        self.0
            .fd
            .register_ioevent(&fd, &IoEventAddress::Pio(u64::from(port)), NoDatamatch)
            .map_err(refused(format!("take in writes to port {port:#x}")))
    }

    /// A new vCPU with APIC id `index`.
    pub(crate) fn create_vcpu(&self, index: u32) -> Result<VcpuFd, KvmError> {
        self.0
            .fd
            .create_vcpu(u64::from(index))
            .map_err(refused(format!("create vCPU {index}")))
    }

    /// Makes writes to `fd` pulse pin `gsi` of the I/O APIC (edge).
    pub(crate) fn bind_edge(&self, gsi: u32, fd: &EventFd) -> Result<(), KvmError> {
        self.0
            .fd
            .register_irqfd(fd, gsi)
            .map_err(refused(format!("bind interrupt {gsi}")))
    }
}

/// An errno as devices see it.
fn unwired(operation: String) -> impl FnOnce(kvm_ioctls::Error) -> WiringError {
    move |error| WiringError::new(operation, io::Error::from_raw_os_error(error.errno()))
}

impl Wiring for Vm {
    fn bind_notify(&self, address: u64, fd: &Arc<EventFd>) -> Result<(), WiringError> {
        self.0
            .fd
            .register_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(unwired(format!("bind notify address {address:#x}")))
    }

    fn unbind_notify(&self, address: u64, fd: &Arc<EventFd>) -> Result<(), WiringError> {
        self.0
            .fd
            .unregister_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(unwired(format!("unbind notify address {address:#x}")))
    }

    fn msi(&self, trigger: &Arc<EventFd>) -> Result<Box<dyn MsiLine>, WiringError> {
        let what = || "create a message interrupt";
        let gsi = self.0.interrupts().gsis.allocate_id().map_err(|_| {
            let full = format!("all {LAST_GSI} interrupt lines are in use; give the machine fewer devices or queues");
            WiringError::new(what(), io::Error::other(full))
        })?;
        let line = MessageLine {
            vm: Arc::clone(&self.0),
            gsi,
            event: Arc::clone(trigger),
        };
        line.vm
            .fd
            .register_irqfd(&line.event, gsi)
            .map_err(unwired(format!("bind message interrupt {gsi}")))?;
        Ok(Box::new(line))
    }

    fn intx(
        &self,
        gsi: u32,
        trigger: &Arc<EventFd>,
        resample: &Arc<EventFd>,
    ) -> Result<Box<dyn IntxLine>, WiringError> {
        self.0
            .fd
            .register_irqfd_with_resample(trigger, resample, gsi)
            .map_err(unwired(format!("bind level interrupt {gsi}")))?;
        Ok(Box::new(LevelLine {
            vm: Arc::clone(&self.0),
            gsi,
            trigger: Arc::clone(trigger),
        }))
    }
}

/// A function's eventfds on a level-triggered line; disconnected at drop.
struct LevelLine {
    vm: Arc<Shared>,
    gsi: u32,
    trigger: Arc<EventFd>,
}

impl IntxLine for LevelLine {}

impl Drop for LevelLine {
    fn drop(&mut self) {
        if let Err(error) = self.vm.fd.unregister_irqfd(&self.trigger, self.gsi) {
            tracing::warn!(gsi = self.gsi, %error, "cannot unbind a level interrupt");
        }
    }
}

/// A GSI with its eventfd; given back at drop.
struct MessageLine {
    vm: Arc<Shared>,
    gsi: u32,
    event: Arc<EventFd>,
}

impl MsiLine for MessageLine {
    /// The table goes to KVM only if the message is news to it.
    fn route(&self, message: MsiMessage) -> Result<(), WiringError> {
        let mut interrupts = self.vm.interrupts();
        let entry = message_entry(self.gsi, message, interrupts.requester);
        let operation = || format!("route message interrupt {}", self.gsi);
        interrupts.routes.change(entry, |routes| {
            let table = KvmIrqRouting::from_entries(routes).map_err(|_| {
                WiringError::new(operation(), io::Error::other("the routing table is full"))
            })?;
            self.vm
                .fd
                .set_gsi_routing(&table)
                .map_err(unwired(operation()))
        })
    }

    fn attach(&self, trigger: &Arc<EventFd>) -> Result<(), WiringError> {
        let bound = self.vm.fd.register_irqfd(trigger, self.gsi);
        bound.map_err(unwired(format!("bind message interrupt {}", self.gsi)))
    }

    fn detach(&self, trigger: &Arc<EventFd>) -> Result<(), WiringError> {
        let unbound = self.vm.fd.unregister_irqfd(trigger, self.gsi);
        unbound.map_err(unwired(format!("unbind message interrupt {}", self.gsi)))
    }
}

impl Drop for MessageLine {
    fn drop(&mut self) {
        // The stale route stays until the next change of the table: without irqfd nothing can send it.
        if let Err(error) = self.vm.fd.unregister_irqfd(&self.event, self.gsi) {
            tracing::warn!(gsi = self.gsi, %error, "cannot unbind a message interrupt");
        }
        let mut interrupts = self.vm.interrupts();
        interrupts.routes.remove(self.gsi);
        if interrupts.gsis.free_id(self.gsi).is_err() {
            tracing::warn!(gsi = self.gsi, "a message interrupt was given back twice");
        }
    }
}

/// What KVM says about an exit it calls an internal error.
pub(crate) fn internal_error(vcpu: &mut VcpuFd) -> String {
    let run = vcpu.get_kvm_run();
    // SAFETY: for KVM_EXIT_INTERNAL_ERROR the kernel fills this member; all of it is integers.
    let details = unsafe { run.__bindgen_anon_1.internal };
    let reason = match details.suberror {
        1 => "an instruction could not be emulated",
        2 => "simultaneous exceptions",
        3 => "an event could not be delivered",
        4 => "an unexpected exit reason",
        _ => "unknown",
    };
    let count = usize::try_from(details.ndata)
        .unwrap_or(0)
        .min(details.data.len());
    let data = details.data.iter().take(count);
    let words: Vec<String> = data.map(|word| format!("{word:#x}")).collect();
    format!(
        "{reason} (suberror {}, data [{}])",
        details.suberror,
        words.join(" ")
    )
}

/// A guest's access to an I/O port.
pub(crate) struct PortAccess<'a> {
    pub(crate) port: u16,
    /// Bytes of an element. A string instruction (`rep outs`) comes with several elements at once.
    pub(crate) size: usize,
    pub(crate) direction: Direction<'a>,
}

/// What the guest writes, or where what it reads goes.
pub(crate) enum Direction<'a> {
    Out(&'a [u8]),
    In(&'a mut [u8]),
}

/// The port access that `vcpu` has left the guest for. `VcpuExit` has all elements as well, but not where one ends.
/// `None`: it left for another reason.
pub(crate) fn port_access(vcpu: &mut VcpuFd) -> Option<PortAccess<'_>> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_IO {
        return None;
    }
    // SAFETY: for KVM_EXIT_IO the kernel fills this member; all of it is integers.
    let io = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(io.size);
    let len = size.checked_mul(usize::try_from(io.count).ok()?)?;
    let offset = usize::try_from(io.data_offset).ok()?;
    let start = std::ptr::from_mut(run).cast::<u8>();
    // SAFETY: the kernel puts the data at this offset into the mapping that begins with `run` and that is as long as
    // KVM_GET_VCPU_MMAP_SIZE says, behind the structure itself; the borrow of `vcpu` keeps it mapped and to ourselves.
    let data = unsafe { std::slice::from_raw_parts_mut(start.add(offset), len) };
    let direction = match u32::from(io.direction) {
        KVM_EXIT_IO_OUT => Direction::Out(data),
        _ => Direction::In(data),
    };
    Some(PortAccess {
        port: io.port,
        size,
        direction,
    })
}

#[cfg(test)]
mod tests {
    use splitring_arch::layout;

    use super::*;

    #[test]
    fn a_function_that_goes_gives_its_lines_back_to_kvm() {
        if !splitring_needs::kvm() {
            return;
        }
        let host = Host::open().expect("KVM");
        let vm = host
            .create_vm(layout::KVM_TSS, layout::KVM_IDENTITY_MAP)
            .expect("a machine");
        let event = || Arc::new(eventfd().expect("an eventfd"));
        let (trigger, resample, message) = (event(), event(), event());
        // More than there are message interrupts.
        for turn in 0..1100 {
            let line = vm.intx(16, &trigger, &resample);
            let line = line.unwrap_or_else(|error| panic!("{turn}: {error}"));
            // KVM knows that the eventfd is a line's already.
            assert!(vm.intx(16, &trigger, &resample).is_err());
            let messages = vm.msi(&message);
            let messages = messages.unwrap_or_else(|error| panic!("{turn}: {error}"));
            drop((line, messages));
        }
    }
}
