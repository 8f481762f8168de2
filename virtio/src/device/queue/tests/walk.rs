//! Walking chains: every legal shape, and every illegal one.

use super::{fault, fault_of, lens, pop};
use crate::device::queue::{ChainFault, Interrupt, QueueConfig, RingFeatures};
use crate::device::tests::driver::{
    DATA, INDIRECT, NEXT, PLAIN, RAM, RAM_LEN, TestDriver, WRITE, desc,
};
use crate::mem::testing::TestRam;

#[test]
fn a_chain_gives_its_readable_then_its_writable_segments() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(
        2,
        &[
            (DATA, 16, 0),
            (DATA + 64, 512, 0),
            (DATA + 4096, 100, WRITE),
            (DATA, 1, WRITE),
        ],
    );
    driver.offer(2);
    let chain = pop(&mut queue);
    assert_eq!(chain.head(), 2);
    assert_eq!(lens(&chain), (vec![16, 512], vec![100, 1]));
    assert_eq!((chain.readable_len(), chain.writable_len()), (528, 101));
    queue.complete(chain, 101);
    assert_eq!(driver.used_idx(), 0, "nothing shows before it is published");
    assert_eq!(queue.publish(), Interrupt::Needed);
    assert_eq!((driver.used_idx(), driver.used_entry(0)), (1, (2, 101)));
    assert!(queue.pop().unwrap().is_none());
}

#[test]
fn direct_descriptors_may_be_followed_by_one_indirect_and_its_write_flag_says_nothing() {
    for write in [0, WRITE] {
        let mut driver = TestDriver::new(8);
        let mut queue = driver.activate(PLAIN);
        driver.set_desc(0, desc(DATA, 16, NEXT, 1));
        driver.set_desc(1, desc(DATA + 0x1000, 48, INDIRECT | write, 0));
        // Out of order in the table on purpose: the links define the order.
        driver.table(
            DATA + 0x1000,
            &[
                desc(DATA, 8, NEXT, 2),
                desc(DATA, 1, WRITE, 0),
                desc(DATA, 512, WRITE | NEXT, 1),
            ],
        );
        driver.offer(0);
        let chain = pop(&mut queue);
        assert_eq!(lens(&chain), (vec![16, 8], vec![512, 1]));
        queue.complete(chain, 513);
    }
}

#[test]
fn an_indirect_table_may_be_unaligned_and_cross_regions() {
    let middle = RAM + RAM_LEN as u64;
    let ram = TestRam::with_regions(&[(RAM, RAM_LEN, true), (middle, 4096, true)]);
    let mut driver = TestDriver::on(ram, 8);
    let mut queue = driver.activate(PLAIN);
    // 32 bytes, 20 in the first region and 12 in the second.
    let table = middle - 20;
    let mut bytes = Vec::new();
    for it in [desc(DATA, 5, NEXT, 1), desc(DATA, 6, WRITE, 0)] {
        bytes.extend_from_slice(zerocopy::IntoBytes::as_bytes(&it));
    }
    driver.ram.write(table, &bytes[..20]);
    driver.ram.write(middle, &bytes[20..]);
    driver.set_desc(3, desc(table, 32, INDIRECT, 0));
    driver.offer(3);
    let chain = pop(&mut queue);
    assert_eq!(lens(&chain), (vec![5], vec![6]));
    queue.complete(chain, 0);
}

#[test]
fn an_indirect_table_that_runs_out_of_memory_is_refused_when_the_walk_gets_there() {
    let end = RAM + RAM_LEN as u64;
    let mut driver = TestDriver::new(8);
    driver.table(end - 16, &[desc(DATA, 5, NEXT, 1)]);
    driver.set_desc(0, desc(end - 16, 32, INDIRECT, 0));
    assert_eq!(fault(&mut driver, 0), ChainFault::OutsideRam);

    let mut driver = TestDriver::new(8);
    driver.table(end - 16, &[desc(DATA, 5, 0, 0)]);
    driver.set_desc(0, desc(end - 16, 32, INDIRECT, 0));
    let mut queue = driver.activate(PLAIN);
    driver.offer(0);
    let chain = pop(&mut queue);
    queue.complete(chain, 0);
}

