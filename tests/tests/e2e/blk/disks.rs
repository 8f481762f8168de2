//! Disks under stock kernels: what the guest learns about a disk, space returned to the host,
//! resizing at run time, errors of the host, and a killed VMM.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use splitring_needs::{self as needs, Capability};
use splitring_tests::assets::{Disk, Image, Kernel};
use splitring_tests::guest::{Guest, Launch};

pub(crate) const MIB: u64 = 1 << 20;

/// Returns a guest with the tools and memory to use them; its first disk is the root disk.
pub(crate) fn guest() -> (Launch, Disk) {
    guest_of("768M")
}

/// Like [`guest`], with this much memory.
pub(crate) fn guest_of(memory: &str) -> (Launch, Disk) {
    let kernel = Kernel::named("6.12-cloud");
    let root = Disk::copy_of("tools");
    let launch = Launch::new(&kernel, Image::Vmlinux).memory(memory).cpus(2);
    (launch.root_disk(root.path()), root)
}

/// Returns the device file of disk number `index`; the root disk is 0.
pub(crate) fn device(index: usize) -> String {
    let letter = char::from(b'a' + u8::try_from(index).expect("few"));
    format!("/dev/vd{letter}")
}

#[test]
#[ignore = "needs a stock guest"]
fn the_guest_sees_the_properties_of_its_disks() {
    let (launch, _root) = guest();
    let (small, large, fixed) = (
        Disk::empty(16 * MIB),
        Disk::empty(64 * MIB),
        Disk::empty(8 * MIB),
    );
    fixed_content(fixed.path());
    let mut guest = launch
        .flag("--metrics")
        .disk(small.path(), ",serial=a-serial-number-longer-than-20")
        .disk(
            large.path(),
            ",block-size=4096,queues=2,queue-size=128,cache=writethrough",
        )
        .disk(fixed.path(), ",readonly=on")
        .boot();
    let mut sysfs = |disk: usize, name: &str| {
        let path = format!(
            "/sys/block/vd{}/{name}",
            device(disk).pop().expect("a letter")
        );
        guest
            .succeed(&format!("echo $(cat {path})"))
            .trim()
            .to_owned()
    };
    assert_eq!(sysfs(1, "serial"), "a-serial-number-long");
    assert_eq!(sysfs(1, "size"), (16 * MIB / 512).to_string());
    assert_eq!(sysfs(1, "cache_type"), "write back");
    assert_eq!(sysfs(1, "queue/physical_block_size"), "4096");
    assert_ne!(sysfs(1, "queue/discard_max_bytes"), "0");
    assert_ne!(sysfs(1, "queue/write_zeroes_max_bytes"), "0");
    assert_eq!(sysfs(1, "queue/max_segments"), "254");
    assert_eq!(sysfs(2, "queue/logical_block_size"), "4096");
    assert_eq!(sysfs(2, "queue/max_segments"), "126");
    assert_eq!(sysfs(2, "cache_type"), "write through");
    assert_eq!(sysfs(3, "ro"), "1");
    assert_eq!(guest.succeed("ls /sys/block/vdc/mq | wc -l").trim(), "2");
    guest.succeed("dd if=/dev/vdd bs=4k count=1 2>/dev/null | grep -q 'fixed content'");
    assert_ne!(
        guest
            .run("dd if=/dev/zero of=/dev/vdd bs=4k count=1 oflag=direct")
            .status,
        0
    );
    assert!(
        wakeups(&guest) <= 20,
        "device threads of an idle guest wake up"
    );
    let exit = guest.power_off();
    let metrics = exit.errors.lines().last().expect("the counters");
    let metrics: serde_json::Value = serde_json::from_str(metrics).expect(metrics);
    let fixed = &metrics["disks"]["disk3"];
    let requests = fixed["read"]["requests"].as_u64().expect("a number");
    assert!(requests > 0, "{fixed}");
    let classes = fixed["read"]["latency_us"].as_object().expect("classes");
    let sum: u64 = classes.values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(sum, requests, "{fixed}");
    assert_eq!(fixed["write"]["requests"], 0, "{fixed}");
}

