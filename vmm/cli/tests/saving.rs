//! A kernel is written to the cache in the background while its guest runs.
//!
//! Skipped without /dev/kvm.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use splitring_needs::tiny;

const PATIENCE: Duration = Duration::from_secs(60);

/// Builds a bzImage whose payload is an ELF file with a PVH entry at `code`.
fn bzimage(code: &[u8]) -> Vec<u8> {
    const SETUP_SECTORS: u8 = 3;
    const PAYLOAD_AT: u32 = 0x100;
    let mut elf = tiny::elf(code);
    // A second program header: a Xen note of type 18 (XEN_ELFNOTE_PHYS32_ENTRY).
    elf[56] = 2;
    let note = [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x20_0000];
    let note: Vec<u8> = note.iter().flat_map(|word| word.to_le_bytes()).collect();
    elf[0x800..0x800 + note.len()].copy_from_slice(&note);
    elf[120] = 4;
    elf[128..136].copy_from_slice(&0x800u64.to_le_bytes());
    elf[152..160].copy_from_slice(&(note.len() as u64).to_le_bytes());
    let mut payload = GzEncoder::new(Vec::new(), Compression::fast());
    payload.write_all(&elf).expect("packs");
    let payload = payload.finish().expect("packs");

    let mut protected = vec![0; PAYLOAD_AT as usize];
    protected.extend_from_slice(&payload);
    protected.resize(protected.len().next_multiple_of(16), 0);
    let mut file = vec![0; (usize::from(SETUP_SECTORS) + 1) * 512];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let word = |length: usize| u32::try_from(length).expect("small").to_le_bytes();
    put(0x1f1, &[SETUP_SECTORS]);
    put(0x1f4, &word(protected.len() / 16));
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x236, &0x7fu16.to_le_bytes());
    put(0x248, &PAYLOAD_AT.to_le_bytes());
    put(0x24c, &word(payload.len()));
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x20_0000u32.to_le_bytes());
    [file, protected].concat()
}

/// Starts a guest that runs `code`, with its kernel cache in `dir`.
fn start(dir: &Path, code: &[u8]) -> Child {
    let kernel = dir.join("vmlinuz");
    if !kernel.exists() {
        fs::write(&kernel, bzimage(code)).expect("write the kernel");
    }
    Command::new(env!("CARGO_BIN_EXE_splitring"))
        .args(["run", "--any-kvm", "--kernel"])
        .arg(kernel)
        .env("XDG_CACHE_HOME", dir)
        .stdin(Stdio::null())
        .spawn()
        .expect("starts")
}

/// Returns the extensions of the files in the cache, each once: the number of records depends on
/// the age of the kernel's file.
fn saved(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir.join("splitring/images")) else {
        return Vec::new();
    };
    let mut endings: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.expect("an entry").file_name().into_string();
            Some(name.ok()?.rsplit_once('.')?.1.to_owned())
        })
        .collect();
    endings.sort();
    endings.dedup();
    endings
}

#[test]
fn a_guest_that_ends_at_once_leaves_its_kernel() {
    let Some(dir) = tiny::directory() else { return };
    for _ in 0..2 {
        let status = start(dir.path(), tiny::POWEROFF).wait().expect("ends");
        assert!(status.success(), "{status}");
        assert_eq!(saved(dir.path()), ["image", "record"]);
    }
}

#[test]
fn a_busy_guest_does_not_keep_its_kernel_from_being_saved() {
    let Some(dir) = tiny::directory() else { return };
    let mut guest = start(dir.path(), tiny::SPIN);
    let started = Instant::now();
    while saved(dir.path()) != ["image", "record"] {
        assert!(started.elapsed() < PATIENCE, "it is not saved");
        assert_eq!(guest.try_wait().expect("its state"), None, "it runs");
        thread::sleep(Duration::from_millis(10));
    }
    guest.kill().expect("kill");
    guest.wait().expect("ends");
}
