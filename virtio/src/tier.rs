//! How long random tests go on: short in the quick tier, long in soak, which sets `SPLITRING_SOAK`.

use proptest::prelude::ProptestConfig;

/// Whether there is time for more.
pub(crate) fn soak() -> bool {
    std::env::var_os("SPLITRING_SOAK").is_some()
}

/// So many cases.
pub(crate) fn cases(quick: u32, long: u32) -> ProptestConfig {
    ProptestConfig::with_cases(if soak() { long } else { quick })
}
