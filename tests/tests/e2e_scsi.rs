//! SCSI disks in stock guests: an independent conformance suite, sg3-utils, file systems, reservations, many disks.
//!
//! Run by `cargo xtask test`, which knows where a stock kernel can run.

use std::time::{Duration, Instant};

use splitring_tests::assets::{Disk, Image, Kernel};
use splitring_tests::dmesg;
use splitring_tests::guest::{Guest, Launch};

/// A guest with tools on its root disk and these SCSI disks, each with its keys.
fn guest(disks: &[(&Disk, &str)]) -> (Disk, Guest) {
    let root = Disk::copy_of("tools");
    let kernel = Kernel::named("6.12-cloud");
    let mut launch = Launch::new(&kernel, Image::Vmlinux).root_disk(root.path());
    for (disk, keys) in disks {
        launch = launch.disk(disk.path(), &format!(",bus=scsi{keys}"));
    }
    let mut guest = launch.boot();
    // Linux looks for disks on a thread of its own, which may not be done when process 1 is.
    let count = disks.len();
    guest.succeed(&format!(
        "for n in $(seq 150); do [ $(ls -d /sys/block/s[dr]* 2>/dev/null | wc -l) = {count} ] && break; sleep 1; done"
    ));
    (root, guest)
}

/// How long one family may take under software emulation.
const SUITE_LIMIT: Duration = Duration::from_secs(540);

/// What the suite said of one family.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    run: u32,
    failed: u32,
    /// By suite and name.
    failed_tests: Vec<String>,
    /// Tests that the target gave no occasion for, by their reasons.
    skipped: Vec<String>,
    /// The suite's own words about what failed.
    failures: String,
}

/// Runs a family of the conformance suite on `device`.
fn conformance(guest: &mut Guest, family: &str, device: &str) -> Verdict {
    // Its log is long and the console slow: only what matters is typed out. It takes longer than one line may.
    guest.succeed(&format!(
        "rm -f /tmp/done; (iscsi-test-cu -d -f -V -t '{family}' {device} >/tmp/log 2>&1; touch /tmp/done) &"
    ));
    let started = Instant::now();
    while guest.run("[ -e /tmp/done ]").status != 0 {
        assert!(started.elapsed() < SUITE_LIMIT, "{family} does not end");
        std::thread::sleep(Duration::from_secs(1));
    }
    let summary = guest.succeed("grep -A3 'Run Summary' /tmp/log | grep tests");
    let numbers: Vec<u32> = summary
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [_total, run, _passed, failed, ..] = numbers[..] else {
        panic!("{family}: {summary}")
    };
    let failed_tests = guest.succeed(
        r#"awk '/^Suite:/{s=$2} /^ *Test:/{t=$2} /^FAILED/||/\.\.\.FAILED/{print s "." t}' /tmp/log"#,
    );
    let failures = guest
        .run(r"grep -B6 -E '\[FAILED\]|CU_FAIL|^ +[0-9]+\. ' /tmp/log | cut -c1-160 | tail -60");
    let skipped = guest.run(r"grep -o '\[SKIPPED\].*' /tmp/log | sort | uniq -c");
    Verdict {
        run,
        failed,
        failed_tests: failed_tests.lines().map(str::to_owned).collect(),
        skipped: skipped
            .output
            .lines()
            .map(|line| line.trim().to_owned())
            .collect(),
        failures: if failed > 0 {
            failures.output
        } else {
            String::new()
        },
    }
}

/// Runs a family and asserts that it ran `run` tests and that none failed but those `excused`; says what was skipped.
#[track_caller]
fn passes(guest: &mut Guest, family: &str, device: &str, run: u32, excused: &[&str]) {
    let verdict = conformance(guest, family, device);
    println!(
        "{family} on {device}: {} run, {} failed: {:?}",
        verdict.run, verdict.failed, verdict.failed_tests
    );
    for reason in &verdict.skipped {
        println!("  {reason}");
    }
    // A filter that matches nothing runs nothing and is content.
    let seen = (
        verdict.run,
        verdict
            .failed_tests
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
    );
    assert_eq!(
        seen,
        (run, excused.to_vec()),
        "{family} on {device}:\n{}",
        verdict.failures
    );
    assert_eq!(verdict.failed as usize, excused.len());
}

