//! Fuzzes `talon_fuzz::store_block`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| talon_fuzz::store_block(data));
