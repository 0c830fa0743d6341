//! Fuzzes `talon_fuzz::pki_pem`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| talon_fuzz::pki_pem(data));
