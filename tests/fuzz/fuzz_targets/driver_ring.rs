//! The driver end of a ring against hostile completions.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| splitring_tests::fuzz::driver_ring::run(data));
