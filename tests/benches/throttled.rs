//! Two disks of one event loop, the first of which the host throttles: how long a request at depth
//! 1 of the second takes then, and alone. And what a buffered write at depth 1 costs on ext4, where
//! the kernel takes none that must not wait.
//!
//! It changes the machine's limits of dirty memory, so it runs in the lab only:
//!
//! ```text
//! cargo bench --package splitring-tests --bench throttled --no-run
//! cargo xtask lab --cpus 2 --module loop --module dm_delay -- target/release/deps/throttled-…
//! ```
//!
//! For comparison the same is done with a plain pwrite(2) on the event loop's thread.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use splitring_devices::dirty::DirtyPages;
use splitring_devices::disk::config::{Aio, DiskConfig};
use splitring_devices::disk::{Data, Disk, DiskOp, DiskQueue, RawDisk};
use splitring_devices::ram::{Mapping, Ram};
use tempfile::TempDir;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

const MIB: u64 = 1 << 20;
const BYTES: u64 = 64 * MIB;
/// How long the slow device takes over a write.
const DELAY_MS: u32 = 50;
/// What may be dirty before writers are throttled.
const DIRTY: u64 = 8 * MIB;
const DEPTH: u16 = 32;
const LARGE: usize = 64 << 10;
const SMALL: usize = 4096;
const FOR: Duration = Duration::from_secs(10);

fn main() {
    assert!(
        std::env::var_os("SPLITRING_LAB").is_some(),
        "only in the lab, whose limits nobody else needs: cargo xtask lab -- …"
    );
    let fast = Storage::new("fast", None);
    let mut second = disk(&fast.device, true, 1);
    let mut quick = disk(&fast.image(), false, 1);

    println!("4 KiB written at depth 1 to a file on ext4, through its page cache:");
    show("  by the disk", &measure(&mut quick, write, || ()));
    let file = File::options().write(true).open(fast.image());
    let file = file.expect("the image");
    show("  by pwrite", &timed(|| put(&file, 0, SMALL)));

    let limits = Limits::set();
    let slow = Storage::new("slow", Some(DELAY_MS));
    println!("4 KiB read at depth 1 from a second disk, while the first …");
    show("  is idle", &measure(&mut second, read, || ()));
    let mut first = disk(&slow.image(), false, DEPTH);
    let mut at = 0;
    let throttled = measure(&mut second, read, || {
        feed(first.as_mut(), &mut at);
    });
    show("  is throttled", &throttled);
    drop(first);
    let file = File::options().write(true).open(slow.image());
    let file = file.expect("the image");
    let blocking = measure(&mut second, read, || {
        put(&file, at % BYTES, LARGE);
        at += u64::try_from(LARGE).expect("small");
    });
    show("  is throttled, and written by pwrite", &blocking);
    drop((limits, second, quick));
}

/// Keeps a queue full of writes, one after the other.
fn feed(queue: &mut dyn DiskQueue, at: &mut u64) {
    let mut done = Vec::new();
    queue.completions(&mut done);
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    while queue.ready() {
        let op = DiskOp::Write {
            offset: *at % BYTES,
            data: Data::Host(vec![1; LARGE]),
            fua: false,
        };
        queue.submit(*at, op).expect("room");
        *at += u64::try_from(LARGE).expect("small");
    }
    queue.commit();
}

fn put(file: &File, at: u64, len: usize) {
    file.write_all_at(&vec![1; len], at).expect("written");
}

fn write(offset: u64) -> DiskOp<'static> {
    let data = Data::Host(vec![1; SMALL]);
    let fua = false;
    DiskOp::Write { offset, data, fua }
}

fn read(offset: u64) -> DiskOp<'static> {
    let data = Data::Host(vec![0; SMALL]);
    DiskOp::Read { offset, data }
}

/// Times of requests one after the other. Before each is `beside`, on the same thread.
fn measure(
    queue: &mut Box<dyn DiskQueue>,
    op: fn(u64) -> DiskOp<'static>,
    mut beside: impl FnMut(),
) -> Vec<Duration> {
    let mut offset = 0;
    let mut done = Vec::new();
    timed(|| {
        offset = (offset + 16 * u64::try_from(SMALL).expect("small")) % (BYTES / 2);
        queue.submit(1, op(offset)).expect("room");
        queue.commit();
        beside();
        loop {
            queue.completions(&mut done);
            if let Some(done) = done.pop() {
                assert!(done.result.is_ok(), "{done:?}");
                return;
            }
            let events = queue.events();
            let mut fds: Vec<_> = events
                .iter()
                .map(|event| PollFd::from_borrowed_fd(*event, PollFlags::IN))
                .collect();
            poll(&mut fds, None).expect("poll");
        }
    })
}

