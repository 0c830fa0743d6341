//! What a packet costs the server: of a known session, and the first of a session.
#![allow(missing_docs)]

fn main() {}
