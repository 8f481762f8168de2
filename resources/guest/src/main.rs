//! The freestanding guest of `splitring selftest`: it drives every virtio device and reports the
//! results.
//!
//! All Rust code runs in ring 3, because a KVM without hardware virtualisation runs only that
//! natively. Devices are polled. If ring 0 is native as well (`interrupts=on`), timed loops also
//! wait for interrupts.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "an entry point is reached from assembly")]

extern crate alloc;

mod blk;
mod device;
mod interrupts;
mod machine;
mod memory;
mod net;
mod report;
mod scsi;
mod suite;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::global_asm;
use core::sync::atomic::{AtomicPtr, Ordering};

use splitring_virtio::driver::pci::Pci;
use splitring_virtio::spec::id;

use blk::Disk;
use device::Variant;
use machine::{Function, Options, Window};
use report::Report;
use suite::{Suite, Wait};

global_asm!(include_str!("entry.s"));

/// Ends the run: an invalid instruction without a handler causes a triple fault, which ends the
/// machine under every VMM.
fn end() -> ! {
    // SAFETY: does not return.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

/// The report, for the panic handler; null until it is open.
static REPORT: AtomicPtr<Report> = AtomicPtr::new(core::ptr::null_mut());

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // Taken, so that a panic while reporting ends here.
    let report = REPORT.swap(core::ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: leaked by `guest_main`, which no longer uses it: a panic does not unwind.
    if let Some(report) = unsafe { report.as_mut() } {
        report.line(format_args!("panic {}", info.message()));
    }
    end()
}

/// Called from `entry.s` with the address of the PVH start information.
#[unsafe(no_mangle)]
extern "C" fn guest_main(info: usize) -> ! {
    // SAFETY: `entry.s` passes the value that it received.
    let options = unsafe { Options::read(info) };
    let mut window = Window::new(&options);
    let functions: Vec<Function> = Function::all(&options, &mut window).collect();
    let devices: Vec<Pci<Function>> = functions
        .into_iter()
        .filter_map(|f| Pci::new(f).ok())
        .collect();
    let (disks, others): (Vec<_>, Vec<_>) =
        devices.into_iter().partition(|pci| pci.kind() == id::BLOCK);
    let mut tested = Vec::new();
    let mut report = None;
    for pci in disks {
        let Ok(mut disk) = Disk::open(pci, Variant::Auto, Wait::Poll) else {
            continue;
        };
        match disk.serial() {
            Ok(serial) if serial == "report" => report = Some(Report::new(disk)),
            _ => tested.push(disk.close()),
        }
    }
    // Without a report there is no way to report an error.
    let Some(report) = report else { end() };
    let report = Box::leak(Box::new(report));
    REPORT.store(report, Ordering::Relaxed);
    report.line(format_args!("splitring-guest 1"));
    if options.interrupts {
        interrupts::enable();
    }
    let mut suite = Suite::new(report, options);
    for pci in tested {
        let result = blk::run(&mut suite, pci);
        suite.device("blk", result);
    }
    for pci in others {
        match pci.kind() {
            id::SCSI => {
                let result = scsi::run(&mut suite, pci);
                suite.device("scsi", result);
            }
            id::NET => {
                let result = net::run(&mut suite, pci);
                suite.device("net", result);
            }
            _ => {}
        }
    }
    report.line(format_args!("memory {}", memory::used()));
    report.line(format_args!("end"));
    end()
}
