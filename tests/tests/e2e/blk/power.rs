//! Power cuts of a stock guest that makes its files stable: data that was acknowledged as stable
//! survives, and the journal is clean. The disk is in memory and loses what was not flushed.

use std::sync::Arc;

use splitring::Resources;
use splitring::config::DiskConfig;
use splitring_devices::disk::Disk;
use splitring_devices::disk::config::Hidden;
use splitring_devices::disk::doubles::{FaultyDisk, MemoryDisk};
use splitring_tests::library::LibraryGuest;

const BYTES: u64 = 24 << 20;
/// Files that a guest makes stable before the power cut.
const FILES: u32 = 25;

/// How writes become stable on one of the disks.
struct DiskSetup {
    id: &'static str,
    keys: fn(&mut DiskConfig),
    /// Typed before the disk is mounted.
    prepare: &'static str,
    /// The disk ignores what makes writes stable.
    drops_flushes: bool,
}

const DISK_SETUPS: [DiskSetup; 4] = [
    DiskSetup {
        id: "flush",
        keys: |_| {},
        prepare: "true",
        drops_flushes: false,
    },
    // The guest disables the cache, which CONFIG_WCE allows.
    DiskSetup {
        id: "switched",
        keys: |_| {},
        prepare: "echo 'write through' >/sys/block/vdc/cache_type",
        drops_flushes: false,
    },
    // The guest sees no cache and never flushes.
    DiskSetup {
        id: "through",
        keys: |disk| disk.hide = vec![Hidden::Flush, Hidden::ConfigWce],
        prepare: "true",
        drops_flushes: false,
    },
    // A disk without fdatasync. If it passed, the test would prove nothing.
    DiskSetup {
        id: "mutant",
        keys: |_| {},
        prepare: "true",
        drops_flushes: true,
    },
];

/// A disk and its medium.
struct DiskMedium {
    memory: Arc<MemoryDisk>,
    disk: Arc<FaultyDisk>,
}

/// The disks, which outlive their machines.
struct DiskSet(Vec<DiskMedium>);

impl DiskSet {
    fn new() -> Self {
        let medium = |_: &DiskSetup| {
            let memory = MemoryDisk::new(BYTES);
            let disk = Arc::new(FaultyDisk::new(Arc::new(Arc::clone(&memory))));
            DiskMedium { memory, disk }
        };
        Self(DISK_SETUPS.iter().map(medium).collect())
    }

    /// Boots a machine with all disks.
    fn boot(&self) -> LibraryGuest {
        let mut own = Resources::options();
        let mut configs = Vec::new();
        for (setup, medium) in DISK_SETUPS.iter().zip(&self.0) {
            let disk: Arc<dyn Disk> = Arc::<FaultyDisk>::clone(&medium.disk);
            own = own.disk(setup.id, disk);
            let mut config = DiskConfig::new(setup.id).id(setup.id);
            (setup.keys)(&mut config);
            configs.push(config);
        }
        let mut guest = LibraryGuest::boot_with("cuts", configs, own);
        for setup in &DISK_SETUPS {
            guest.succeed(setup.prepare);
        }
        guest
    }

    /// Cuts the power: about half of what was not made stable is lost.
    fn cut(&self, seed: u64) {
        for medium in &self.0 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            medium.memory.cut_power(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.is_multiple_of(2)
            });
        }
    }
}

/// Returns the device file and the mount point of each disk.
fn disks() -> impl Iterator<Item = (&'static DiskSetup, String, String)> {
    DISK_SETUPS.iter().zip('b'..).map(|(setup, letter)| {
        let device = format!("/dev/vd{letter}");
        (setup, device, format!("/mnt/{}", setup.id))
    })
}

/// Returns a shell loop that writes files into `dir`. It makes each file stable and then reports it
/// with the name `id`, before it writes the next. File `n` of round `r` contains both numbers in
/// its 3000 bytes.
pub(crate) fn writer(id: &str, dir: &str, round: u32) -> String {
    format!(
        "{{ i=0; while i=$((i+1)); yes {round}.$i | head -c 3000 >{dir}/{round}.$i; sync {dir}/{round}.$i {dir}; \
         do echo stable {id} $i; done; echo stable {id} no more; }} &"
    )
}

