//! A balloon under drivers of every kind, the hostile ones first.

use std::sync::Arc;
use std::time::Instant;

use splitring_virtio::spec::balloon::{PAGE_SIZE, Stat, queue, stat};
use splitring_virtio::spec::feature::VERSION_1;
use splitring_virtio::spec::status;
use zerocopy::IntoBytes;

use super::*;
use crate::device::{Cause, Outcome};
use crate::testing::faults::a_running_device_needs_no_descriptor;
use crate::testing::pci::{DEVICE, Guest, wait_until};
use crate::testing::{Bench, logged};

/// Bytes of the tests' guest memory.
const MEMORY: u64 = 8 << 20;
/// Where lists of pages and statistics are.
const LIST: u64 = 0x1000;
/// The first of the pages that go into the balloon.
const FIRST: u32 = 0x100;
const ALL: u64 = feature::STATS_VQ
    | feature::DEFLATE_ON_OOM
    | feature::PAGE_REPORTING
    | feature::PAGE_POISON
    | VERSION_1;

fn balloon() -> Balloon {
    let config = BalloonConfig::new()
        .deflate_on_oom(true)
        .free_page_reporting(true);
    Balloon::new("balloon", &config, Bytes(MEMORY)).unwrap()
}

fn bench(features: u64) -> Bench<Balloon> {
    Bench::start(Arc::new(balloon()), features, 64)
}

fn totals(bench: &Bench<Balloon>) -> BalloonTotals {
    bench.device.handle().totals().unwrap()
}

/// Fills pages, and says which of them are zeroes now.
fn fill(bench: &Bench<Balloon>, pages: u32) {
    for page in FIRST..FIRST + pages {
        bench.poke(u64::from(page) * PAGE_SIZE, &[0x5a; 4096]);
    }
}

fn zeroed(bench: &Bench<Balloon>, pages: u32) -> Vec<u32> {
    let is_zero = |page: &u32| {
        let bytes = bench.peek(u64::from(FIRST + page) * PAGE_SIZE, 4096);
        assert!(bytes == [0; 4096] || bytes == [0x5a; 4096], "{page}");
        bytes == [0; 4096]
    };
    (0..pages).filter(is_zero).collect()
}

