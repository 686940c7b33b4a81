//! Heya (部屋): a Matrix homeserver for a city's home medical and long-term-care network.
//!
//! Start reading at `ARCHITECTURE.md`. Imports point down: `serve` → `api` → `http` → `sync` → `rooms` → `accounts` →
//! `store`; everybody may use `error`, `clock`, `config`. `tests/tidy.rs` holds that.

pub mod accounts;
pub mod api;
pub mod appservices;
pub mod audit;
pub mod backup;
pub mod clock;
pub mod config;
pub mod error;
pub mod export;
pub mod files;
pub mod http;
pub mod keys;
pub mod media;
pub mod originals;
pub mod parts;
pub mod push;
pub mod reading;
pub mod registers;
pub mod rooms;
pub mod search;
pub mod serve;
pub mod server;
pub mod store;
pub mod sync;
pub mod tls;
pub mod voip;
