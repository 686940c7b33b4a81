//! Rooms: events, state, the write path, what is in memory.

pub mod access;
pub mod append;
pub mod batch;
pub mod city;
pub mod committer;
pub mod control_room;
pub mod create;
pub mod delete;
pub mod direct;
pub mod effects;
pub mod history;
pub mod ignored;
pub mod invites;
pub mod life;
pub mod live;
pub mod member;
pub mod pdu;
pub mod presence;
pub mod redaction;
pub mod reports;
pub mod send;
pub mod state;
pub mod upgrade;
