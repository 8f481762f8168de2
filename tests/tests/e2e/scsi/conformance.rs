//! The families of the conformance suite, on Splitring's disks and, where those fail a test, on the
//! kernel's own target.

use splitring_tests::assets::{Disk, Kernel};
use splitring_tests::guest::Guest;

use crate::scsi::suite::{self, Family};
use crate::scsi::{boot, guest, launch};

/// With several logical blocks per physical block, this test asks for the status of one block and
/// expects the descriptor of another, which SBC-3 §5.6 does not allow. With one block it passes.
const UNMAP_SINGLE: &str = "GetLBAStatus.UnmapSingle";

/// The suite's family for Linux, of version 1.19. Skipped tests:
/// - `ReadOnly`: the disk is writable; there is a separate family for a read-only one.
/// - `MultipathIO`: there is one path; there is a separate family for two.
/// - `InvalidDataOutSize`: needs an iSCSI session; tested in process by
///   `tests/scsi/conformance.rs`.
/// - `ZeroBlocks` of WRITE SAME: such commands are refused, as the block limits page says (WSNZ).
/// - `WriteAtomic16`: not offered. No file system promises that a write is atomic over a power cut.
const fn linux(excused: &'static [&'static str]) -> Family {
    Family {
        skipped: &[
            "ReadOnly.ReadOnlySBC",
            "MultipathIO.*",
            "CompareAndWrite.InvalidDataOutSize",
            "WriteSame10.ZeroBlocks",
            "WriteSame16.ZeroBlocks",
            "WriteAtomic16.*",
        ],
        excused,
        ..Family::whole("LINUX", "/dev/sda", 155)
    }
}

/// Loads the kernel's own SCSI target with these options; its disk is `disk`.
fn scsi_debug(guest: &mut Guest, options: &str, disk: &str) {
    guest.load_extra("/dev/vdb", "scsi_debug");
    // It was loaded without options, and its disk is in use while the kernel probes it.
    guest.succeed(&format!(
        "for n in $(seq 60); do rmmod scsi_debug && break; sleep 1; done; \
         insmod /tmp/extra/scsi_debug.ko dev_size_mb=64 delay=0 \
         lbpu=1 lbpws=1 lbpws10=1 lbprz=1 {options}"
    ));
    guest.succeed(&format!(
        "for n in $(seq 60); do [ -b {disk} ] && break; sleep 1; done; [ -b {disk} ]"
    ));
}

#[test]
#[ignore = "needs a stock guest"]
fn conformance_of_a_disk_with_blocks_of_512() {
    let disk = Disk::empty(1 << 30);
    let (_root, mut guest) = guest(&[(&disk, ",serial=S1,removable=on")]);
    linux(&[UNMAP_SINGLE]).passes(&mut guest);
}

/// With one logical block per physical block these tests have no unaligned block to unmap, and no
/// wrong length to send.
const WITHOUT_SMALLER_BLOCKS: &[&str] = &[
    "ReadOnly.ReadOnlySBC",
    "MultipathIO.*",
    "CompareAndWrite.InvalidDataOutSize",
    "WriteSame10.ZeroBlocks",
    "WriteSame10.UnmapUnaligned",
    "WriteSame10.InvalidDataOutSize",
    "WriteSame16.ZeroBlocks",
    "WriteSame16.UnmapUnaligned",
    "WriteSame16.InvalidDataOutSize",
    "WriteAtomic16.*",
];

/// Two initiators, lost sessions and resets: the suite tests them over iSCSI sessions only. They
/// are tested in process by `tests/scsi/{reservations,management}.rs`.
const SESSIONS: &[&str] = &[
    "PreventAllow.ITNexusLoss",
    "PreventAllow.Logout",
    "PreventAllow.WarmReset",
    "PreventAllow.ColdReset",
    "PreventAllow.LUNReset",
    "PreventAllow.2ITNexuses",
];

