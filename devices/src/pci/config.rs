//! One function's configuration space: a type 0 header, one 64-bit memory BAR and a capability list (PCI Local
//! Bus 3.0 §6.1, §6.2, §6.7).
//!
//! It keeps the bytes and says which a guest may change; what a change means is the function's.

use super::pages::ConfigPage;

use crate::debug::opaque_debug;

/// Offset of the command register; the status register is the upper half of its word.
pub const COMMAND: u16 = 0x04;
/// Command: answer accesses to the memory BAR.
pub const COMMAND_MEMORY: u32 = 1 << 1;
/// Command: the function may write and read memory, and so send messages.
const COMMAND_MASTER: u32 = 1 << 2;
/// Command: don't assert the interrupt line.
pub const COMMAND_INTX_DISABLE: u32 = 1 << 10;
/// Status, in the command's word: an interrupt is pending, whether or not the line may be asserted.
pub const STATUS_INTERRUPT: u32 = 1 << 19;
/// Status, in the command's word: there is a capability list.
const STATUS_CAPABILITIES: u32 = 1 << 20;
/// Offset of BAR 0, with BAR 1 as its upper half.
pub const BAR: u16 = 0x10;
/// BAR flags: 64-bit memory, not prefetchable.
const BAR_MEMORY_64: u32 = 0b100;
/// Offset of the capability pointer.
const CAPABILITIES: u16 = 0x34;
/// Offset of the interrupt line and pin registers.
const INTERRUPT: u16 = 0x3c;
/// First byte after the header.
const HEADER_END: u16 = 0x40;
/// Bytes that a guest may write: PCI's own 256.
const SIZE: u16 = 256;
/// Memory decoding, bus mastering, parity and system error response, line disable.
const COMMAND_WRITABLE: u32 =
    COMMAND_MEMORY | COMMAND_MASTER | 1 << 6 | 1 << 8 | COMMAND_INTX_DISABLE;

/// What identifies a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor identifier.
    pub vendor: u16,
    /// Device identifier.
    pub device: u16,
    /// Revision identifier.
    pub revision: u8,
    /// Class, subclass and programming interface, the class highest of three bytes.
    pub class: u32,
    /// Subsystem vendor identifier.
    pub subsystem_vendor: u16,
    /// Subsystem identifier.
    pub subsystem: u16,
}

/// A function's configuration space.
pub struct ConfigSpace {
    page: ConfigPage,
    writable: [u32; 64],
    bar_size: Option<u64>,
    /// Where the next capability goes, and where its offset is to be stored.
    free: u16,
    link: u16,
}

opaque_debug! { ConfigSpace |it| { bar_size: it.bar_size } }

impl ConfigSpace {
    /// A header without BAR, interrupt pin or capabilities.
    pub fn new(page: ConfigPage, id: Identity) -> Self {
        let mut space = Self {
            page,
            writable: [0; 64],
            bar_size: None,
            free: HEADER_END,
            link: CAPABILITIES,
        };
        let both = |high: u16, low: u16| u32::from(high) << 16 | u32::from(low);
        space.put(0x00, both(id.device, id.vendor));
        space.put(0x08, id.class << 8 | u32::from(id.revision));
        space.put(0x2c, both(id.subsystem, id.subsystem_vendor));
        space.allow(COMMAND, COMMAND_WRITABLE);
        // Cache line size: without meaning, but written by firmware.
        space.allow(0x0c, 0xff);
        space
    }

    fn put(&self, offset: u16, value: u32) {
        self.page.update(offset, u32::MAX, value);
    }

    fn allow(&mut self, offset: u16, mask: u32) {
        if let Some(word) = self.writable.get_mut(usize::from(offset >> 2)) {
            *word |= mask;
        }
    }

    /// Interrupt pin INTA, and `line` as what firmware would have noted there.
    pub fn set_interrupt(&mut self, line: u8) {
        self.put(INTERRUPT, 1 << 8 | u32::from(line));
        self.allow(INTERRUPT, 0xff);
    }

