//! The bridge as its neighbours see it: notifications in, leases in, SMTP out, reports out. Time is held still; every wait is for
//! something that happens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod harness;
mod homeserver;
mod notices;
mod owed;
mod refusals;
mod smtp;
mod tls;
