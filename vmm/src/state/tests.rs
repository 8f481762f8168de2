//! The exit reason and the outcomes of a shutdown.

use super::*;

fn readable(status: &Status) -> bool {
    let mut fds = [rustix::event::PollFd::new(
        &status.ended,
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec::default();
    rustix::event::poll(&mut fds, Some(&now)).expect("poll") == 1
}

#[test]
fn the_first_reason_stays_and_is_read_once() {
    let status = Status::new().expect("eventfd");
    assert_eq!(status.take_end(), None);
    status.end(ExitReason::Reboot);
    status.end(ExitReason::Stopped);
    assert!(readable(&status));
    assert_eq!(status.take_end(), Some(ExitReason::Reboot));
    assert!(!readable(&status));
    assert_eq!(status.take_end(), Some(ExitReason::Reboot));
}

#[test]
fn a_shutdown_distinguishes_its_outcomes() {
    let outcome = |end: Option<ExitReason>, restarts: u64| {
        let status = Status::new().expect("eventfd");
        (0..restarts).for_each(|_| status.restarted());
        end.into_iter().for_each(|reason| status.end(reason));
        status.wait_for_shutdown(0, Duration::ZERO)
    };
    assert_eq!(outcome(None, 0), ShutdownOutcome::TimedOut);
    assert_eq!(outcome(None, 1), ShutdownOutcome::Rebooted);
    assert_eq!(
        outcome(Some(ExitReason::PowerOff), 0),
        ShutdownOutcome::PoweredOff
    );
    assert_eq!(
        outcome(Some(ExitReason::Stopped), 0),
        ShutdownOutcome::Ended(ExitReason::Stopped)
    );
}
