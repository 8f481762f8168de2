//! Where everything is: the regions of the BAR, and the capabilities that say so (VIRTIO 1.2 §4.1.4).

use splitring_virtio::spec::pci::{self as spec, cfg_type};
use zerocopy::IntoBytes;

use crate::device::SharedRegion;
use crate::pci::config::{Bar, ConfigSpace};
use crate::pci::msix::{ENTRY_SIZE, MAX_VECTORS};

/// The BAR of the registers.
pub(super) const REGISTERS_BAR: u8 = 0;
/// Its bytes.
pub(super) const BAR_SIZE: u32 = 0x1_0000;
/// The BAR of shared memory; the registers' has the one before as its upper half.
pub(super) const SHARED_BAR: u8 = 2;
/// What a region of shared memory begins at a multiple of, so that it can be mapped by itself: a page.
const REGION_ALIGNMENT: u64 = 4096;
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
/// Where the regions of shared memory are in their BAR.
pub(super) struct SharedLayout {
    regions: Vec<(SharedRegion, u64)>,
    /// Bytes of the BAR; 0 if there is none.
    size: u64,
}

impl SharedLayout {
    /// One behind the other, each at a multiple of a page.
    pub(super) fn new(regions: &[SharedRegion]) -> Self {
        let mut end = 0_u64;
        let mut place = |region: &SharedRegion| {
            let offset = end.next_multiple_of(REGION_ALIGNMENT);
            end = offset.saturating_add(region.len);
            (*region, offset)
        };
        let regions: Vec<_> = regions.iter().map(&mut place).collect();
        let size = match end {
            0 => 0,
            end => end
                .max(REGION_ALIGNMENT)
                .checked_next_power_of_two()
                .unwrap_or(u64::MAX),
        };
        Self { regions, size }
    }

    /// The identifiers of the regions and their offsets in the BAR.
    pub(super) fn regions(&self) -> impl Iterator<Item = (u8, u64)> {
        self.regions
            .iter()
            .map(|(region, offset)| (region.id, *offset))
    }
}

/// Adds the BARs; `None` if they are not possible.
pub(super) fn add_bars(config: &mut ConfigSpace, shared: &SharedLayout) -> Option<()> {
    config.add_bar(REGISTERS_BAR, Bar::registers(BAR_SIZE.into()))?;
    if shared.size > 0 {
        config.add_bar(SHARED_BAR, Bar::memory(shared.size))?;
    }
    Some(())
}

/// Appends MSI-X, the five virtio capabilities and one for each region of shared memory; returns where MSI-X and the
/// window are. `None` if configuration space has no room for them.
pub(super) fn add_capabilities(
    config: &mut ConfigSpace,
    vectors: u16,
    shared: &SharedLayout,
) -> Option<(u16, u16)> {
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
    for (region, offset) in &shared.regions {
        add_shared(config, *region, *offset)?;
    }
    Some((msix_at, window_at))
}

/// The capability of a region of shared memory (§4.1.4.7): offset and length have 64 bits.
fn add_shared(config: &mut ConfigSpace, region: SharedRegion, offset: u64) -> Option<u16> {
    let [offset, offset_hi] = halves(offset);
    let [length, length_hi] = halves(region.len);
    let body = spec::Capability64 {
        cap: spec::Capability {
            bar: SHARED_BAR,
            id: region.id,
            ..capability(cfg_type::SHARED_MEMORY, 24, offset, length)
        },
        offset_hi: offset_hi.into(),
        length_hi: length_hi.into(),
    };
    config.add_capability(spec::CAP_ID, body.as_bytes().get(2..)?, &[])
}

/// The lower half and the upper one.
fn halves(value: u64) -> [u32; 2] {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = value.to_le_bytes();
    [
        u32::from_le_bytes([b0, b1, b2, b3]),
        u32::from_le_bytes([b4, b5, b6, b7]),
    ]
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