fn timed(mut one: impl FnMut()) -> Vec<Duration> {
    let end = Instant::now() + FOR;
    let mut times = Vec::new();
    while Instant::now() < end {
        let start = Instant::now();
        one();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times
}

fn show(what: &str, sorted: &[Duration]) {
    let at = |part: usize| sorted[(sorted.len() - 1) * part / 1000].as_secs_f64() * 1e6;
    println!(
        "{what:<38} median {:>9.1} µs, 99 % {:>9.1} µs, worst {:>9.1} µs, {} requests",
        at(500),
        at(990),
        at(1000),
        sorted.len()
    );
}

fn disk(path: &Path, direct: bool, depth: u16) -> Box<dyn DiskQueue> {
    let config = DiskConfig::new(path)
        .direct(direct)
        .readonly(direct)
        .aio(Aio::IoUring)
        .share(true);
    let disk = RawDisk::open(&config, 1, depth).expect("opened");
    disk.open_queue(ram(), 0, depth).expect("a queue")
}

/// Memory that no request uses.
fn ram() -> Ram {
    let region = MmapRegionBuilder::new_with_bitmap(SMALL, DirtyPages::new(SMALL))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
        .build()
        .expect("memory");
    let region = GuestRegionMmap::new(region, GuestAddress(0)).expect("in range");
    Ram::new(Arc::new(
        Mapping::from_regions(vec![region]).expect("one region"),
    ))
}

/// A file of zeroes on ext4, on a device of its own in memory.
struct Storage {
    device: PathBuf,
    mounted: TempDir,
    _below: TempDir,
}

impl Storage {
    fn new(name: &str, delay_ms: Option<u32>) -> Self {
        let below = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let sectors = below.path().join(name);
        let file = File::create(&sectors).expect("a file");
        file.set_len(4 * BYTES).expect("its size");
        let looped = run("losetup", &["--show", "-f", &sectors.display().to_string()]);
        let device = match delay_ms {
            None => looped,
            Some(delay) => {
                let count = 4 * BYTES / 512;
                let table = format!("0 {count} delay {looped} 0 0 {looped} 0 {delay}");
                run(
                    "/usr/sbin/dmsetup",
                    &["create", name, "--table", &table, "--noudevsync"],
                );
                let minor = ["info", "-c", "--noheadings", "-o", "minor", name];
                format!("/dev/dm-{}", run("/usr/sbin/dmsetup", &minor))
            }
        };
        run("/usr/sbin/mkfs.ext4", &["-q", "-b", "4096", &device]);
        let mounted = tempfile::tempdir_in("/dev/shm").expect("a directory");
        run("mount", &[&device, &mounted.path().display().to_string()]);
        let storage = Self {
            device: device.into(),
            mounted,
            _below: below,
        };
        let image = File::create(storage.image()).expect("the image");
        let zeroes = vec![0; 1 << 20];
        (0..BYTES / MIB).for_each(|mib| image.write_all_at(&zeroes, mib * MIB).expect("filled"));
        image.sync_all().expect("stable");
        storage
    }

    fn image(&self) -> PathBuf {
        self.mounted.path().join("image")
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // The rest goes with the lab.
        drop(
            Command::new("umount")
                .arg("-l")
                .arg(self.mounted.path())
                .status(),
        );
    }
}

/// The limits of dirty memory, as they were when dropped.
struct Limits(Vec<(String, String)>);

impl Limits {
    fn set() -> Self {
        let mut before = Vec::new();
        for (name, bytes) in [
            ("dirty_background_bytes", DIRTY / 2),
            ("dirty_bytes", DIRTY),
        ] {
            let file = format!("/proc/sys/vm/{name}");
            before.push((file.clone(), fs::read_to_string(&file).expect("a limit")));
            fs::write(file, bytes.to_string()).expect("set");
        }
        Self(before)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for (file, value) in &self.0 {
            drop(fs::write(file, value));
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|why| panic!("{program}: {why}"));
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {why}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
