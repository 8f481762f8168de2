//! The kernels, the disks and the VMM, which `cargo xtask test` prepares and names in the
//! environment.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The environment variable that names the Splitring binary.
pub const BINARY: &str = "SPLITRING_BIN";
/// The environment variable that names the directory with
/// `kernels/NAME/{vmlinuz,vmlinux,initramfs,release,extra.tar}` and `disks/`.
pub const ASSETS: &str = "SPLITRING_ASSETS";

fn variable(name: &str) -> OsString {
    std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set: end-to-end tests run by `cargo xtask test`"))
}

/// Returns the Splitring binary under test.
pub fn binary() -> PathBuf {
    variable(BINARY).into()
}

/// Names another build of it that a bench compares it with.
pub const BASE: &str = "SPLITRING_BASE_BIN";

/// That build, if there is one.
pub fn base() -> Option<PathBuf> {
    std::env::var_os(BASE).map(PathBuf::from)
}

/// A stock kernel of Debian 12.
#[derive(Debug, Clone)]
pub struct Kernel {
    name: String,
    dir: PathBuf,
}

impl Kernel {
    /// Returns the kernel called `name`: `6.12-cloud`, `6.1-cloud` or `6.12-generic`.
    pub fn named(name: &str) -> Self {
        let dir = Path::new(&variable(ASSETS)).join("kernels").join(name);
        assert!(dir.exists(), "no kernel {name} at {}", dir.display());
        Self {
            name: name.to_owned(),
            dir,
        }
    }

    /// Returns the name that was given to [`Kernel::named`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the output of its `uname -r`.
    pub fn release(&self) -> String {
        let path = self.dir.join("release");
        fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
    }

    /// Returns the file to boot.
    pub fn image(&self, image: Image) -> PathBuf {
        self.dir.join(match image {
            Image::Vmlinuz => "vmlinuz",
            Image::Vmlinux => "vmlinux",
        })
    }

    /// Returns an archive of modules that no guest loads by itself, for
    /// [`Guest::load_extra`](crate::guest::Guest::load_extra).
    pub fn extra_modules(&self) -> PathBuf {
        self.dir.join("extra.tar")
    }

    /// Returns the initramfs. It loads the drivers that a guest needs, then mounts the root disk if
    /// there is one.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }
}

/// A modified kernel image, which is deleted on drop.
#[derive(Debug)]
pub struct ChangedImage {
    path: PathBuf,
    _dir: TempDir,
}

impl ChangedImage {
    /// Returns `kernel`'s image after `change`, in memory.
    pub fn of(kernel: &Kernel, image: Image, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = fs::read(kernel.image(image)).expect("the image is there");
        change(&mut bytes);
        let dir = TempDir::new_in("/dev/shm").expect("a directory in memory");
        let path = dir.path().join("kernel");
        fs::write(&path, bytes).expect("room for a kernel");
        Self { path, _dir: dir }
    }

    /// Returns the path of the image file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The format of a kernel image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// The bzImage as Debian ships it.
    Vmlinuz,
    /// The ELF image inside it.
    Vmlinux,
}

/// A disk image of one test, which is deleted on drop.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    _dir: TempDir,
}

impl Disk {
    /// Returns a copy of the prepared image `name` (`root`), in memory: a guest may write to it.
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

    /// Returns an empty image of `size` bytes, in memory.
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

    /// Returns the path of the image file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
