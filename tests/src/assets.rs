//! Where the kernels, disks and the VMM are: told by the environment, laid out by `cargo xtask test`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Names the Splitring binary.
pub const BINARY: &str = "SPLITRING_BIN";
/// Names the directory that holds `kernels/NAME/{vmlinuz,vmlinux,initramfs,release,extra.tar}` and `disks/`.
pub const ASSETS: &str = "SPLITRING_ASSETS";

fn variable(name: &str) -> OsString {
    std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set: end-to-end tests run by `cargo xtask test`"))
}

/// The Splitring binary under test.
pub fn binary() -> PathBuf {
    variable(BINARY).into()
}

/// A stock kernel of Debian 12.
#[derive(Debug, Clone)]
pub struct Kernel {
    name: String,
    dir: PathBuf,
}

impl Kernel {
    /// The kernel called `name`: `6.12-cloud`, `6.1-cloud` or `6.12-generic`.
    pub fn named(name: &str) -> Self {
        let dir = Path::new(&variable(ASSETS)).join("kernels").join(name);
        assert!(dir.exists(), "no kernel {name} at {}", dir.display());
        Self {
            name: name.to_owned(),
            dir,
        }
    }

    /// What it was asked for as.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its `uname -r` says.
    pub fn release(&self) -> String {
        let path = self.dir.join("release");
        fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
    }

    /// The file to boot.
    pub fn image(&self, image: Image) -> PathBuf {
        self.dir.join(match image {
            Image::Vmlinuz => "vmlinuz",
            Image::Vmlinux => "vmlinux",
        })
    }

    /// Modules that no guest loads by itself, for [`Guest::load_extra`](crate::guest::Guest::load_extra).
    pub fn extra_modules(&self) -> PathBuf {
        self.dir.join("extra.tar")
    }

    /// Loads the drivers a guest needs, then mounts its root disk if it has one.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }
}

/// A kernel image that a test has changed, gone when dropped.
#[derive(Debug)]
pub struct ChangedImage {
    path: PathBuf,
    _dir: TempDir,
}

impl ChangedImage {
    /// `kernel`'s image after `change`, in memory.
    pub fn of(kernel: &Kernel, image: Image, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = fs::read(kernel.image(image)).expect("the image is there");
        change(&mut bytes);
        let dir = TempDir::new_in("/dev/shm").expect("a directory in memory");
        let path = dir.path().join("kernel");
        fs::write(&path, bytes).expect("room for a kernel");
        Self { path, _dir: dir }
    }

    /// The image file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Which form of a kernel is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// The bzImage as Debian ships it.
    Vmlinuz,
    /// The ELF image inside it.
    Vmlinux,
}

/// A disk image of a test's own, gone when dropped.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    _dir: TempDir,
}

impl Disk {
    /// A copy of the prepared image `name` (`root`), in memory: a guest may write to it.
    pub fn copy_of(name: &str) -> Self {
        let disk = Self::place();
        let image = Path::new(&variable(ASSETS)).join("disks").join(name);
        let copied = std::process::Command::new("cp")
            .arg("--sparse=always")
            .arg(&image)
            .arg(&disk.path)
            .status()
            .expect("cp runs");
        assert!(copied.success(), "cannot copy {}", image.display());
        disk
    }

    /// An empty image of `size` bytes, in memory.
    pub fn empty(size: u64) -> Self {
        let disk = Self::place();
        let file = fs::File::create(&disk.path).expect("a file in memory");
        file.set_len(size).expect("a sparse file");
        disk
    }

    fn place() -> Self {
        let dir = TempDir::new_in("/dev/shm").expect("a directory in memory");
        Self {
            path: dir.path().join("disk.img"),
            _dir: dir,
        }
    }

    /// The image file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
