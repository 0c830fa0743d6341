//! Fuzzes `talon_fuzz::pki_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| talon_fuzz::pki_request(data));
