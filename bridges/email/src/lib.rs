//! The e-mail bridge.
