//! Mixed reads, writes and trims, verified by fio, over a matrix: ring sizes and features, queues,
//! block sizes, with and without the host's page cache, and on each of those disks every request
//! size and depth, with and without the guest's page cache. The plain tier runs a pairwise sample,
//! the soak tier everything.

use splitring_tests::assets::Disk;
use splitring_tests::guest::Guest;
use splitring_tests::pairs;

use crate::blk::disks::{MIB, device, guest_of};

const RINGS: [u16; 5] = [4, 16, 64, 256, 1024];
const QUEUES: [u16; 2] = [1, 4];
const BLOCKS: [u32; 2] = [512, 4096];
const DEPTHS: [u32; 4] = [1, 8, 32, 128];
const ON: [bool; 2] = [false, true];

/// Range of request sizes on disks with blocks of 512 and of 4096 bytes, and KiB of data per job.
struct Size {
    mixed: [&'static str; 2],
    /// The minimum. Without the guest's page cache it is larger if a whole depth of the largest
    /// requests needs more.
    mixed_kib: u64,
    largest_kib: u64,
    trimmed: [&'static str; 2],
    trimmed_kib: u64,
}

const SIZES: [Size; 4] = [
    Size {
        mixed: ["--bsrange=512-16k", "--bsrange=4k-16k"],
        mixed_kib: 1024,
        largest_kib: 16,
        trimmed: ["--bs=2k", "--bs=8k"],
        trimmed_kib: 128,
    },
    Size {
        mixed: ["--bs=4k"; 2],
        mixed_kib: 1024,
        largest_kib: 4,
        trimmed: ["--bs=4k"; 2],
        trimmed_kib: 128,
    },
    Size {
        mixed: ["--bs=64k"; 2],
        mixed_kib: 2048,
        largest_kib: 64,
        trimmed: ["--bs=64k"; 2],
        trimmed_kib: 1024,
    },
    Size {
        mixed: ["--bs=1m"; 2],
        mixed_kib: 2048,
        largest_kib: 1024,
        trimmed: ["--bs=1m"; 2],
        trimmed_kib: 2048,
    },
];
const VERIFY: &str = "--verify=crc32c --verify_fatal=1";
/// Space for the trimmed range, and behind it for the deepest queue of the largest requests.
const BYTES: u64 = 130 * MIB;
/// Enough for eight instances of fio with requests of 1 MiB at depth 128.
const MEMORY: &str = "2G";

/// One disk. `block` and the fields after it are indices of the tables above.
#[derive(Clone, Copy)]
struct MatrixDisk {
    ring: u16,
    event_idx: bool,
    indirect: bool,
    queues: u16,
    block: usize,
    direct: bool,
}

impl MatrixDisk {
    fn keys(self) -> String {
        let hide = match (self.event_idx, self.indirect) {
            (true, true) => "",
            (false, true) => ",hide=event-idx",
            (true, false) => ",hide=indirect-desc",
            (false, false) => ",hide=event-idx:indirect-desc",
        };
        format!(
            ",queue-size={},queues={},block-size={},direct={},aio=io_uring{hide}",
            self.ring,
            self.queues,
            BLOCKS[self.block],
            if self.direct { "on" } else { "off" },
        )
    }
}

/// Returns fio jobs. The first part of the disk is written, and trimmed in random order while the
/// rest is read and written at random; written data is verified. There is space for at least `room`
/// of the largest requests.
fn mix(block: usize, size: usize, depth: u32, cached: bool, room: u32) -> String {
    let Size {
        mixed,
        mixed_kib,
        largest_kib,
        trimmed,
        trimmed_kib,
    } = &SIZES[size];
    let same = format!(
        "--stonewall --iodepth={depth} --direct={}",
        u8::from(!cached)
    );
    let part = format!("--size={trimmed_kib}k {}", trimmed[block]);
    // Through the page cache fio has one request in flight, whatever the depth.
    let at_once = if cached { 1 } else { u64::from(room) };
    let mixed_kib = *mixed_kib.max(&(largest_kib * at_once));
    format!(
        " --name=filled {same} {VERIFY} --rw=write {part} \
         --name=mixed {same} {VERIFY} --rw=randrw --rwmixread=30 --offset={trimmed_kib}k --size={mixed_kib}k {} \
         --name=trimmed --rw=randtrim {part}",
        mixed[block]
    )
}

/// Returns the line that runs these jobs, the last of this size, with fio on disk number `index`,
/// and checks that trims arrived and that the last trimmed range is zero.
fn fio(index: usize, size: usize, jobs: &str) -> String {
    let file = device(index);
    let name = file.trim_start_matches("/dev/");
    let bytes = SIZES[size].trimmed_kib << 10;
    format!(
        "fio --eta=never --filename={file} --ioengine=libaio {jobs} && cmp -n {bytes} {file} /dev/zero \
         && set -- $(cat /sys/block/{name}/stat) && [ ${{12}} -ge 1 ]"
    )
}

/// Runs these lines concurrently, since fio often waits for itself.
fn at_once(guest: &mut Guest, lines: impl IntoIterator<Item = String>) {
    for (number, line) in lines.into_iter().enumerate() {
        let output = format!("/tmp/output{number}");
        guest.succeed(&format!(
            "{{ {line}; }} >{output} 2>&1 || echo {output} >>/tmp/failed &"
        ));
    }
    guest.succeed("wait; [ ! -e /tmp/failed ] || { cat $(cat /tmp/failed); false; }");
}

/// Boots a guest with a disk for each of these keys in addition to the root disk.
fn boot(keys: &[String]) -> (Guest, [Vec<Disk>; 2]) {
    let (mut launch, root) = guest_of(MEMORY);
    let images: Vec<Disk> = keys.iter().map(|_| Disk::empty(BYTES)).collect();
    for (image, keys) in images.iter().zip(keys) {
        launch = launch.disk(image.path(), keys);
    }
    (launch.boot(), [images, vec![root]])
}

fn end(guest: Guest) {
    assert_eq!(guest.power_off().errors, "", "nothing to report");
}

#[test]
#[ignore = "needs a stock guest"]
fn data_is_read_as_written_in_a_pairwise_sample_of_the_matrix() {
    let rows = pairs::sample([
        RINGS.len(),
        ON.len(),
        ON.len(),
        QUEUES.len(),
        BLOCKS.len(),
        ON.len(),
        SIZES.len(),
        DEPTHS.len(),
        ON.len(),
    ]);
    let shapes = rows.iter().map(|row| MatrixDisk {
        ring: RINGS[row[0]],
        event_idx: ON[row[1]],
        indirect: ON[row[2]],
        queues: QUEUES[row[3]],
        block: row[4],
        direct: ON[row[5]],
    });
    let keys: Vec<String> = shapes.map(MatrixDisk::keys).collect();
    let (mut guest, _images) = boot(&keys);
    let mut lines = Vec::new();
    for (index, (row, keys)) in (1..).zip(rows.iter().zip(&keys)) {
        let [.., block, _, size, depth, cached] = *row;
        let jobs = mix(block, size, DEPTHS[depth], ON[cached], DEPTHS[depth]);
        println!("{keys}: {jobs}");
        lines.push(fio(index, size, &jobs));
    }
    for some in lines.chunks(8) {
        at_once(&mut guest, some.iter().cloned());
    }
    end(guest);
}

/// Configurations that the matrix does not have: other backends, and other ways to make writes
/// stable.
const OTHERS: [&str; 6] = [
    "",
    ",aio=threads,direct=on",
    ",aio=io_uring,cache=writethrough,queues=2",
    ",aio=threads,cache=writethrough,block-size=4096",
    ",aio=io_uring,hide=flush:config-wce,queue-size=32",
    ",aio=io_uring,direct=on,hide=flush:config-wce,block-size=4096",
];

#[test]
#[ignore = "needs a stock guest"]
fn data_is_read_as_written_with_every_backend() {
    let keys = OTHERS.map(str::to_owned);
    let (mut guest, _images) = boot(&keys);
    let line = |(index, keys): (usize, &String)| {
        let block = usize::from(keys.contains("4096"));
        let jobs = [mix(block, 0, 32, false, 32), mix(block, 2, 8, true, 1)].concat();
        fio(index, 2, &format!("--fsync=16 {jobs}"))
    };
    at_once(&mut guest, (1..).zip(&keys).map(line));
    end(guest);
}

/// Returns all disks with rings of this kind.
fn shapes(ring: u16, event_idx: bool, indirect: bool) -> Vec<MatrixDisk> {
    let mut shapes = Vec::new();
    for queues in QUEUES {
        for block in 0..BLOCKS.len() {
            for direct in ON {
                shapes.push(MatrixDisk {
                    ring,
                    event_idx,
                    indirect,
                    queues,
                    block,
                    direct,
                });
            }
        }
    }
    shapes
}

fn run(ring: u16, event_idx: bool, indirect: bool) {
    let shapes = shapes(ring, event_idx, indirect);
    let keys: Vec<String> = shapes.iter().map(|shape| shape.keys()).collect();
    let (mut guest, _images) = boot(&keys);
    let disks = || (1..).zip(&shapes);
    for size in 0..SIZES.len() {
        let line = |(index, shape): (usize, &MatrixDisk)| {
            let depths = DEPTHS
                .iter()
                .flat_map(|depth| ON.map(|cached| (*depth, cached)));
            let jobs =
                depths.map(|(depth, cached)| mix(shape.block, size, depth, cached, DEPTHS[0]));
            fio(index, size, &jobs.collect::<String>())
        };
        at_once(&mut guest, disks().map(line));
    }
    end(guest);
}

mod soak {
    use super::*;

    macro_rules! tests {
    ($($name:ident $ring:literal $event_idx:literal $indirect:literal),* $(,)?) => {
        $(
            #[test]
            #[ignore = "needs a stock guest"]
            fn $name() {
                run($ring, $event_idx, $indirect);
            }
        )*
    };
}

    tests!(
            ring_of_4 4 true true,
            ring_of_4_without_event_idx 4 false true,
            ring_of_4_without_indirect 4 true false,
            ring_of_4_without_both 4 false false,
            ring_of_16 16 true true,
            ring_of_16_without_event_idx 16 false true,
            ring_of_16_without_indirect 16 true false,
            ring_of_16_without_both 16 false false,
            ring_of_64 64 true true,
            ring_of_64_without_event_idx 64 false true,
            ring_of_64_without_indirect 64 true false,
            ring_of_64_without_both 64 false false,
            ring_of_256 256 true true,
            ring_of_256_without_event_idx 256 false true,
            ring_of_256_without_indirect 256 true false,
            ring_of_256_without_both 256 false false,
            ring_of_1024 1024 true true,
            ring_of_1024_without_event_idx 1024 false true,
            ring_of_1024_without_indirect 1024 true false,
            ring_of_1024_without_both 1024 false false,
    );
}