#[test]
fn malformed_indirect_descriptors_are_refused() {
    let table = DATA + 0x1000;
    let mut driver = TestDriver::new(8);
    driver.table(table, &[desc(DATA, 5, 0, 0)]);
    driver.set_desc(0, desc(table, 16, INDIRECT | NEXT, 1));
    driver.set_desc(1, desc(DATA, 1, WRITE, 0));
    assert_eq!(fault(&mut driver, 0), ChainFault::IndirectWithNext);

    for len in [0, 15, 17, 31] {
        let mut driver = TestDriver::new(8);
        driver.set_desc(0, desc(table, len, INDIRECT, 0));
        assert_eq!(fault(&mut driver, 0), ChainFault::IndirectLength, "{len}");
    }

    let mut driver = TestDriver::new(8);
    driver.table(table, &[desc(table, 16, INDIRECT, 0)]);
    driver.set_desc(0, desc(table, 16, INDIRECT, 0));
    assert_eq!(fault(&mut driver, 0), ChainFault::IndirectNested);

    let mut driver = TestDriver::new(8);
    driver.table(table, &[desc(DATA, 5, NEXT, 1)]);
    driver.set_desc(0, desc(table, 16, INDIRECT, 0));
    assert_eq!(fault(&mut driver, 0), ChainFault::IndexOutOfRange);

    let mut driver = TestDriver::new(8);
    driver.set_desc(0, desc(RAM - 16, 16, INDIRECT, 0));
    assert_eq!(fault(&mut driver, 0), ChainFault::OutsideRam);

    let mut driver = TestDriver::new(8);
    driver.set_desc(0, desc(u64::MAX - 7, u32::MAX - 15, INDIRECT, 0));
    assert_eq!(fault(&mut driver, 0), ChainFault::OutsideRam);
}

#[test]
fn an_indirect_descriptor_without_the_feature_is_refused() {
    let mut driver = TestDriver::new(8);
    driver.table(DATA, &[desc(DATA, 5, 0, 0)]);
    driver.set_desc(0, desc(DATA, 16, INDIRECT, 0));
    let mut queue = driver.activate(RingFeatures::default());
    driver.offer(0);
    assert_eq!(fault_of(&mut queue, 0), ChainFault::IndirectNotNegotiated);
}

#[test]
fn zero_length_descriptors_are_skipped_wherever_they_point() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(
        0,
        &[
            (0, 0, 0),
            (DATA, 16, 0),
            (u64::MAX, 0, 0),
            (1, 0, WRITE),
            (DATA, 1, WRITE),
        ],
    );
    driver.offer(0);
    let chain = pop(&mut queue);
    assert_eq!(lens(&chain), (vec![16], vec![1]));
    queue.complete(chain, 1);

    driver.chain(6, &[(0, 0, WRITE)]);
    driver.offer(6);
    let chain = pop(&mut queue);
    assert_eq!(lens(&chain), (vec![], vec![]));
    queue.complete(chain, 7);
    assert_eq!(queue.publish(), Interrupt::Needed);
    assert_eq!(driver.used_entry(1), (6, 0));
}

#[test]
fn a_readable_descriptor_after_a_writable_one_is_refused() {
    let mut driver = TestDriver::new(8);
    driver.chain(0, &[(DATA, 16, WRITE), (DATA, 16, 0)]);
    assert_eq!(fault(&mut driver, 0), ChainFault::ReadableAfterWritable);
}

#[test]
fn a_head_or_link_out_of_range_is_refused() {
    for head in [8, 9, 0x8000, 0xffff] {
        assert_eq!(
            fault(&mut TestDriver::new(8), head),
            ChainFault::IndexOutOfRange
        );
    }
    for next in [8, 0xffff] {
        let mut driver = TestDriver::new(8);
        driver.set_desc(1, desc(DATA, 16, NEXT, next));
        assert_eq!(fault(&mut driver, 1), ChainFault::IndexOutOfRange);
    }
}

#[test]
fn a_loop_of_descriptors_ends() {
    let mut driver = TestDriver::new(8);
    driver.set_desc(0, desc(DATA, 16, NEXT, 1));
    driver.set_desc(1, desc(DATA, 16, NEXT, 0));
    assert_eq!(fault(&mut driver, 0), ChainFault::TooLong);

    let table = DATA + 0x1000;
    let mut driver = TestDriver::new(8);
    driver.table(table, &[desc(DATA, 16, NEXT, 0)]);
    driver.set_desc(0, desc(table, 16, INDIRECT, 0));
    assert_eq!(fault(&mut driver, 0), ChainFault::TooLong);
}

