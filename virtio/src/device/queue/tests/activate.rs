//! Activation: what is checked, and what it freezes.

use super::pop;
use crate::device::queue::{ActivateError, Part, QueueConfig};
use crate::device::tests::driver::{DATA, EVENT, PLAIN, RAM, RAM_LEN, TestDriver};
use crate::mem::testing::TestRam;

#[test]
fn a_queue_the_driver_has_not_enabled_is_not_activated() {
    let driver = TestDriver::new(4);
    let mut config = driver.config();
    config.set_ready(false);
    assert_eq!(
        config.activate(driver.ram.clone(), PLAIN).err(),
        Some(ActivateError::NotReady)
    );
}

#[test]
fn a_misaligned_part_is_refused_by_name() {
    for (part, offset) in [
        (Part::Descriptors, 8),
        (Part::Available, 1),
        (Part::Used, 2),
    ] {
        let mut driver = TestDriver::new(4);
        let addr = match part {
            Part::Descriptors => &mut driver.desc,
            Part::Available => &mut driver.avail,
            Part::Used => &mut driver.used,
        };
        *addr += offset;
        let addr = *addr;
        assert_eq!(
            driver.try_activate(PLAIN).err(),
            Some(ActivateError::Misaligned { part, addr })
        );
    }
}

#[test]
fn a_ring_part_may_touch_the_last_byte_of_memory_but_not_step_over_it() {
    let end = RAM + RAM_LEN as u64;
    // 4 + 8 × 4 bytes used and 4 + 2 × 4 available, and 2 more for the event index.
    for (features, used, avail) in [(PLAIN, 36, 12), (EVENT, 38, 14)] {
        let mut driver = TestDriver::new(4);
        driver.used = (end - used) & !3;
        assert!(driver.try_activate(features).is_ok());
        driver.used += 4;
        let addr = driver.used;
        assert_eq!(
            driver.try_activate(features).err(),
            Some(ActivateError::OutsideRam {
                part: Part::Used,
                addr
            })
        );
        let mut driver = TestDriver::new(4);
        driver.avail = end - avail;
        assert!(driver.try_activate(features).is_ok());
        driver.avail += 2;
        let addr = driver.avail;
        assert_eq!(
            driver.try_activate(features).err(),
            Some(ActivateError::OutsideRam {
                part: Part::Available,
                addr
            })
        );
    }
    let mut driver = TestDriver::new(4);
    driver.desc = u64::MAX - 15;
    assert!(matches!(
        driver.try_activate(PLAIN),
        Err(ActivateError::OutsideRam {
            part: Part::Descriptors,
            ..
        })
    ));
}

#[test]
fn a_used_ring_in_memory_the_device_may_not_write_is_refused() {
    let rom = RAM + RAM_LEN as u64;
    let ram = TestRam::with_regions(&[(RAM, RAM_LEN, true), (rom, 4096, false)]);
    let mut driver = TestDriver::on(ram, 4);
    driver.desc = rom;
    assert!(driver.try_activate(PLAIN).is_ok());
    (driver.desc, driver.used) = (RAM, rom);
    assert_eq!(
        driver.try_activate(PLAIN).err(),
        Some(ActivateError::OutsideRam {
            part: Part::Used,
            addr: rom
        })
    );
}

#[test]
fn sizes_are_powers_of_two_up_to_the_maximum_and_others_change_nothing() {
    let mut config = QueueConfig::new(256);
    for bad in [0, 3, 255, 257, 512, 65535] {
        assert!(!config.set_size(bad));
        assert_eq!(config.size(), 256);
    }
    for good in [1, 2, 128, 256] {
        assert!(config.set_size(good));
        assert_eq!(config.size(), good);
    }
    config.reset();
    assert_eq!((config.size(), config.ready()), (256, false));
    assert_eq!(QueueConfig::new(0).max_size(), 1);
    assert_eq!(QueueConfig::new(300).max_size(), 256);
    assert_eq!(QueueConfig::new(65535).max_size(), 32768);
}

#[test]
fn registers_written_after_activation_change_nothing() {
    let mut driver = TestDriver::new(8);
    let mut config = driver.config();
    let mut queue = config.activate(driver.ram.clone(), PLAIN).unwrap();
    config.set_size(2);
    config.set_desc(0);
    config.set_avail(0);
    config.set_ready(false);
    driver.chain(7, &[(DATA, 16, 0)]);
    driver.offer(7);
    let chain = pop(&mut queue);
    assert_eq!((queue.size(), chain.head()), (8, 7));
    queue.complete(chain, 0);
}
