//! One vCPU's thread: enter the guest, answer its exits, end with a reason.
//!
//! Knows the two buses and the switchboard, no device. Exits the guest can cause are answered or end this machine; none ends the process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};
use serde::Serialize;
use splitring_devices::bus::Bus;

use crate::console::RoomWaiter;
use crate::control::{VcpuControl, VcpuStep};
use crate::kvm::{self, Direction, PortAccess};
use crate::registers::Registers;
use crate::state::ExitReason;

/// Exits to user space, by kind.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    port_in: AtomicU64,
    port_out: AtomicU64,
    mmio_read: AtomicU64,
    mmio_write: AtomicU64,
    interrupted: AtomicU64,
    other: AtomicU64,
}

/// A reading of the exits to user space of all of a machine's vCPUs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ExitCounts {
    /// `in`.
    pub port_in: u64,
    /// `out`.
    pub port_out: u64,
    /// Reads of device memory.
    pub mmio_read: u64,
    /// Writes to device memory.
    pub mmio_write: u64,
    /// Kicks and other signals.
    pub interrupted: u64,
    /// Everything else.
    pub other: u64,
}

impl ExitCounts {
    /// The sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.port_in
            + self.port_out
            + self.mmio_read
            + self.mmio_write
            + self.interrupted
            + self.other
    }
}

