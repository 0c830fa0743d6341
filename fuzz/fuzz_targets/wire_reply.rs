//! Fuzzes `talon_fuzz::wire_reply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| talon_fuzz::wire_reply(data));
