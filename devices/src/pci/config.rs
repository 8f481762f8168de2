//! One function's configuration space: a type 0 header, up to six memory BARs and a capability list (PCI Local
//! Bus 3.0 §6.1, §6.2, §6.7).
//!
//! It keeps the bytes and says which a guest may change; what a change means is the function's.

use serde::{Deserialize, Serialize};

use super::pages::ConfigPage;
use crate::debug::opaque_debug;
use crate::saved::{Layer, StateError};

/// Offset of the command register; the status register is the upper half of its word.
pub const COMMAND: u16 = 0x04;
/// Command: answer accesses to the memory BARs.
pub const COMMAND_MEMORY: u32 = 1 << 1;
/// Command: the function may write and read memory, and so send messages.
const COMMAND_MASTER: u32 = 1 << 2;
/// Command: don't assert the interrupt line.
pub const COMMAND_INTX_DISABLE: u32 = 1 << 10;
/// Status, in the command's word: an interrupt is pending, whether or not the line may be asserted.
pub const STATUS_INTERRUPT: u32 = 1 << 19;
/// Status, in the command's word: there is a capability list.
const STATUS_CAPABILITIES: u32 = 1 << 20;
/// Offset of BAR 0; the others follow. One with a 64-bit address takes the next one's register for its upper half.
pub const BAR: u16 = 0x10;
/// BARs that the header has room for.
pub const BARS: usize = 6;
/// BAR flags: its address has 64 bits.
const BAR_64: u32 = 0b100;
/// BAR flags: reading it has no side effects, and writes to it may be merged.
const BAR_PREFETCHABLE: u32 = 0b1000;
/// Bits of a BAR's lower register that are no address.
const BAR_FLAGS: u32 = 0xf;
/// The smallest BAR: its lowest bits are flags.
const BAR_LEAST: u64 = 16;
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

/// What a function asks for by a BAR: a range of memory addresses (PCI Local Bus 3.0 §6.2.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Bytes: a power of two, at least 16, and with a 32-bit address at most 2^31.
    pub size: u64,
    /// Whether its address has 64 bits rather than 32.
    pub is_64bit: bool,
    /// Whether reading it has no side effects and writes to it may be merged.
    pub prefetchable: bool,
}

impl Bar {
    /// Registers, anywhere in the address space.
    pub const fn registers(size: u64) -> Self {
        Self {
            size,
            is_64bit: true,
            prefetchable: false,
        }
    }

    /// Memory, anywhere in the address space.
    pub const fn memory(size: u64) -> Self {
        Self {
            prefetchable: true,
            ..Self::registers(size)
        }
    }

    fn is_valid(self) -> bool {
        let most = if self.is_64bit { 1 << 63 } else { 1 << 31 };
        self.size.is_power_of_two() && (BAR_LEAST..=most).contains(&self.size)
    }

    fn flags(self) -> u32 {
        let width = if self.is_64bit { BAR_64 } else { 0 };
        let kind = if self.prefetchable {
            BAR_PREFETCHABLE
        } else {
            0
        };
        width | kind
    }
}

/// The offset of the register of BAR `index`.
fn bar_register(index: u8) -> u16 {
    u16::from(index).saturating_mul(4).saturating_add(BAR)
}

/// A function's configuration space.
pub struct ConfigSpace {
    page: ConfigPage,
    writable: [u32; 64],
    bars: [Option<Bar>; BARS],
    /// Where the next capability goes, and where its offset is to be stored.
    free: u16,
    link: u16,
}

opaque_debug! { ConfigSpace |it| { bars: it.bars } }

