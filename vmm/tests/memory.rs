//! Guest memory while a machine runs: what its vCPU writes is logged, and memory that is added is there.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use splitring::config::Bytes;
use splitring::{Console, Machine, Resources, VmConfig};
use splitring_needs::tiny::{POWEROFF, SPIN, directory, kernel};

/// Memory of the machines here, which are so small that RAM ends below 4 GiB and the PCI window 64 GiB later.
const MEMORY: u64 = 64 << 20;
/// What the writing guest writes to: beyond what it boots with.
const WRITTEN: u64 = 0x60_0000;

/// inc rax; mov [WRITTEN], rax; jmp back: writes one page for ever.
fn write_one_page() -> Vec<u8> {
    let mut code = vec![0x48, 0xff, 0xc0, 0x48, 0xa3];
    code.extend(WRITTEN.to_le_bytes());
    code.extend([0xeb, 0xf1]);
    code
}

/// Waits until the UART has received something, maps the 2 MiB at `at` for itself, writes there and reads back, and prints
/// whether that is memory.
fn use_memory_at(at: u64) -> Vec<u8> {
    const DIRECTORY: u32 = 0x61_0000;
    const POINTERS: u32 = 0xa000;
    let gigabyte = u32::try_from(at >> 30).expect("it is in the first 512 GiB");
    let mut code = vec![
        0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
        0xec, 0xa8, 0x01, 0x74, 0xfb, // in al, dx; test al, 1; jz to the in
        0x48, 0xb8, // mov rax, the large page
    ];
    code.extend((at | 0x83).to_le_bytes());
    let slot = u32::try_from((at >> 21) & 0x1ff).expect("nine bits");
    code.extend([0x48, 0x89, 0x04, 0x25]); // mov [directory + slot], rax
    code.extend((DIRECTORY + 8 * slot).to_le_bytes());
    code.extend([0x48, 0xc7, 0x04, 0x25]); // mov qword [pointers + gigabyte], directory
    code.extend((POINTERS + 8 * gigabyte).to_le_bytes());
    code.extend((DIRECTORY | 3).to_le_bytes());
    code.extend([0x48, 0xbb]); // mov rbx, at
    code.extend(at.to_le_bytes());
    code.extend([
        0xc6, 0x03, b'K', // mov byte [rbx], 'K'
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0x8a, 0x03, 0xee, // mov al, [rbx]; out dx, al
    ]);
    code.extend(POWEROFF);
    code
}

struct Lines(Sender<Vec<u8>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // The test may have ended already.
        drop(self.0.send(bytes.to_vec()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn small(dir: &Path, code: &[u8]) -> VmConfig {
    VmConfig::new(kernel(dir, code))
        .kernel_cache(false)
        .memory(Bytes(MEMORY))
}

fn start(config: VmConfig, console: Console) -> Machine {
    let options = Resources::options().any_kvm(true).console(console);
    let resources = options.open(&config).expect("opens");
    let machine = Machine::new(config, resources).expect("builds");
    machine.start().expect("starts");
    machine
}

/// The pages that are dirty now.
fn dirty(machine: &Machine) -> Vec<u64> {
    let regions = machine.take_dirty_memory().expect("the log is on");
    regions
        .iter()
        .flat_map(|region| region.addresses())
        .collect()
}

#[track_caller]
fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_page_that_a_vcpu_writes_is_in_the_dirty_log_and_no_other_is() {
    let Some(dir) = directory() else { return };
    let machine = start(small(dir.path(), &write_one_page()), Console::null());
    let written = || machine.registers(0).expect("it runs").general[0];
    until(|| written() > 1000);
    let off = machine.take_dirty_memory().expect_err("the log is off");
    assert!(off.to_string().contains("dirty log"), "{off}");
    for round in 0..2 {
        machine.log_dirty_memory(true).expect("switches on");
        until(|| dirty(&machine) == [WRITTEN]);
        for _ in 0..3 {
            let before = written();
            until(|| written() > before + 1000);
            assert_eq!(dirty(&machine), [WRITTEN], "round {round}");
        }
        machine.pause().expect("pauses");
        dirty(&machine);
        assert_eq!(dirty(&machine), [0; 0], "nothing writes in a pause");
        machine.resume().expect("resumes");
        machine.log_dirty_memory(false).expect("switches off");
    }
    machine.stop();
}

#[test]
fn memory_that_is_added_to_a_running_machine_can_be_used_by_its_vcpu() {
    let Some(dir) = directory() else { return };
    // Where it will be; a machine without it says so.
    let probe = start(small(dir.path(), SPIN), Console::null());
    let at = probe.grow_memory(2 << 20).expect("there is room");
    assert!(at >= 4 << 30 && at.is_multiple_of(1 << 30), "{at:#x}");
    assert_eq!(probe.grow_memory(4 << 20).expect("more"), at + (2 << 20));
    probe.stop();
    for (grow, says) in [(true, b'K'), (false, 0xff)] {
        let (send, output) = channel();
        let console = Console::writer(Lines(send)).expect("a console");
        let machine = start(small(dir.path(), &use_memory_at(at)), console);
        if grow {
            assert_eq!(machine.grow_memory(2 << 20).expect("there is room"), at);
        }
        until(|| machine.input(b"x") == 1);
        let said = output.recv_timeout(Duration::from_secs(60));
        assert_eq!(said.expect("it says something"), [says]);
        let _ = machine.wait();
    }
}

#[test]
fn growth_beyond_the_limits_is_refused_and_changes_nothing() {
    let Some(dir) = directory() else { return };
    let machine = start(small(dir.path(), SPIN), Console::null());
    let refused = |bytes: u64, part: &str| {
        let error = machine
            .grow_memory(bytes)
            .expect_err("too much")
            .to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(0, "multiple of 2 MiB");
    refused((2 << 20) + 4096, "multiple of 2 MiB");
    refused(1 << 62, "guest addresses");
    machine.log_dirty_memory(true).expect("switches on");
    refused(2 << 20, "dirty log is on");
    machine.log_dirty_memory(false).expect("switches off");
    let first = machine.grow_memory(2 << 20).expect("there is room");
    for piece in 1..31 {
        let at = machine.grow_memory(2 << 20).expect("there is room");
        assert_eq!(at, first + piece * (2 << 20), "nothing is in between");
    }
    refused(2 << 20, "0 pieces");
    machine.stop();
    let ended = machine.grow_memory(2 << 20).expect_err("it has ended");
    assert!(ended.to_string().contains("ended"), "{ended}");
}

#[test]
fn memory_that_is_added_to_shared_memory_is_shared_too() {
    let Some(dir) = directory() else { return };
    let mut config = small(dir.path(), SPIN);
    config.memory.shared = true;
    let machine = start(config, Console::null());
    let before = machine.shared_memory().expect("descriptors").len();
    let at = machine.grow_memory(2 << 20).expect("there is room");
    let shared = machine.shared_memory().expect("descriptors");
    assert_eq!(shared.len(), before + 1);
    let last = shared.last().expect("it was added");
    assert_eq!((last.guest, last.size, last.offset), (at, 2 << 20, 0));
    machine.stop();
}
