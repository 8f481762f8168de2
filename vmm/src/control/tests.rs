//! The control of vCPU threads, with threads in place of vCPUs.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::*;

#[test]
fn the_first_reason_wins_and_is_told_once() {
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let control = VcpuControl::new(1, false, Console::null(), move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(control.reason(), None);
    control.end(ExitReason::Reboot);
    control.end(ExitReason::Stopped);
    assert_eq!(control.reason(), Some(ExitReason::Reboot));
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert!(matches!(control.next_step(0), VcpuStep::Leave));
}

#[test]
fn pause_waits_for_the_vcpu_and_resume_lets_it_go() {
    let control = VcpuControl::new(1, false, Console::null(), || {});
    control.join();
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| while !matches!(control.next_step(0), VcpuStep::Leave) {});
        control.pause().expect("paused");
        assert_eq!(control.state().parked, 1);
        control.resume();
        control.pause().expect("paused again");
        control.end(ExitReason::Stopped);
        assert_eq!(control.pause(), Err(ExitReason::Stopped));
        vcpu.join().expect("vcpu thread");
    });
    control.leave();
    assert_eq!(control.state().parked, 0);
}

#[test]
fn a_machine_that_starts_paused_runs_when_it_is_resumed() {
    let control = VcpuControl::new(1, true, Console::null(), || {});
    assert!(control.wants_attention());
    control.join();
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| matches!(control.next_step(0), VcpuStep::Resume));
        control.pause().expect("it stands still");
        control.resume();
        assert!(vcpu.join().expect("vcpu thread"));
    });
    assert!(!control.wants_attention());
}
