//! A medium below the host's page cache that fails for a while. The kernel reports that once and
//! then considers the lost pages clean, so no flush may succeed after one that failed, whatever the
//! backend.

use std::path::Path;

use splitring::config::DiskConfig;
use splitring_devices::disk::config::{Aio, Format};
use splitring_needs as needs;
use splitring_tests::live::Live;

use crate::blk::block::{Loop, run};
use crate::blk::disks::{MIB, device};
use crate::blk::mapped::Mapped;

const BYTES: u64 = 16 * MIB;
const SECTORS: u64 = BYTES / 512;

/// A disk on such a medium.
struct Way {
    id: &'static str,
    keys: fn(&mut DiskConfig),
    /// Writes go to the host's page cache. With O_DIRECT the writes themselves fail, and nothing is
    /// lost later.
    cached: bool,
}

const WAYS: [Way; 6] = [
    Way {
        id: "ring",
        keys: |disk| disk.aio = Aio::Ring,
        cached: true,
    },
    Way {
        id: "plain",
        keys: |disk| disk.aio = Aio::Plain,
        cached: true,
    },
    Way {
        id: "ring4",
        keys: |disk| (disk.aio, disk.queues) = (Aio::Ring, Some(4)),
        cached: true,
    },
    Way {
        id: "plain4",
        keys: |disk| (disk.aio, disk.queues) = (Aio::Plain, Some(4)),
        cached: true,
    },
    Way {
        id: "direct",
        keys: |disk| disk.direct = true,
        cached: false,
    },
    Way {
        id: "qcow2",
        keys: |disk| disk.format = Format::Qcow2,
        cached: true,
    },
];

/// A medium that can fail.
struct Medium {
    mapped: Mapped,
    below: Loop,
}

impl Medium {
    fn new(id: &str) -> Self {
        let below = Loop::new(BYTES, 512);
        let mapped = Mapped::new(id, &sound(&below.device));
        Self { mapped, below }
    }

    fn fail(&self, fails: bool) {
        let table = match fails {
            true => format!("0 {SECTORS} error"),
            false => sound(&self.below.device),
        };
        self.mapped.become_as(&table);
    }
}

fn sound(below: &Path) -> String {
    format!("0 {SECTORS} linear {} 0", below.display())
}

fn boot(media: &[Medium]) -> Live {
    let config = |(way, medium): (&Way, &Medium)| {
        let mut disk = DiskConfig::new(medium.mapped.device()).id(way.id);
        (way.keys)(&mut disk);
        disk
    };
    Live::boot("lost", WAYS.iter().zip(media).map(config).collect())
}

/// Returns the disks and their device files in the guest.
fn places() -> impl Iterator<Item = (&'static Way, String)> {
    (1..)
        .zip(&WAYS)
        .map(|(index, way): (usize, &'static Way)| (way, device(index)))
}

#[test]
#[ignore = "needs a stock guest"]
fn no_flush_succeeds_after_one_that_lost_cached_data() {
    if !needs::device_mapper("dm_mod") {
        return;
    }
    let media = WAYS.map(|way| Medium::new(way.id));
    for (way, medium) in WAYS.iter().zip(&media) {
        if way.id == "qcow2" {
            let path = medium.mapped.device().display().to_string();
            run("qemu-img", &["create", "-q", "-f", "qcow2", &path, "8M"]);
        }
    }
    let mut live = boot(&media);
    let write = |path: &str| {
        format!("dd if=/dev/urandom of={path} bs=64k count=4 oflag=direct 2>/dev/null")
    };
    for (_, path) in places() {
        live.succeed(&format!("{} && sync {path}", write(&path)));
    }
    for medium in &media {
        medium.fail(true);
    }
    let flushed =
        |live: &mut Live, path: &str| live.run(&format!("sync {path} 2>/dev/null")).1 == 0;
    for (way, path) in places() {
        let (_, status) = live.run(&write(&path));
        assert_eq!(status == 0, way.cached, "{}: written", way.id);
        if way.cached {
            assert!(!flushed(&mut live, &path), "{}: it is not stable", way.id);
        }
    }
    for medium in &media {
        medium.fail(false);
    }
    for (way, path) in places() {
        live.succeed(&write(&path));
        for _ in 0..2 {
            let believed = flushed(&mut live, &path);
            assert_eq!(believed, !way.cached, "{}: lost data stays lost", way.id);
        }
    }
    live.machine.stop();
    drop(live);

    // After a new start the disks have what is on the medium.
    let mut live = boot(&media);
    for (_, path) in places() {
        live.succeed(&format!("{} && sync {path}", write(&path)));
    }
    live.machine.stop();
}
