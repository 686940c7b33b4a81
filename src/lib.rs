//! Heya.
