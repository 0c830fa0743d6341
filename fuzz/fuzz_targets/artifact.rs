//! Fuzzes `talon_fuzz::artifact`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| talon_fuzz::artifact(data));
