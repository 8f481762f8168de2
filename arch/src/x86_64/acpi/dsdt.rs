//! The differentiated system description table (DSDT): devices that can't be discovered, as AML.
//!
//! ```text
//! \_SB.PC00  PNP0A08  host bridge: _CRS, _PRT     \_SB.GED0  ACPI0013  events → Notify(PWRB)
//! \_SB.RES0  PNP0C02  ECAM and power registers    \_SB.PWRB  PNP0C0C   power button
//! \_SB.COMx  PNP0501  16550                       \_S5                 soft off
//! \_SB.PEVT  QEMU0001 pvpanic
//! ```

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method,
    Name, Notify, OpRegion, OpRegionSpace, Package, PackageBuilder, Path, ResourceTemplate, Return,
    Scope, Store,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::platform::{PciHost, Platform, SerialPort};
use super::table::{OEM, OEM_REVISION, OEM_TABLE, bytes};
use crate::layout;

/// Bytes of a table header.
const HEADER: u32 = 36;
/// The table revision from which integers have 64 bits.
const REVISION: u8 = 2;
/// `Notify` value for a pressed button (5.6.6).
const BUTTON_PRESSED: u8 = 0x80;
/// `_STA` (6.3.7): present, enabled, visible, functioning.
const PRESENT: u8 = 0x0f;

/// AML that is already encoded.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

pub(super) fn build(platform: &Platform) -> Vec<u8> {
    let mut devices = vec![
        reserved(platform.pci.as_ref()),
        power_button(),
        generic_events(),
    ];
    devices.extend(platform.pci.as_ref().map(host_bridge));
    devices.extend(
        platform
            .serial
            .iter()
            .zip(0u8..)
            .map(|(port, number)| serial(*port, number)),
    );
    devices.extend(platform.pvpanic.then(pvpanic));
    let mut table = Sdt::new(*b"DSDT", HEADER, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&bytes(&Scope::new(
        "\\_SB_".into(),
        devices.iter().map(|device| device as &dyn Aml).collect(),
    )));
    let sleep = Package::new(vec![&layout::SLEEP_TYPE_S5, &0u8, &0u8, &0u8]);
    table.append_slice(&bytes(&Name::new("\\_S5_".into(), &sleep)));
    table.as_slice().to_vec()
}

fn device(name: &str, children: Vec<&dyn Aml>) -> Raw {
    Raw(bytes(&Device::new(name.into(), children)))
}

fn hardware_id(id: &str) -> Name {
    Name::new("_HID".into(), &EISAName::new(id))
}

fn unique_id(id: u8) -> Name {
    Name::new("_UID".into(), &id)
}

fn resources(children: Vec<&dyn Aml>) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(children))
}

fn narrow(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}

fn host_bridge(pci: &PciHost) -> Raw {
    let bus = AddressSpace::<u16>::new_bus_number(0, 0);
    let config = IO::new(layout::CF8.start, layout::CF8.start, 1, 8);
    let ports = AddressSpace::new_io(pci.io.start, pci.io.end - 1, None);
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let low = AddressSpace::new_memory(
        cacheable,
        true,
        narrow(pci.mmio32.start),
        narrow(pci.mmio32.end - 1),
        None,
    );
    let high =
        AddressSpace::new_memory(cacheable, true, pci.mmio64.start, pci.mmio64.end - 1, None);
    let mut windows: Vec<&dyn Aml> = vec![&bus, &ports, &low, &high];
    if pci.cf8 {
        windows.push(&config);
    }
    device(
        "PC00",
        vec![
            &hardware_id("PNP0A08"),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &unique_id(0),
            &Name::new("_SEG".into(), &0u8),
            &Name::new("_BBN".into(), &0u8),
            &resources(windows),
            &routing(pci),
        ],
    )
}

