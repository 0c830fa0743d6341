//! Fuzzes `talon_fuzz::wire_inflate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| talon_fuzz::wire_inflate(data));
