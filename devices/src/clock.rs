//! The time, as a number that costs little to keep.

use std::sync::OnceLock;
use std::time::Instant;

/// Nanoseconds since some moment in the life of this process. Taken once a batch, not once a request.
#[must_use]
pub fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}
