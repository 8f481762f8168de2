//! x86_64 boot protocols, ACPI, CPUID, MSRs and registers, as plain data.
