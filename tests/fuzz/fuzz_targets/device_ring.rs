//! The device end of a ring against hostile guest bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| splitring_tests::fuzz::device_ring::run(data));
