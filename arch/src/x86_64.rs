//! The x86_64 machine.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod kernel;
pub mod layout;
pub mod msr;
pub mod regs;
