//! server-vql
