//! The window onto the BAR through configuration space (VIRTIO 1.2 §4.1.4.9), for firmware that can't reach a BAR
//! above 4 GiB.
//!
//! Its data field is not memory: reading it reads the BAR. So the first use of the capability ends direct reads
//! of configuration space.

use super::VirtioPci;
use super::layout::BAR_SIZE;
use crate::bus::BusDevice;
use crate::pci::root::PciFunction;

/// Offsets in the capability.
const BAR: u16 = 4;
const OFFSET: u16 = 8;
const LENGTH: u16 = 12;
const DATA: u16 = 16;
const END: u16 = 20;

impl VirtioPci {
    fn window(&self, field: u16) -> u32 {
        self.config
            .page()
            .load(self.window_at.saturating_add(field))
    }

    /// Where in the BAR the window is and how wide, if that is an access a driver may make.
    fn window_target(&self) -> Option<(u64, usize)> {
        let (offset, length) = (self.window(OFFSET), self.window(LENGTH));
        let bar = self.window(BAR) & 0xff;
        let aligned = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        if bar != 0 || !aligned || offset >= BAR_SIZE {
            return None;
        }
        Some((u64::from(offset), usize::try_from(length).ok()?))
    }

    /// The driver is about to read `len` bytes of configuration space at `offset`: reads the BAR if the data field
    /// is among them.
    pub(super) fn fill_window(&self, offset: u16, len: usize) {
        let data_at = self.window_at.saturating_add(DATA);
        let end = usize::from(offset).saturating_add(len);
        if offset >= self.window_at.saturating_add(END) || end <= usize::from(data_at) {
            return;
        }
        let mut data = [0; 4];
        if let Some((at, length)) = self.window_target()
            && let Some(data) = data.get_mut(..length)
        {
            BusDevice::read(self, at, data);
        }
        self.config()
            .page()
            .update(data_at, u32::MAX, u32::from_le_bytes(data));
    }

    /// The driver wrote configuration space where `touches` says: if that is in the capability, reads must arrive
    /// here from now on, and if it is the data field, the BAR is written.
    pub(super) fn window_written(&self, touches: impl Fn(u16, u16) -> bool) {
        let at = |field| self.window_at.saturating_add(field);
        if touches(at(BAR), at(END)) {
            self.config.page().end_direct_reads();
        }
        if !touches(at(DATA), at(END)) {
            return;
        }
        let data = self.window(DATA).to_le_bytes();
        if let Some((at, length)) = self.window_target()
            && let Some(data) = data.get(..length)
        {
            BusDevice::write(self, at, data);
        }
    }
}
