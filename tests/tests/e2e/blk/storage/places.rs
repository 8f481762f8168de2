//! Images on every kind of storage that the lab can make.

use std::any::Any;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use splitring_tests::assets::Disk;
use tempfile::TempDir;

use super::{MIB, START};
use crate::blk::block::{Loop, SCSI_DEBUG, adapters, disk_of, run};
use crate::blk::mapped::Mapped;

/// An image, with what it is on.
pub(crate) struct Place {
    pub(super) name: &'static str,
    pub(crate) path: PathBuf,
    /// Its number, if it is a block device.
    pub(super) device: Option<(u32, u32)>,
    /// Tells how much room it takes.
    used: Option<Box<dyn Fn() -> String>>,
    /// In the order in which they have to go.
    _below: Vec<Box<dyn Any>>,
}

impl Place {
    fn new(name: &'static str, path: PathBuf, below: Vec<Box<dyn Any>>) -> Self {
        let meta = fs::metadata(&path).expect("made");
        let device = meta.file_type().is_block_device().then(|| {
            let number = meta.rdev();
            (rustix::fs::major(number), rustix::fs::minor(number))
        });
        Self {
            name,
            path,
            device,
            used: None,
            _below: below,
        }
    }

    /// How much room it takes of what it is on.
    pub(super) fn used(&self) -> String {
        let used = self.used.as_ref();
        used.map_or_else(String::new, |used| used())
    }
}

struct Mounted(TempDir);

impl Mounted {
    fn new(kind: &str, device: &Path) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let (device, path) = (
            device.display().to_string(),
            dir.path().display().to_string(),
        );
        run("mount", &["-t", kind, &device, &path]);
        Self(dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

/// A sparse file on a file system of its own, with that below it.
fn file_on(kind: &str, bytes: u64) -> (PathBuf, Vec<Box<dyn Any>>) {
    let below = Loop::new(512 * MIB, 512);
    let device = below.device.display().to_string();
    let mkfs = format!("/usr/sbin/mkfs.{kind}");
    match kind {
        "ext4" => run(&mkfs, &["-q", "-b", "4096", &device]),
        _ => run(&mkfs, &["-q", &device]),
    };
    let mounted = Mounted::new(kind, &below.device);
    let path = mounted.0.path().join("image");
    let file = File::create(&path).expect("the image");
    file.set_len(bytes).expect("its size");
    (path, vec![Box::new(mounted), Box::new(below)])
}

/// What the images of the table have room for.
const BYTES: u64 = 4 * START;

pub(super) fn ext4() -> Place {
    let (path, below) = file_on("ext4", BYTES);
    Place::new("ext4", path, below)
}

pub(super) fn xfs() -> Place {
    let (path, below) = file_on("xfs", BYTES);
    Place::new("xfs", path, below)
}

pub(super) fn tmpfs() -> Place {
    let disk = Disk::empty(BYTES);
    let path = disk.path().to_owned();
    Place::new("tmpfs", path, vec![Box::new(disk)])
}

/// A loop device over a file on ext4.
fn looped(bytes: u64) -> Place {
    let (path, mut below) = file_on("ext4", bytes);
    let file = path.display().to_string();
    let device = run("losetup", &["--show", "-f", &file]);
    let detach = OnDrop(Some({
        let device = device.clone();
        move || drop(Command::new("losetup").args(["-d", &device]).status())
    }));
    below.insert(0, Box::new(detach));
    let mut place = Place::new("loop", device.into(), below);
    place.used = Some(Box::new(move || blocks(&path)));
    place
}

pub(super) fn on_loop() -> Place {
    looped(BYTES)
}

fn blocks(path: &Path) -> String {
    fs::metadata(path).expect("the file").blocks().to_string()
}

struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(last) = self.0.take() {
            last();
        }
    }
}