/// `_PRT` (6.2.13): (address, pin, 0, interrupt line) for each device.
fn routing(pci: &PciHost) -> Name {
    let mut table = PackageBuilder::new();
    for route in &pci.intx {
        let address = u32::from(route.device) << 16 | 0xffff;
        table.add_element(&Package::new(vec![&address, &route.pin, &0u8, &route.gsi]));
    }
    Name::new("_PRT".into(), &table)
}

/// Addresses that no other device may get. Linux ignores ECAM as a firmware bug unless it is listed
/// here as well as in the memory map.
fn reserved(pci: Option<&PciHost>) -> Raw {
    let ports = &layout::POWER_PORTS;
    let power = IO::new(
        ports.start,
        ports.start,
        1,
        u8::try_from(ports.len()).unwrap_or(u8::MAX),
    );
    let ecam = pci.map(|pci| {
        Memory32Fixed::new(
            true,
            narrow(pci.ecam.start),
            narrow(pci.ecam.end - pci.ecam.start),
        )
    });
    let mut ranges: Vec<&dyn Aml> = vec![&power];
    ranges.extend(ecam.as_ref().map(|ecam| ecam as &dyn Aml));
    device(
        "RES0",
        vec![&hardware_id("PNP0C02"), &unique_id(0), &resources(ranges)],
    )
}

fn power_button() -> Raw {
    device("PWRB", vec![&hardware_id("PNP0C0C"), &unique_id(0)])
}

/// The generic event device (5.6.9.1). Its interrupt line signals that [`layout::GED_EVENTS`] is
/// not 0.
fn generic_events() -> Raw {
    let event = Path::new("EVTS");
    let read = Store::new(&Local(0), &event);
    let pressed = And::new(&Local(1), &Local(0), &layout::GED_POWER_BUTTON);
    let button = Path::new("\\_SB_.PWRB");
    let notify = Notify::new(&button, &BUTTON_PRESSED);
    let react = If::new(&Local(1), vec![&notify]);
    device(
        "GED0",
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &unique_id(0),
            &resources(vec![&Interrupt::new(
                true,
                true,
                false,
                false,
                layout::GED_GSI,
            )]),
            &OpRegion::new(
                "GEDR".into(),
                OpRegionSpace::SystemIO,
                &layout::GED_EVENTS,
                &1u8,
            ),
            &Field::new(
                "GEDR".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::Preserve,
                vec![FieldEntry::Named(*b"EVTS", 8)],
            ),
            &Method::new("_EVT".into(), 1, true, vec![&read, &pressed, &react]),
        ],
    )
}

/// The device through which a guest reports a panic. The methods are QEMU's, for drivers that don't
/// access the port themselves.
fn pvpanic() -> Raw {
    let port = IO::new(layout::PVPANIC, layout::PVPANIC, 1, 1);
    let register = Path::new("PEPT");
    let read = Store::new(&Local(0), &register);
    let write = Store::new(&register, &Arg(0));
    device(
        "PEVT",
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &unique_id(0),
            &Name::new("_STA".into(), &PRESENT),
            &resources(vec![&port]),
            &OpRegion::new(
                "PEOR".into(),
                OpRegionSpace::SystemIO,
                &layout::PVPANIC,
                &1u8,
            ),
            &Field::new(
                "PEOR".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::Preserve,
                vec![FieldEntry::Named(*b"PEPT", 8)],
            ),
            &Method::new("RDPT".into(), 0, true, vec![&read, &Return::new(&Local(0))]),
            &Method::new("WRPT".into(), 1, true, vec![&write]),
        ],
    )
}

fn serial(port: SerialPort, number: u8) -> Raw {
    let ports = IO::new(port.port, port.port, 1, 8);
    let line = Interrupt::new(true, true, false, false, port.gsi);
    device(
        &format!("COM{}", number + 1),
        vec![
            &hardware_id("PNP0501"),
            &unique_id(number),
            &resources(vec![&ports, &line]),
        ],
    )
}
