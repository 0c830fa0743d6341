//! Fuzzes `talon_fuzz::vql_rows`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| talon_fuzz::vql_rows(data));
