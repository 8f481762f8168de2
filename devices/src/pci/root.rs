//! The root bus: a host bridge at 00:00.0, the slots, and the two ways to configuration space, ECAM and the
//! ports CF8/CFC (PCI Express Base §7.2.2, PCI Local Bus 3.0 §3.2.2.3.2).
//!
//! It decides where BARs answer, and puts functions into their slots and takes them out again while the guest runs. It
//! doesn't know what the functions do, nor how a guest learns that they come and go.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use thiserror::Error;

use super::config::{Bar, ConfigSpace, Identity};
use super::pages::{ConfigPage, ConfigPages, FUNCTION_SIZE, NewPage, SLOTS};
use crate::bus::{Bus, BusDevice};
use crate::debug::opaque_debug;
use crate::log;
use crate::throttle::Throttle;

/// Distance between the preset BARs 0 of neighbouring slots, so that an address depends on the slot alone.
const BAR_STRIDE: u64 = 1 << 20;
/// Where 32-bit addresses end.
const END_32BIT: u64 = 1 << 32;
const HOST_BRIDGE: Identity = Identity {
    // The generic host bridge that QEMU's machines without a chipset have.
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_0000,
    subsystem_vendor: 0,
    subsystem: 0,
};

/// A function on the bus. Calls for one bus come one at a time.
pub trait PciFunction: Send + Sync {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;
    /// A guest's read.
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }
    /// The guest wrote `len` bytes at `offset`; the bytes that may change have changed.
    fn config_written(&self, _offset: u16, _len: usize) {}
    /// BAR `index` answers at `base` from now on, or nowhere.
    fn bar_moved(&self, _index: u8, _base: Option<u64>) {}
    /// The function has left the bus: neither its configuration space nor its BARs answer. Gives back what it has of the
    /// hypervisor, and touches guest memory no more. Accesses that were under way may still arrive.
    fn ejected(&self) {}
}

/// Why a function can't be put into a slot, or taken out of it.
#[derive(Debug, Error)]
pub enum PciError {
    /// The bus has slots 0 to 31, and the host bridge is in the first.
    #[error("PCI slot {0} does not exist; give one from 1 to 31")]
    NoSlot(u8),
    /// Somebody else is there.
    #[error("PCI address 00:{0:02x}.0 is taken already; give each device one of its own")]
    SlotTaken(u8),
    /// Nobody is there.
    #[error("PCI address 00:{0:02x}.0 has no device that could be ejected")]
    SlotEmpty(u8),
    /// No range of addresses is free for a BAR.
    #[error(
        "the device at 00:{slot:02x}.0 needs {size:#x} bytes of addresses, which the bus does not have; give the machine \
         fewer devices"
    )]
    NoAddresses {
        /// The slot.
        slot: u8,
        /// Bytes asked for.
        size: u64,
    },
    /// The host refused.
    #[error("cannot {operation} for the device at 00:{slot:02x}.0: {source}{remedy}", remedy = remedy(source))]
    Host {
        /// The slot.
        slot: u8,
        /// What failed.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// What may help against a refusal of the host's, behind it.
fn remedy(refusal: &io::Error) -> &'static str {
    match refusal.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => "; raise the limit on open files (`ulimit -n`)",
        Some(libc::ENOMEM) => "; free memory on the host",
        _ => "",
    }
}

/// What the machine decides about its PCI bus.
pub struct PciPlan {
    /// Where BARs are registered.
    pub mmio: Arc<Bus>,
    /// Guest-physical ranges that the host bridge passes on to the bus; a BAR answers only within one of them.
    /// BARs 0 are preset in the first, from its start, a MiB a slot.
    pub windows: Vec<Range<u64>>,
    /// Interrupt lines for INTA, used in turn; all slots share them.
    pub intx: Range<u32>,
}

opaque_debug! { PciPlan |it| { windows: it.windows, intx: it.intx } }

struct Plugged {
    function: Arc<dyn PciFunction>,
    bars: Vec<MappedBar>,
}

struct MappedBar {
    index: u8,
    size: u64,
    /// What answers behind it.
    device: Arc<dyn BusDevice>,
    /// Where it answers.
    base: Option<u64>,
}

/// PCI bus 0.
pub struct PciRoot {
    /// Weak, because the bus holds this as ECAM.
    mmio: Weak<Bus>,
    windows: Vec<Range<u64>>,
    intx: Range<u32>,
    pages: Arc<ConfigPages>,
    slots: Mutex<[Slot; SLOTS]>,
    throttle: Throttle,
}

