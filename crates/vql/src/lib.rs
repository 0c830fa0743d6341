//! VQL: the language.

pub mod ast;
