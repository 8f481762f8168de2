//! The common configuration registers (VIRTIO 1.2 §4.1.4.3): natural widths, 64-bit fields also as two halves.

use splitring_virtio::device::queue::QueueConfig;
use splitring_virtio::device::transport::Transition;
use splitring_virtio::spec::pci::{NO_VECTOR, common as reg};
use splitring_virtio::spec::status;

use super::{State, VirtioPci};
use crate::interrupt::InterruptSink;
use crate::log;

/// Bytes of the block.
const SIZE: usize = 56;
const _: () = assert!(SIZE as u64 == reg::SIZE);

/// The register block as bytes, in the layout of the specification.
struct Image([u8; SIZE]);

impl Image {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(place) = self.0.get_mut(at..) {
            place
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
        }
    }
}

impl VirtioPci {
    pub(super) fn read_common(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(bytes) = image.0.get(at..) {
            data.iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
        }
    }

    fn image(&self) -> Image {
        let state = self.state();
        let transport = &state.transport;
        let interrupts = &self.interrupts;
        let mut image = Image([0; SIZE]);
        let offered = transport.offered_half(state.device_feature_select);
        let accepted = transport.accepted_half(state.driver_feature_select);
        image.put(
            reg::DEVICE_FEATURE_SELECT,
            &state.device_feature_select.to_le_bytes(),
        );
        image.put(reg::DEVICE_FEATURE, &offered.to_le_bytes());
        image.put(
            reg::DRIVER_FEATURE_SELECT,
            &state.driver_feature_select.to_le_bytes(),
        );
        image.put(reg::DRIVER_FEATURE, &accepted.to_le_bytes());
        image.put(
            reg::CONFIG_MSIX_VECTOR,
            &interrupts.vector(None).to_le_bytes(),
        );
        image.put(reg::NUM_QUEUES, &transport.queue_count().to_le_bytes());
        image.put(reg::DEVICE_STATUS, &[self.status(&state)]);
        image.put(reg::CONFIG_GENERATION, &[interrupts.generation()]);
        image.put(reg::QUEUE_SELECT, &state.queue_select.to_le_bytes());
        match transport.queue(state.queue_select) {
            Some(queue) => self.put_queue(&mut image, state.queue_select, queue),
            // Its size is 0: there is no such queue.
            None => image.put(reg::QUEUE_MSIX_VECTOR, &NO_VECTOR.to_le_bytes()),
        }
        image
    }

    fn put_queue(&self, image: &mut Image, index: u16, queue: &QueueConfig) {
        let vector = self.interrupts.vector(Some(index));
        image.put(reg::QUEUE_SIZE, &queue.size().to_le_bytes());
        image.put(reg::QUEUE_MSIX_VECTOR, &vector.to_le_bytes());
        image.put(reg::QUEUE_ENABLE, &u16::from(queue.ready()).to_le_bytes());
        image.put(reg::QUEUE_NOTIFY_OFF, &index.to_le_bytes());
        image.put(reg::QUEUE_DESC, &queue.desc().to_le_bytes());
        image.put(reg::QUEUE_DRIVER, &queue.avail().to_le_bytes());
        image.put(reg::QUEUE_DEVICE, &queue.used().to_le_bytes());
    }

    fn status(&self, state: &State) -> u8 {
        let needs_reset = if self.interrupts.is_broken() {
            status::NEEDS_RESET
        } else {
            0
        };
        state.transport.status() | needs_reset
    }

    /// A write of a width that the field doesn't have is ignored.
    pub(super) fn write_common(&self, offset: u64, data: &[u8]) {
        match *data {
            [value] => self.write8(offset, value),
            [a, b] => self.write16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if offset >= reg::QUEUE_DESC => {
                self.write32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write32(offset.saturating_add(4), u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    fn write8(&self, offset: u64, value: u8) {
        if offset != reg::DEVICE_STATUS {
            return;
        }
        let mut state = self.state();
        match state.transport.write_status(value) {
            Transition::None => {}
            Transition::Reset => self.reset(&mut state),
            Transition::Start => self.start(&mut state),
            Transition::Refused { accepted } => {
                let offered = state.transport.offered();
                log::debug!(
                    self.throttle(),
                    device = self.device.id(),
                    accepted = format_args!("{accepted:#x}"),
                    offered = format_args!("{offered:#x}"),
                    "the driver's features are refused"
                );
            }
        }
    }

    fn write16(&self, offset: u64, value: u16) {
        let mut state = self.state();
        let index = state.queue_select;
        match offset {
            reg::CONFIG_MSIX_VECTOR => self.interrupts.set_vector(None, value),
            reg::QUEUE_SELECT => state.queue_select = value,
            reg::QUEUE_MSIX_VECTOR => self.interrupts.set_vector(Some(index), value),
            reg::QUEUE_SIZE => {
                if let Some(queue) = state.transport.open_queue(index) {
                    // What doesn't fit changes nothing: the driver reads back what it got.
                    queue.set_size(value);
                }
            }
            // Writing 0 is not for drivers; a queue is disabled by a reset.
            reg::QUEUE_ENABLE if value == 1 => {
                if let Some(queue) = state.transport.open_queue(index) {
                    queue.set_ready(true);
                }
            }
            _ => {}
        }
    }

    fn write32(&self, offset: u64, value: u32) {
        let mut state = self.state();
        match offset {
            reg::DEVICE_FEATURE_SELECT => state.device_feature_select = value,
            reg::DRIVER_FEATURE_SELECT => state.driver_feature_select = value,
            reg::DRIVER_FEATURE => {
                let select = state.driver_feature_select;
                state.transport.accept_half(select, value);
            }
            _ => {
                let index = state.queue_select;
                if let Some(queue) = state.transport.open_queue(index) {
                    set_address(queue, offset, value);
                }
            }
        }
    }
}

/// Sets half of one of a queue's addresses.
fn set_address(queue: &mut QueueConfig, offset: u64, value: u32) {
    let low = |old: u64| (old & !0xffff_ffff) | u64::from(value);
    let high = |old: u64| (old & 0xffff_ffff) | u64::from(value) << 32;
    const HIGH: u64 = 4;
    const DESC_HIGH: u64 = reg::QUEUE_DESC + HIGH;
    const DRIVER_HIGH: u64 = reg::QUEUE_DRIVER + HIGH;
    const DEVICE_HIGH: u64 = reg::QUEUE_DEVICE + HIGH;
    match offset {
        reg::QUEUE_DESC => queue.set_desc(low(queue.desc())),
        DESC_HIGH => queue.set_desc(high(queue.desc())),
        reg::QUEUE_DRIVER => queue.set_avail(low(queue.avail())),
        DRIVER_HIGH => queue.set_avail(high(queue.avail())),
        reg::QUEUE_DEVICE => queue.set_used(low(queue.used())),
        DEVICE_HIGH => queue.set_used(high(queue.used())),
        _ => {}
    }
}
