//! Fuzzes `talon_fuzz::store_segment`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| talon_fuzz::store_segment(data));