#[test]
fn a_chain_as_long_as_the_queue_is_accepted() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 1, 0); 8]);
    driver.offer(0);
    let chain = pop(&mut queue);
    assert_eq!(chain.readable().len(), 8);
    queue.complete(chain, 0);
}

#[test]
fn chain_limit_is_not_reset_inside_an_indirect_table() {
    let table = DATA + 0x1000;
    for (entries, legal) in [(5, true), (6, false)] {
        let mut driver = TestDriver::new(8);
        driver.chain(0, &[(DATA, 1, 0), (DATA, 1, 0), (DATA, 1, 0)]);
        driver.set_desc(2, desc(DATA, 1, NEXT, 3));
        driver.set_desc(3, desc(table, entries * 16, INDIRECT, 0));
        for n in 0..entries {
            let link = if n + 1 < entries { NEXT } else { 0 };
            let next = u16::try_from(n + 1).unwrap();
            driver.table(table + 16 * u64::from(n), &[desc(DATA, 1, link, next)]);
        }
        if legal {
            let mut queue = driver.activate(PLAIN);
            driver.offer(0);
            let chain = pop(&mut queue);
            assert_eq!(chain.readable().len(), 8);
            queue.complete(chain, 0);
        } else {
            assert_eq!(fault(&mut driver, 0), ChainFault::TooLong);
        }
    }
}

#[test]
fn a_shrunk_queue_still_takes_chains_as_long_as_the_offered_maximum() {
    let table = DATA + 0x1000;
    let mut driver = TestDriver::new(2);
    let mut config = QueueConfig::new(8);
    assert!(config.set_size(2));
    config.set_desc(driver.desc);
    config.set_avail(driver.avail);
    config.set_used(driver.used);
    config.set_ready(true);
    let mut queue = config.activate(driver.ram.clone(), PLAIN).unwrap();
    for n in 0..8u16 {
        let link = if n < 7 { NEXT } else { 0 };
        driver.table(table + 16 * u64::from(n), &[desc(DATA, 1, link, n + 1)]);
    }
    driver.set_desc(0, desc(table, 128, INDIRECT, 0));
    driver.offer(0);
    let chain = pop(&mut queue);
    assert_eq!(chain.readable().len(), 8);
    queue.complete(chain, 0);
}

#[test]
fn a_chain_may_describe_two_to_the_32_bytes_and_not_one_more() {
    // The same megabyte many times over.
    let len = u32::try_from(RAM_LEN).unwrap();
    let count = (1u64 << 32) / u64::from(len);
    let table = DATA + 0x1000;
    for extra in [0, 1] {
        let ram = TestRam::with_regions(&[(RAM, RAM_LEN, true), (1 << 40, RAM_LEN, true)]);
        let mut driver = TestDriver::on(ram, 8192);
        driver.used = RAM + 0x4_0000;
        let mut queue = driver.activate(PLAIN);
        let last = count + extra - 1;
        for n in 0..=last {
            let len = if n == count { 1 } else { len };
            let link = if n < last { NEXT } else { 0 };
            let next = u16::try_from(n + 1).unwrap();
            driver.table(table + 16 * n, &[desc(1 << 40, len, link, next)]);
        }
        let bytes = u32::try_from(16 * (last + 1)).unwrap();
        driver.set_desc(0, desc(table, bytes, INDIRECT, 0));
        driver.offer(0);
        if extra == 0 {
            let chain = pop(&mut queue);
            assert_eq!(chain.readable_len(), 1 << 32);
            queue.complete(chain, 0);
        } else {
            assert_eq!(fault_of(&mut queue, 0), ChainFault::TooManyBytes);
        }
    }
}

#[test]
fn an_address_plus_length_that_overflows_is_refused() {
    for (addr, len) in [
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
        (u64::MAX - 0xffff_fffe, u32::MAX),
        (RAM.wrapping_sub(u64::from(u32::MAX)), u32::MAX),
        (0, 1),
        (RAM - 1, 2),
    ] {
        for write in [0, WRITE] {
            let mut driver = TestDriver::new(8);
            driver.set_desc(0, desc(addr, len, write, 0));
            assert_eq!(
                fault(&mut driver, 0),
                ChainFault::OutsideRam,
                "{addr:#x}+{len:#x}"
            );
        }
    }
}

