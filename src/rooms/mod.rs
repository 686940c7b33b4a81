//! Rooms: events, state, the write path, what is in memory.

pub mod append;
pub mod batch;
pub mod city;
pub mod committer;
pub mod create;
pub mod delete;
pub mod effects;
pub mod history;
pub mod ignored;
pub mod life;
pub mod live;
pub mod member;
pub mod pdu;
pub mod send;
pub mod state;
