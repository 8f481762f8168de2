//! Every way in which a machine can end: the exit code, the message, and the restored terminal.

use splitring_tests::assets::{Disk, Image, Kernel};
use splitring_tests::guest::Launch;
use splitring_tests::terminal::Terminal;

const REBOOT: Option<i32> = Some(3);
const TRIPLE_FAULT: Option<i32> = Some(4);
const STOPPED: Option<i32> = Some(5);

const CTRL_A: u8 = 0x01;

fn launch() -> Launch {
    Launch::new(&Kernel::named("6.12-cloud"), Image::Vmlinux)
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_reboot_ends_the_machine_with_a_code_of_its_own() {
    let mut guest = launch().boot();
    guest.type_line("reboot -f");
    let exit = guest.finish();
    assert_eq!(exit.code, REBOOT, "{}", exit.errors);
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_restart_boots_again_in_the_same_process_and_finds_what_was_written() {
    let root = Disk::copy_of("root");
    let mut guest = launch()
        .option("--on-reboot", "restart")
        .root_disk(root.path())
        .boot();
    for round in 1..=2 {
        guest.succeed(&format!("echo round {round} >>/root/rounds; sync"));
        guest.type_line("reboot -f");
        guest.wait_until_ready();
    }
    assert_eq!(guest.succeed("cat /root/rounds"), "round 1\nround 2\n");
    guest.power_off();
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_triple_fault_ends_the_machine_with_a_reason() {
    let mut guest = launch().cmdline("reboot=t").boot();
    guest.type_line("reboot -f");
    let exit = guest.finish();
    assert_eq!(exit.code, TRIPLE_FAULT, "{}", exit.errors);
    assert!(exit.errors.contains("triple fault"), "{}", exit.errors);
}

/// `reboot=b` jumps to the reset vector in real mode; `k` tries a keyboard controller, which does
/// not exist, and then does the same.
#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn other_ways_to_reboot_end_the_machine_with_a_reason() {
    for method in ["b", "k"] {
        let mut guest = launch().cmdline(&format!("reboot={method}")).boot();
        guest.type_line("reboot -f");
        let exit = guest.finish();
        assert_eq!(exit.code, REBOOT, "reboot={method}: {}", exit.errors);
    }
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_kernel_panic_ends_the_machine_as_a_reboot() {
    let mut guest = launch().boot();
    guest.type_line("echo c >/proc/sysrq-trigger");
    let exit = guest.finish();
    assert_eq!(exit.code, REBOOT, "{}", exit.errors);
    assert!(exit.console.contains("Kernel panic"), "{}", exit.console);
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_second_termination_signal_stops_the_machine() {
    let guest = launch().boot();
    // The first one only presses the power button, which this guest ignores.
    guest.signal("TERM");
    std::thread::sleep(std::time::Duration::from_secs(1));
    guest.signal("TERM");
    assert_eq!(guest.finish().code, STOPPED);
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_stop_keys_end_the_machine_and_restore_the_terminal() {
    let terminal = Terminal::open();
    let mut guest = launch().start_on(&terminal);
    guest.wait_until_ready();
    assert!(!terminal.is_cooked(), "raw mode while the guest runs");
    guest.press(&[CTRL_A, b'x']);
    assert_eq!(guest.finish().code, STOPPED);
    assert!(terminal.is_cooked(), "canonical mode again afterwards");
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_signal_restores_the_terminal_too() {
    let terminal = Terminal::open();
    let mut guest = launch().start_on(&terminal);
    guest.wait_until_ready();
    guest.signal("HUP");
    assert_eq!(guest.finish().code, STOPPED);
    assert!(terminal.is_cooked());
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_power_button_reaches_the_guest_as_a_key() {
    let terminal = Terminal::open();
    let mut guest = launch().start_on(&terminal);
    guest.wait_until_ready();
    let name = guest.succeed("cat /sys/class/input/event*/device/name");
    assert!(name.contains("Power Button"), "{name}");
    guest.succeed("dd if=/dev/input/event0 of=/tmp/event bs=24 count=1 2>/dev/null & sleep 1");
    guest.press(&[CTRL_A, b's']);
    // One event of 24 bytes ends with: type 1 (key), code 116 (power), value 1 (down).
    let event = guest.succeed("wait; hexdump -s 16 -e '/2 \"%u \"' /tmp/event; echo");
    assert_eq!(event.trim(), "1 116 1 0");
    guest.power_off();
}

/// Time passes for the guest while its process is stopped, more than twice what triggers its
/// watchdog. The limit is 8 s: a busy lab can delay a vCPU for some seconds, which the watchdog
/// reports correctly.
#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn stopping_and_continuing_the_process_causes_no_soft_lockup() {
    let mut guest = launch().cpus(2).boot();
    guest.succeed("echo 4 >/proc/sys/kernel/watchdog_thresh");
    guest.signal("STOP");
    std::thread::sleep(std::time::Duration::from_secs(20));
    guest.signal("CONT");
    // A late watchdog reports within one period of its timer.
    guest.succeed("sleep 4");
    let log = guest.succeed("dmesg");
    assert!(!log.contains("soft lockup"), "{log}");
    guest.power_off();
}
