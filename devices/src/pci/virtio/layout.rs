//! Where everything is: the regions of the BAR, and the capabilities that say so (VIRTIO 1.2 §4.1.4).

use splitring_virtio::spec::pci::{self as spec, cfg_type};
use zerocopy::IntoBytes;

use crate::pci::config::ConfigSpace;
use crate::pci::msix::{ENTRY_SIZE, MAX_VECTORS};

/// Bytes of the BAR.
pub(super) const BAR_SIZE: u32 = 0x1_0000;
/// Interrupt status, one byte.
const ISR: u32 = 0x1000;
/// Device configuration.
const DEVICE: u32 = 0x2000;
/// Bytes of device configuration.
const DEVICE_SIZE: u32 = 0x1000;
/// MSI-X pending bits.
const PENDING: u32 = 0x3000;
/// Doorbells.
pub(super) const NOTIFY: u32 = 0x4000;
/// Bytes from one doorbell to the next.
pub(super) const NOTIFY_STRIDE: u32 = 4;
/// MSI-X table.
const TABLE: u32 = 0x8000;
/// Identifier of the MSI-X capability.
const MSIX_ID: u8 = 0x11;

/// Bytes of the window capability that the driver writes: `bar`, `offset`, `length` and the data.
const WINDOW_WRITABLE: [u8; 20] = [
    0, 0, 0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xff,
];
/// Appends MSI-X and the five virtio capabilities; returns where MSI-X and the window are.
pub(super) fn add_capabilities(config: &mut ConfigSpace, vectors: u16) -> Option<(u16, u16)> {
    let queues = u32::from(vectors).saturating_sub(1);
    let [last0, last1] = vectors.saturating_sub(1).to_le_bytes();
    // Both in BAR 0, which the low bits of the offsets say.
    let [t0, t1, t2, t3] = TABLE.to_le_bytes();
    let [p0, p1, p2, p3] = PENDING.to_le_bytes();
    let msix = [last0, last1, t0, t1, t2, t3, p0, p1, p2, p3];
    let msix_at = config.add_capability(MSIX_ID, &msix, &[0x00, 0xc0])?;
    let common = u32::try_from(spec::common::SIZE).ok()?;
    add_virtio(config, cfg_type::COMMON, 0, common)?;
    let notify = spec::NotifyCapability {
        cap: capability(
            cfg_type::NOTIFY,
            20,
            NOTIFY,
            queues.saturating_mul(NOTIFY_STRIDE),
        ),
        notify_off_multiplier: NOTIFY_STRIDE.into(),
    };
    config.add_capability(spec::CAP_ID, notify.as_bytes().get(2..)?, &[])?;
    add_virtio(config, cfg_type::ISR, ISR, 1)?;
    add_virtio(config, cfg_type::DEVICE, DEVICE, DEVICE_SIZE)?;
    let window = spec::CfgCapability {
        cap: capability(cfg_type::PCI, 20, 0, 0),
        pci_cfg_data: [0; 4],
    };
    let window_at = config.add_capability(
        spec::CAP_ID,
        window.as_bytes().get(2..)?,
        WINDOW_WRITABLE.get(2..)?,
    )?;
    Some((msix_at, window_at))
}

fn add_virtio(config: &mut ConfigSpace, kind: u8, offset: u32, length: u32) -> Option<u16> {
    let body = capability(kind, 16, offset, length);
    config.add_capability(spec::CAP_ID, body.as_bytes().get(2..)?, &[])
}

fn capability(kind: u8, cap_len: u8, offset: u32, length: u32) -> spec::Capability {
    spec::Capability {
        cap_len,
        cfg_type: kind,
        offset: offset.into(),
        length: length.into(),
        ..spec::Capability::default()
    }
}

/// The regions of the BAR. Accesses that reach from one into the next belong to neither.
pub(super) enum Region {
    Common(u64),
    Isr,
    Device(usize),
    Pending(u64),
    Notify(u64),
    Table(u64),
}

pub(super) fn region(offset: u64, len: usize) -> Option<Region> {
    let within = |start: u32, size: u64| {
        let at = offset.checked_sub(u64::from(start))?;
        let end = at.checked_add(u64::try_from(len).ok()?)?;
        (end <= size).then_some(at)
    };
    let table = u64::from(MAX_VECTORS).saturating_mul(ENTRY_SIZE);
    let pending = u64::from(MAX_VECTORS) / 8;
    within(0, spec::common::SIZE)
        .map(Region::Common)
        .or_else(|| within(ISR, 1).map(|_| Region::Isr))
        .or_else(|| {
            let at = within(DEVICE, u64::from(DEVICE_SIZE))?;
            usize::try_from(at).ok().map(Region::Device)
        })
        .or_else(|| within(PENDING, pending).map(Region::Pending))
        .or_else(|| within(NOTIFY, u64::from(TABLE.saturating_sub(NOTIFY))).map(Region::Notify))
        .or_else(|| within(TABLE, table).map(Region::Table))
}