impl Exits {
    /// Adds this vCPU's counters to `sum`.
    pub(crate) fn add_to(&self, sum: &mut ExitCounts) {
        sum.port_in += self.port_in.load(Ordering::Relaxed);
        sum.port_out += self.port_out.load(Ordering::Relaxed);
        sum.mmio_read += self.mmio_read.load(Ordering::Relaxed);
        sum.mmio_write += self.mmio_write.load(Ordering::Relaxed);
        sum.interrupted += self.interrupted.load(Ordering::Relaxed);
        sum.other += self.other.load(Ordering::Relaxed);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// How often in a row KVM_RUN may ask to be called again. A vCPU that was started by another one does it
/// once or twice; KVM that cannot make a thread of its own does it for ever.
const AGAIN_LIMIT: u32 = 1000;

/// A vCPU that is set up and not running.
pub(crate) struct Vcpu {
    /// APIC id.
    pub(crate) index: u32,
    /// Its KVM descriptor.
    pub(crate) fd: VcpuFd,
    /// Port I/O.
    pub(crate) ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub(crate) mmio: Arc<Bus>,
    /// What happened so far.
    pub(crate) exits: Arc<Exits>,
}

/// Why the run loop left the guest.
enum RunLoopExit {
    /// To see what is wanted.
    Asked,
    /// For good.
    Ended(ExitReason),
}

impl Vcpu {
    /// Runs the guest on the calling thread until these vCPUs end.
    pub(crate) fn run(mut self, control: &VcpuControl) {
        let kicks = control.kicks();
        let target = kicks.register_vcpu(&mut self.fd);
        let ran = catch_unwind(AssertUnwindSafe(|| self.serve(control)));
        // The thread must be off the list before the descriptor, and with it the mapping the signal handler writes, is dropped.
        drop(target);
        match ran {
            Ok(Some(reason)) => control.end(reason),
            Ok(None) => {}
            Err(_) => control.end(ExitReason::Failed(format!(
                "panic on the thread of vCPU {}",
                self.index
            ))),
        }
    }

    /// The run loop. `None`: somebody else ended the machine.
    fn serve(&mut self, control: &VcpuControl) -> Option<ExitReason> {
        let mut room = control.console().waiter();
        loop {
            if control.wants_attention() {
                match control.next_step(self.index) {
                    VcpuStep::Leave => return None,
                    VcpuStep::Resume => self.time_passed(),
                    VcpuStep::Run => {}
                    VcpuStep::Job(job) => {
                        job(&mut self.fd);
                        continue;
                    }
                }
            }
            if let RunLoopExit::Ended(reason) = self.run_guest(control, &mut room) {
                return Some(reason);
            }
        }
    }

    /// Keeps the guest's watchdogs quiet about time that it did not see.
    fn time_passed(&self) {
        // EINVAL: it has no kvm-clock running, and nothing to be told.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Enters the guest until something else is wanted or it ends. On return no I/O of it is pending:
    /// the instruction that caused the last exit is complete.
    fn run_guest(&mut self, control: &VcpuControl, room: &mut RoomWaiter) -> RunLoopExit {
        let mut again = 0;
        let mut completing = false;
        loop {
            match self.fd.run() {
                Ok(exit) => {
                    again = 0;
                    let mut action = handle_exit(exit, &self.mmio, &self.exits);
                    if let ExitAction::Port = action {
                        let access = kvm::port_access(&mut self.fd);
                        action = handle_port(access, &self.ports, &self.exits);
                    }
                    match action {
                        ExitAction::Again | ExitAction::Port => {}
                        ExitAction::Check => {
                            // The guest may just have printed. What is wanted during the wait is seen
                            // behind it.
                            room.wait_for_room();
                            if control.wants_attention() {
                                // KVM completes the instruction at the next entry, and leaves at once.
                                self.fd.set_kvm_immediate_exit(1);
                                completing = true;
                            }
                        }
                        ExitAction::TripleFault => {
                            return RunLoopExit::Ended(ExitReason::TripleFault { cpu: self.index });
                        }
                        ExitAction::Crash(detail) => {
                            return RunLoopExit::Ended(self.crashed(&detail));
                        }
                        ExitAction::Internal => {
                            let detail = kvm::internal_error(&mut self.fd);
                            return RunLoopExit::Ended(self.crashed(&detail));
                        }
                    }
                }
                Err(error) if error.errno() == libc::EINTR => {
                    let kicked = self.fd.get_kvm_run().immediate_exit != 0;
                    self.fd.set_kvm_immediate_exit(0);
                    if !completing {
                        count(&self.exits.interrupted);
                    }
                    if !kicked {
                        // Not by us: the process was stopped and continued, the host was suspended, or a
                        // debugger came.
                        self.time_passed();
                    }
                    return RunLoopExit::Asked;
                }
                Err(error) if error.errno() == libc::EAGAIN && again < AGAIN_LIMIT => again += 1,
                Err(error) if error.errno() == libc::EAGAIN => {
                    return RunLoopExit::Ended(ExitReason::Failed(format!(
                        "vCPU {}: KVM cannot start a thread of its own (KVM_RUN: {error}); raise the limit on \
                         processes (`ulimit -u`, or TasksMax= of the service)",
                        self.index
                    )));
                }
                Err(error) => {
                    return RunLoopExit::Ended(self.crashed(&format!("KVM_RUN failed: {error}")));
                }
            }
        }
    }

    fn crashed(&self, detail: &str) -> ExitReason {
        let registers = match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!("; {}", Registers::new(&regs, &sregs)),
            _ => String::new(),
        };
        ExitReason::Crashed {
            cpu: self.index,
            detail: format!("{detail}{registers}"),
        }
    }
}

enum ExitAction {
    /// Enter again.
    Again,
    /// The device may have ended the machine: look before entering again.
    Check,
    /// It is an access to a port, to be answered as such.
    Port,
    TripleFault,
    Crash(String),
    Internal,
}

fn handle_exit(exit: VcpuExit<'_>, mmio: &Bus, exits: &Exits) -> ExitAction {
    match exit {
        VcpuExit::MmioWrite(address, data) => {
            count(&exits.mmio_write);
            tracing::trace!(address = format_args!("{address:#x}"), ?data, "mmio write");
            mmio.write(address, data);
            ExitAction::Again
        }
        VcpuExit::MmioRead(address, data) => {
            count(&exits.mmio_read);
            // What nobody answers reads as ones, as on a PCI bus.
            data.fill(0xff);
            mmio.read(address, data);
            tracing::trace!(address = format_args!("{address:#x}"), ?data, "mmio read");
            ExitAction::Again
        }
        VcpuExit::IoOut(..) | VcpuExit::IoIn(..) => ExitAction::Port,
        VcpuExit::Shutdown => ExitAction::TripleFault,
        VcpuExit::InternalError => ExitAction::Internal,
        VcpuExit::FailEntry(reason, cpu) => ExitAction::Crash(format!(
            "the processor refused to enter the guest (reason {reason:#x}, host CPU {cpu})"
        )),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => {
            count(&exits.other);
            ExitAction::Again
        }
        other => {
            count(&exits.other);
            ExitAction::Crash(format!("unexpected exit {other:?}"))
        }
    }
}

/// Each element of a string instruction is an access of its own.
fn handle_port(access: Option<PortAccess<'_>>, ports: &Bus, exits: &Exits) -> ExitAction {
    let Some(access) = access else {
        return ExitAction::Again;
    };
    let (port, size) = (access.port, access.size);
    match access.direction {
        Direction::Out(data) => {
            count(&exits.port_out);
            tracing::trace!(port = format_args!("{port:#x}"), ?data, "port out");
            ports.write_string(u64::from(port), size, data);
            // The power and reset registers are ports.
            ExitAction::Check
        }
        Direction::In(data) => {
            count(&exits.port_in);
            // What nobody answers reads as ones, and so does what a device leaves as it is.
            data.fill(0xff);
            ports.read_string(u64::from(port), size, data);
            tracing::trace!(port = format_args!("{port:#x}"), ?data, "port in");
            ExitAction::Again
        }
    }
}
