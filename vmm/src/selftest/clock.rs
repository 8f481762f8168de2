//! Measures the frequency of the time stamp counter against the system's clock: the guest has no
//! other clock.

#![expect(unsafe_code, reason = "the time stamp counter is read by an intrinsic")]

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// Long enough for a precision of a few parts in ten thousand.
const SPAN: Duration = Duration::from_millis(30);

/// Returns the frequency in kHz.
pub(super) fn tsc_khz() -> u64 {
    // SAFETY: every x86-64 processor has a time stamp counter.
    let ticks = || unsafe { _rdtsc() };
    let (start, first) = (Instant::now(), ticks());
    while start.elapsed() < SPAN {
        std::hint::spin_loop();
    }
    let (took, counted) = (start.elapsed(), ticks().wrapping_sub(first));
    let khz = u128::from(counted) * 1_000_000 / took.as_nanos().max(1);
    u64::try_from(khz).unwrap_or(u64::MAX).max(1)
}
