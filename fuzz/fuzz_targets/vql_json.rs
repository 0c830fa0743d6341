//! Fuzzes `talon_fuzz::vql_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| talon_fuzz::vql_json(data));
