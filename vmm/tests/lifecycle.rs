//! The life cycle of a machine through the library: built, run, paused, stopped, restarted, with
//! small guests.

use std::fs;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use splitring::config::{Bytes, DiskConfig, MemoryConfig, OnReboot};
use splitring::{
    Console, ErrorKind, Event, Events, ExitReason, Machine, MachineState, Resources,
    ShutdownOutcome, VmConfig,
};
use splitring_needs::tiny::{
    COUNT, POWEROFF, PRINT, RESET, RESET_AT_INPUT, SPIN, TRIPLE_FAULT, directory, kernel,
};

/// A time limit that no test reaches, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

fn build(config: VmConfig) -> Machine {
    let options = Resources::options().any_kvm(true);
    let resources = options.open(&config).expect("opens");
    Machine::new(config, resources).expect("builds")
}

fn start(config: VmConfig) -> Machine {
    let machine = build(config);
    machine.start().expect("starts");
    machine
}

/// Waits until `condition` holds.
#[track_caller]
fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).expect("poll") == 1
}

/// Blocks until the next event.
#[track_caller]
fn next(events: &Events) -> Event {
    until("an event", || readable(events));
    events.try_next().expect("an event")
}

fn kind<T: std::fmt::Debug>(result: Result<T, splitring::Error>) -> ErrorKind {
    result.expect_err("it cannot be done").kind()
}

/// Returns the guest's counter.
fn count(machine: &Machine) -> u64 {
    machine.registers(0).expect("registers").general[0]
}

#[test]
fn each_way_to_end_has_its_reason() {
    let Some(dir) = directory() else { return };
    for (code, reason) in [
        (POWEROFF, ExitReason::PowerOff),
        (RESET, ExitReason::Reboot),
        (TRIPLE_FAULT, ExitReason::TripleFault { cpu: 0 }),
    ] {
        let machine = start(VmConfig::new(kernel(dir.path(), code)));
        assert_eq!(machine.wait(), reason);
        assert_eq!(machine.state(), MachineState::Ended);
        assert!(readable(machine.ended()));
        assert_eq!(machine.try_wait(), Some(reason.clone()));
        assert!(!readable(machine.ended()), "it was read");
        assert_eq!(machine.try_wait(), Some(reason), "the reason stays");
    }
}

#[test]
fn a_paused_machine_stands_still_until_it_is_resumed() {
    let Some(dir) = directory() else { return };
    for cpus in [1, 4] {
        let machine = start(VmConfig::new(kernel(dir.path(), COUNT)).cpus(cpus));
        for _ in 0..20 {
            machine.pause().expect("pauses");
            let stands = count(&machine);
            thread::sleep(Duration::from_millis(2));
            assert_eq!(count(&machine), stands, "it counts while it is paused");
            machine.resume().expect("resumes");
            until("the guest goes on", || count(&machine) > stands);
        }
        assert_eq!(machine.try_wait(), None);
        machine.pause().expect("pauses");
        assert_eq!(machine.stop(), ExitReason::Stopped);
        assert_eq!(machine.wait(), ExitReason::Stopped);
    }
}

#[test]
fn commands_that_do_not_fit_the_state_say_so() {
    let Some(dir) = directory() else { return };
    let machine = build(VmConfig::new(kernel(dir.path(), SPIN)));
    assert_eq!(machine.state(), MachineState::Created);
    assert_eq!(kind(machine.pause()), ErrorKind::State);
    assert_eq!(kind(machine.registers(0)), ErrorKind::State);
    machine.start().expect("starts");
    assert_eq!(kind(machine.start()), ErrorKind::State);
    assert_eq!(kind(machine.resume()), ErrorKind::State);
    machine.pause().expect("pauses");
    assert_eq!(kind(machine.pause()), ErrorKind::State);
    assert_eq!(kind(machine.nmi()), ErrorKind::State);
    let error = machine
        .shutdown(PATIENCE)
        .expect_err("a paused guest cannot");
    assert_eq!(
        error.to_string(),
        "cannot press the power button: the machine is paused"
    );
    assert_eq!(machine.stop(), ExitReason::Stopped);
    for ended in [
        machine.pause(),
        machine.resume(),
        machine.reset(),
        machine.nmi(),
    ] {
        let error = ended.expect_err("it has ended");
        assert_eq!(error.exit_reason(), Some(&ExitReason::Stopped));
    }
    assert_eq!(
        machine.stop(),
        ExitReason::Stopped,
        "once more does no harm"
    );
}

