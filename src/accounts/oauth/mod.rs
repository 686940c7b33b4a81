//! The OAuth 2.0 API of the client-server API (v1.15 and later): what clients, scopes, codes and grants mean. No HTTP.
//!
//! A grant begins on a page that a browser shows on the public origin, on a connection of a terminal, where ID and password
//! are asked for (DESIGN 2); so a client never sees the password. What it gets is a session like any other
//! ([`super::sessions`]), with an access token that runs out and a refresh token.

use std::{collections::HashMap, net::IpAddr};

use ring::hmac;

use crate::{error::Error, rooms::live::parking::Mutex, server::Server};

pub mod browser;
pub mod clients;
pub mod devices;
pub mod grants;
pub mod request;
pub mod scope;

/// An error in OAuth's words (RFC 6749, sections 4.1.2.1 and 5.2; RFC 7591, 3.2.2; RFC 8628, 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The code.
    pub error: &'static str,
    /// A sentence for developers.
    pub description: &'static str,
}

/// Why something was not done.
#[derive(Debug)]
pub enum Failed {
    /// The client is told.
    Told(Told),
    /// Anything else, as everywhere.
    Other(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// An error in OAuth's words.
pub const fn told(error: &'static str, description: &'static str) -> Told {
    Told { error, description }
}

impl From<Told> for Failed {
    fn from(told: Told) -> Self {
        Self::Told(told)
    }
}

/// What is under way, in memory: lost at a restart, where people begin again.
pub struct Under {
    key: hmac::Key,
    /// Device grants.
    pub devices: Mutex<devices::Devices>,
    /// Sessions of the account page.
    pub browsers: Mutex<browser::Browsers>,
    /// New clients by address: how many, since when (ms).
    pub registered: Mutex<HashMap<IpAddr, (u32, i64)>>,
}

impl Default for Under {
    fn default() -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, crate::clock::random_token(43).as_bytes()),
            devices: Mutex::default(),
            browsers: Mutex::default(),
            registered: Mutex::default(),
        }
    }
}

impl Under {
    /// A tag that only this run of the server can make of a text.
    pub fn tag(&self, text: &str) -> String {
        crate::audit::hex(hmac::sign(&self.key, text.as_bytes()).as_ref())
    }

    /// Whether a tag is the one of a text, compared in constant time.
    pub fn is_tag(&self, text: &str, tag: &str) -> bool {
        let bytes: Option<Vec<u8>> =
            (0..tag.len()).step_by(2).map(|i| u8::from_str_radix(tag.get(i..i + 2)?, 16).ok()).collect();
        bytes.is_some_and(|bytes| hmac::verify(&self.key, text.as_bytes(), &bytes).is_ok())
    }
}

/// The public URL, without a slash at its end.
pub fn base(server: &Server) -> &str {
    server.config.server.public_url.trim_end_matches('/')
}

/// The issuer, which comes back with every code so that a client of several servers mixes none up (RFC 9207).
pub fn issuer(server: &Server) -> String {
    format!("{}/", base(server))
}
