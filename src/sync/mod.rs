//! What is new for a user: `/sync`, its tokens, and events as clients read them. No HTTP types.

pub mod bundle;
pub mod filter;
pub mod render;
pub mod room;
pub mod sliding;
pub mod token;
pub mod v3;
pub mod waiting;
