//! A workaround for a bug in QEMU's emulated SVM that crashes guests: patches the running emulator.
//!
//! QEMU's `VMRUN` (`helper_vmrun`) delivers an injected interrupt at once, but also stores the
//! vector in `exception_index`, where it stays until the guest's next exit. If the emulated
//! processor stops before that, because of a timer or another thread, the interrupt is delivered
//! again, even with interrupts disabled: a double fault after `SYSCALL`, or a deadlock in an
//! interrupt handler. The store has no other use, so this module replaces it with a no-op. The bug
//! is in Debian's 7.2 and in the sources of later releases.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

/// Instructions around the store; `None` for bytes of displacements, which differ between builds.
#[rustfmt::skip]
const INSTRUCTIONS: [Option<u8>; 38] = [
    // movzbl vector, %esi
    Some(0x41), Some(0x0f), Some(0xb6), Some(0xf4),
    // mov error code, error_code(%rbx)
    Some(0x44), Some(0x89), Some(0xab), None, None, None, None,
    // mov %esi, exception_index(%rbx)
    Some(0x89), Some(0xb3), None, None, None, None,
    // movl $0, exception_is_int(%rbx)
    Some(0xc7), Some(0x83), None, None, None, None, Some(0), Some(0), Some(0), Some(0),
    // movq $-1, exception_next_eip(%rbx)
    Some(0x48), Some(0xc7), Some(0x83), None, None, None, None, Some(0xff), Some(0xff), Some(0xff), Some(0xff),
];
/// The store's offset in them, and a no-op of its length.
const STORE: usize = 11;
const NO_OP: [u8; 6] = [0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00];

/// Patches the emulator that runs as process `id`. Call it before its guest uses SVM.
pub(crate) fn patch(id: u32) -> Result<()> {
    let map =
        fs::read_to_string(format!("/proc/{id}/maps")).context("cannot read QEMU's memory map")?;
    let memory = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{id}/mem"))
        .context("cannot open QEMU's memory")?;
    let (start, length) = program_text(&map).context("QEMU has no executable mapping")?;
    let mut code = vec![0; length];
    memory
        .read_exact_at(&mut code, start)
        .context("cannot read QEMU's code")?;
    let at = store(&code).context("this QEMU's code for VMRUN is not the known one")?;
    memory
        .write_all_at(&NO_OP, start + at as u64)
        .context("cannot change QEMU's code")
}

/// Returns address and length of the program's own code: its first executable mapping.
fn program_text(map: &str) -> Option<(u64, usize)> {
    let line = map.lines().find(|line| line.contains(" r-xp "))?;
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    Some((start, usize::try_from(end.checked_sub(start)?).ok()?))
}

/// Returns the offset of the store in `code`, if it is there exactly once.
fn store(code: &[u8]) -> Option<usize> {
    let same = |(byte, known): (&u8, &Option<u8>)| known.is_none_or(|known| known == *byte);
    let mut places = code
        .windows(INSTRUCTIONS.len())
        .enumerate()
        .filter(|(_, window)| window.iter().zip(&INSTRUCTIONS).all(same))
        .map(|(at, _)| at + STORE);
    let place = places.next()?;
    places.next().is_none().then_some(place)
}

#[cfg(test)]
mod tests;
