use std::process::Command;

use super::*;
use crate::layout::{ECAM, GIB, Layout, MMIO32, PCI_IO};

fn platform(vcpus: u32, cf8: bool) -> Platform {
    let intx = (0..PCI_DEVICES).flat_map(|device| (0..PCI_PINS).map(move |pin| (device, pin)));
    Platform {
        vcpus,
        pci: Some(PciHost {
            ecam: ECAM,
            mmio32: MMIO32,
            mmio64: Layout::new(6 * GIB, 46).unwrap().mmio64(),
            io: PCI_IO,
            cf8,
            intx: intx
                .map(|(device, pin)| IntxRoute {
                    device,
                    pin,
                    gsi: 16 + u32::from(device + pin) % 8,
                })
                .collect(),
        }),
        serial: vec![SerialPort {
            port: layout::COM1,
            gsi: layout::COM1_GSI,
        }],
        pvpanic: true,
    }
}

fn table(tables: &Tables, signature: [u8; 4]) -> &[u8] {
    let (_, range) = tables
        .index
        .iter()
        .find(|(name, _)| *name == signature)
        .unwrap();
    &tables.bytes[range.clone()]
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

#[test]
fn every_table_is_reachable_from_the_rsdp_and_sums_to_zero() {
    let tables = platform(4, false).build().unwrap();
    let rsdp = &tables.bytes[..36];
    assert_eq!(
        (&rsdp[..8], rsdp[15], sum(&rsdp[..20]), sum(rsdp)),
        (&b"RSD PTR "[..], 2, 0, 0)
    );
    assert_eq!(tables.rsdp % 16, 0);
    let offset_of = |address: u64| usize::try_from(address - tables.rsdp).unwrap();
    let root = &tables.bytes[offset_of(u64_at(rsdp, 24))..];
    let root = &root[..u32::from_le_bytes(root[4..8].try_into().unwrap()) as usize];
    assert_eq!(&root[..4], b"XSDT");
    let mut found: Vec<_> = root[36..]
        .chunks(8)
        .map(|entry| offset_of(u64_at(entry, 0)))
        .collect();
    found.push(offset_of(u64_at(table(&tables, *b"FACP"), 140)));
    let mut signatures = Vec::new();
    for start in found {
        let len =
            u32::from_le_bytes(tables.bytes[start + 4..start + 8].try_into().unwrap()) as usize;
        assert_eq!(sum(&tables.bytes[start..start + len]), 0);
        signatures.push(&tables.bytes[start..start + 4]);
    }
    assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG", b"DSDT"]);
}

#[test]
fn fadt_reports_hardware_reduced_and_no_legacy_devices() {
    let tables = platform(1, false).build().unwrap();
    let fadt = table(&tables, *b"FACP");
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_ne!(flags & 1 << 20, 0, "hardware-reduced");
    assert_ne!(flags & 1 << 10, 0, "reset register");
    assert_eq!(
        u16::from_le_bytes(fadt[109..111].try_into().unwrap()),
        0x34,
        "no VGA, no ASPM, no CMOS clock; no 8042"
    );
    for (at, port) in [
        (116, layout::RESET),
        (244, layout::SLEEP_CONTROL),
        (256, layout::SLEEP_STATUS),
    ] {
        assert_eq!(
            (fadt[at], fadt[at + 1], u64_at(fadt, at + 4)),
            (1, 8, u64::from(port))
        );
    }
    assert_eq!(fadt[128], layout::RESET_VALUE);
}

#[test]
fn madt_lists_each_vcpu_once() {
    for vcpus in [1, 2, MAX_VCPUS] {
        let tables = platform(vcpus, false).build().unwrap();
        let madt = table(&tables, *b"APIC");
        let mut counts = [0; 10];
        let mut rest = &madt[44..];
        while let [kind, len, ..] = rest {
            counts[usize::from(*kind)] += 1;
            rest = &rest[usize::from(*len)..];
        }
        assert_eq!((counts[0], counts[9], counts[1]), (vcpus, 0, 1));
    }
}

#[test]
fn claims_that_tables_cannot_express_are_refused() {
    let breakages: [fn(&mut PciHost); 6] = [
        |pci| pci.intx[0].device = 32,
        |pci| pci.intx[0].pin = 4,
        |pci| pci.intx[0].gsi = 24,
        |pci| pci.ecam = 0x1_0000_0000..0x1_0010_0000,
        |pci| pci.mmio32 = 0..0,
        |pci| pci.mmio64 = 5..5,
    ];
    for change in breakages {
        let mut broken = platform(1, false);
        change(broken.pci.as_mut().unwrap());
        assert!(
            matches!(broken.build(), Err(AcpiError::Claim { .. })),
            "{broken:?}"
        );
    }
    let too_many = platform(MAX_VCPUS + 1, false).build();
    assert!(matches!(too_many, Err(AcpiError::Claim { .. })));
    let mut long = platform(1, false);
    let routes = &mut long.pci.as_mut().unwrap().intx;
    *routes = std::iter::repeat_n(routes[0], 20_000).collect();
    assert!(matches!(long.build(), Err(AcpiError::TooLarge { .. })));
}

#[test]
fn iasl_disassembles_and_recompiles_every_table_without_a_complaint() {
    if !splitring_needs::program("iasl", "acpica-tools") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for (name, platform) in [
        ("full", platform(32, true)),
        ("plain", platform(2, false)),
        (
            "bare",
            Platform {
                vcpus: 1,
                pci: None,
                serial: Vec::new(),
                pvpanic: false,
            },
        ),
    ] {
        let tables = platform.build().unwrap();
        for (signature, range) in &tables.index {
            let stem = format!("{name}-{}", String::from_utf8_lossy(signature));
            std::fs::write(
                directory.path().join(format!("{stem}.dat")),
                &tables.bytes[range.clone()],
            )
            .unwrap();
            let said = iasl(directory.path(), &["-d", &format!("{stem}.dat")]);
            assert!(
                !said.contains("rror") && !said.contains("arning") && !said.contains("nvalid"),
                "{stem}: {said}"
            );
            if signature == b"DSDT" {
                let said = iasl(directory.path(), &[&format!("{stem}.dsl")]);
                assert!(said.contains("0 Errors, 0 Warnings"), "{stem}: {said}");
            }
        }
    }
}

/// The driver finds the device by the identifier and the port alone.
#[test]
fn the_pvpanic_device_is_described_where_there_is_one() {
    let described = |pvpanic| {
        let platform = Platform {
            pvpanic,
            ..platform(1, false)
        };
        let tables = platform.build().unwrap();
        let dsdt = table(&tables, *b"DSDT").to_vec();
        let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
        // A string, and an I/O descriptor: 16 bits decoded, from 0x505 to 0x505, alignment 1,
        // length 1.
        (
            has(b"_HID\x0dQEMU0001\0"),
            has(&[0x47, 1, 0x05, 0x05, 0x05, 0x05, 1, 1]),
        )
    };
    assert_eq!(described(true), (true, true));
    assert_eq!(described(false), (false, false));
}

fn iasl(directory: &std::path::Path, arguments: &[&str]) -> String {
    let output = Command::new("iasl")
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "iasl {arguments:?}: {text}");
    text
}
