//! The endpoints: one file per group, named as the specification's path. Each translates in, makes one call, and
//! translates out.

pub mod client;
pub mod internal;
pub mod oauth;
pub mod pages;
pub mod web;
pub mod well_known;