fn list(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

/// Offers a list of pages in `queue`, and runs it.
fn send(bench: &mut Bench<Balloon>, queue: u16, pages: &[u32]) {
    let list = list(pages);
    bench.poke(LIST, &list);
    let len = u32::try_from(list.len()).unwrap();
    bench.rings[usize::from(queue)].offer(&[(LIST, len, false)]);
    assert_eq!(bench.kick(queue).unwrap(), Outcome::Idle);
}

#[test]
fn a_hostile_chain_breaks_the_device_and_a_reset_heals_it() {
    let mut guest = Guest::started(Arc::new(balloon()));
    for queue in [0, 1, 4] {
        guest.offer(queue, &[(u64::MAX - 4, 16, queue == 4)]);
        guest.kick(u16::try_from(queue).unwrap());
        guest.wait_for_status(status::NEEDS_RESET);
        guest.restart();
    }
    guest.offer(0, &[(LIST, 4, false)]);
    guest.kick(0);
    assert_eq!(guest.wait_used(0, 1), [(0, 0)]);
}

#[test]
fn pages_that_are_no_memory_are_ignored_and_the_log_is_not_flooded() {
    let mut bench = bench(ALL);
    let end = u32::try_from(MEMORY / PAGE_SIZE).unwrap();
    let lines = logged(|| {
        for turn in 0..40 {
            let far = u32::MAX - turn;
            send(&mut bench, queue::INFLATE, &[far, end, 0x8000_0000]);
        }
    });
    let warnings = lines.iter().filter(|line| line.contains("is no memory"));
    assert_eq!(warnings.count(), 5, "{lines:?}");
    let totals = totals(&bench);
    assert_eq!((totals.released, totals.ignored), (0, 120 * PAGE_SIZE));
    // The last page and one behind it are one run.
    send(&mut bench, queue::INFLATE, &[end, end - 1]);
    assert_eq!(self::totals(&bench).released, PAGE_SIZE);
}

#[test]
fn pages_in_the_balloon_are_released_and_no_others() {
    let mut bench = bench(ALL);
    fill(&bench, 16);
    let pages = [5, 3, 4, 9, 3, 12].map(|page| FIRST + page);
    send(&mut bench, queue::INFLATE, &pages);
    assert_eq!(bench.rings[0].used(), [(0, 0)]);
    assert_eq!(zeroed(&bench, 16), [3, 4, 5, 9, 12]);
    let totals = totals(&bench);
    assert_eq!(totals.inflated, 6 * PAGE_SIZE);
    assert_eq!((totals.released, totals.ignored), (5 * PAGE_SIZE, 0));
}

#[test]
fn pages_that_come_out_of_the_balloon_keep_what_the_guest_has_written_already() {
    let mut bench = bench(ALL);
    send(&mut bench, queue::INFLATE, &[FIRST]);
    fill(&bench, 2);
    send(&mut bench, queue::DEFLATE, &[FIRST, FIRST + 1]);
    assert_eq!(zeroed(&bench, 2), [0_u32; 0]);
    assert_eq!(totals(&bench).deflated, 2 * PAGE_SIZE);
}

#[test]
fn lists_that_are_empty_broken_or_writable_are_given_back() {
    let mut bench = bench(ALL);
    fill(&bench, 2);
    bench.poke(LIST, &list(&[FIRST, FIRST + 1]));
    for queue in [0, 1] {
        bench.rings[queue].offer(&[(LIST, 7, false)]);
        bench.rings[queue].offer(&[(LIST, 3, false)]);
        bench.rings[queue].offer(&[(LIST, 8, true)]);
        let index = u16::try_from(queue).unwrap();
        assert_eq!(bench.kick(index).unwrap(), Outcome::Idle);
        assert_eq!(bench.rings[queue].used(), [(0, 0), (1, 0), (2, 0)]);
    }
    assert_eq!(zeroed(&bench, 2), [0], "the one whole number");
}

/// Framing means nothing: a number may lie in two descriptors.
#[test]
fn a_list_in_pieces_is_read_as_one() {
    let mut bench = bench(ALL);
    fill(&bench, 3);
    bench.poke(LIST, &list(&[FIRST, FIRST + 2]));
    bench.rings[0].offer(&[(LIST, 1, false), (LIST + 1, 5, false), (LIST + 6, 2, false)]);
    bench.kick(0).unwrap();
    assert_eq!(zeroed(&bench, 3), [0, 2]);
}

#[test]
fn a_list_without_end_is_worked_off_over_many_passes() {
    let mut bench = bench(ALL);
    // A mebibyte of numbers, all of one page.
    bench.poke(LIST << 8, &list(&[FIRST; 1 << 10]).repeat(256));
    for queue in [0, 1] {
        bench.rings[queue].offer(&[(LIST << 8, 1 << 20, false)]);
        let index = u16::try_from(queue).unwrap();
        let mut passes = 1;
        let mut outcome = bench.kick(index).unwrap();
        while outcome == Outcome::More {
            assert_eq!(bench.rings[queue].used(), []);
            outcome = bench.run(index, Cause::Resume).unwrap();
            passes += 1;
        }
        assert_eq!(bench.rings[queue].used(), [(0, 0)]);
        assert!(passes >= (1 << 18) / 512, "{passes}");
    }
    assert_eq!(totals(&bench).inflated, (1 << 18) * PAGE_SIZE);
}

#[test]
fn a_reset_gives_back_what_is_half_done() {
    let mut bench = bench(ALL);
    bench.rings[0].offer(&[(LIST, 1 << 20, false)]);
    bench.rings[2].offer(&[(LIST, 10, false)]);
    bench.kick(2).unwrap();
    assert_eq!(bench.kick(0).unwrap(), Outcome::More);
    assert_eq!(bench.stop(), 0);
}

#[test]
fn whole_pages_that_are_reported_are_released() {
    for report in [3, 4] {
        let mut bench = bench(ALL);
        fill(&bench, 16);
        let at = |page: u32| u64::from(FIRST + page) * PAGE_SIZE;
        bench.rings[report].offer(&[
            (LIST, 64, false),
            (at(2), 3 * 4096, true),
            (at(8) + 1, 4096, true),
            (at(10) + 8, 2 * 4096, true),
        ]);
        let index = u16::try_from(report).unwrap();
        assert_eq!(bench.kick(index).unwrap(), Outcome::Idle);
        assert_eq!(bench.rings[report].used(), [(0, 0)]);
        assert_eq!(zeroed(&bench, 16), [2, 3, 4, 11]);
        let totals = totals(&bench);
        assert_eq!(totals.reported, 6 * PAGE_SIZE);
        assert_eq!(totals.released, 4 * PAGE_SIZE);
    }
}

#[test]
fn a_report_of_all_memory_again_and_again_is_worked_off_over_many_passes() {
    let mut bench = bench(ALL);
    fill(&bench, 1);
    // Not the upper half, in which the rings are.
    let half = u32::try_from(MEMORY / 2).unwrap();
    bench.rings[4].offer(&[(0, half, true); 40]);
    let mut passes = 1;
    let mut outcome = bench.kick(4).unwrap();
    while outcome == Outcome::More {
        outcome = bench.run(4, Cause::Resume).unwrap();
        passes += 1;
    }
    assert!((3..10).contains(&passes), "{passes}");
    let totals = totals(&bench);
    assert_eq!(totals.reported, 40 * MEMORY / 2);
    assert_eq!(totals.released, totals.reported);
    assert_eq!(zeroed(&bench, 1), [0]);
}

#[test]
fn free_pages_that_the_guest_fills_keep_what_they_are_filled_with() {
    let mut bench = bench(ALL);
    fill(&bench, 1);
    let page = (u64::from(FIRST) * PAGE_SIZE, 4096, true);
    bench.device.write_config(12, &[0x5a; 4]);
    bench.rings[4].offer(&[page]);
    bench.kick(4).unwrap();
    assert_eq!(bench.rings[4].used(), [(0, 0)]);
    assert_eq!(zeroed(&bench, 1), [0_u32; 0]);
    // With zeroes they are what they would be.
    bench.device.write_config(12, &[0; 4]);
    bench.rings[4].offer(&[page]);
    bench.kick(4).unwrap();
    assert_eq!(zeroed(&bench, 1), [0]);
}

/// The value has a meaning only if that was negotiated.
#[test]
fn a_fill_value_that_was_not_negotiated_means_nothing() {
    let mut bench = bench(ALL & !feature::PAGE_POISON);
    fill(&bench, 1);
    bench.device.write_config(12, &[0x5a; 4]);
    bench.rings[4].offer(&[(u64::from(FIRST) * PAGE_SIZE, 4096, true)]);
    bench.kick(4).unwrap();
    assert_eq!(zeroed(&bench, 1), [0]);
}

#[test]
fn queues_are_numbered_as_in_the_specification_and_as_linux_does() {
    let role = |index, features| Role::of(index, features);
    let roles = |features| [0, 1, 2, 3, 4, 5].map(|index| role(index, features));
    let (inflate, deflate) = (Some(Role::Inflate), Some(Role::Deflate));
    let (stats, report) = (Some(Role::Statistics), Some(Role::Report));
    assert_eq!(roles(ALL), [inflate, deflate, stats, report, report, None]);
    assert_eq!(
        roles(feature::PAGE_REPORTING),
        [inflate, deflate, report, report, report, None]
    );
    assert_eq!(
        roles(feature::STATS_VQ),
        [inflate, deflate, stats, None, None, None]
    );
    assert_eq!(roles(0), [inflate, deflate, None, None, None, None]);
}

#[test]
fn what_is_offered_follows_the_configuration() {
    let offered = |config: BalloonConfig| {
        let balloon = Balloon::new("balloon", &config, Bytes(MEMORY)).unwrap();
        (balloon.features(), balloon.queue_sizes().len())
    };
    let plain = BalloonConfig::new();
    assert_eq!(offered(plain.clone()), (feature::STATS_VQ, 3));
    let oom = feature::STATS_VQ | feature::DEFLATE_ON_OOM;
    assert_eq!(offered(plain.clone().deflate_on_oom(true)), (oom, 3));
    let reports = feature::STATS_VQ | feature::PAGE_REPORTING | feature::PAGE_POISON;
    assert_eq!(offered(plain.free_page_reporting(true)), (reports, 5));
}

fn statistics(entries: &[(u16, u64)]) -> Vec<u8> {
    let stats = entries.iter().map(|&(tag, val)| Stat {
        tag: tag.into(),
        val: val.into(),
    });
    stats.flat_map(|stat| stat.as_bytes().to_vec()).collect()
}

#[test]
fn statistics_are_asked_for_by_giving_the_buffer_back() {
    let device = Arc::new(balloon());
    let balloon = device.handle();
    let mut guest = Guest::started(device);
    let received = || balloon.totals().unwrap().statistics;
    let send = |guest: &mut Guest, entries: &[(u16, u64)]| {
        let bytes = statistics(entries);
        guest.poke(LIST, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        // The broken entry at the end means nothing.
        guest.offer(2, &[(LIST, len + 9, false)]);
        guest.kick(2);
    };
    assert_eq!(received(), None);
    send(
        &mut guest,
        &[(stat::FREE, 5), (stat::TOTAL, u64::MAX), (999, 1)],
    );
    wait_until("they are received", || received().is_some());
    let first = received().unwrap();
    assert_eq!((first.free, first.total), (Some(5), Some(u64::MAX)));
    assert_eq!((first.swap_in, first.oom_kills), (None, None));
    assert_eq!(guest.rings[2].used(), [], "the device keeps the buffer");
    balloon.request_statistics().unwrap();
    assert_eq!(guest.wait_used(2, 1), [(0, 0)]);
    // Asked while they are on their way: nothing is owed twice.
    balloon.request_statistics().unwrap();
    send(&mut guest, &[(stat::SWAP_IN, 7)]);
    wait_until("they are received", || {
        received().is_some_and(|now| now.received > first.received)
    });
    let second = received().unwrap();
    assert_eq!((second.free, second.swap_in), (None, Some(7)));
    // A second buffer beside the first: the first comes back.
    send(&mut guest, &[(stat::CACHES, 8)]);
    assert_eq!(guest.wait_used(2, 1), [(1, 0)]);
    guest.set_status(0);
    assert_eq!(received(), None, "they are of a driver that is gone");
}

#[test]
fn statistics_are_asked_for_at_each_interval() {
    let config = BalloonConfig::new().stats_interval(1);
    let device = Balloon::new("balloon", &config, Bytes(MEMORY)).unwrap();
    let mut guest = Guest::started(Arc::new(device));
    let begin = Instant::now();
    for turn in 0..2 {
        guest.offer(2, &[(LIST, 10, false)]);
        guest.kick(2);
        assert_eq!(guest.wait_used(2, 1), [(turn, 0)]);
    }
    // The second was offered after the first second was over.
    assert!(begin.elapsed().as_millis() >= 1900);
}

#[test]
fn a_new_target_reaches_the_driver_by_a_configuration_change() {
    let device = Arc::new(balloon());
    let balloon = device.handle();
    let mut guest = Guest::new(device);
    guest.decode_memory();
    let target = |guest: &Guest| u32::from_le_bytes(guest.bar_read(DEVICE));
    // Before there is a driver, which reads it when it starts.
    balloon.set_target(Bytes::mib(1)).unwrap();
    assert_eq!(target(&guest), 256);
    guest.restart();
    let [generation] = guest.common(0x15);
    balloon.set_target(Bytes::mib(2)).unwrap();
    assert_eq!(target(&guest), 512);
    assert_ne!(guest.common(0x15), [generation]);
    assert_eq!(guest.bar_read::<1>(crate::testing::pci::ISR), [2]);
    // What the driver says is what it has given up.
    guest.bar_write(DEVICE + 4, &300_u32.to_le_bytes());
    let totals = balloon.totals().unwrap();
    assert_eq!((totals.target, totals.actual), (2 << 20, 300 * PAGE_SIZE));
    assert_eq!(guest.bar_read(DEVICE + 4), 300_u32.to_le_bytes());
    // A reset leaves the target to the next driver.
    guest.set_status(0);
    let totals = balloon.totals().unwrap();
    assert_eq!((totals.target, totals.actual), (2 << 20, 0));
}

#[test]
fn the_driver_writes_two_fields_and_no_others() {
    let balloon = balloon();
    balloon.write_config(0, &[0xff; 16]);
    let mut config = [0; 16];
    balloon.read_config(0, &mut config);
    let ones = [0xff; 4];
    assert_eq!(config, [[0; 4], ones, [0; 4], ones].concat()[..]);
    for offset in [16, 17, usize::MAX] {
        balloon.write_config(offset, &[0; 8]);
    }
    balloon.write_config(6, &[0; 4]);
    balloon.read_config(0, &mut config);
    assert_eq!(config[4..8], [0xff, 0xff, 0, 0]);
}

#[test]
fn targets_that_are_not_possible_are_refused_and_change_nothing() {
    let device = balloon();
    let balloon = device.handle();
    for (size, why) in [
        (MEMORY + PAGE_SIZE, "the most is 8M"),
        (u64::MAX - 4095, "the most is 8M"),
        (1, "is not a multiple of 4096"),
    ] {
        let refused = balloon.set_target(size).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Config);
        assert!(refused.to_string().contains(why), "{refused}");
        let config = BalloonConfig::new().size(size);
        let refused = Balloon::new("balloon", &config, Bytes(MEMORY)).unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
    assert_eq!(balloon.totals().unwrap().target, 0);
    balloon.set_target(MEMORY).unwrap();
    drop(device);
    let gone = balloon.set_target(0_u64).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::State);
    assert_eq!(balloon.totals(), None);
    assert!(balloon.request_statistics().is_err());
}

#[test]
fn a_balloon_needs_no_descriptor_once_it_is_plugged_in() {
    let config = BalloonConfig::new().stats_interval(1000);
    a_running_device_needs_no_descriptor(
        "balloon::tests::a_balloon_needs_no_descriptor_once_it_is_plugged_in",
        || Arc::new(Balloon::new("balloon", &config, Bytes(MEMORY)).unwrap()),
        |guest| {
            guest.offer(0, &[(LIST, 4, false)]);
            guest.kick(0);
            assert_eq!(guest.wait_used(0, 1)[0].1, 0);
        },
    );
}

#[test]
fn a_balloon_goes_on_with_its_target_and_its_statistics_after_a_restore() {
    use crate::testing::restore::{damaged_states_are_errors_at_worst, move_to};

    let device = Arc::new(balloon());
    let mut guest = Guest::started(Arc::<Balloon>::clone(&device));
    device.handle().set_target(Bytes(1 << 20)).unwrap();
    guest.bar_write(DEVICE + 4, &7_u32.to_le_bytes());
    let statistics = usize::from(queue::STATS);
    guest.offer(statistics, &[(LIST, 10, false)]);
    guest.kick(queue::STATS);
    let next = Arc::new(balloon());
    let handle = next.handle();
    let mut guest = move_to(guest, next, |_| ());
    let totals = handle.totals().unwrap();
    assert_eq!((totals.target, totals.actual), (1 << 20, 7 * PAGE_SIZE));
    handle.request_statistics().unwrap();
    guest.wait_used(statistics, 1);
    damaged_states_are_errors_at_worst(&guest, || Arc::new(balloon()), 50);
}
