//! A disk image with any bytes in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| splitring_tests::fuzz::bootdisk::run(data));