#[test]
fn a_region_that_ends_at_the_end_of_the_address_space_does_not_wrap() {
    let top = u64::MAX - 0xfff;
    let ram = TestRam::with_regions(&[(RAM, RAM_LEN, true), (top, 4096, true), (0, 4096, true)]);
    let mut driver = TestDriver::on(ram, 8);
    let mut queue = driver.activate(PLAIN);
    driver.set_desc(0, desc(u64::MAX, 1, 0, 0));
    driver.offer(0);
    let chain = pop(&mut queue);
    assert_eq!(lens(&chain), (vec![1], vec![]));
    queue.complete(chain, 0);
    driver.set_desc(0, desc(u64::MAX, 2, 0, 0));
    driver.offer(0);
    assert_eq!(fault_of(&mut queue, 0), ChainFault::OutsideRam);
}

#[test]
fn the_last_byte_of_memory_can_be_used_and_the_one_behind_it_not() {
    let end = RAM + RAM_LEN as u64;
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(end - 1, 1, 0), (end - 512, 512, WRITE)]);
    driver.offer(0);
    let chain = pop(&mut queue);
    assert_eq!(lens(&chain), (vec![1], vec![512]));
    queue.complete(chain, 0);
    driver.chain(2, &[(end - 1, 2, WRITE)]);
    driver.offer(2);
    assert_eq!(fault_of(&mut queue, 2), ChainFault::OutsideRam);
}

#[test]
fn a_buffer_across_two_regions_becomes_two_segments() {
    let middle = RAM + RAM_LEN as u64;
    let ram = TestRam::with_regions(&[(RAM, RAM_LEN, true), (middle, 4096, true)]);
    let mut driver = TestDriver::on(ram, 8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(middle - 100, 300, 0), (middle - 1, 2, WRITE)]);
    driver.ram.write(middle - 100, &[1; 100]);
    driver.ram.write(middle, &[2; 200]);
    driver.offer(0);
    let mut chain = pop(&mut queue);
    assert_eq!(lens(&chain), (vec![100, 200], vec![1, 1]));
    let mut bytes = [0; 300];
    chain.reader().read_exact(&mut bytes).unwrap();
    assert!(bytes[..100].iter().all(|b| *b == 1) && bytes[100..].iter().all(|b| *b == 2));
    chain.writer().write_all(&[8, 9]).unwrap();
    queue.complete(chain, 2);
    assert_eq!(driver.ram.get::<u8>(middle - 1), 8);
    assert_eq!(driver.ram.get::<u8>(middle), 9);
    // One byte more than the second region has.
    driver.chain(4, &[(middle - 1, 4098, 0)]);
    driver.offer(4);
    assert_eq!(fault_of(&mut queue, 4), ChainFault::OutsideRam);
}

#[test]
fn a_chain_cut_into_too_many_pieces_by_regions_is_refused() {
    // 64 regions of one page, and a queue of 8: eight buffers over all of them are 512 pieces.
    let mut regions = vec![(RAM, RAM_LEN, true)];
    let start = 1 << 40;
    regions.extend((0..64).map(|n| (start + n * 4096, 4096, true)));
    let mut driver = TestDriver::on(TestRam::with_regions(&regions), 8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(start, 16 * 4096, 0)]);
    driver.offer(0);
    let chain = pop(&mut queue);
    assert_eq!(chain.readable().len(), 16);
    queue.complete(chain, 0);
    driver.chain(0, &[(start, 17 * 4096, 0)]);
    driver.offer(0);
    assert_eq!(fault_of(&mut queue, 0), ChainFault::Fragmented);
}

#[test]
fn a_buffer_the_device_may_not_write_is_refused_for_writing_only() {
    let rom = RAM + RAM_LEN as u64;
    let ram = TestRam::with_regions(&[(RAM, RAM_LEN, true), (rom, 4096, false)]);
    let mut driver = TestDriver::on(ram, 8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(rom, 16, 0)]);
    driver.offer(0);
    let chain = pop(&mut queue);
    queue.complete(chain, 0);
    driver.chain(1, &[(rom, 16, WRITE)]);
    driver.offer(1);
    assert_eq!(fault_of(&mut queue, 1), ChainFault::OutsideRam);
}