    /// A 64-bit memory BAR of `size` bytes, a power of two from 16 to 2^31.
    pub fn set_bar(&mut self, size: u32) {
        debug_assert!(size.is_power_of_two() && size >= 16);
        self.put(BAR, BAR_MEMORY_64);
        self.allow(BAR, !size.wrapping_sub(1));
        self.allow(BAR + 4, u32::MAX);
        self.bar_size = Some(u64::from(size));
    }

    /// Bytes of the BAR.
    pub fn bar_size(&self) -> Option<u64> {
        self.bar_size
    }

    /// Presets the BAR's address, as firmware would.
    pub fn place_bar(&self, base: u64) {
        let [low, high] = split(base);
        self.page.update(BAR, self.mask(BAR), low);
        self.page.update(BAR + 4, self.mask(BAR + 4), high);
    }

    fn mask(&self, offset: u16) -> u32 {
        self.writable
            .get(usize::from(offset >> 2))
            .copied()
            .unwrap_or(0)
    }

    /// Appends a capability: `body` follows its identifier and link, `writable` has a set bit for each one in
    /// `body` that the guest may change. Returns its offset, or `None` when the space is full.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u16> {
        let at = self.free;
        let end = at.checked_add(u16::try_from(body.len().checked_add(2)?).ok()?)?;
        if end > SIZE {
            return None;
        }
        self.put_byte(at, id);
        self.put_byte(self.link, u8::try_from(at).ok()?);
        self.page
            .update(COMMAND, STATUS_CAPABILITIES, STATUS_CAPABILITIES);
        for (offset, &byte) in (at.checked_add(2)?..).zip(body) {
            self.put_byte(offset, byte);
        }
        for (offset, &mask) in (at.checked_add(2)?..).zip(writable) {
            self.allow(offset, u32::from(mask) << bit_of(offset));
        }
        self.link = at.checked_add(1)?;
        self.free = end.checked_next_multiple_of(4)?;
        Some(at)
    }

    fn put_byte(&self, offset: u16, byte: u8) {
        let shift = bit_of(offset);
        self.page
            .update(offset, 0xff << shift, u32::from(byte) << shift);
    }

    /// A guest's write; what it may not change stays. Any width and alignment.
    pub fn write(&self, offset: u16, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while let [_, ..] = rest {
            let room = 4usize.saturating_sub(usize::from(at & 3));
            let (now, later) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            let (mut mask, mut value) = (0, 0);
            for (offset, &byte) in (at..=u16::MAX).zip(now) {
                mask |= 0xff << bit_of(offset);
                value |= u32::from(byte) << bit_of(offset);
            }
            self.page.update(at, mask & self.mask(at), value);
            // The next word; past the end of the page nothing is writable.
            at = (at | 3).saturating_add(1);
            rest = later;
        }
    }

    /// A guest's read of plain bytes.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        self.page.read(offset, data);
    }

    /// The bytes themselves.
    pub fn page(&self) -> &ConfigPage {
        &self.page
    }

    /// Whether the function may write and read memory.
    pub fn bus_master(&self) -> bool {
        self.page.load(COMMAND) & COMMAND_MASTER != 0
    }

    /// Where the BAR answers now: its address, if memory decoding is on.
    pub fn bar(&self) -> Option<u64> {
        self.bar_size?;
        let decodes = self.page.load(COMMAND) & COMMAND_MEMORY != 0;
        let low = u64::from(self.page.load(BAR) & !0xf);
        let high = u64::from(self.page.load(BAR + 4));
        decodes.then_some(high << 32 | low)
    }
}

/// The two halves of a 64-bit value, the low one first.
fn split(value: u64) -> [u32; 2] {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = value.to_le_bytes();
    [
        u32::from_le_bytes([b0, b1, b2, b3]),
        u32::from_le_bytes([b4, b5, b6, b7]),
    ]
}