/// Returns how often the threads other than the vCPUs' gave up the processor in five seconds in
/// which the guest leaves the disks idle.
fn wakeups(guest: &Guest) -> u64 {
    let count = || -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", guest.pid())).expect("it runs");
        let statuses =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
        let workers = statuses.filter(|status| !status.contains("\tvcpu"));
        workers
            .filter_map(|status| {
                let line = status.lines().find(|line| line.starts_with("voluntary"))?;
                line.split_whitespace().nth(1)?.parse::<u64>().ok()
            })
            .sum()
    };
    // Requests in flight complete.
    std::thread::sleep(Duration::from_secs(3));
    let before = count();
    std::thread::sleep(Duration::from_secs(5));
    count() - before
}

fn fixed_content(path: &Path) {
    let file = fs::File::options()
        .write(true)
        .open(path)
        .expect("the image");
    file.write_all_at(b"fixed content", 0).expect("written");
}

#[test]
#[ignore = "needs a stock guest"]
fn trim_frees_space_on_the_host_and_a_grown_image_grows_the_disk() {
    let (launch, _root) = guest();
    let (trimmed, grown) = (Disk::empty(64 * MIB), Disk::empty(16 * MIB));
    let used = || fs::metadata(trimmed.path()).expect("the image").blocks() * 512;
    let mut guest = launch
        .disk(trimmed.path(), "")
        .disk(grown.path(), "")
        .boot();
    guest.succeed("mkfs.ext4 -q /dev/vdb && mkdir -p /mnt && mount /dev/vdb /mnt");
    guest.succeed("dd if=/dev/urandom of=/mnt/file bs=1M count=40 2>/dev/null && sync");
    assert!(used() > 40 * MIB, "{} bytes", used());
    guest.succeed("rm /mnt/file && sync && fstrim -v /mnt");
    assert!(used() < 16 * MIB, "{} bytes are still allocated", used());
    guest.succeed("umount /mnt && fsck.ext4 -f -n /dev/vdb");
    guest.succeed(
        "/usr/sbin/blkdiscard -f /dev/vdb && /usr/sbin/blkdiscard -f -z -o 1M -l 2M /dev/vdb",
    );
    assert!(used() < 4 * MIB, "{} bytes are still allocated", used());

    let file = fs::File::options()
        .write(true)
        .open(grown.path())
        .expect("the image");
    file.set_len(24 * MIB).expect("grown");
    signal(guest.pid(), "USR1");
    let sectors = 24 * MIB / 512;
    guest.succeed(&format!(
        "for i in $(seq 100); do [ $(cat /sys/block/vdc/size) = {sectors} ] && break; sleep 0.1; done; \
         [ $(cat /sys/block/vdc/size) = {sectors} ]"
    ));
    guest.succeed("dd if=/dev/zero of=/dev/vdc bs=1M seek=23 count=1 oflag=direct");
    guest.power_off();
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status();
    assert!(sent.expect("kill runs").success());
}

#[test]
#[ignore = "needs a stock guest"]
fn file_systems_stay_consistent_under_stress() {
    let (launch, _root) = guest();
    let (large, small) = (Disk::empty(256 * MIB), Disk::empty(256 * MIB));
    let mut guest = launch
        .disk(large.path(), ",queues=2")
        .disk(small.path(), ",queues=2,aio=io_uring")
        .boot();
    guest.succeed(
        "mkfs.ext4 -q -b 4096 /dev/vdb && mkfs.ext4 -q -b 1024 /dev/vdc && mkdir -p /a /b",
    );
    guest.succeed("mount /dev/vdb /a && mount /dev/vdc /b");
    for dir in ["/a", "/b"] {
        guest.succeed(&format!(
            "stress-ng --temp-path {dir} --iomix 1 --iomix-bytes 16M --hdd 1 --hdd-bytes 16M --verify --timeout 15 >/tmp/stress 2>&1 \
             || {{ cat /tmp/stress; false; }}"
        ));
    }
    guest.succeed("umount /a && umount /b && fsck.ext4 -f -n /dev/vdb && fsck.ext4 -f -n /dev/vdc");
    guest.power_off();
}