#[test]
fn a_machine_that_never_ran_stops() {
    let Some(dir) = directory() else { return };
    let machine = build(VmConfig::new(kernel(dir.path(), SPIN)));
    assert_eq!(machine.stop(), ExitReason::Stopped);
    assert_eq!(kind(machine.start()), ErrorKind::Ended);
}

#[test]
fn a_shutdown_tells_how_it_turned_out() {
    let Some(dir) = directory() else { return };
    let soon = Duration::from_millis(50);
    let machine = start(VmConfig::new(kernel(dir.path(), SPIN)));
    let deaf = machine.shutdown(soon).expect("it runs");
    assert_eq!(deaf, ShutdownOutcome::TimedOut);
    assert_eq!(machine.try_wait(), None);
    machine.stop();
    let after = machine.shutdown(soon).expect("no error");
    assert_eq!(after, ShutdownOutcome::AlreadyEnded(ExitReason::Stopped));
    // The guest resets itself instead of shutting down.
    let reboots = start(VmConfig::new(kernel(dir.path(), RESET)).on_reboot(OnReboot::Restart));
    let outcome = reboots.shutdown(PATIENCE).expect("it runs");
    assert_eq!(outcome, ShutdownOutcome::Rebooted);
}

#[test]
fn a_reboot_starts_over_until_it_is_stopped() {
    let Some(dir) = directory() else { return };
    let disk = dir.path().join("disk");
    fs::write(&disk, [0; 4096]).expect("write");
    let with_disk = VmConfig::new(kernel(dir.path(), RESET))
        .on_reboot(OnReboot::Restart)
        .disk(DiskConfig::new(disk));
    let machine = start(with_disk.clone());
    // The opened files count, not what is at the paths now.
    fs::remove_dir_all(dir.path()).expect("removed");
    let events = machine.events().expect("events");
    for _ in 0..3 {
        assert_eq!(next(&events), Event::Rebooted);
    }
    assert_eq!(machine.state(), MachineState::Running);
    assert_eq!(machine.stop(), ExitReason::Stopped);
}

#[test]
fn a_reboot_keeps_the_lock_of_an_image() {
    let Some(dir) = directory() else { return };
    let disk = dir.path().join("disk");
    fs::write(&disk, [0; 4096]).expect("write");
    let with_disk = VmConfig::new(kernel(dir.path(), RESET))
        .on_reboot(OnReboot::Restart)
        .disk(DiskConfig::new(disk));
    let machine = start(with_disk.clone());
    let events = machine.events().expect("events");
    let mut reboots = 0;
    while reboots < 3 {
        let taken = Resources::options().any_kvm(true).open(&with_disk);
        assert_eq!(kind(taken), ErrorKind::Disk, "somebody else got the image");
        while let Some(event) = events.try_next() {
            reboots += u32::from(event == Event::Rebooted);
        }
    }
}

/// The threads of this test race with the guest's reboots: a successful pause holds in every order.
#[test]
fn a_reboot_does_not_undo_a_pause() {
    let Some(dir) = directory() else { return };
    let machine = start(VmConfig::new(kernel(dir.path(), RESET)).on_reboot(OnReboot::Restart));
    for _ in 0..20 {
        machine.pause().expect("pauses");
        let exits = machine.exits();
        thread::sleep(Duration::from_millis(2));
        assert_eq!(machine.exits(), exits, "it runs while it is paused");
        assert_eq!(machine.state(), MachineState::Paused);
        machine.resume().expect("resumes");
    }
}

