//! The city bot.
