//! All of the matrix: ring sizes and features, queues, blocks, the host's page cache or none, and on each of those disks
//! every block size, depth and way into the guest's page cache. The plain tier runs a sample of it, see `disks`.

use splitring_tests::assets::Disk;

use crate::disks::{MIB, device, guest};

/// What each request may cover, for disks of 512 and of 4096 bytes a block.
const SIZES: [[&str; 2]; 4] = [
    ["--bsrange=512-16k", "--bsrange=4k-16k"],
    ["--bs=4k", "--bs=4k"],
    ["--bs=64k", "--bs=64k"],
    ["--bs=1m", "--bs=1m"],
];
const DEPTHS: [u32; 4] = [1, 8, 32, 128];

/// The keys of each disk of a machine, and which block it has (an index into [`SIZES`]' pairs).
fn disks(queue_size: u16, hide: &str) -> Vec<(String, usize)> {
    let mut list = Vec::new();
    for queues in [1, 4] {
        for (block, index) in [(512, 0), (4096, 1)] {
            for direct in ["off", "on"] {
                let keys = format!(
                    ",queue-size={queue_size},queues={queues},block-size={block},direct={direct},aio=ring{hide}"
                );
                list.push((keys, index));
            }
        }
    }
    list
}

/// One call of fio that does all that is to be done on one disk, a job after the other.
fn jobs(file: &str, block: usize) -> String {
    let mut line = format!(
        "fio --eta=never --output=/tmp/fio --filename={file} --verify=crc32c --verify_fatal=1 --ioengine=libaio \
         --rw=randwrite --size=2M --stonewall"
    );
    for (at, size) in SIZES.iter().enumerate() {
        for depth in DEPTHS {
            for direct in [0, 1] {
                line.push_str(&format!(
                    " --name={at}.{depth}.{direct} {} --iodepth={depth} --direct={direct}",
                    size[block]
                ));
            }
        }
    }
    format!("{line} || {{ cat /tmp/fio; false; }}")
}

fn run(queue_size: u16, hide: &str) {
    let (mut launch, _root) = guest();
    let configs = disks(queue_size, hide);
    let images: Vec<Disk> = configs.iter().map(|_| Disk::empty(4 * MIB)).collect();
    for (image, (keys, _)) in images.iter().zip(&configs) {
        launch = launch.disk(image.path(), keys);
    }
    let mut guest = launch.boot();
    for (number, (keys, block)) in (1..).zip(&configs) {
        println!("{keys}");
        guest.succeed(&jobs(&device(number), *block));
    }
    let exit = guest.power_off();
    assert_eq!(exit.errors, "", "nothing to report");
}

macro_rules! tests {
    ($($name:ident $size:literal $hide:literal),* $(,)?) => {
        $(
            #[test]
            #[ignore = "needs a stock guest"]
            fn $name() {
                run($size, $hide);
            }
        )*
    };
}

tests!(
    soak_ring_of_4 4 "",
    soak_ring_of_4_without_event_idx 4 ",hide=event-idx",
    soak_ring_of_4_without_indirect 4 ",hide=indirect-desc",
    soak_ring_of_4_without_both 4 ",hide=event-idx:indirect-desc",
    soak_ring_of_16 16 "",
    soak_ring_of_16_without_event_idx 16 ",hide=event-idx",
    soak_ring_of_16_without_indirect 16 ",hide=indirect-desc",
    soak_ring_of_16_without_both 16 ",hide=event-idx:indirect-desc",
    soak_ring_of_64 64 "",
    soak_ring_of_64_without_event_idx 64 ",hide=event-idx",
    soak_ring_of_64_without_indirect 64 ",hide=indirect-desc",
    soak_ring_of_64_without_both 64 ",hide=event-idx:indirect-desc",
    soak_ring_of_256 256 "",
    soak_ring_of_256_without_event_idx 256 ",hide=event-idx",
    soak_ring_of_256_without_indirect 256 ",hide=indirect-desc",
    soak_ring_of_256_without_both 256 ",hide=event-idx:indirect-desc",
    soak_ring_of_1024 1024 "",
    soak_ring_of_1024_without_event_idx 1024 ",hide=event-idx",
    soak_ring_of_1024_without_indirect 1024 ",hide=indirect-desc",
    soak_ring_of_1024_without_both 1024 ",hide=event-idx:indirect-desc",
);
