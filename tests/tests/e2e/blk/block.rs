//! Disks whose images are block devices of the host: loop devices, whose discards shrink a file,
//! and scsi_debug, which has sectors that can go bad. The lab has the privileges and modules;
//! elsewhere a test without them is skipped.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use splitring_needs::{self as needs, Capability};
use splitring_tests::assets::Disk;
use splitring_tests::guest::Launch;

use crate::blk::disks::{MIB, guest};

/// Runs a program of this machine, which must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|why| panic!("{program}: {why}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A loop device over a file in memory, which is removed on drop.
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
    pub(crate) file: Disk,
}

impl Loop {
    pub(crate) fn new(bytes: u64, sector: u32) -> Self {
        let file = Disk::empty(bytes);
        let path = file.path().display().to_string();
        let sector = sector.to_string();
        let device = run(
            "losetup",
            &["--show", "-f", "--sector-size", &sector, &path],
        );
        Self {
            device: device.into(),
            file,
        }
    }

    fn name(&self) -> String {
        self.device.display().to_string()
    }

    fn used(&self) -> u64 {
        fs::metadata(self.file.path()).expect("the file").blocks() * 512
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A test that failed may have left it in use.
        drop(Command::new("losetup").arg("-d").arg(&self.device).status());
    }
}

/// Starts with a disk that can't be used. Returns the error message.
fn refused(launch: Launch, path: &Path, keys: &str) -> String {
    let exit = launch.disk(path, keys).start().finish();
    assert_eq!(exit.code, Some(1), "{}", exit.errors);
    exit.errors
}

#[test]
#[ignore = "needs a stock guest"]
fn loop_devices_are_disks_of_their_size_that_discard_and_lock() {
    if !needs::block_devices() {
        return;
    }
    let small = Loop::new(32 * MIB, 512);
    let large = Loop::new(48 * MIB, 4096);
    let patched = Loop::new(40 * MIB, 4096);
    let (launch, _root) = guest();
    let mut guest = launch
        .disk(&small.device, ",queues=2")
        .disk(&large.device, ",direct=on")
        .disk(&patched.device, ",direct=on,block-size=512")
        .boot();
    for (name, device, bytes, block) in [
        ("vdb", &small, 32 * MIB, "512"),
        ("vdc", &large, 48 * MIB, "4096"),
        ("vdd", &patched, 40 * MIB, "512"),
    ] {
        let sysfs = |file: &str| format!("cat /sys/block/{name}/{file}");
        assert_eq!(
            guest.succeed(&sysfs("size")).trim(),
            (bytes / 512).to_string()
        );
        assert_eq!(
            guest.succeed(&sysfs("queue/logical_block_size")).trim(),
            block
        );
        guest.succeed(&format!(
            "dd if=/dev/urandom of=/dev/{name} bs=1M count=16 oflag=direct 2>&1"
        ));
        // Data in the host's page cache is in the file after a flush.
        guest.succeed(&format!("sync /dev/{name}"));
        assert!(device.used() >= 16 * MIB, "{name}: {} bytes", device.used());
        guest.succeed(&format!("/usr/sbin/blkdiscard -f /dev/{name}"));
        assert!(
            device.used() < MIB,
            "{name}: {} bytes are still allocated",
            device.used()
        );
        guest.succeed(&format!(
            "fio --eta=never --name=v --filename=/dev/{name} --rw=randwrite --bs=4k --size=4M --direct=1 --ioengine=libaio --iodepth=16 \
             --verify=crc32c --verify_fatal=1 --output=/tmp/fio || {{ cat /tmp/fio; false; }}"
        ));
        guest.succeed(&format!(
            "/usr/sbin/blkdiscard -f -z -l 1M /dev/{name} && cmp -n 1048576 /dev/{name} /dev/zero"
        ));
    }
    let (second, _other_root) = self::guest();
    let errors = refused(second, &small.device, "");
    assert!(
        errors.contains(&small.name()) && errors.contains("in use"),
        "{errors}"
    );

    // If the loop device grows, the disk grows.
    let file = fs::File::options()
        .write(true)
        .open(small.file.path())
        .expect("the file");
    file.set_len(40 * MIB).expect("grown");
    run("losetup", &["-c", &small.name()]);
    guest.signal("USR1");
    let sectors = 40 * MIB / 512;
    guest.succeed(&format!(
        "for i in $(seq 100); do [ $(cat /sys/block/vdb/size) = {sectors} ] && break; sleep 0.1; done; \
         [ $(cat /sys/block/vdb/size) = {sectors} ]"
    ));
    guest.power_off();
}

