//! Power cuts: everything that a flush or a write-through acknowledged survives; other writes may
//! be old or new.

use std::collections::BTreeMap;

use splitring_devices::disk::doubles::Fate;
use splitring_virtio::driver::IndirectPolicy;
use splitring_virtio::driver::blk::Transfer;
use splitring_virtio::spec::blk::{CONFIG_WRITEBACK, feature};

use crate::numbers::Numbers;
use crate::ours::Guest;

const SECTORS: u64 = 64;

/// How the guest makes writes stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CacheMode {
    /// With flushes.
    Flush,
    /// It disabled the cache.
    Disabled,
    /// It did not negotiate a cache.
    NotNegotiated,
}

/// The values that a sector may have after a cut: the last one acknowledged as stable, or any
/// written since.
#[derive(Clone, Debug, Default)]
struct Sector {
    stable: u8,
    since: Vec<u8>,
}

/// Writes and flushes at random, cuts the power, and checks the disk. `Err` names a sector that
/// lost acknowledged data.
fn round(mode: CacheMode, seed: u64, drops_flushes: bool) -> Result<(), String> {
    let mask = match mode {
        CacheMode::NotNegotiated => !(feature::FLUSH | feature::CONFIG_WCE),
        CacheMode::Flush | CacheMode::Disabled => u64::MAX,
    };
    let mut guest = Guest::new(64, 64, mask, IndirectPolicy::Auto);
    if mode == CacheMode::Disabled {
        guest.machine.device.write_config(CONFIG_WRITEBACK, &[0]);
    }
    if drops_flushes {
        guest.disk.forget_stability();
    }
    let mut numbers = Numbers::new(seed);
    let mut model: BTreeMap<u64, Sector> = (0..SECTORS)
        .map(|sector| (sector, Sector::default()))
        .collect();
    for _ in 0..200 {
        let turns = u32::try_from(numbers.below(3)).expect("small");
        guest.disk.plan([Fate::Delay(turns)]);
        if mode == CacheMode::Flush && numbers.below(6) == 0 {
            guest.driver.flush(0).expect("room");
            if guest.finish().remove(0).result.is_ok() {
                for sector in model.values_mut() {
                    sector.stable = sector.since.pop().unwrap_or(sector.stable);
                    sector.since.clear();
                }
            }
            continue;
        }
        let (sector, value) = (
            numbers.below(SECTORS),
            u8::try_from(numbers.below(255) + 1).expect("a byte"),
        );
        let bio = guest.bio(Transfer::Write, sector, &[512], value);
        guest.driver.bio(0, bio).expect("room");
        let done = guest.finish().remove(0).result.is_ok();
        let sector = model.get_mut(&sector).expect("there");
        match mode {
            CacheMode::Flush => sector.since.push(value),
            CacheMode::Disabled | CacheMode::NotNegotiated if done => {
                *sector = Sector {
                    stable: value,
                    since: Vec::new(),
                }
            }
            CacheMode::Disabled | CacheMode::NotNegotiated => sector.since.push(value),
        }
    }
    guest.memory.cut_power(|_| numbers.below(2) == 0);
    let contents = guest.memory.contents();
    for (number, sector) in &model {
        let at = usize::try_from(number * 512).expect("small");
        let found = contents[at];
        let whole = contents[at..at + 512].iter().all(|byte| *byte == found);
        if !whole || (found != sector.stable && !sector.since.contains(&found)) {
            return Err(format!("sector {number} holds {found}, not {sector:?}"));
        }
    }
    Ok(())
}

#[test]
fn acknowledged_writes_survive_a_power_cut() {
    for mode in [
        CacheMode::Flush,
        CacheMode::Disabled,
        CacheMode::NotNegotiated,
    ] {
        for seed in 1..30 {
            assert_eq!(round(mode, seed, false), Ok(()), "{mode:?}, seed {seed}");
        }
    }
}

#[test]
fn a_device_that_drops_fdatasync_is_detected() {
    for mode in [
        CacheMode::Flush,
        CacheMode::Disabled,
        CacheMode::NotNegotiated,
    ] {
        assert!(
            round(mode, 1, true).is_err(),
            "{mode:?}: the test above would not notice"
        );
    }
}
