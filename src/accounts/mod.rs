//! Who people are: facilities and their IDs, passwords, terminals and certificates, sessions, addresses. No HTTP.

pub mod addresses;
pub mod dates;
pub mod end;
pub mod enrol;
pub mod guests;
pub mod interactive;
pub mod login;
pub mod moderation;
pub mod oauth;
pub mod passwords;
pub mod register;
pub mod sessions;
pub mod sheets;
pub mod terminals;