/// With several logical blocks a physical one this test asks for the status of one block and expects the descriptor of
/// another, which SBC-3 §5.6 does not allow; with one it passes.
const UNMAP_SINGLE: &str = "GetLBAStatus.UnmapSingle";

/// Tests in the suite's family for Linux, of version 1.19.
const LINUX_TESTS: u32 = 155;

#[test]
#[ignore = "needs a stock guest"]
fn scsi_conformance_of_a_disk_with_blocks_of_512() {
    let disk = Disk::empty(1 << 30);
    let (_root, mut guest) = guest(&[(&disk, ",serial=S1,removable=on")]);
    passes(
        &mut guest,
        "LINUX",
        "/dev/sda",
        LINUX_TESTS,
        &[UNMAP_SINGLE],
    );
}

#[test]
#[ignore = "needs a stock guest"]
fn scsi_conformance_of_a_disk_with_blocks_of_4096() {
    let disk = Disk::empty(1 << 30);
    let (_root, mut guest) = guest(&[(&disk, ",serial=S1,block-size=4096,queue-size=1024")]);
    passes(&mut guest, "LINUX", "/dev/sda", LINUX_TESTS, &[]);
}

#[test]
#[ignore = "needs a stock guest"]
fn scsi_conformance_of_the_other_scsi_families() {
    let (disk, readonly) = (Disk::empty(1 << 30), Disk::empty(1 << 30));
    let disks = [
        (&disk, ",serial=S1,removable=on"),
        (&readonly, ",serial=S2,readonly=on"),
    ];
    let (_root, mut guest) = guest(&disks);
    for (family, run) in [
        ("SCSI.Prin*", 4),
        ("SCSI.Prout*", 16),
        ("SCSI.Reserve6", 7),
        ("SCSI.Read6", 2),
    ] {
        passes(&mut guest, family, "/dev/sda", run, &[]);
    }
    // An open /dev/sda has the kernel itself lock the medium, on the same nexus; the generic device does not.
    for (family, run) in [
        ("SCSI.StartStopUnit", 3),
        ("SCSI.PreventAllow", 8),
        ("SCSI.NoMedia", 1),
    ] {
        passes(&mut guest, family, "/dev/sg0", run, &[]);
    }
    // The kernel opens a read-only disk for reading only; the suite wants to write and be refused.
    passes(&mut guest, "SCSI.ReadOnly", "/dev/sg1", 1, &[]);
}