opaque_debug! { PciRoot |it| { windows: it.windows, intx: it.intx } }

enum Slot {
    Empty,
    /// A function is on its way into it or out of it.
    Reserved,
    Plugged(Plugged),
}

struct HostBridge(ConfigSpace);

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
}

impl PciRoot {
    /// A bus with nothing but the host bridge.
    pub fn new(plan: PciPlan) -> Result<Arc<Self>, PciError> {
        let host = |operation| {
            move |source| PciError::Host {
                slot: 0,
                operation,
                source,
            }
        };
        let pages = ConfigPages::new().map_err(host("map configuration space"))?;
        let root = Self {
            mmio: Arc::downgrade(&plan.mmio),
            windows: plan.windows,
            intx: plan.intx,
            pages,
            slots: Mutex::new([const { Slot::Empty }; SLOTS]),
            throttle: Throttle::default(),
        };
        let slot = root.reserve(0)?;
        let bridge = ConfigSpace::new(slot.page().clone(), HOST_BRIDGE);
        slot.insert(Arc::new(HostBridge(bridge)), Vec::new())?;
        Ok(Arc::new(root))
    }

    /// Configuration space as memory.
    pub fn pages(&self) -> &Arc<ConfigPages> {
        &self.pages
    }

    /// The interrupt line of INTA of `slot`, for `_PRT`.
    pub fn intx(&self, slot: u8) -> u32 {
        let turn = usize::from(slot)
            .checked_rem(self.intx.len())
            .and_then(|turn| u32::try_from(turn).ok());
        self.intx.start.saturating_add(turn.unwrap_or(0))
    }