impl ConfigSpace {
    /// A header without BARs, interrupt pin or capabilities.
    pub fn new(page: ConfigPage, id: Identity) -> Self {
        let mut space = Self {
            page,
            writable: [0; 64],
            bars: [None; BARS],
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

    /// Adds BAR `index`. Returns `None`, and adds nothing, if there is no such BAR, its register or the next one is taken
    /// already, or its size is not possible.
    pub fn add_bar(&mut self, index: u8, bar: Bar) -> Option<()> {
        let at = bar_register(index);
        let upper = index.checked_add(1).filter(|_| bar.is_64bit);
        let mut registers = [Some(index), upper].into_iter().flatten();
        if !bar.is_valid() || !registers.all(|index| self.is_free(index)) {
            return None;
        }
        let [low, high] = split(!bar.size.wrapping_sub(1));
        self.put(at, bar.flags());
        self.allow(at, low & !BAR_FLAGS);
        if bar.is_64bit {
            self.allow(at.saturating_add(4), high);
        }
        *self.bars.get_mut(usize::from(index))? = Some(bar);
        Some(())
    }

    /// Whether the register of BAR `index` exists and is neither a BAR's nor the upper half of one.
    fn is_free(&self, index: u8) -> bool {
        let below = index.checked_sub(1).and_then(|below| self.bar(below));
        let taken = self.bar(index).is_some() || below.is_some_and(|below| below.is_64bit);
        usize::from(index) < BARS && !taken
    }

    fn bar(&self, index: u8) -> Option<Bar> {
        self.bars.get(usize::from(index)).copied().flatten()
    }

    /// The BARs with their numbers.
    pub fn bars(&self) -> impl Iterator<Item = (u8, Bar)> {
        (0..)
            .zip(self.bars)
            .filter_map(|(index, bar)| Some((index, bar?)))
    }

    /// Presets the address of BAR `index`, as firmware would.
    pub fn place_bar(&self, index: u8, base: u64) {
        let at = bar_register(index);
        let [low, high] = split(base);
        self.page.update(at, self.mask(at), low);
        if self.bar(index).is_some_and(|bar| bar.is_64bit) {
            let upper = at.saturating_add(4);
            self.page.update(upper, self.mask(upper), high);
        }
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

    /// Where BAR `index` answers now: its address, if memory decoding is on.
    pub fn bar_address(&self, index: u8) -> Option<u64> {
        let decodes = self.page.load(COMMAND) & COMMAND_MEMORY != 0;
        self.bar_assigned(index).filter(|_| decodes)
    }

    /// The address in the register of BAR `index`, whether or not it answers there.
    pub fn bar_assigned(&self, index: u8) -> Option<u64> {
        let bar = self.bar(index)?;
        let at = bar_register(index);
        let low = u64::from(self.page.load(at) & !BAR_FLAGS);
        let high = if bar.is_64bit {
            u64::from(self.page.load(at.saturating_add(4)))
        } else {
            0
        };
        Some(high << 32 | low)
    }
}

/// The bytes of a function's configuration space, as a snapshot keeps them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigState {
    /// Words of 32 bits, as many as a guest can write to.
    words: Vec<u32>,
    /// Reads by the guest reach the mapped bytes without an exit.
    direct_reads: bool,
}

impl Layer for ConfigState {
    const NAME: &'static str = "PCI configuration space";
    const VERSION: u32 = 1;
}

impl ConfigSpace {
    /// The bytes as they are.
    pub(super) fn save(&self) -> ConfigState {
        ConfigState {
            words: self.offsets().map(|at| self.page.load(at)).collect(),
            direct_reads: self.page.has_direct_reads(),
        }
    }

    fn offsets(&self) -> impl Iterator<Item = u16> + use<> {
        (0..SIZE).step_by(4)
    }

    /// Whether these bytes can be this function's: they differ from its own in what a guest may
    /// write, and in whether an interrupt is pending.
    pub(super) fn check(&self, state: &ConfigState) -> Result<(), StateError> {
        let refused = |problem: String| StateError::refused::<ConfigState>(problem);
        if state.words.len() != self.writable.len() {
            return Err(refused(format!("it has {} words", state.words.len())));
        }
        for (at, word) in self.offsets().zip(&state.words) {
            let own = self.page.load(at);
            let pending = if at == COMMAND { STATUS_INTERRUPT } else { 0 };
            if (word ^ own) & !(self.mask(at) | pending) != 0 {
                return Err(refused(format!(
                    "at {at:#04x} is {word:#010x}, where the function has {own:#010x}"
                )));
            }
        }
        Ok(())
    }

    /// Takes over what a guest had written into it.
    pub(super) fn restore(&self, state: &ConfigState) {
        for (at, word) in self.offsets().zip(&state.words) {
            self.page.update(at, self.mask(at), *word);
        }
        if !state.direct_reads {
            self.page.end_direct_reads();
        }
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

    fn empty() -> ConfigSpace {
        let pages = ConfigPages::new().unwrap();
        ConfigSpace::new(pages.page().unwrap().page, ID)
    }

    fn space() -> ConfigSpace {
        let mut space = empty();
        space.add_bar(0, Bar::registers(0x1_0000)).unwrap();
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
        assert_eq!(space.bar_address(0), None);
        for probe in [0xffff_ffff_u32, 0xffff_fff0] {
            space.write(BAR, &probe.to_le_bytes());
            space.write(BAR + 4, &u32::MAX.to_le_bytes());
            assert_eq!(read(&space, BAR), 0xffff_0004);
            assert_eq!(read(&space, BAR + 4), u32::MAX);
        }
        space.write(BAR, &0xd000_0000_u32.to_le_bytes());
        space.write(BAR + 4, &0x12_u32.to_le_bytes());
        assert_eq!(space.bar_address(0), None, "memory decoding is off");
        space.write(COMMAND, &[2]);
        assert_eq!(space.bar_address(0), Some(0x12_d000_0000));
        // The other four BARs and the ROM are not there.
        for offset in [0x18, 0x1c, 0x20, 0x24, 0x30] {
            space.write(offset, &[0xff; 4]);
            assert_eq!(read(&space, offset), 0);
        }
    }

    #[test]
    fn each_of_several_bars_answers_size_probes_by_its_kind_and_moves_by_itself() {
        let mut space = empty();
        let narrow = Bar {
            is_64bit: false,
            ..Bar::registers(0x1000)
        };
        let huge = Bar::memory(1 << 33);
        let narrow_memory = Bar {
            is_64bit: false,
            ..Bar::memory(0x8000)
        };
        space.add_bar(0, narrow).unwrap();
        space.add_bar(1, huge).unwrap();
        space.add_bar(3, narrow_memory).unwrap();
        space.add_bar(4, Bar::registers(16)).unwrap();
        assert_eq!(
            space.bars().map(|(index, _)| index).collect::<Vec<_>>(),
            [0, 1, 3, 4]
        );
        for offset in (0x10..0x28).step_by(4) {
            space.write(offset, &[0xff; 4]);
        }
        let probed = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24].map(|offset| read(&space, offset));
        assert_eq!(
            probed,
            [
                0xffff_f000,
                0xc,
                0xffff_fffe,
                0xffff_8008,
                0xffff_fff4,
                0xffff_ffff
            ]
        );
        space.write(COMMAND, &[2]);
        let places = [
            (0, 0xd000_1000),
            (1, 0x12_0000_0000),
            (3, 0xd001_0000),
            (4, 0x30),
        ];
        for (index, base) in places {
            space.place_bar(index, base);
        }
        for (index, base) in places {
            assert_eq!(space.bar_address(index), Some(base), "{index}");
        }
        space.write(0x1c, &0xd002_0000_u32.to_le_bytes());
        assert_eq!(space.bar_address(3), Some(0xd002_0000));
        assert_eq!(space.bar_address(4), Some(0x30), "its neighbour stays");
        assert_eq!([2, 5, 6].map(|index| space.bar_address(index)), [None; 3]);
    }

    #[test]
    fn a_bar_that_the_header_has_no_room_for_is_refused() {
        let mut space = empty();
        space.add_bar(1, Bar::registers(0x1000)).unwrap();
        let narrow = |size| Bar {
            is_64bit: false,
            ..Bar::registers(size)
        };
        for (index, bar, why) in [
            (1, narrow(16), "taken"),
            (2, narrow(16), "an upper half"),
            (0, Bar::memory(16), "the next is taken"),
            (5, Bar::memory(16), "its upper half has no register"),
            (6, narrow(16), "no register"),
            (255, narrow(16), "no register"),
            (3, narrow(8), "too small"),
            (3, narrow(0x1001), "no power of two"),
            (3, narrow(1 << 32), "32 bits can't address it"),
        ] {
            assert_eq!(space.add_bar(index, bar), None, "{why}");
        }
        space.add_bar(0, narrow(16)).unwrap();
        space.add_bar(5, narrow(1 << 31)).unwrap();
        space.add_bar(3, Bar::memory(1 << 63)).unwrap();
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
