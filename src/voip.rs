//! Credentials for the city's TURN server, which relays calls between clients that cannot reach each other.
//!
//! The server and the relay share a secret (coturn's `static-auth-secret`): a user name is the second at which it expires
//! and who it is for, its password the HMAC-SHA1 of that (draft-uberti-behave-turn-rest-00, section 2.2).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;
use ruma::UserId;

use crate::{config::Voip, error::Result};

/// The TURN server of a city that has one.
pub struct Turn {
    uris: Vec<String>,
    secret: hmac::Key,
    lifetime: u32,
}

/// What a client is told (client-server API, `GET /voip/turnServer`).
#[derive(Debug, serde::Serialize)]
pub struct Credentials {
    /// `turn:` and `turns:` URIs.
    pub uris: Vec<String>,
    /// When they expire, in seconds since 1970, and for whom they are.
    pub username: String,
    /// The HMAC of the user name.
    pub password: String,
    /// For how many seconds they are good.
    pub ttl: u32,
}

impl Turn {
    /// The TURN server of the settings; none where they name none. Its secret is `turn.secret` in the folder of keys, and
    /// made there at the first start that needs it.
    pub fn of(config: &Voip, keys: &std::path::Path) -> Result<Option<Self>> {
        if config.turn_uris.is_empty() {
            return Ok(None);
        }
        let secret = crate::files::secret(&keys.join("turn.secret"))?;
        Ok(Some(Self {
            uris: config.turn_uris.clone(),
            secret: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes()),
            lifetime: config.turn_seconds,
        }))
    }

    /// Credentials for somebody, from `now` (milliseconds since 1970) on.
    pub fn credentials(&self, user_id: &UserId, now: i64) -> Credentials {
        let username = format!("{}:{user_id}", now / 1000 + i64::from(self.lifetime));
        let password = STANDARD.encode(hmac::sign(&self.secret, username.as_bytes()));
        Credentials { uris: self.uris.clone(), username, password, ttl: self.lifetime }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_can_check_them() {
        // Made with: printf '%s' 1443779631:@user:example.com | openssl dgst -sha1 -hmac a-secret-of-the-relay -binary | base64
        let turn = Turn {
            uris: vec!["turn:turn.example.jp:3478".to_owned()],
            secret: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"a-secret-of-the-relay"),
            lifetime: 600,
        };
        let user_id = ruma::user_id!("@user:example.com");
        let made = turn.credentials(user_id, 1_443_779_031_999);
        assert_eq!(made.username, "1443779631:@user:example.com");
        assert_eq!(made.password, "KczC4xeaDo1arZYSjLWtuzbceNY=");
        assert_eq!(made.ttl, 600);
    }
}
