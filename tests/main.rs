//! Tests of the repository and of the store; what goes over the wire is tested from outside (`tests/python`,
//! `tests/browser`, `tests/sdk`).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod backup;
mod config_file;
mod store_both;
mod tidy;
