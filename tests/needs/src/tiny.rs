//! Guests of a few instructions, which run on every KVM, with hardware virtualisation or without.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The guest-physical address at which the code is loaded.
pub const LOAD_AT: u64 = 0x20_0000;
/// mov dx, 0x600; mov al, 0x34; out dx, al; hlt: ACPI soft-off.
pub const POWEROFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4];
/// mov dx, 0x602; mov al, 1; out dx, al; hlt: reset.
pub const RESET: &[u8] = &[0x66, 0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4];
/// jmp to itself: spins for ever.
pub const SPIN: &[u8] = &[0xeb, 0xfe];
/// hlt; jmp back: sleeps for ever.
pub const SLEEP: &[u8] = &[0xf4, 0xeb, 0xfd];
/// inc rax; jmp back: the test can read its progress from the register.
pub const COUNT: &[u8] = &[0x48, 0xff, 0xc0, 0xeb, 0xfb];
/// ud2 without an interrupt table.
pub const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b];
/// mov dx, 0x3f8; mov al, 'A'; out dx, al; then soft-off.
pub const PRINT: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, 0xb0, b'A', 0xee, 0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4,
];

/// mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp to the out: prints for ever.
pub const FLOOD: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];
/// Polls the UART and sends back what it receives.
pub const ECHO: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec, 0xa8, 0x01, 0x74, 0xf7, // in al, dx; test al, 1; jz to the start
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, 0xee, 0xeb, 0xef, // in al, dx; out dx, al; jmp to the start
];

/// mov dx, 0x604; in al, dx; test al, 1; jz to the start; then soft-off: powers off when the power
/// button is pressed.
pub const BUTTON: &[u8] = &[
    0x66, 0xba, 0x04, 0x06, 0xec, 0xa8, 0x01, 0x74, 0xf7, //
    0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4,
];

/// Waits until the UART has received something, and resets.
pub const RESET_AT_INPUT: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec, 0xa8, 0x01, 0x74, 0xfb, // in al, dx; test al, 1; jz to the in
    0x66, 0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4, // as RESET
];

/// A guest that prints `count` lines of one character each, and powers off.
pub fn print_lines(count: u32) -> Vec<u8> {
    let mut code = vec![0xb9]; // mov ecx, count
    code.extend(count.to_le_bytes());
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    code.extend([0x88, 0xc8, 0x24, 0x3f, 0x04, 0x30]); // mov al, cl; and al, 0x3f; add al, 0x30
    code.extend([0xee, 0xb0, 0x0a, 0xee]); // out dx, al; mov al, 10; out dx, al
    code.extend([0xff, 0xc9, 0x75, 0xf2]); // dec ecx; jnz to the mov al
    code.extend(POWEROFF);
    code
}

/// The output of that guest.
pub fn printed_lines(count: u32) -> Vec<u8> {
    let lines = (1..=count).rev();
    lines
        .flat_map(|left| [(left & 0x3f) as u8 + 0x30, b'\n'])
        .collect()
}

/// A 64-bit ELF whose one page holds `code`.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 0x2000];
    bytes[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
    bytes[16..24].copy_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    bytes[24..32].copy_from_slice(&LOAD_AT.to_le_bytes());
    bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
    bytes[52..58].copy_from_slice(&[64, 0, 56, 0, 1, 0]);
    bytes[64..72].copy_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for (at, value) in [
        (72, 0x1000),
        (80, LOAD_AT),
        (88, LOAD_AT),
        (96, 0x1000),
        (104, 0x1000),
        (112, 0x1000),
    ] {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes[0x1000..0x1000 + code.len()].copy_from_slice(code);
    bytes
}

/// Stores a kernel that runs `code` in `dir`; returns its path.
///
/// # Panics
///
/// If the file can't be written.
#[must_use]
pub fn kernel(dir: &Path, code: &[u8]) -> PathBuf {
    let path = dir.join("kernel");
    fs::write(&path, elf(code)).expect("write the kernel");
    path
}

/// Returns a directory for a test, or `None`, recorded as a skipped test, without KVM.
///
/// # Panics
///
/// If there is no temporary directory, or no KVM although [`REQUIRE_KVM`](crate::REQUIRE_KVM) is
/// set.
#[must_use]
#[track_caller]
pub fn directory() -> Option<TempDir> {
    crate::kvm().then(|| tempfile::tempdir().expect("temporary directory"))
}