/// The first bit of the byte at `offset` in its word.
fn bit_of(offset: u16) -> u32 {
    u32::from(offset & 3) << 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::pages::ConfigPages;

    const ID: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_8000,
        subsystem_vendor: 0x1af4,
        subsystem: 0x42,
    };

    fn space() -> ConfigSpace {
        let pages = ConfigPages::new().unwrap();
        let mut space = ConfigSpace::new(pages.claim(1).unwrap().unwrap(), ID);
        space.set_bar(0x1_0000);
        space.set_interrupt(17);
        space
    }

    fn read(space: &ConfigSpace, offset: u16) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_header_says_who_it_is_and_cannot_be_changed() {
        let space = space();
        for offset in [0x00, 0x08, 0x2c] {
            let before = read(&space, offset);
            space.write(offset, &[0x5a; 4]);
            assert_eq!(read(&space, offset), before);
        }
        assert_eq!(read(&space, 0), 0x1042_1af4);
        assert_eq!(read(&space, 8), 0x0180_0001);
        assert_eq!(read(&space, 0x3c), 0x0111);
    }

    #[test]
    fn the_bar_answers_size_probes_and_takes_an_address() {
        let space = space();
        assert_eq!(space.bar(), None);
        for probe in [0xffff_ffff_u32, 0xffff_fff0] {
            space.write(BAR, &probe.to_le_bytes());
            space.write(BAR + 4, &u32::MAX.to_le_bytes());
            assert_eq!(read(&space, BAR), 0xffff_0004);
            assert_eq!(read(&space, BAR + 4), u32::MAX);
        }
        space.write(BAR, &0xd000_0000_u32.to_le_bytes());
        space.write(BAR + 4, &0x12_u32.to_le_bytes());
        assert_eq!(space.bar(), None, "memory decoding is off");
        space.write(COMMAND, &[2]);
        assert_eq!(space.bar(), Some(0x12_d000_0000));
        // The other four BARs and the ROM are not there.
        for offset in [0x18, 0x1c, 0x20, 0x24, 0x30] {
            space.write(offset, &[0xff; 4]);
            assert_eq!(read(&space, offset), 0);
        }
    }

    #[test]
    fn capabilities_are_linked_aligned_and_writable_only_where_said() {
        let mut space = space();
        let first = space.add_capability(0x11, &[1; 10], &[0x00, 0xc0]).unwrap();
        let second = space.add_capability(0x09, &[2; 15], &[]).unwrap();
        let third = space.add_capability(0x09, &[3; 2], &[]).unwrap();
        assert_eq!((first, second, third), (0x40, 0x4c, 0x60));
        assert_eq!(read(&space, 4) & STATUS_CAPABILITIES, STATUS_CAPABILITIES);
        let mut at = read(&space, CAPABILITIES) & 0xff;
        let mut seen = Vec::new();
        while at != 0 {
            seen.push(at);
            at = read(&space, u16::try_from(at).unwrap()) >> 8 & 0xff;
        }
        assert_eq!(seen, [0x40, 0x4c, 0x60]);
        space.write(first, &[0xff; 4]);
        assert_eq!(read(&space, first), 0xc101_4c11);
        assert!(space.add_capability(9, &[0; 0xa0], &[]).is_none());
    }

    #[test]
    fn writes_of_any_width_and_alignment_change_only_writable_bits() {
        let space = space();
        space.write(BAR + 2, &[0x34, 0x12, 0x78, 0x56]);
        assert_eq!(read(&space, BAR), 0x1234_0004);
        assert_eq!(read(&space, BAR + 4), 0x5678);
        space.write(0xfe, &[0xff; 8]);
        space.write(u16::MAX, &[0xff; 8]);
        space.write(4094, &[0xff; 4]);
        assert_eq!(read(&space, 0xfc), 0);
        assert_eq!(read(&space, 0x100), 0);
    }
}
