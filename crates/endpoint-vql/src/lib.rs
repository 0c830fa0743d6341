//! endpoint-vql
