//! Fuzzes `talon_fuzz::agent_buffer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| talon_fuzz::agent_buffer(data));
