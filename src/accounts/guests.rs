//! Guests: accounts without a password, for one session, where `policy.guests` lets them in. What they may call is the
//! list of the client-server API ("Guest Access"); a room lets them in by its `m.room.guest_access`. A city has none.

use http::Method;
use ruma::UserId;

/// The beginning of guests' localparts, which nobody else gets.
const PREFIX: &str = "guest.";

/// A new guest's localpart.
pub fn localpart() -> String {
    format!("{PREFIX}{}", crate::clock::random_token(16).to_lowercase())
}

/// Whether this is a guest.
pub fn is_guest(user_id: &UserId) -> bool {
    is_guest_name(user_id.localpart())
}

/// Whether a localpart is kept for guests.
pub fn is_guest_name(localpart: &str) -> bool {
    localpart.starts_with(PREFIX)
}

/// What a guest may call, by method and the path after the version; `{}` stands for any argument.
const ALLOWED: [(Method, &[&str]); 30] = [
    // Retrieving events.
    (Method::GET, &["rooms", "{}", "state"]),
    (Method::GET, &["rooms", "{}", "state", "{}", "{}"]),
    (Method::GET, &["rooms", "{}", "state", "{}", ""]),
    (Method::GET, &["rooms", "{}", "state", "{}"]),
    (Method::GET, &["rooms", "{}", "context", "{}"]),
    (Method::GET, &["rooms", "{}", "event", "{}"]),
    (Method::GET, &["rooms", "{}", "messages"]),
    (Method::GET, &["rooms", "{}", "members"]),
    (Method::GET, &["rooms", "{}", "initialSync"]),
    (Method::GET, &["sync"]),
    (Method::GET, &["events"]),
    // Taking part.
    (Method::POST, &["rooms", "{}", "join"]),
    (Method::POST, &["join", "{}"]),
    (Method::POST, &["rooms", "{}", "leave"]),
    (Method::PUT, &["rooms", "{}", "send", "{}", "{}"]),
    (Method::PUT, &["rooms", "{}", "state", "{}", "{}"]),
    (Method::PUT, &["rooms", "{}", "state", "{}"]),
    // One's own account.
    (Method::PUT, &["profile", "{}", "displayname"]),
    (Method::GET, &["devices"]),
    (Method::GET, &["devices", "{}"]),
    (Method::PUT, &["devices", "{}"]),
    (Method::GET, &["account", "whoami"]),
    (Method::POST, &["logout"]),
    (Method::POST, &["user", "{}", "filter"]),
    (Method::GET, &["user", "{}", "filter", "{}"]),
    (Method::GET, &["pushrules", ""]),
    (Method::GET, &["capabilities"]),
    // Encryption.
    (Method::POST, &["keys", "upload"]),
    (Method::POST, &["keys", "query"]),
    (Method::POST, &["keys", "claim"]),
];

/// Whether a guest may call this endpoint.
pub fn may_call(method: &Method, path: &str) -> bool {
    // /_matrix/client/v3/…
    let Some(path) = path.strip_prefix("/_matrix/client/").and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    let parts: Vec<&str> = path.1.split('/').collect();
    ALLOWED.iter().any(|(allowed, pattern)| {
        allowed == method
            && pattern.len() == parts.len()
            && pattern.iter().zip(&parts).all(|(p, part)| *p == "{}" || p == part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_read_and_take_part_and_no_more() {
        for (method, path) in [
            (Method::GET, "/_matrix/client/v3/sync"),
            (Method::GET, "/_matrix/client/v3/rooms/!a/messages"),
            (Method::PUT, "/_matrix/client/v3/rooms/!a/send/m.room.message/1"),
        ] {
            assert!(may_call(&method, path), "{path}");
        }
        for (method, path) in [
            (Method::POST, "/_matrix/client/v3/createRoom"),
            (Method::POST, "/_matrix/client/v3/rooms/!a/invite"),
            (Method::POST, "/_matrix/client/v3/search"),
            (Method::POST, "/_matrix/media/v3/upload"),
            (Method::POST, "/_matrix/client/v3/rooms/!a/messages"),
        ] {
            assert!(!may_call(&method, path), "{path}");
        }
    }
}