#[test]
fn a_reset_builds_the_machine_again_in_its_state() {
    let Some(dir) = directory() else { return };
    let machine = start(VmConfig::new(kernel(dir.path(), COUNT)));
    let events = machine.events().expect("events");
    until("the guest counts", || count(&machine) > 0);
    machine.pause().expect("pauses");
    machine.reset().expect("resets");
    assert_eq!(machine.state(), MachineState::Paused);
    assert_eq!(count(&machine), 0, "it starts at the beginning, and later");
    machine.resume().expect("resumes");
    until("the guest counts", || count(&machine) > 0);
    machine.reset().expect("resets");
    assert_eq!(machine.stop(), ExitReason::Stopped);
    let expected = [
        Event::Paused,
        Event::Rebooted,
        Event::Resumed,
        Event::Rebooted,
        Event::Ended(ExitReason::Stopped),
    ];
    for event in expected {
        assert_eq!(next(&events), event);
    }
    assert_eq!(events.try_next(), None);
}

/// A guest in a reboot loop is restarted after growing delays; a reset replaces the delayed
/// restart, and does not add to it.
#[test]
fn a_reset_takes_the_place_of_a_restart_that_waits() {
    let Some(dir) = directory() else { return };
    let machine =
        start(VmConfig::new(kernel(dir.path(), RESET_AT_INPUT)).on_reboot(OnReboot::Restart));
    let events = machine.events().expect("events");
    let reboot = || assert_eq!(machine.input(b"r"), 1, "the guest's port takes it");
    for _ in 0..10 {
        reboot();
        assert_eq!(next(&events), Event::Rebooted);
    }
    reboot();
    // It has requested its reset by now; the restart is due in some 600 ms.
    thread::sleep(Duration::from_millis(100));
    assert_eq!(events.try_next(), None, "it waits");
    machine.reset().expect("resets");
    assert_eq!(next(&events), Event::Rebooted);
    thread::sleep(Duration::from_millis(1200));
    assert_eq!(events.try_next(), None, "it was built once");
    machine.pause().expect("pauses");
    machine.resume().expect("resumes");
    assert_eq!(machine.stop(), ExitReason::Stopped);
}

/// Without an interrupt table an NMI is a triple fault.
#[test]
fn an_nmi_reaches_every_vcpu_that_runs() {
    let Some(dir) = directory() else { return };
    let machine = start(VmConfig::new(kernel(dir.path(), COUNT)));
    until("the guest counts", || count(&machine) > 0);
    machine.nmi().expect("injected");
    assert_eq!(machine.wait(), ExitReason::TripleFault { cpu: 0 });
}

#[test]
fn calls_from_many_threads_have_one_order() {
    let Some(dir) = directory() else { return };
    let machine = start(VmConfig::new(kernel(dir.path(), COUNT)));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    // The second caller gets an error: already paused, or running.
                    if machine.pause().is_ok() {
                        machine.resume().expect("nobody else may resume it");
                    }
                }
            });
        }
    });
    assert_eq!(machine.state(), MachineState::Running);
    let before = count(&machine);
    until("the guest goes on", || count(&machine) > before);
}

#[test]
fn a_machine_lives_until_its_last_handle_is_dropped() {
    let Some(dir) = directory() else { return };
    let machine = start(VmConfig::new(kernel(dir.path(), SPIN)));
    let events = machine.events().expect("events");
    let other = machine.clone();
    drop(machine);
    assert_eq!(other.state(), MachineState::Running);
    drop(other);
    assert_eq!(next(&events), Event::Ended(ExitReason::Stopped));
}

#[test]
fn a_thread_that_blocks_every_signal_can_start_a_machine() {
    let Some(dir) = directory() else { return };
    thread::scope(|scope| {
        scope.spawn(|| {
            block_all_signals();
            let machine = start(VmConfig::new(kernel(dir.path(), COUNT)));
            machine.pause().expect("pauses");
            machine.resume().expect("resumes");
            assert_eq!(machine.stop(), ExitReason::Stopped);
        });
    });
}

/// Blocks all signals, like daemons that read signals from a descriptor.
#[expect(unsafe_code, reason = "pthread_sigmask")]
fn block_all_signals() {
    // SAFETY: sigfillset initialises the set before it is used; it lives across both calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

#[test]
fn console_output_reaches_the_writer() {
    let Some(dir) = directory() else { return };
    let file = tempfile::tempfile().expect("file");
    let console = Console::writer(file.try_clone().expect("clone")).expect("a console");
    let config = VmConfig::new(kernel(dir.path(), PRINT));
    let options = Resources::options().any_kvm(true).console(console);
    let resources = options.open(&config).expect("opens");
    let machine = Machine::new(config, resources).expect("builds");
    machine.start().expect("starts");
    assert_eq!(machine.wait(), ExitReason::PowerOff);
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 0).expect("one byte");
    assert_eq!(byte, *b"A");
    assert_eq!(machine.exits().port_out, 2);
}