#[test]
#[ignore = "needs a stock guest"]
fn scsi_sg3_utils_find_what_they_look_for() {
    let disk = Disk::empty(8 << 40);
    let (_root, mut guest) = guest(&[(&disk, ",serial=S1,wwn=0x5000c50015ea71ac,lun=300")]);
    let mut expect = |line: &str, words: &[&str]| {
        let said = guest.succeed(line);
        for word in words {
            assert!(
                said.contains(word),
                "`{line}` did not say {word:?}:\n{said}"
            );
        }
    };
    expect(
        "sg_inq /dev/sda",
        &[
            "SPLTRING",
            "Splitring disk",
            "Unit serial number: S1",
            "SPC-4",
        ],
    );
    expect("sg_inq --descriptors /dev/sda", &["SPC-4", "SBC-3"]);
    for page in ["0", "sn", "di", "bl", "bdc", "lbpv"] {
        expect(&format!("sg_vpd --page={page} /dev/sda"), &[]);
    }
    expect("sg_vpd --page=di /dev/sda", &["0x5000c50015ea71ac"]);
    expect(
        "sg_vpd --page=lbpv /dev/sda",
        &["LBPU): 1", "LBPWS): 1", "LBPWS10): 1"],
    );
    expect(
        "sg_opcodes -a /dev/sda",
        &["Compare and write", "Unmap", "Persistent reserve out"],
    );
    expect(
        "sg_readcap -l /dev/sda",
        &["lbpme=1, lbprz=1", "Device size: 8796093022208 bytes"],
    );
    expect("sg_luns /dev/sda", &["412c000000000000"]);
    expect("sg_luns --select=1 /dev/sda", &["c101000000000000"]);
    expect("sg_turs -n 10 /dev/sda", &["0 errors"]);
    expect("sg_requests /dev/sda", &[]);
    expect("sg_modes -a /dev/sda", &["Caching", "Control"]);
    expect("sg_logs -a /dev/sda", &[]);
    expect("sg_verify --lba=17179869183 --count=1 --16 /dev/sda", &[]);
    expect("sg_unmap --lba=0 --num=8 --force /dev/sda", &[]);
    expect(
        "sg_write_same --16 --unmap --lba=8 --num=8 --xferlen=512 /dev/sda",
        &[],
    );
    expect("sg_get_lba_status --lba=0 /dev/sda", &["deallocated"]);
    expect(
        "head -c 1024 /dev/zero >/tmp/caw; sg_compare_and_write --in=/tmp/caw --lba=0 --num=1 --xferlen=1024 /dev/sda",
        &[],
    );
    expect("sg_sync /dev/sda", &[]);
    expect("sg_reset --device /dev/sda", &[]);
    // The first command after the reset is told of it.
    expect("sg_turs /dev/sda; sg_turs /dev/sda", &[]);
    expect(
        "sg_persist --in --report-capabilities /dev/sda",
        &["Compatible Reservation Handling(CRH): 0"],
    );
    expect("sg_persist --out --register --param-sark=abc /dev/sda", &[]);
    expect(
        "sg_persist --out --reserve --param-rk=abc --prout-type=3 /dev/sda",
        &[],
    );
    expect(
        "sg_persist --in --read-reservation /dev/sda",
        &["Key=0xabc", "Exclusive Access"],
    );
    expect(
        "sg_persist --in --read-full-status /dev/sda",
        &["Key=0xabc", "Reservation holder"],
    );
    expect(
        "sg_persist --out --release --param-rk=abc --prout-type=3 /dev/sda",
        &[],
    );
    expect("sg_persist --out --clear --param-rk=abc /dev/sda", &[]);
    expect("scsi_mandat /dev/sda", &["total number of bad errors: 0"]);
}

#[test]
#[ignore = "needs a stock guest"]
fn scsi_file_systems_keep_what_they_are_given_and_trim_gives_room_back() {
    use std::os::unix::fs::MetadataExt;
    let disk = Disk::empty(1 << 30);
    let (_root, mut guest) = guest(&[(&disk, ",queues=1")]);
    for (make, name) in [("mkfs.ext4 -q -F", "ext4"), ("mkfs.xfs -q -f", "xfs")] {
        guest.succeed(&format!(
            "{make} /dev/sda && mkdir -p /mnt && mount -t {name} /dev/sda /mnt"
        ));
        guest.succeed(
            "fio --name=v --directory=/mnt --size=64M --rw=randrw --bsrange=512-128k --direct=1 --ioengine=libaio \
             --iodepth=16 --verify=crc32c --do_verify=1 --randrepeat=0 --minimal >/tmp/fio",
        );
        guest.succeed("rm -rf /mnt/* && sync");
        let before = std::fs::metadata(disk.path()).expect("there").blocks();
        guest.succeed("fstrim -v /mnt && umount /mnt");
        let after = std::fs::metadata(disk.path()).expect("there").blocks();
        assert!(
            after + (32 << 20) / 512 < before,
            "{name}: {before} to {after} blocks"
        );
        let check = if name == "ext4" {
            "fsck.ext4 -f -n"
        } else {
            "xfs_repair -n"
        };
        guest.succeed(&format!("{check} /dev/sda"));
    }
    guest.power_off();
}

