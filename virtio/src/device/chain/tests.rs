//! Reader and writer over every framing of the same bytes.

use super::{DescriptorChain, ShortChain};
use crate::device::queue::ActiveQueue;
use crate::device::tests::driver::{DATA, PLAIN, TestDriver, WRITE};
use crate::mem::testing::TestRam;
use crate::spec::blk::RequestHeader;

const OUT: u64 = DATA + 0x1000;
const IN: u64 = DATA + 0x2000;

/// Returns a chain whose readable and writable parts have segments of these lengths; readable bytes
/// count up from 0.
fn framed(
    readable: &[u32],
    writable: &[u32],
) -> (TestDriver, ActiveQueue<TestRam>, DescriptorChain<TestRam>) {
    let mut driver = TestDriver::new(32);
    let mut queue = driver.activate(PLAIN);
    let mut buffers = Vec::new();
    let bytes: Vec<u8> = (0..=255).collect();
    driver.ram.write(OUT, &bytes);
    for (start, lens, flags) in [(OUT, readable, 0), (IN, writable, WRITE)] {
        let mut addr = start;
        for &len in lens {
            buffers.push((addr, len, flags));
            addr += u64::from(len);
        }
    }
    driver.chain(0, &buffers);
    driver.offer(0);
    let chain = queue.pop().unwrap().unwrap();
    (driver, queue, chain)
}

/// Returns all partitions of `total` into parts.
fn framings(total: u32) -> Vec<Vec<u32>> {
    if total == 0 {
        return vec![vec![]];
    }
    let with = |first| {
        move |mut rest: Vec<u32>| {
            rest.insert(0, first);
            rest
        }
    };
    (1..=total)
        .flat_map(|first| framings(total - first).into_iter().map(with(first)))
        .collect()
}

#[test]
fn a_header_reads_the_same_over_every_framing() {
    for cut in framings(10)
        .iter()
        .chain(&[vec![1; 20], vec![3, 0, 5, 0, 30], vec![16, 4]])
    {
        let (_play, mut queue, chain) = framed(cut, &[]);
        let total: u64 = cut.iter().map(|len| u64::from(*len)).sum();
        let mut reader = chain.reader();
        let header: [u8; 7] = reader.read_obj().unwrap();
        assert_eq!(header, [0, 1, 2, 3, 4, 5, 6]);
        reader.skip(1).unwrap();
        assert_eq!(reader.remaining(), total - 8);
        let ahead: Vec<u8> = reader
            .segments()
            .map(|s| u8::try_from(s.len()).unwrap())
            .collect();
        assert_eq!(
            ahead.iter().map(|len| u64::from(*len)).sum::<u64>(),
            total - 8
        );
        assert!(ahead.iter().all(|len| *len > 0));
        let mut two = [0; 2];
        reader.read_exact(&mut two).unwrap();
        assert_eq!(two, [8, 9]);
        queue.complete(chain, 0);
    }
}

#[test]
fn writes_land_at_the_same_bytes_over_every_framing() {
    for cut in framings(10) {
        let (driver, mut queue, mut chain) = framed(&[], &cut);
        let writer = chain.writer();
        let (mut data, mut status) = writer.split_at(9).unwrap();
        data.write_all(&[1, 2, 3]).unwrap();
        data.skip(2).unwrap();
        data.write_zeroes(1).unwrap();
        data.write_obj(&[7u8, 8, 9]).unwrap();
        assert_eq!((data.written(), data.remaining()), (9, 0));
        assert!(
            data.write_all(&[0]).is_err(),
            "the part ends where it was split"
        );
        status.write_all(&[0xff]).unwrap();
        assert_eq!((status.written(), status.remaining()), (1, 0));
        queue.complete(chain, 10);
        let mut bytes = [0xee; 11];
        driver.ram.read(IN, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 0, 0, 0, 7, 8, 9, 0xff, 0]);
    }
}

