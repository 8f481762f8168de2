//! x86_64 boot protocols, ACPI, CPUID, MSRs and registers, as plain data.
//!
//! Nothing in this crate issues an ioctl or knows the insides of a device. `vmm` passes addresses
//! and interrupt numbers in, and gets bytes, register values and load plans back. So everything
//! that a guest sees before its first instruction can be tested without `/dev/kvm`.

#![warn(missing_debug_implementations)]

pub mod x86_64;

pub use x86_64::{acpi, boot, cpuid, kernel, layout, msr, regs};