#[test]
#[ignore = "needs a stock guest"]
fn scsi_two_controllers_share_an_image_under_reservations() {
    let disk = Disk::empty(64 << 20);
    let disks = [
        (&disk, ",controller=0,share=on"),
        (&disk, ",controller=1,share=on"),
    ];
    let (_root, mut guest) = guest(&disks);
    let page = "sg_vpd --page=di --quiet";
    assert_eq!(
        guest.succeed(&format!("{page} /dev/sda")),
        guest.succeed(&format!("{page} /dev/sdb"))
    );
    guest.succeed("sg_persist --out --register --param-sark=a1 /dev/sda");
    guest.succeed("sg_persist --out --register --param-sark=b2 /dev/sdb");
    guest.succeed("sg_persist --out --reserve --param-rk=a1 --prout-type=1 /dev/sda");
    guest.succeed("dd if=/dev/zero of=/dev/sda bs=4k count=1 oflag=direct");
    guest.succeed("dd if=/dev/sdb of=/dev/null bs=4k count=1 iflag=direct");
    assert_ne!(
        guest
            .run("dd if=/dev/zero of=/dev/sdb bs=4k count=1 oflag=direct")
            .status,
        0
    );
    guest.succeed(
        "sg_persist --out --preempt --param-rk=b2 --param-sark=a1 --prout-type=1 /dev/sdb",
    );
    guest.succeed("sg_turs /dev/sda; dd if=/dev/zero of=/dev/sdb bs=4k count=1 oflag=direct");
    assert_ne!(
        guest
            .run("dd if=/dev/zero of=/dev/sda bs=4k count=1 oflag=direct")
            .status,
        0
    );
    guest.power_off();
}

#[test]
#[ignore = "needs a stock guest"]
fn scsi_a_cdrom_is_read() {
    let disk = Disk::empty(4 << 20);
    std::fs::write(disk.path(), b"splitring".repeat(2048 * 9 * 2)).expect("written");
    let (_root, mut guest) = guest(&[(&disk, ",media=cdrom,readonly=on")]);
    assert!(
        guest
            .succeed("sg_inq /dev/sr0")
            .contains("Splitring CD-ROM")
    );
    assert!(
        guest
            .succeed("head -c 9 /dev/sr0; echo")
            .contains("splitring")
    );
    assert_ne!(
        guest
            .run("dd if=/dev/zero of=/dev/sr0 bs=2048 count=1")
            .status,
        0
    );
}

/// Of the process: resident kilobytes that are not guest memory, and times its device thread was woken.
fn cost(guest: &Guest) -> (u64, u64) {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1))
            .and_then(|word| word.parse().ok())
            .unwrap_or(0)
    };
    let pid = guest.pid();
    let memory = field(&read(format!("/proc/{pid}/status")), "RssAnon:");
    let mut wakes = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .expect("threads")
        .flatten()
    {
        let name = read(format!("{}/comm", task.path().display()));
        if !name.starts_with("vcpu") {
            wakes += field(
                &read(format!("{}/status", task.path().display())),
                "voluntary_ctxt_switches:",
            );
        }
    }
    (memory, wakes)
}

#[test]
#[ignore = "needs a stock guest"]
fn scsi_hundreds_of_disks_are_found_and_cost_nothing_while_idle() {
    const DISKS: usize = 256;
    let disks: Vec<Disk> = (0..DISKS).map(|_| Disk::empty(1 << 20)).collect();
    let with_keys: Vec<(&Disk, &str)> = disks.iter().map(|disk| (disk, "")).collect();
    let (_root, mut guest) = guest(&with_keys);
    guest.succeed(
        "for n in $(seq 120); do [ $(ls -d /sys/block/sd* | wc -l) = 256 ] && break; sleep 1; done",
    );
    assert_eq!(
        guest.succeed("ls -d /sys/block/sd* | wc -l").trim(),
        DISKS.to_string()
    );
    guest.succeed("for d in /sys/block/sd*; do dd if=/dev/${d##*/} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null || exit 1; done");
    // Else the root disk's journal and its timer count as well.
    guest.succeed("sync; mount -o remount,ro /");
    std::thread::sleep(Duration::from_secs(3));
    let (_, before) = cost(&guest);
    std::thread::sleep(Duration::from_secs(5));
    let (_, after) = cost(&guest);
    println!("device threads woke {} times in 5 s", after - before);
    assert!(after - before <= 5, "{} wake-ups", after - before);
    let log = guest.succeed(dmesg::COMMAND);
    let unexpected = dmesg::unexpected(&log);
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));
    guest.power_off();
}
