//! One vCPU's thread: enter the guest, handle its exits, end with a reason.
//!
//! Knows the two buses and `VcpuControl`, but no device. Exits that a guest can cause are handled
//! or end this machine; none ends the process.

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

/// Counters of exits to user space, by kind.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    port_in: AtomicU64,
    port_out: AtomicU64,
    mmio_read: AtomicU64,
    mmio_write: AtomicU64,
    interrupted: AtomicU64,
    other: AtomicU64,
}

/// The numbers of exits to user space of all of a machine's vCPUs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ExitCounts {
    /// Port reads (`in`).
    pub port_in: u64,
    /// Port writes (`out`).
    pub port_out: u64,
    /// MMIO reads.
    pub mmio_read: u64,
    /// MMIO writes.
    pub mmio_write: u64,
    /// Interruptions by kicks and other signals.
    pub interrupted: u64,
    /// All other exits.
    pub other: u64,
}

impl ExitCounts {
    /// Returns the sum of all counters.
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

/// How often in a row KVM_RUN may return EAGAIN. A vCPU started by another one causes one or two; a
/// KVM that can't create a kernel thread returns it for ever.
const AGAIN_LIMIT: u32 = 1000;

/// A vCPU that is set up but not running.
pub(crate) struct Vcpu {
    /// APIC id.
    pub(crate) index: u32,
    /// The KVM file descriptor.
    pub(crate) fd: VcpuFd,
    /// Port I/O.
    pub(crate) ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub(crate) mmio: Arc<Bus>,
    /// Its exit counters.
    pub(crate) exits: Arc<Exits>,
}

/// Why the run loop returned.
enum RunLoopExit {
    /// To check `VcpuControl`.
    Asked,
    /// The guest ended.
    Ended(ExitReason),
}

impl Vcpu {
    /// Runs the guest on the calling thread until these vCPUs end.
    pub(crate) fn run(mut self, control: &VcpuControl) {
        let kicks = control.kicks();
        let target = kicks.register_vcpu(&mut self.fd);
        let ran = catch_unwind(AssertUnwindSafe(|| self.serve(control)));
        // The registration must be dropped before the descriptor, whose mapping the signal handler
        // writes to.
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

    /// The run loop. Returns `None` if the machine was ended by another thread.
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

    /// Tells kvm-clock about time during which the guest was stopped, so that its watchdogs ignore
    /// it.
    fn time_passed(&self) {
        // EINVAL: the guest does not use kvm-clock.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Runs the guest until it ends or `VcpuControl` has to be checked. On return no I/O is
    /// pending: the instruction that caused the last exit is complete.
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
                            // The guest may have written to the console. A request during the wait
                            // is seen by the check that follows.
                            room.wait_for_room();
                            if control.wants_attention() {
                                // KVM completes the instruction at the next entry, and then returns
                                // at once.
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
                        // Not a kick: the process was stopped and continued, the host was
                        // suspended, or a debugger attached.
                        self.time_passed();
                    }
                    return RunLoopExit::Asked;
                }
                Err(error) if error.errno() == libc::EAGAIN && again < AGAIN_LIMIT => again += 1,
                Err(error) if error.errno() == libc::EAGAIN => {
                    return RunLoopExit::Ended(ExitReason::Failed(format!(
                        "vCPU {}: KVM cannot create a kernel thread (KVM_RUN: {error}); raise the limit on \
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
    /// Enter the guest again.
    Again,
    /// A device may have ended the machine: check before entering again.
    Check,
    /// A port access, to be handled by `handle_port`.
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
            // An address without a device reads as ones, as on a PCI bus.
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

/// Handles a port access. Each element of a string instruction is an access of its own.
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
            // A port without a device reads as ones, and so do bytes that a device does not write.
            data.fill(0xff);
            ports.read_string(u64::from(port), size, data);
            tracing::trace!(port = format_args!("{port:#x}"), ?data, "port in");
            ExitAction::Again
        }
    }
}