#[test]
fn too_short_moves_nothing_and_says_how_short() {
    let (driver, mut queue, mut chain) = framed(&[4, 4], &[2, 1]);
    let mut reader = chain.reader();
    let short = |wanted, left| ShortChain { wanted, left };
    assert_eq!(
        reader.read_obj::<RequestHeader>().unwrap_err(),
        short(16, 8)
    );
    assert_eq!(reader.skip(9).unwrap_err(), short(9, 8));
    assert_eq!(reader.remaining(), 8);
    let mut writer = chain.writer();
    assert_eq!(writer.write_all(&[1; 4]).unwrap_err(), short(4, 3));
    assert_eq!(writer.write_zeroes(4).unwrap_err(), short(4, 3));
    assert_eq!(writer.skip(u64::MAX).unwrap_err(), short(u64::MAX, 3));
    assert_eq!((writer.written(), writer.remaining()), (0, 3));
    assert!(writer.split_at(4).is_err());
    assert_eq!(driver.ram.get::<[u8; 3]>(IN), [0; 3]);
    queue.complete(chain, 0);
}

#[test]
fn long_runs_of_zeroes_are_written_whole() {
    let (driver, mut queue, mut chain) = framed(&[], &[100, 1000, 13]);
    driver.ram.write(IN, &[0xaa; 1200]);
    let mut writer = chain.writer();
    writer.skip(3).unwrap();
    writer.write_zeroes(1100).unwrap();
    assert_eq!(writer.remaining(), 10);
    queue.complete(chain, 0);
    let bytes: [u8; 1120] = driver.ram.get(IN);
    let zeroes: Vec<_> = (0..)
        .zip(bytes)
        .filter(|(_, b)| *b == 0)
        .map(|(n, _)| n)
        .collect();
    assert_eq!(zeroes, (3..1103).collect::<Vec<i32>>());
}

#[test]
fn ranges_split_segments_only_where_the_framing_cuts_them() {
    let (_play, mut queue, mut chain) = framed(&[16, 512], &[512, 1]);
    let lens =
        |segments: &[crate::mem::Segment]| segments.iter().map(|s| s.len()).collect::<Vec<_>>();
    let out = chain.readable()[1].as_ptr();
    assert_eq!(chain.readable_range(16, 512).unwrap()[0].as_ptr(), out);
    assert_eq!(lens(chain.writable_range(0, 512).unwrap()), [512]);
    assert_eq!(lens(chain.writable_range(512, 1).unwrap()), [1]);
    assert_eq!((chain.readable().len(), chain.writable().len()), (2, 2));
    queue.complete(chain, 0);

    let (driver, mut queue, mut chain) = framed(&[10, 20], &[7, 3, 5]);
    assert_eq!(lens(chain.readable_range(4, 20).unwrap()), [6, 14]);
    assert_eq!(lens(chain.readable()), [4, 6, 14, 6]);
    assert_eq!(lens(chain.writable()), [7, 3, 5]);
    assert_eq!(lens(chain.writable_range(1, 13).unwrap()), [6, 3, 4]);
    assert_eq!(
        lens(chain.writable_range(0, 0).unwrap()),
        Vec::<usize>::new()
    );
    assert_eq!(lens(chain.writable()), [1, 6, 3, 4, 1]);
    assert_eq!((chain.readable_len(), chain.writable_len()), (30, 15));
    for (start, len) in [(0, 31), (30, 1), (u64::MAX, 1), (1, u64::MAX)] {
        let error = chain.readable_range(start, len).unwrap_err();
        assert_eq!(error.left, 30);
    }
    assert!(chain.writable_range(15, 1).is_err());
    // Readers and writers have the same bytes as before.
    let bytes: [u8; 30] = chain.reader().read_obj().unwrap();
    assert!(bytes.iter().zip(0..).all(|(b, n)| *b == n));
    chain.writer().write_all(&[9; 15]).unwrap();
    queue.complete(chain, 15);
    assert_eq!(driver.ram.get::<[u8; 16]>(IN)[14..], [9, 0]);
}

#[test]
fn a_header_is_copied_once_and_judged_as_copied() {
    let (driver, mut queue, chain) = framed(&[16], &[1]);
    let header: RequestHeader = chain.reader().read_obj().unwrap();
    driver.ram.write(OUT, &[0xff; 16]);
    assert_eq!(header.kind.get(), 0x0302_0100);
    queue.complete(chain, 0);
}

#[test]
fn chains_print_their_shape() {
    let (_play, mut queue, chain) = framed(&[16], &[1]);
    let shown = format!("{chain:?}");
    assert!(shown.contains("head: 0") && shown.contains("+0x10") && shown.contains("+0x1"));
    queue.complete(chain, 0);
}
