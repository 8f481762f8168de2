//! The root bus: a host bridge at 00:00.0, the slots, and the two ways to configuration space, ECAM and the
//! ports CF8/CFC (PCI Express Base §7.2.2, PCI Local Bus 3.0 §3.2.2.3.2).
//!
//! It decides where BARs answer. It doesn't know what the functions do.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use thiserror::Error;

use super::config::{ConfigSpace, Identity};
use super::pages::{ConfigPage, ConfigPages, FUNCTION_SIZE, SLOTS};
use crate::bus::{Bus, BusDevice};
use crate::debug::opaque_debug;
use crate::log;
use crate::throttle::Throttle;

/// Distance between the preset BARs of neighbouring slots, so that an address depends on the slot alone.
const BAR_STRIDE: u64 = 1 << 20;
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
    /// The BAR answers at `base` from now on, or nowhere.
    fn bar_moved(&self, _base: Option<u64>) {}
}

/// Why a function can't be plugged in.
#[derive(Debug, Error)]
pub enum PciError {
    /// The bus has slots 0 to 31, and the host bridge is in the first.
    #[error("PCI slot {0} does not exist; give one from 1 to 31")]
    NoSlot(u8),
    /// Somebody else is there.
    #[error("PCI address 00:{0:02x}.0 is taken already; give each device one of its own")]
    SlotTaken(u8),
    /// The BAR is larger than the room a slot has.
    #[error(
        "the device at 00:{slot:02x}.0 needs {size:#x} bytes of registers, a slot has room for {BAR_STRIDE:#x}"
    )]
    BarSize {
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
    /// BARs are preset in the first, from its start, a MiB a slot.
    pub windows: Vec<Range<u64>>,
    /// Interrupt lines for INTA, used in turn; all slots share them.
    pub intx: Range<u32>,
}

opaque_debug! { PciPlan |it| { windows: it.windows, intx: it.intx } }

struct Plugged {
    function: Arc<dyn PciFunction>,
    registers: Option<Arc<dyn BusDevice>>,
    /// Where the BAR answers.
    mapped: Option<u64>,
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
    /// Its page is given out.
    Claimed,
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
        let bridge = ConfigSpace::new(root.claim(0)?, HOST_BRIDGE);
        root.plug(0, Arc::new(HostBridge(bridge)), None)?;
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

    /// Reserves a slot; [`PciRoot::plug`] fills it.
    pub(super) fn claim(&self, slot: u8) -> Result<ConfigPage, PciError> {
        let mut slots = self.slots();
        let place = slots
            .get_mut(usize::from(slot))
            .ok_or(PciError::NoSlot(slot))?;
        if !matches!(place, Slot::Empty) {
            return Err(PciError::SlotTaken(slot));
        }
        let page = self
            .pages
            .claim(slot)
            .map_err(|source| PciError::Host {
                slot,
                operation: "map configuration space",
                source,
            })?
            .ok_or(PciError::NoSlot(slot))?;
        *place = Slot::Claimed;
        Ok(page)
    }

    /// Puts a function into the slot it claimed and presets its BAR, behind which `registers` answer.
    pub(super) fn plug(
        &self,
        slot: u8,
        function: Arc<dyn PciFunction>,
        registers: Option<Arc<dyn BusDevice>>,
    ) -> Result<(), PciError> {
        if let Some(size) = function.config().bar_size() {
            if size > BAR_STRIDE {
                return Err(PciError::BarSize { slot, size });
            }
            if let Some(window) = self.windows.first() {
                let offset = u64::from(slot).wrapping_mul(BAR_STRIDE);
                function
                    .config()
                    .place_bar(window.start.saturating_add(offset));
            }
        }
        let mut slots = self.slots();
        if let Some(place) = slots.get_mut(usize::from(slot)) {
            *place = Slot::Plugged(Plugged {
                function,
                registers,
                mapped: None,
            });
        }
        Ok(())
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
            self.follow_bar(plugged);
        }
    }

    /// Lets the BAR answer where its register says, as far as the windows and the other devices allow.
    fn follow_bar(&self, plugged: &mut Plugged) {
        let config = plugged.function.config();
        let (Some(size), Some(registers), Some(mmio)) = (
            config.bar_size(),
            plugged.registers.as_ref(),
            self.mmio.upgrade(),
        ) else {
            return;
        };
        let wanted = config.bar().filter(|&base| self.passes(base, size));
        if wanted == plugged.mapped {
            return;
        }
        if let Some(old) = plugged.mapped.take() {
            mmio.remove(old);
        }
        plugged.mapped = wanted.filter(|&base| {
            match mmio.insert(base, size, Arc::clone(registers)) {
                Ok(()) => true,
                // The guest's to sort out: a later write of the function tries again.
                Err(error) => {
                    log::debug!(self.throttle, %error, "a PCI BAR overlaps another");
                    false
                }
            }
        });
        plugged.function.bar_moved(plugged.mapped);
    }

    fn passes(&self, base: u64, size: u64) -> bool {
        let windows = &self.windows;
        base.checked_add(size)
            .is_some_and(|end| windows.iter().any(|w| w.start <= base && end <= w.end))
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
