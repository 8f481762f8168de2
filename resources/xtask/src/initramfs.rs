//! Builds an initramfs: a cpio archive in the kernel's "newc" format with everything that a guest
//! needs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::kernel::Kernel;

/// Process 1.
pub(crate) const INIT: &str = include_str!("../../initramfs/init");
/// The script that serves the console when there is no root disk.
pub(crate) const CONSOLE: &str = include_str!("../../rootfs/console");

/// Modules for a guest's devices and root disk; built-in ones are skipped. The file system's
/// checksum has several names, because it is a dependency by alias only.
pub(crate) const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "virtio_scsi",
    "sd_mod",
    "sg",
    "sr_mod",
    "crc32c_generic",
    "crc32c_intel",
    "ext4",
    "xfs",
    "button",
    "evdev",
];

/// Builds the initramfs for `kernel` with a static busybox and those of `modules` that the kernel
/// has.
pub(crate) fn build(kernel: &Kernel, busybox: &Path, modules: &[&str]) -> Result<Vec<u8>> {
    let mut archive = CpioArchive::default();
    for dir in ["bin", "dev", "modules", "proc", "root", "sys", "tmp"] {
        archive.directory(dir)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.file("bin/busybox", 0o755, &read(busybox)?)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("console", 0o644, CONSOLE.as_bytes())?;
    let wanted: Vec<_> = modules
        .iter()
        .copied()
        .filter(|name| kernel.has_module(name))
        .collect();
    let mut order = String::new();
    for module in kernel.modules(&wanted)? {
        let name = module
            .file_name()
            .and_then(|name| name.to_str())
            .context("unexpected module name")?;
        archive.file(&format!("modules/{name}"), 0o644, &read(&module)?)?;
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.finish()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A cpio archive under construction.
#[derive(Debug, Default)]
struct CpioArchive {
    bytes: Vec<u8>,
    entries: u32,
}

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_CHARACTER: u32 = 0o020_000;
const ALIGNMENT: usize = 4;

impl CpioArchive {
    fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, TYPE_DIRECTORY | 0o755, (0, 0), &[])
    }

    fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.entry(name, TYPE_FILE | mode, (0, 0), data)
    }

    fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.entry(name, TYPE_CHARACTER | 0o600, (major, minor), &[])
    }

    /// Appends a header of 8-digit hexadecimal fields, the name and the data, each padded.
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(data.len()).with_context(|| format!("{name} is too large"))?;
        let name_size = u32::try_from(name.len() + 1)?;
        let (inode, owner, links, time) = (self.entries, 0, 1, 0);
        let fields = [
            inode, mode, owner, owner, links, time, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests;
