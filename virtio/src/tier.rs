//! How long randomised tests run: short in the quick tier, longer in the soak tier, which sets
//! `SPLITRING_SOAK`.

use proptest::prelude::ProptestConfig;

/// Returns whether this is the soak tier.
pub(crate) fn soak() -> bool {
    std::env::var_os("SPLITRING_SOAK").is_some()
}

/// Returns a proptest configuration with `quick` cases, or `long` in the soak tier.
pub(crate) fn cases(quick: u32, long: u32) -> ProptestConfig {
    ProptestConfig::with_cases(if soak() { long } else { quick })
}
