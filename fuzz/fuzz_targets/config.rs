//! Fuzzes `talon_fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| talon_fuzz::config(data));