/// Runs `test` with a directory on a separate file system of `size` bytes, if file systems can be
/// mounted.
fn on_a_small_file_system(size: u64, test: impl FnOnce(&Path)) {
    if !needs::capabilities(&[Capability::SysAdmin]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
        .arg(dir.path())
        .status()
        .expect("mount runs");
    assert!(mounted.success());
    test(dir.path());
    let unmounted = Command::new("umount")
        .arg(dir.path())
        .status()
        .expect("umount runs");
    assert!(unmounted.success());
}

#[test]
#[ignore = "needs a stock guest"]
fn a_full_host_is_only_an_error_in_the_guest() {
    on_a_small_file_system(4 * MIB, |dir| {
        let path = dir.join("image");
        fs::File::create(&path)
            .and_then(|file| file.set_len(64 * MIB))
            .expect("a sparse image");
        let (launch, _root) = guest();
        let mut guest = launch.disk(&path, ",id=full").boot();
        guest.succeed(
            "dd if=/dev/urandom of=/tmp/kept bs=64k count=16 2>&1 && dd if=/tmp/kept of=/dev/vdb bs=64k oflag=direct 2>&1",
        );
        let reply =
            guest.run("dd if=/dev/urandom of=/dev/vdb bs=64k seek=16 count=256 oflag=direct 2>&1");
        assert_ne!(reply.status, 0);
        assert!(reply.output.contains("error"), "{}", reply.output);
        // Data that was written before is still there, and the disk works as far as it can.
        let compare = "dd if=/dev/vdb bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/kept";
        guest.succeed(compare);
        guest.succeed("dd if=/tmp/kept of=/dev/vdb bs=64k count=16 oflag=direct 2>&1");
        guest.succeed(compare);
        guest.succeed("/usr/sbin/blkdiscard -f /dev/vdb && dd if=/dev/urandom of=/dev/vdb bs=64k count=8 oflag=direct 2>/dev/null");
        let exit = guest.power_off();
        assert!(
            exit.errors
                .contains("full: Write failed: no space left on the host"),
            "{}",
            exit.errors
        );
    });
}

#[test]
#[ignore = "needs a stock guest"]
fn a_killed_vmm_leaves_a_consistent_image_and_no_lock() {
    let data = Disk::empty(128 * MIB);
    let (launch, root) = guest();
    let mut guest = launch.disk(data.path(), "").boot();
    guest.succeed("mkfs.ext4 -q /dev/vdb && mkdir -p /mnt && mount /dev/vdb /mnt");
    // Prints a number only once it is stable.
    guest.type_line(
        "i=0; while :; do i=$((i+1)); echo $i >/mnt/$i; sync /mnt/$i /mnt; echo stable $i; done",
    );
    let mut last = 0;
    for _ in 0..40 {
        guest.wait_for("stable ");
        last += 1;
    }
    signal(guest.pid(), "KILL");
    assert_eq!(guest.finish().code, None);
    drop(root);

    let (launch, _root) = self::guest();
    let mut guest = launch.disk(data.path(), "").boot();
    guest.succeed("mkdir -p /mnt && mount /dev/vdb /mnt");
    guest.succeed(&format!(
        "( for i in $(seq {last}); do [ $(cat /mnt/$i) = $i ] || exit 1; done )"
    ));
    guest.succeed("umount /mnt && fsck.ext4 -f -n /dev/vdb");
    guest.power_off();
}

/// Returns the guest's clock in seconds.
fn uptime(guest: &mut Guest) -> f64 {
    let line = guest.succeed("cat /proc/uptime");
    let first = line.split_whitespace().next().expect(&line);
    first.parse().expect(&line)
}

/// Returns how long a line takes to run.
fn seconds(guest: &mut Guest, line: &str) -> f64 {
    let start = uptime(guest);
    guest.succeed(line);
    uptime(guest) - start
}

#[test]
#[ignore = "needs a stock guest"]
fn a_limited_disk_is_never_faster_than_its_limits() {
    let (launch, _root) = guest();
    let (requests, bytes) = (Disk::empty(16 * MIB), Disk::empty(64 * MIB));
    let mut guest = launch
        .disk(requests.path(), ",iops=200")
        .disk(bytes.path(), ",bandwidth=8M")
        .boot();
    // The burst, a tenth of a second's worth, passes at once.
    let took = seconds(
        &mut guest,
        "dd if=/dev/zero of=/dev/vdb bs=4k count=620 oflag=direct 2>/dev/null",
    );
    assert!(took > 2.9, "600 requests beyond the burst took {took} s");
    let took = seconds(
        &mut guest,
        "dd if=/dev/zero of=/dev/vdc bs=256k count=100 oflag=direct 2>/dev/null",
    );
    assert!(took > 2.8, "25 MiB at 8 MiB per second took {took} s");
    guest.power_off();
}
