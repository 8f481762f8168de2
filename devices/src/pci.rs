//! PCI: configuration space, the root bus, MSI-X, and virtio on top of them.
//!
//! One host bridge and one bus, 32 slots with one function each. It doesn't know KVM: interrupts and doorbells
//! go through [`crate::wiring::Wiring`].

pub mod config;
mod interrupts;
mod msix;
pub mod pages;
pub mod root;
pub mod virtio;
