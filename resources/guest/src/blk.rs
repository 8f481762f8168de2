//! Tests of the block device: bio and request path, every indirect policy, chained lists.

use alloc::string::String;
use alloc::vec::Vec;

use splitring_virtio::driver::DmaBytes;
use splitring_virtio::driver::blk::{
    Bio, Blk, CompletedRequest, FEATURES, Info, Merged, Transfer, Work,
};
use splitring_virtio::driver::pci::Pci;
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec::blk::{Config, Range};
use zerocopy::{FromZeros, IntoBytes};

use crate::device::{Device, Variant};
use crate::machine::Function;
use crate::suite::{Load, Pattern, Suite, TestError, Wait, bytes, poll_until};

const SECTOR: usize = 512;
const BLOCK: usize = 4096;
const SECTORS: u64 = (BLOCK / SECTOR) as u64;
/// Requests in flight in batches and timed loops.
const DEPTH: usize = 32;
const RANGES: usize = 4;

/// A block device with its first queue.
pub(crate) struct Disk {
    device: Device,
    blk: Blk,
    wait: Wait,
}

impl Disk {
    /// Resets the device and sets it up with the queue that `variant` asks for.
    pub(crate) fn open(
        pci: Pci<Function>,
        variant: Variant,
        wait: Wait,
    ) -> Result<Self, TestError> {
        let mut device = Device::negotiate(pci, variant, FEATURES)?;
        let mut config = Config::new_zeroed();
        device.config(config.as_mut_bytes())?;
        let queue = device.queue(0)?;
        let frames = bytes(Blk::<DmaBytes>::frame_len(RANGES) * usize::from(queue.areas().size))?;
        let mut blk = Blk::new(queue, frames, RANGES, Info::new(&config, device.features));
        blk.disable_interrupts();
        device.enable(0, blk.areas(), wait)?;
        device.set_driver_ok();
        Ok(Self { device, blk, wait })
    }

    /// Returns the PCI function, to be opened again.
    pub(crate) fn close(self) -> Pci<Function> {
        self.device.close()
    }

    /// Returns the serial number without its padding.
    pub(crate) fn serial(&mut self) -> Result<String, TestError> {
        self.blk
            .get_id(0)
            .map_err(|refused| TestError::text(refused.why))?;
        let id = self
            .finish()?
            .id
            .ok_or(TestError::new("the device returned no serial number"))?;
        let end = id.iter().position(|byte| *byte == 0).unwrap_or(id.len());
        String::from_utf8(id[..end].to_vec()).map_err(TestError::text)
    }

    fn push(&mut self) {
        let kick = self.blk.publish();
        self.device.kick(0, kick);
    }

    fn reap(&mut self) -> Result<Option<CompletedRequest>, TestError> {
        self.blk.poll().map_err(TestError::text)
    }

    /// Waits for one request.
    fn next(&mut self) -> Result<CompletedRequest, TestError> {
        poll_until(|| {
            let done = self.reap()?;
            if done.is_none() {
                self.wait.sleep(|| self.blk.enable_interrupts());
            }
            Ok(done)
        })
    }

    /// Publishes, waits for one request, and checks that it succeeded.
    fn finish(&mut self) -> Result<CompletedRequest, TestError> {
        self.push();
        let done = self.next()?;
        done.result.map_err(TestError::text)?;
        Ok(done)
    }

    /// Runs one bio to completion and returns its memory.
    pub(crate) fn one(&mut self, bio: Bio) -> Result<ScatterList, TestError> {
        self.blk
            .bio(0, bio)
            .map_err(|refused| TestError::text(refused.why))?;
        match self.finish()?.work {
            Work::Bio(bio) => Ok(bio.data),
            _ => Err(TestError::new("the wrong request completed")),
        }
    }

    fn write(&mut self, sector: u64, data: ScatterList) -> Result<ScatterList, TestError> {
        self.one(Bio {
            transfer: Transfer::Write,
            sector,
            data,
        })
    }

    fn read(&mut self, sector: u64, data: ScatterList) -> Result<ScatterList, TestError> {
        self.one(Bio {
            transfer: Transfer::Read,
            sector,
            data,
        })
    }
}

/// Runs all tests in every variant, then the timed loops.
pub(crate) fn run(suite: &mut Suite<'_>, mut pci: Pci<Function>) -> Result<(), TestError> {
    for variant in Variant::ALL {
        let mut disk = Disk::open(pci, variant, Wait::Poll)?;
        let mut test = |name: &str, work: fn(&mut Disk) -> Result<(), TestError>| {
            suite.test(format_args!("blk {name} {}", variant.name()), || {
                work(&mut disk)
            });
        };
        test("bio", single);
        test("chained-lists", chained);
        test("request", merged);
        test("batch", batched);
        test("flush", |disk| {
            disk.blk
                .flush(0)
                .map_err(|refused| TestError::text(refused.why))?;
            disk.finish().map(drop)
        });
        test("zeroes", zeroes);
        test("discard", discard);
        pci = disk.close();
    }
    for wait in suite.waits() {
        for variant in [Variant::Direct, Variant::Auto] {
            let mut disk = Disk::open(pci, variant, *wait)?;
            time(suite, &mut disk, variant);
            pci = disk.close();
        }
    }
    Ok(())
}

fn time(suite: &mut Suite<'_>, disk: &mut Disk, variant: Variant) {
    let (name, wait) = (variant.name(), disk.wait.name());
    for (transfer, direction) in [(Transfer::Read, "read"), (Transfer::Write, "write")] {
        for depth in [1, DEPTH] {
            let label = format_args!("blk 4k-{direction} {name} qd{depth}{wait}");
            suite.time(label, |load| timed(disk, transfer, depth, load));
        }
    }
}