/// All other families. When a disk is open the kernel locks the medium, on the same nexus, and it
/// opens a read-only disk for reading only, while the suite expects refused writes: these families
/// use the generic device.
#[rustfmt::skip]
const OTHERS: &[Family] = &[
    Family::whole("SCSI.Prin*", "/dev/disk-0:0:0:0", 4),
    Family {
        skipped: &["ProutReserve.Access*", "ProutReserve.Ownership*", "ProutPreempt.RemoveRegistration"],
        ..Family::whole("SCSI.Prout*", "/dev/disk-0:0:0:0", 16)
    },
    Family {
        skipped: &[
            "Reserve6.2Initiators", "Reserve6.Logout", "Reserve6.ITNexusLoss", "Reserve6.TargetColdReset",
            "Reserve6.TargetWarmReset", "Reserve6.LUNReset",
        ],
        ..Family::whole("SCSI.Reserve6", "/dev/disk-0:0:0:0", 7)
    },
    Family::whole("SCSI.Read6", "/dev/disk-0:0:0:0", 2),
    Family::whole("SCSI.StartStopUnit", "/dev/generic-0:0:0:0", 3),
    Family { skipped: SESSIONS, ..Family::whole("SCSI.PreventAllow", "/dev/generic-0:0:0:0", 8) },
    Family::whole("SCSI.NoMedia", "/dev/generic-0:0:0:0", 1),
    Family::whole("SCSI.ReadOnly", "/dev/generic-0:0:1:0", 1),
    // Not offered: the host copies between units, and UNMAP frees blocks.
    Family { skipped: &["ExtendedCopy.*"], ..Family::whole("SCSI.ExtendedCopy", "/dev/disk-0:0:0:0", 6) },
    Family { skipped: &["ReceiveCopyResults.*"], ..Family::whole("SCSI.ReceiveCopyResults", "/dev/disk-0:0:0:0", 2) },
    // The others need sessions to reset and to abort.
    Family {
        skipped: &["MultipathIO.Reset", "MultipathIO.CompareAndWriteAsync"],
        ..Family::whole("SCSI.MultipathIO", "/dev/disk-0:0:2:0 /dev/disk-1:0:0:0", 4)
    },
    // About iSCSI's own framing; the two that are not skipped return at once without it.
    Family { skipped: &["iSCSIcmdsn.*", "iSCSIdatasn.*", "iSCSIResiduals.*"], ..Family::whole("iSCSI", "/dev/disk-0:0:0:0", 15) },
];

/// Not offered: no one can guarantee that a host's file is wiped. All tests of the suite's family
/// except `OverwriteReserved`, in which the suite itself dereferences a null pointer without
/// SANITIZE.
const SANITIZE: [&str; 10] = [
    "BlockErase",
    "BlockEraseReserved",
    "CryptoErase",
    "CryptoEraseReserved",
    "ExitFailureMode",
    "InvalidServiceAction",
    "Overwrite",
    "Readonly",
    "Reservations",
    "Reset",
];

#[test]
#[ignore = "needs a stock guest"]
fn conformance_of_the_other_families() {
    let [disk, readonly, shared] = [(); 3].map(|()| Disk::empty(1 << 30));
    let disks = [
        (&disk, ",serial=S1,removable=on"),
        (&readonly, ",serial=S2,readonly=on"),
        (&shared, ",serial=S3,share=on,controller=0"),
        (&shared, ",serial=S3,share=on,controller=1"),
    ];
    let (_root, mut guest) = guest(&disks);
    // Linux scans two controllers at the same time, so that the names sdX vary.
    guest.succeed(
        "for path in /sys/class/scsi_device/*; do \
         ln -s $(ls $path/device/block) /dev/disk-${path##*/}; \
         ln -s $(ls $path/device/scsi_generic) /dev/generic-${path##*/}; done",
    );
    for family in OTHERS {
        family.passes(&mut guest);
    }
    for test in SANITIZE {
        let family = format!("SCSI.Sanitize.{test}");
        let verdict = suite::run(&mut guest, &family, "/dev/disk-0:0:0:0");
        assert_eq!((verdict.run, &verdict.failed[..]), (1, &[][..]), "{family}");
        println!("{family}: {:?}", verdict.skipped);
    }
}

mod soak {
    use super::*;

    /// A test stays excused only as long as the kernel's own target fails it in the same way.
    #[test]
    #[ignore = "needs a stock guest"]
    fn excused_tests_fail_on_two_targets_of_the_same_geometry() {
        let (disk, modules) = (
            Disk::empty(64 << 20),
            Kernel::named("6.12-cloud").extra_modules(),
        );
        let (_root, launch) = launch();
        let launch = launch.memory("512M").disk(&modules, ",readonly=on");
        let mut guest = boot(launch, &[(&disk, "")]);
        scsi_debug(&mut guest, "physblk_exp=3", "/dev/sdb");
        guest.succeed("sg_inq /dev/sdb | grep scsi_debug");
        for device in ["/dev/sda", "/dev/sdb"] {
            let geometry = guest.succeed(&format!("sg_readcap -l {device}"));
            assert!(geometry.contains("exponent=3"), "{geometry}");
            let verdict = suite::run(&mut guest, &format!("LINUX.{UNMAP_SINGLE}"), device);
            println!("{device}: {verdict:?}");
            assert_eq!(verdict.failed, [UNMAP_SINGLE], "{device}");
        }
    }

    #[test]
    #[ignore = "needs a stock guest"]
    fn conformance_of_a_disk_with_blocks_of_4096() {
        let disk = Disk::empty(1 << 30);
        let (_root, mut guest) = guest(&[(&disk, ",serial=S1,block-size=4096,queue-size=1024")]);
        let family = Family {
            skipped: WITHOUT_SMALLER_BLOCKS,
            ..linux(&[])
        };
        family.passes(&mut guest);
    }
}