/// Reads the console until the writers of all `ids` have reported the last file that counts.
pub(crate) fn wait_for_all(ids: &[&str], mut next: impl FnMut() -> String) {
    let mut missing: Vec<String> = ids.iter().map(|id| format!("{id} {FILES}")).collect();
    while !missing.is_empty() {
        let said = next();
        // Shown if the test ends here.
        println!("stable {said}");
        missing.retain(|last| *last != said);
    }
}

/// Mounts the disk again. Returns an error unless everything that round `round` made stable is on
/// it and its journal is clean. `run` types a line.
pub(crate) fn check(
    mut run: impl FnMut(&str) -> (String, i32),
    device: &str,
    dir: &str,
    round: u32,
) -> Result<(), String> {
    let lines = [
        format!("mkdir -p {dir} && mount {device} {dir}"),
        format!(
            "( for i in $(seq {FILES}); do yes {round}.$i | head -c 3000 | cmp - {dir}/{round}.$i || exit 1; done )"
        ),
        format!("rm -f {dir}/{round}.* && umount {dir} && fsck.ext4 -f -n {device}"),
        format!("mount {device} {dir}"),
    ];
    for line in lines {
        let (output, status) = run(&format!("{line} 2>&1"));
        if status != 0 {
            return Err(format!("`{line}` ended with {status}: {output}"));
        }
    }
    Ok(())
}

/// Lets the guest write to all disks, and cuts the power in the middle.
fn write_and_cut(disk_set: &DiskSet, mut guest: LibraryGuest, round: u32) {
    let loops: Vec<String> = disks()
        .map(|(setup, _, dir)| writer(setup.id, &dir, round))
        .collect();
    guest.type_line(&format!("{} sleep 600", loops.join(" ")));
    let ids: Vec<&str> = DISK_SETUPS.iter().map(|setup| setup.id).collect();
    wait_for_all(&ids, || guest.wait_for("stable ").1);
    // The machine's requests in flight end with it: nothing is written after the cut.
    drop(guest);
    disk_set.cut(u64::from(round));
}

fn rounds(range: std::ops::Range<u32>) {
    let disk_set = DiskSet::new();
    let mut guest = disk_set.boot();
    for (_, device, dir) in disks() {
        guest.succeed(&format!(
            "mkfs.ext4 -q -b 1024 {device} && mkdir -p {dir} && mount {device} {dir} && sync -f {dir}"
        ));
    }
    for (setup, medium) in DISK_SETUPS.iter().zip(&disk_set.0) {
        if setup.drops_flushes {
            medium.disk.forget_stability();
        }
    }
    for round in range {
        write_and_cut(&disk_set, guest, round);
        guest = disk_set.boot();
        for (setup, device, dir) in disks() {
            let checked = check(|line| guest.run(line), &device, &dir, round);
            if setup.drops_flushes {
                assert!(
                    checked.is_err(),
                    "the test would not notice a lost fdatasync"
                );
                guest.run(&format!("umount {dir}"));
                guest.succeed(&format!(
                    "mkfs.ext4 -F -q -b 1024 {device} && mkdir -p {dir} && mount {device} {dir}"
                ));
            } else {
                assert_eq!(checked, Ok(()), "{}, round {round}", setup.id);
            }
        }
    }
    guest.machine.stop();
}

#[test]
#[ignore = "needs a stock guest"]
fn flushed_data_survives_power_cuts() {
    rounds(1..4);
}

mod soak {
    use super::*;

    tens!(
        power_cuts_100 100, power_cuts_110 110, power_cuts_120 120, power_cuts_130 130,
        power_cuts_140 140, power_cuts_150 150, power_cuts_160 160, power_cuts_170 170,
        power_cuts_180 180, power_cuts_190 190
    );
}
