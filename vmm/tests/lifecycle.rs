//! A machine's life through the library: built, run, paused, stopped, started over, on small guests.
//!
//! Without /dev/kvm the tests say so and pass.

mod tiny;

use std::fs;
use std::thread;
use std::time::Duration;

use splitring::config::{DiskConfig, OnReboot};
use tiny::{POWEROFF, PRINT, RESET, SPIN, TRIPLE_FAULT, config, directory};

use splitring::{Console, End, Machine, MachineHandle, VmConfig};

fn start(config: VmConfig) -> MachineHandle {
    Machine::build(config, Console::null())
        .expect("builds")
        .start()
        .expect("starts")
}

#[test]
fn each_way_to_end_has_its_reason() {
    let Some(dir) = directory() else { return };
    for (code, end) in [
        (POWEROFF, End::Poweroff),
        (RESET, End::Reboot),
        (TRIPLE_FAULT, End::TripleFault { cpu: 0 }),
    ] {
        let machine = start(config(dir.path(), code));
        assert_eq!(machine.wait().expect("ends"), end);
        assert_eq!(
            machine.try_wait().expect("ended"),
            Some(end),
            "the reason stays"
        );
    }
}

#[test]
fn a_running_machine_pauses_resumes_and_stops() {
    let Some(dir) = directory() else { return };
    for cpus in [1, 4] {
        let machine = start(VmConfig {
            cpus,
            ..config(dir.path(), SPIN)
        });
        for _ in 0..20 {
            machine.pause();
            machine.resume();
        }
        assert_eq!(machine.try_wait().expect("runs"), None);
        machine.pause();
        machine.stop();
        assert_eq!(machine.wait().expect("ends"), End::Stopped);
    }
}

#[test]
fn a_guest_deaf_to_the_power_button_is_given_up_on() {
    let Some(dir) = directory() else { return };
    let machine = start(config(dir.path(), SPIN));
    assert_eq!(machine.shutdown(Duration::from_millis(50)), None);
    assert_eq!(machine.try_wait().expect("runs"), None);
}

#[test]
fn a_reboot_starts_over_until_it_is_stopped() {
    let Some(dir) = directory() else { return };
    let disk = dir.path().join("disk");
    fs::write(&disk, [0; 4096]).expect("write");
    let with_disk = VmConfig {
        on_reboot: OnReboot::Restart,
        // Its lock must be given back and taken again at each start.
        disk: vec![DiskConfig::new(disk)],
        ..config(dir.path(), RESET)
    };
    let machine = start(with_disk);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| machine.wait());
        thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished(), "a restart is no end");
        machine.stop();
        assert_eq!(
            waiting.join().expect("no panic").expect("no failure"),
            End::Stopped
        );
    });
}

#[test]
fn console_output_reaches_the_writer() {
    let Some(dir) = directory() else { return };
    let file = tempfile::tempfile().expect("file");
    let console = Console::new(file.try_clone().expect("clone"));
    let machine = Machine::build(config(dir.path(), PRINT), console)
        .expect("builds")
        .start()
        .expect("starts");
    assert_eq!(machine.wait().expect("ends"), End::Poweroff);
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 0).expect("one byte");
    assert_eq!(byte, *b"A");
    assert_eq!(machine.exits().port_out, 2);
}