fn single(disk: &mut Disk) -> Result<(), TestError> {
    let pattern = Pattern(1);
    let list = disk.write(8, pattern.list(&[BLOCK])?)?;
    drop(list);
    pattern.check(disk.read(8, Pattern(0).list(&[BLOCK])?)?)
}

/// Three chained lists, split at odd places when writing and at others when reading.
fn chained(disk: &mut Disk) -> Result<(), TestError> {
    let pattern = Pattern(2);
    disk.write(64, pattern.chain(&[&[512, 24], &[4000, 8], &[1600, 2048]])?)?;
    pattern.check(disk.read(64, Pattern(0).chain(&[&[8, 4088], &[1], &[3071, 1024]])?)?)
}

/// The request path: three bios in the wrong order are merged into one write.
fn merged(disk: &mut Disk) -> Result<(), TestError> {
    let mut merged = Merged::with_capacity(3);
    for part in [1, 2, 0] {
        let data = Pattern(10 + part).list(&[1024, BLOCK - 1024])?;
        let sector = 128 + part * SECTORS;
        let merge = merged.merge(Bio {
            transfer: Transfer::Write,
            sector,
            data,
        });
        merge.map_err(|_| TestError::new("adjacent bios did not merge"))?;
    }
    disk.blk
        .merged(7, merged)
        .map_err(|refused| TestError::text(refused.why))?;
    if disk.finish()?.tag != 7 {
        return Err(TestError::new("the wrong tag completed"));
    }
    for part in [0, 1, 2] {
        let data = disk.read(128 + part * SECTORS, Pattern(0).list(&[BLOCK])?)?;
        Pattern(10 + part).check(data)?;
    }
    Ok(())
}

/// Many requests with one publication.
fn batched(disk: &mut Disk) -> Result<(), TestError> {
    for transfer in [Transfer::Write, Transfer::Read] {
        for tag in 0..DEPTH as u64 {
            let pattern = if transfer == Transfer::Write {
                Pattern(100 + tag)
            } else {
                Pattern(0)
            };
            let bio = Bio {
                transfer,
                sector: 256 + tag * SECTORS,
                data: pattern.list(&[BLOCK])?,
            };
            disk.blk
                .bio(tag, bio)
                .map_err(|refused| TestError::text(refused.why))?;
        }
        let mut seen = 0u64;
        for _ in 0..DEPTH {
            let done = disk.finish()?;
            seen |= 1 << done.tag;
            if let (Transfer::Read, Work::Bio(bio)) = (transfer, done.work) {
                Pattern(100 + done.tag).check(bio.data)?;
            }
        }
        if seen != u64::MAX >> (64 - DEPTH) {
            return Err(TestError::new("a tag completed twice, or never"));
        }
    }
    Ok(())
}

fn zeroes(disk: &mut Disk) -> Result<(), TestError> {
    if disk.blk.info().write_zeroes.is_none() {
        return Err(TestError::Skipped("not offered"));
    }
    disk.write(1024, Pattern(3).list(&[BLOCK])?)?;
    let range = Range {
        sector: 1024.into(),
        num_sectors: (SECTORS as u32).into(),
        flags: 0.into(),
    };
    disk.blk
        .write_zeroes(0, &[range])
        .map_err(|refused| TestError::text(refused.why))?;
    disk.finish()?;
    Pattern(0).check(disk.read(1024, Pattern(9).list(&[BLOCK])?)?)
}

fn discard(disk: &mut Disk) -> Result<(), TestError> {
    if disk.blk.info().discard.is_none() {
        return Err(TestError::Skipped("not offered"));
    }
    disk.write(2048, Pattern(4).list(&[BLOCK])?)?;
    let range = Range {
        sector: 2056.into(),
        num_sectors: (SECTORS as u32).into(),
        flags: 0.into(),
    };
    disk.blk
        .discard(0, &[range])
        .map_err(|refused| TestError::text(refused.why))?;
    disk.finish()?;
    // The next block keeps its content.
    Pattern(4).check(disk.read(2048, Pattern(0).list(&[BLOCK])?)?)
}

/// Keeps `depth` random 4 KiB transfers in flight until the time is up.
fn timed(
    disk: &mut Disk,
    transfer: Transfer,
    depth: usize,
    load: &mut Load,
) -> Result<(), TestError> {
    let blocks = disk.blk.info().capacity / SECTORS;
    let mut idle: Vec<ScatterList> = Vec::with_capacity(depth);
    for _ in 0..depth {
        idle.push(Pattern(5).list(&[BLOCK])?);
    }
    let mut in_flight = 0;
    loop {
        while let Some(data) = idle.pop_if(|_| load.has_time_left()) {
            let bio = Bio {
                transfer,
                sector: load.random() % blocks * SECTORS,
                data,
            };
            disk.blk
                .bio(0, bio)
                .map_err(|refused| TestError::text(refused.why))?;
            in_flight += 1;
        }
        // The time may have been up before anything was added.
        if in_flight == 0 {
            return Ok(());
        }
        disk.push();
        let mut done = disk.next().map(Some)?;
        while let Some(request) = done {
            request.result.map_err(TestError::text)?;
            if let Work::Bio(bio) = request.work {
                idle.push(bio.data);
            }
            in_flight -= 1;
            load.count();
            done = disk.reap()?;
        }
    }
}