#[test]
fn what_is_handed_over_for_no_device_is_refused() {
    let Some(dir) = directory() else { return };
    let config = VmConfig::new(kernel(dir.path(), SPIN));
    let file = || fs::File::open(dir.path().join("kernel")).expect("open");
    for options in [
        Resources::options().disk_fd("disk7", file()),
        Resources::options().net_fds("net7", vec![file().into()]),
    ] {
        let error = options.open(&config).expect_err("nobody asked for it");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("no such device"), "{error}");
    }
}

#[test]
fn a_kernel_and_kvm_that_are_handed_over_need_no_path() {
    let Some(dir) = directory() else { return };
    let mut config = VmConfig::new(kernel(dir.path(), POWEROFF));
    let kernel = fs::File::open(config.kernel.take().expect("a path")).expect("open");
    let kvm = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .expect("open");
    fs::remove_dir_all(dir.path()).expect("removed");
    let options = Resources::options().any_kvm(true).kernel(kernel).kvm(kvm);
    let resources = options.open(&config).expect("opens");
    let machine = Machine::new(config, resources).expect("builds");
    machine.start().expect("starts");
    assert_eq!(machine.wait(), ExitReason::PowerOff);
}

/// Returns the CPUs that a thread may run on.
fn processors(thread: i32) -> rustix::thread::CpuSet {
    let pid = rustix::thread::Pid::from_raw(thread).expect("a thread's id");
    rustix::thread::sched_getaffinity(Some(pid)).expect("its processors")
}

#[test]
fn every_thread_of_a_machine_can_be_pinned() {
    let Some(dir) = directory() else { return };
    let machine = build(VmConfig::new(kernel(dir.path(), COUNT)).cpus(3).workers(2));
    assert!(machine.vcpu_threads().is_empty(), "they have not begun");
    machine.start().expect("starts");
    let vcpus = machine.vcpu_threads();
    let workers = machine.worker_threads();
    assert_eq!((vcpus.len(), workers.len()), (3, 2));
    let mut distinct = [vcpus.clone(), workers.clone()].concat();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 5, "each is a thread of its own");
    let mut first = rustix::thread::CpuSet::new();
    let allowed = processors(rustix::thread::gettid().as_raw_nonzero().get());
    let one = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu));
    first.set(one.expect("a processor"));
    for (number, thread) in vcpus.iter().enumerate() {
        let name = fs::read_to_string(format!("/proc/self/task/{thread}/comm")).expect("a name");
        assert_eq!(name.trim(), format!("vcpu{number}"));
    }
    for thread in distinct {
        let pid = rustix::thread::Pid::from_raw(thread).expect("a thread's id");
        rustix::thread::sched_setaffinity(Some(pid), &first).expect("pinned");
        assert_eq!(processors(thread), first);
    }
    let before = count(&machine);
    until("it goes on there", || count(&machine) > before);
    machine.pause().expect("pauses");
    assert_eq!(machine.vcpu_threads(), vcpus, "a pause keeps them");
    machine.stop();
    assert!(machine.vcpu_threads().is_empty(), "they have ended");
}

#[test]
fn shared_memory_can_be_read_by_whoever_has_its_descriptor() {
    let Some(dir) = directory() else { return };
    let config = VmConfig::new(kernel(dir.path(), COUNT));
    assert!(
        start(config.clone())
            .shared_memory()
            .expect("no error")
            .is_empty()
    );
    let memory = MemoryConfig::new(Bytes::mib(32)).shared(true);
    let machine = start(config.memory(memory));
    let shared = machine.shared_memory().expect("descriptors");
    let [range] = shared.as_slice() else {
        panic!("{shared:?}")
    };
    assert_eq!((range.guest, range.size, range.offset), (0, 32 << 20, 0));
    let mut code = [0; COUNT.len()];
    rustix::io::pread(&range.file, &mut code, splitring_needs::tiny::LOAD_AT).expect("read");
    assert_eq!(code, COUNT);
}