/// A disk of scsi_debug's on an adapter of its own.
fn adapter(name: &'static str) -> Place {
    let before = adapters();
    fs::write(format!("{SCSI_DEBUG}/add_host"), "1").expect("added");
    let remove = OnDrop(Some(|| {
        drop(fs::write(format!("{SCSI_DEBUG}/add_host"), "-1"));
    }));
    let added = adapters()
        .into_iter()
        .find(|adapter| !before.contains(adapter))
        .expect("a new adapter");
    for _ in 0..100 {
        if let Some(device) = disk_of(&added).filter(|device| device.exists()) {
            return Place::new(name, device, vec![Box::new(remove)]);
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("scsi_debug made no disk");
}

fn sysfs(device: &Path, name: &str) -> PathBuf {
    let file = device.file_name().expect("a name");
    Path::new("/sys/block").join(file).join(name)
}

/// It has WRITE SAME.
pub(crate) fn scsi() -> Place {
    adapter("scsi_debug")
}

/// The kernel was told that it has none.
pub(super) fn plain_scsi() -> Place {
    let place = adapter("scsi_debug without WRITE SAME");
    let disks = fs::read_dir(sysfs(&place.path, "device/scsi_disk")).expect("a SCSI disk");
    let disk = disks.flatten().next().expect("one").path();
    fs::write(disk.join("max_write_same_blocks"), "0").expect("taken");
    let limit = fs::read_to_string(sysfs(&place.path, "queue/write_zeroes_max_bytes"));
    assert_eq!(limit.expect("a limit").trim(), "0");
    place
}

/// A thin volume of this many bytes, in a pool of 64 MiB.
pub(crate) fn large_thin(bytes: u64) -> Place {
    let (meta, data) = (Loop::new(16 * MIB, 512), Loop::new(64 * MIB, 512));
    let (meta_path, data_path) = (meta.device.display(), data.device.display());
    let sectors = 64 * MIB / 512;
    // Blocks of 256 KiB; what finds no room fails at once.
    let table = format!("0 {sectors} thin-pool {meta_path} {data_path} 512 0 1 error_if_no_space");
    let pool = Mapped::new("pool", &table);
    pool.message(&["create_thin 0"]);
    let table = format!("0 {} thin {} 0", bytes / 512, pool.device().display());
    let thin = Mapped::new("thin", &table);
    let (path, name) = (thin.device(), pool.name().to_owned());
    let below: Vec<Box<dyn Any>> = vec![
        Box::new(thin),
        Box::new(pool),
        Box::new(meta),
        Box::new(data),
    ];
    let mut place = Place::new("dm-thin", path, below);
    place.used = Some(Box::new(move || used_of_pool(&name)));
    place
}

/// Used and all data blocks.
fn used_of_pool(name: &str) -> String {
    let status = run("/usr/sbin/dmsetup", &["status", name]);
    // 0 131072 thin-pool <transaction> <used>/<all metadata> <used>/<all data> …
    status.split(' ').nth(5).expect("data blocks").to_owned()
}

pub(super) fn thin() -> Place {
    large_thin(BYTES)
}

/// Encrypted, and discards are let through.
pub(super) fn crypt() -> Place {
    let below = Loop::new(BYTES, 512);
    let key = "0123456789abcdef".repeat(2);
    let table = format!(
        "0 {} crypt aes-cbc-plain64 {key} 0 {} 0 1 allow_discards",
        BYTES / 512,
        below.device.display()
    );
    let crypt = Mapped::new("crypt", &table);
    let path = crypt.device();
    let below: Vec<Box<dyn Any>> = vec![Box::new(crypt), Box::new(below)];
    Place::new("dm-crypt", path, below)
}

/// A sparse file of this many bytes on xfs.
pub(super) fn large_file(bytes: u64) -> Place {
    let (path, below) = file_on("xfs", bytes);
    let mut place = Place::new("large file", path.clone(), below);
    place.used = Some(Box::new(move || blocks(&path)));
    place
}

/// A loop device over a sparse file of this many bytes.
pub(super) fn large_loop(bytes: u64) -> Place {
    looped(bytes)
}