    /// Reserves a slot for a function that is being made.
    ///
    /// # Errors
    /// There is no such slot, it is taken, or the host has no memory for its configuration space.
    pub(super) fn reserve(&self, slot: u8) -> Result<Reservation<'_>, PciError> {
        let mut slots = self.slots();
        let entry = slots
            .get_mut(usize::from(slot))
            .ok_or(PciError::NoSlot(slot))?;
        if !matches!(entry, Slot::Empty) {
            return Err(PciError::SlotTaken(slot));
        }
        let new = self.pages.page().map_err(map_error(slot))?;
        *entry = Slot::Reserved;
        let guard = Reserved { root: self, slot };
        Ok(Reservation { guard, new })
    }

    /// Takes the function out of `slot`, whatever the guest is doing with it. When this returns, configuration space reads
    /// all ones there, its BARs do not answer, and [`PciFunction::ejected`] has returned; then the slot is free. Not to be
    /// called on a worker's thread.
    ///
    /// # Errors
    /// The slot has no function that can be ejected, or the host has no memory; nothing has changed then.
    pub fn eject(&self, slot: u8) -> Result<(), PciError> {
        let (plugged, _reserved) = self.take(slot)?;
        if let Some(mmio) = self.mmio.upgrade() {
            for base in plugged.bars.iter().filter_map(|bar| bar.base) {
                mmio.remove(base);
            }
        }
        // Without the lock: it waits for workers, and the guest goes on with other functions.
        plugged.function.ejected();
        Ok(())
    }

    /// Removes the function in `slot` from configuration space; its slot stays reserved.
    fn take(&self, slot: u8) -> Result<(Plugged, Reserved<'_>), PciError> {
        let mut slots = self.slots();
        let entry = slots.get_mut(usize::from(slot)).filter(|_| slot != 0);
        let entry = entry.ok_or(PciError::NoSlot(slot))?;
        if !matches!(entry, Slot::Plugged(_)) {
            return Err(PciError::SlotEmpty(slot));
        }
        self.pages.hide(slot).map_err(map_error(slot))?;
        match std::mem::replace(entry, Slot::Reserved) {
            Slot::Plugged(plugged) => Ok((plugged, Reserved { root: self, slot })),
            // Just looked at, under the lock.
            Slot::Empty | Slot::Reserved => Err(PciError::SlotEmpty(slot)),
        }
    }

    /// Presets the BARs of a function that is about to enter `slot`, as firmware would.
    fn place_bars(
        &self,
        slots: &[Slot; SLOTS],
        slot: u8,
        config: &ConfigSpace,
    ) -> Result<(), PciError> {
        let mut taken = self.taken(slots);
        for (index, bar) in config.bars() {
            let base = match self.windows.first() {
                Some(window) if index == 0 && bar.size <= BAR_STRIDE => {
                    let offset = u64::from(slot).saturating_mul(BAR_STRIDE);
                    window.start.saturating_add(offset)
                }
                _ => {
                    let size = bar.size;
                    let room = self.find_room(bar, &taken);
                    room.ok_or(PciError::NoAddresses { slot, size })?
                }
            };
            config.place_bar(index, base);
            taken.push(base..base.saturating_add(bar.size));
            taken.sort_unstable_by_key(|range| range.start);
        }
        Ok(())
    }

    /// The addresses that are in some BAR's register already or that BARs 0 may get, in ascending order.
    fn taken(&self, slots: &[Slot; SLOTS]) -> Vec<Range<u64>> {
        const PRESET: u64 = BAR_STRIDE * SLOTS as u64;
        let preset = self.windows.first().map(|window| {
            let end = window.start.saturating_add(PRESET);
            window.start..end
        });
        let bars = slots.iter().flat_map(|slot| match slot {
            Slot::Plugged(plugged) => {
                let config = plugged.function.config();
                let assigned = config.bars().filter_map(|(index, bar)| {
                    let base = config.bar_assigned(index)?;
                    Some(base..base.saturating_add(bar.size))
                });
                assigned.collect()
            }
            Slot::Empty | Slot::Reserved => Vec::new(),
        });
        let mut taken: Vec<_> = bars.chain(preset).collect();
        taken.sort_unstable_by_key(|range| range.start);
        taken
    }

    /// An aligned range for `bar` beside those of `taken`, which are in ascending order. One that can be anywhere is
    /// looked for in the last window first, which leaves the lower addresses to others.
    fn find_room(&self, bar: Bar, taken: &[Range<u64>]) -> Option<u64> {
        let most = if bar.is_64bit { u64::MAX } else { END_32BIT };
        let in_window = |window: &Range<u64>| {
            let mut base = window.start.checked_next_multiple_of(bar.size)?;
            for range in taken {
                let end = base.checked_add(bar.size)?;
                if base < range.end && range.start < end {
                    base = range.end.checked_next_multiple_of(bar.size)?;
                }
            }
            let end = base.checked_add(bar.size)?;
            (end <= window.end.min(most)).then_some(base)
        };
        self.windows.iter().rev().find_map(in_window)
    }

    /// Lets the BARs of the function in `slot` answer where its registers say, after they were
    /// restored from a snapshot.
    pub fn follow(&self, slot: u8) {
        if let Some(Slot::Plugged(plugged)) = self.slots().get_mut(usize::from(slot)) {
            self.follow_bars(plugged);
        }
    }

    fn slots(&self) -> MutexGuard<'_, [Slot; SLOTS]> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest's read of configuration space; `offset` as in ECAM.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some((slot, register)) = locate(offset) else {
            return;
        };
        let function = match self.slots().get(slot) {
            Some(Slot::Plugged(plugged)) => Arc::clone(&plugged.function),
            _ => return,
        };
        function.read_config(register, data);
    }

    /// A guest's write of configuration space. One at a time, so that a BAR moves once.
    fn write(&self, offset: u64, data: &[u8]) {
        let Some((slot, register)) = locate(offset) else {
            return;
        };
        let mut slots = self.slots();
        if let Some(Slot::Plugged(plugged)) = slots.get_mut(slot) {
            plugged.function.config().write(register, data);
            plugged.function.config_written(register, data.len());
            self.follow_bars(plugged);
        }
    }

    /// Lets each BAR answer where its register says, as far as the windows and the other devices allow.
    fn follow_bars(&self, plugged: &mut Plugged) {
        let Some(mmio) = self.mmio.upgrade() else {
            return;
        };
        let Plugged { function, bars } = plugged;
        for bar in bars {
            let wanted = function.config().bar_address(bar.index);
            let wanted = wanted.filter(|&base| self.passes(base, bar.size));
            if wanted == bar.base {
                continue;
            }
            if let Some(old) = bar.base.take() {
                mmio.remove(old);
            }
            bar.base = wanted.filter(|&base| {
                match mmio.insert(base, bar.size, Arc::clone(&bar.device)) {
                    Ok(()) => true,
                    // The guest's to sort out: a later write of the function tries again.
                    Err(error) => {
                        log::debug!(self.throttle, %error, "a PCI BAR overlaps another");
                        false
                    }
                }
            });
            function.bar_moved(bar.index, bar.base);
        }
    }

    fn passes(&self, base: u64, size: u64) -> bool {
        let windows = &self.windows;
        base.checked_add(size)
            .is_some_and(|end| windows.iter().any(|w| w.start <= base && end <= w.end))
    }
}

