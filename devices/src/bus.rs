//! An address space of device registers: which device answers at an address.
//!
//! One [`Bus`] serves MMIO, another port I/O. Ranges come and go while the machine runs, because guests move
//! BARs. It doesn't know what the devices are, nor where memory is.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

use crate::debug::opaque_debug;

/// Something with registers. `offset` counts from the start of the range the device was inserted at, and an
/// access never reaches past the range's end.
pub trait BusDevice: Send + Sync {
    /// A guest's read of `data.len()` bytes (1 to 8). Little-endian, as on the wire.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// A guest's write of `data.len()` bytes (1 to 8).
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a range was not taken in.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// Zero length, or past the end of the address space.
    #[error("range {base:#x}+{len:#x} is empty or leaves the address space")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device answers there already.
    #[error("range {base:#x}+{len:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// Where the other device begins.
        other: u64,
    },
}

struct Entry {
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// Which device answers where. Look-ups take a shared lock that is released before the device is called, so a
/// device may change the bus from within an access.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, Entry>>,
}

opaque_debug! { Bus |it| {} }

impl Bus {
    /// An address space in which nothing answers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `device` answer at `base..base + len`.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|span| base.checked_add(span))
            .ok_or(BusError::BadRange { base, len })?;
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        // The nearest range at or below our last byte is the only one that can overlap: ranges are disjoint.
        if let Some((&other, entry)) = ranges.range(..=last).next_back()
            && (other >= base || base.wrapping_sub(other) < entry.len)
        {
            return Err(BusError::Overlap { base, len, other });
        }
        ranges.insert(base, Entry { len, device });
        Ok(())
    }

    /// Nothing answers at the range that begins at `base` any more. An access under way still ends in the
    /// device. Returns whether there was such a range.
    pub fn remove(&self, base: u64) -> bool {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.remove(&base).is_some()
    }

    /// Nothing answers anywhere any more, and the bus lets go of its devices: for the machine's end.
    pub fn clear(&self) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let devices = std::mem::take(&mut *ranges);
        drop(ranges);
        // Outside the lock: a device's drop may reach for the bus.
        drop(devices);
    }

    /// A guest's read. Where nothing answers, `data` is all ones and the result false.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((offset, device)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// A guest's write. Where nothing answers it is dropped and the result false.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((offset, device)) => {
                device.write(offset, data);
                true
            }
            None => false,
        }
    }

    /// What a string instruction (`rep ins`) reads: as many elements of `size` bytes as `data` has room for, one after the
    /// other from the same address. Where nothing answers, `data` is all ones and the result false.
    pub fn read_string(&self, addr: u64, size: usize, data: &mut [u8]) -> bool {
        match self.find(addr, size) {
            Some((offset, device)) => {
                for element in data.chunks_mut(size.max(1)) {
                    device.read(offset, element);
                }
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// What a string instruction (`rep outs`) writes: elements of `size` bytes, one after the other to the same address.
    /// Where nothing answers they are dropped and the result is false.
    pub fn write_string(&self, addr: u64, size: usize, data: &[u8]) -> bool {
        match self.find(addr, size) {
            Some((offset, device)) => {
                for element in data.chunks(size.max(1)) {
                    device.write(offset, element);
                }
                true
            }
            None => false,
        }
    }

    /// How many ranges there are.
    #[cfg(test)]
    pub(crate) fn ranges(&self) -> usize {
        self.ranges.read().unwrap().len()
    }

    fn find(&self, addr: u64, len: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (&base, entry) = ranges.range(..=addr).next_back()?;
        let offset = addr.checked_sub(base)?;
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        (end <= entry.len).then(|| (offset, Arc::clone(&entry.device)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Answers every read with the low byte of the offset and remembers writes.
    #[derive(Default)]
    struct Probe {
        writes: Mutex<Vec<(u64, Vec<u8>)>>,
    }

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset & 0xff).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.writes.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_device_with_an_offset_into_its_range() {
        let bus = Bus::new();
        let probe = Arc::new(Probe::default());
        bus.insert(0x1000, 0x10, probe.clone()).unwrap();
        let mut data = [0; 2];
        assert!(bus.read(0x1004, &mut data));
        assert_eq!(data, [4, 4]);
        assert!(bus.write(0x100f, &[9]));
        assert_eq!(*probe.writes.lock().unwrap(), [(0xf, vec![9])]);
    }

    /// All elements together are longer than the range, and longer than any access.
    #[test]
    fn each_element_of_a_string_instruction_is_an_access_of_its_own() {
        let bus = Bus::new();
        let probe = Arc::new(Probe::default());
        bus.insert(0x1000, 2, probe.clone()).unwrap();
        let bytes: Vec<u8> = (0..100).collect();
        for (size, addr) in [(1, 0x1001), (2, 0x1000)] {
            assert!(bus.write_string(addr, size, &bytes));
            let accesses = std::mem::take(&mut *probe.writes.lock().unwrap());
            let offset = addr - 0x1000;
            let expected = bytes.chunks(size).map(|bytes| (offset, bytes.to_vec()));
            assert!(accesses.into_iter().eq(expected), "{size}");
        }
        let mut data = [0; 100];
        assert!(bus.read_string(0x1001, 1, &mut data));
        assert_eq!(data, [1; 100]);
        // An element that reaches past the range belongs to nobody.
        assert!(!bus.read_string(0x1001, 2, &mut data));
        assert_eq!(data, [0xff; 100]);
        assert!(!bus.write_string(0x1001, 2, &data));
        assert!(probe.writes.lock().unwrap().is_empty());
    }

    #[test]
    fn where_nothing_answers_reads_are_all_ones_and_writes_dropped() {
        let bus = Bus::new();
        let probe = Arc::new(Probe::default());
        bus.insert(0x1000, 0x10, probe.clone()).unwrap();
        for addr in [0, 0xfff, 0x1010, u64::MAX] {
            let mut data = [0; 4];
            assert!(!bus.read(addr, &mut data), "{addr:#x}");
            assert_eq!(data, [0xff; 4]);
            assert!(!bus.write(addr, &[0]));
        }
        // An access that begins inside and ends outside belongs to nobody.
        assert!(!bus.read(0x100d, &mut [0; 4]));
        assert!(probe.writes.lock().unwrap().is_empty());
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let bus = Bus::new();
        let probe: Arc<dyn BusDevice> = Arc::new(Probe::default());
        bus.insert(0x1000, 0x1000, probe.clone()).unwrap();
        for (base, len) in [
            (0x1000, 0x1000),
            (0xfff, 2),
            (0x1fff, 1),
            (0, 0x10000),
            (0x1800, 4),
        ] {
            let refused = bus.insert(base, len, probe.clone());
            let other = 0x1000;
            assert_eq!(refused, Err(BusError::Overlap { base, len, other }));
        }
        for (base, len) in [(0x5000, 0), (u64::MAX, 2)] {
            let refused = bus.insert(base, len, probe.clone());
            assert_eq!(refused, Err(BusError::BadRange { base, len }));
        }
        bus.insert(0x2000, 1, probe.clone()).unwrap();
        bus.insert(u64::MAX, 1, probe).unwrap();
    }

    #[test]
    fn a_moved_device_answers_at_its_new_place_only() {
        let bus = Bus::new();
        let probe: Arc<dyn BusDevice> = Arc::new(Probe::default());
        bus.insert(0x1000, 0x10, probe.clone()).unwrap();
        assert!(bus.remove(0x1000));
        assert!(!bus.remove(0x1000));
        bus.insert(0x2000, 0x10, probe).unwrap();
        assert!(!bus.read(0x1000, &mut [0]));
        assert!(bus.read(0x2000, &mut [0]));
    }
}
