//! PCI, virtio devices and their host backends, without KVM.
