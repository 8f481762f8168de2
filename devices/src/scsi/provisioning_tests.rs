//! What UNMAP and WRITE SAME do on storage that frees blocks in one way or another, and what is reported of it.

use super::*;
use crate::disk::doubles::{FaultyDisk, Seen as Asked};
use crate::disk::{Geometry, NullDisk};

const TERA: u64 = 1 << 40;

/// A disk of 4 TiB that writes down what it is asked.
fn recording(discard_zeroes: bool) -> Arc<FaultyDisk> {
    let geometry = Geometry {
        capacity: 4 * TERA,
        discard_zeroes,
        ..MemoryDisk::new(512).geometry()
    };
    Arc::new(FaultyDisk::new(Arc::new(NullDisk::new(geometry))))
}

fn started(disk: Arc<dyn Disk>) -> Bench<Scsi> {
    let units = vec![(UnitConfig::new("disk"), disk)];
    let device = Scsi::new(&ScsiConfig::new("scsi0"), units).unwrap();
    let mut bench = Bench::start(Arc::new(device), VERSION_1, 64);
    send(&mut bench, LUN, &[0; 6], &[], &[]).unwrap();
    bench
}

fn good(bench: &mut Bench<Scsi>, cdb: &[u8], out: &[u8]) {
    bench.poke(OUT_AT, out);
    let parts = [(OUT_AT, out.len() as u32, false)];
    let seen = send(bench, LUN, cdb, &parts, &[]).unwrap();
    assert_eq!((seen.response, seen.status), (0, 0), "{cdb:x?}");
}

#[test]
fn unmap_is_one_discard_however_long_and_never_a_write() {
    for discard_zeroes in [false, true] {
        let disk = recording(discard_zeroes);
        let mut bench = started(Arc::<FaultyDisk>::clone(&disk));
        drop(disk.seen());
        let mut list = vec![0; 24];
        (list[1], list[3]) = (22, 16);
        // All blocks that a descriptor can say, which are 2 TiB but for one block.
        list[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        good(&mut bench, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list);
        assert_eq!(disk.seen(), [Asked::Discard(0, 2 * TERA - 512)]);
        assert_eq!(bench.stop(), 0);
    }
}

#[test]
fn write_same_with_the_unmap_bit_zeroes_whatever_a_discard_would_leave() {
    for discard_zeroes in [false, true] {
        let disk = recording(discard_zeroes);
        let mut bench = started(Arc::<FaultyDisk>::clone(&disk));
        drop(disk.seen());
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x93, 0x08, 8);
        good(&mut bench, &cdb, &[0; 512]);
        assert_eq!(disk.seen(), [Asked::WriteZeroes(0, 4096, true)]);
        cdb[1] = 0;
        good(&mut bench, &cdb, &[0; 512]);
        assert_eq!(disk.seen(), [Asked::WriteZeroes(0, 4096, false)]);
        assert_eq!(bench.stop(), 0);
    }
}

#[test]
fn that_unmapped_blocks_read_as_zeroes_is_reported_only_where_it_is_true_and_everywhere_alike() {
    for (discard_zeroes, capacity, page) in [(true, 0xc0, 0xe4), (false, 0x80, 0xe0)] {
        let mut bench = started(recording(discard_zeroes));
        let read_capacity = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
        for (cdb, at, expected) in [
            (&read_capacity[..], 14, capacity),
            (&[0x12, 1, 0xb2, 0, 64, 0], 5, page),
        ] {
            bench.poke(IN_AT, &[0; 64]);
            let seen = send(&mut bench, LUN, cdb, &[], &[(IN_AT, 64, true)]).unwrap();
            assert_eq!((seen.response, seen.status), (0, 0));
            assert_eq!(bench.peek(IN_AT + at, 1), [expected], "{cdb:x?}");
        }
    }
}