/// Keeps a slot reserved; afterwards it is empty, unless a function has been put into it.
struct Reserved<'a> {
    root: &'a PciRoot,
    slot: u8,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut slots = self.root.slots();
        if let Some(entry @ Slot::Reserved) = slots.get_mut(usize::from(self.slot)) {
            *entry = Slot::Empty;
        }
    }
}

/// A slot for a function that is being made. No guest sees it before [`Reservation::insert`]; dropping it instead leaves
/// the slot empty.
pub(super) struct Reservation<'a> {
    guard: Reserved<'a>,
    new: NewPage,
}

impl Reservation<'_> {
    /// The function's configuration space.
    pub(super) fn page(&self) -> &ConfigPage {
        &self.new.page
    }

    /// Presets the function's BARs and puts it onto the bus. `devices` answer behind the BARs with these numbers.
    ///
    /// # Errors
    /// There are no addresses for a BAR, or the host has no memory. The slot is empty then.
    pub(super) fn insert(
        self,
        function: Arc<dyn PciFunction>,
        devices: Vec<(u8, Arc<dyn BusDevice>)>,
    ) -> Result<(), PciError> {
        let Self { guard, new } = self;
        let Reserved { root, slot } = guard;
        let bars = devices.into_iter().filter_map(|(index, device)| {
            let mut bars = function.config().bars();
            let (_, bar) = bars.find(|(number, _)| *number == index)?;
            Some(MappedBar {
                index,
                size: bar.size,
                device,
                base: None,
            })
        });
        let bars = bars.collect();
        let mut slots = root.slots();
        let placed = root.place_bars(&slots, slot, function.config());
        placed?;
        root.pages.show(slot, &new).map_err(map_error(slot))?;
        if let Some(entry) = slots.get_mut(usize::from(slot)) {
            *entry = Slot::Plugged(Plugged { function, bars });
        }
        Ok(())
    }
}

/// A failure to change what is mapped for `slot`.
fn map_error(slot: u8) -> impl FnOnce(io::Error) -> PciError {
    move |source| PciError::Host {
        slot,
        operation: "map configuration space",
        source,
    }
}

/// Slot and register of an offset in ECAM, if a function 0 is meant.
fn locate(offset: u64) -> Option<(usize, u16)> {
    const SIZE: u64 = FUNCTION_SIZE as u64;
    let register = u16::try_from(offset % SIZE).ok()?;
    let function = usize::try_from(offset / SIZE).ok()?;
    (function % 8 == 0).then_some((function / 8, register))
}

/// Configuration space in memory, for the MMIO bus.
impl BusDevice for PciRoot {
    fn read(&self, offset: u64, data: &mut [u8]) {
        PciRoot::read(self, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        PciRoot::write(self, offset, data);
    }
}

/// Configuration space through eight ports: an address at 0xCF8, data at 0xCFC. It reaches the first 256 bytes of
/// each function.
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    address: AtomicU32,
}

opaque_debug! { ConfigPorts |it| {} }

/// Number of port addresses.
pub const PORTS_LEN: u64 = 8;
/// Offset of the data port.
const DATA: u64 = 4;
/// Address register: data accesses are for configuration space.
const ENABLE: u32 = 1 << 31;

impl ConfigPorts {
    /// The ports of `root`, to be inserted at 0xCF8.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self {
            root,
            address: AtomicU32::new(0),
        }
    }

    /// The offset in ECAM that an access to the data port means.
    fn target(&self, port: u64, len: usize) -> Option<u64> {
        let address = self.address.load(Ordering::Relaxed);
        let byte = port.checked_sub(DATA)?;
        let end = byte.checked_add(u64::try_from(len).ok()?)?;
        let bus = address >> 16 & 0xff;
        if address & ENABLE == 0 || bus != 0 || end > 4 {
            return None;
        }
        let function = u64::from(address >> 8 & 0xff);
        let register = u64::from(address & 0xfc);
        Some(function << 12 | register.wrapping_add(byte))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (0, [a, b, c, d]) = (offset, &mut *data) {
            [*a, *b, *c, *d] = self.address.load(Ordering::Relaxed).to_le_bytes();
        } else if let Some(target) = self.target(offset, data.len()) {
            self.root.read(target, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, &[a, b, c, d]) = (offset, data) {
            let address = u32::from_le_bytes([a, b, c, d]);
            self.address.store(address, Ordering::Relaxed);
        } else if let Some(target) = self.target(offset, data.len()) {
            self.root.write(target, data);
        }
    }
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