/// Runs `test` where it and the programs that it starts are refused io_uring, with the error of
/// `kernel.io_uring_disabled`. That setting itself is global, and would affect tests that run at
/// the same time.
fn without_rings(test: fn()) {
    let refuse = || -> Result<(), Box<dyn std::error::Error>> {
        let filter = SeccompFilter::new(
            [(libc::SYS_io_uring_setup, Vec::new())].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EPERM.unsigned_abs()),
            TargetArch::x86_64,
        )?;
        Ok(apply_filter(&BpfProgram::try_from(filter)?)?)
    };
    // The filter applies to the thread and to the processes that it starts.
    let thread = thread::current();
    let name = thread.name().unwrap_or_default().to_owned();
    let started = thread::Builder::new().name(name).spawn(move || {
        refuse().expect("install the filter");
        test();
    });
    if let Err(panic) = started.expect("a thread").join() {
        resume_unwind(panic);
    }
}

#[test]
#[ignore = "needs a stock guest"]
fn without_io_uring_disks_work_and_the_operator_is_warned() {
    if needs::block_devices() {
        without_rings(disks_without_rings);
    }
}

fn disks_without_rings() {
    let disk = Loop::new(16 * MIB, 512);
    let (launch, _root) = guest();
    let errors = refused(launch, &disk.device, ",aio=io_uring");
    let cause = format!(
        "cannot use {} as a disk: the host refuses io_uring",
        disk.name()
    );
    assert!(
        errors.contains(&cause) && errors.contains("use aio=auto"),
        "{errors}"
    );
    for keys in ["", ",direct=on,queues=2"] {
        let (launch, _root) = guest();
        let mut guest = launch.disk(&disk.device, keys).boot();
        guest.succeed(
            "fio --eta=never --name=v --filename=/dev/vdb --rw=randwrite --bs=4k --size=4M --direct=1 --ioengine=libaio --iodepth=16 \
             --verify=crc32c --verify_fatal=1 --fsync=16 --output=/tmp/fio || { cat /tmp/fio; false; }",
        );
        let exit = guest.power_off();
        let told = exit.errors.matches("the host refuses io_uring").count();
        assert_eq!(told, 1, "{}", exit.errors);
        assert!(exit.errors.contains(&disk.name()), "{}", exit.errors);
    }
}

pub(crate) const SCSI_DEBUG: &str = "/sys/bus/pseudo/drivers/scsi_debug";

/// Returns the adapters of scsi_debug, each with a disk.
pub(crate) fn adapters() -> Vec<PathBuf> {
    let entries = fs::read_dir(SCSI_DEBUG).expect("scsi_debug is loaded");
    let named = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("adapter");
    let adapters = entries.flatten().filter(named);
    adapters.map(|adapter| adapter.path()).collect()
}

/// Returns the device file of an adapter's disk.
pub(crate) fn disk_of(adapter: &Path) -> Option<PathBuf> {
    let dir = format!("{}/", adapter.display());
    let found = run("find", &[&dir, "-path", "*/block/sd*", "-prune"]);
    let path = Path::new(found.lines().next()?).file_name()?;
    Some(Path::new("/dev").join(path))
}

/// Returns the device file of scsi_debug's first disk.
fn scsi_debug() -> PathBuf {
    let mut disks = adapters().into_iter().filter_map(|found| disk_of(&found));
    disks.next().expect("scsi_debug has a disk")
}

/// Makes sectors 0x1234 and the nine after it unreadable, or readable again.
fn spoil(on: bool) {
    fs::write(format!("{SCSI_DEBUG}/opts"), if on { "2" } else { "0" }).expect("written");
}

#[test]
#[ignore = "needs a stock guest"]
fn a_disk_with_bad_sectors_and_a_disk_that_goes_away_are_errors_in_the_guest() {
    let parameters = [("dev_size_mb", "16"), ("physblk_exp", "3"), ("lbpu", "1")];
    if !needs::capabilities(&[Capability::SysAdmin]) || !needs::module("scsi_debug", &parameters) {
        return;
    }
    let device = scsi_debug();
    let (launch, _root) = guest();
    let mut guest = launch.disk(&device, ",id=bad,direct=on").boot();
    guest.succeed("dd if=/dev/urandom of=/dev/vdb bs=64k count=64 oflag=direct 2>&1");
    spoil(true);
    // Sector 0x1234 is in the 4 KiB block 0x246.
    let read = |block: u32| {
        format!("dd if=/dev/vdb of=/dev/null bs=4k skip={block} count=1 iflag=direct 2>&1")
    };
    let reply = guest.run(&read(0x246));
    assert_ne!(reply.status, 0);
    assert!(
        reply.output.contains("Input/output error"),
        "{}",
        reply.output
    );
    guest.succeed(&read(0x240));
    spoil(false);
    guest.succeed(&read(0x246));
    guest.succeed("/usr/sbin/blkdiscard -f -o 1M -l 1M /dev/vdb");

    let name = device
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    fs::write(format!("/sys/block/{name}/device/delete"), "1").expect("deleted");
    let reply = guest.run(&read(0));
    assert_ne!(reply.status, 0, "the device is gone: {}", reply.output);
    let exit = guest.power_off();
    assert!(exit.errors.contains("bad: Read failed"), "{}", exit.errors);
}
