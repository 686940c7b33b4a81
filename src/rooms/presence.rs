//! Presence (client-server API, "Presence"): who is there at the moment, told to those who share a room with them. It is
//! kept in memory only, and only where `policy.presence` is on.

use ruma::{OwnedUserId, UserId};
use serde_json::{Value, json};

use super::ignored::Ignored;
use crate::server::Server;

/// After so long without a request, nobody is taken to be there.
const AWAY_MS: i64 = 300_000;
/// Who asked so recently is active now.
const ACTIVE_MS: i64 = 60_000;

/// Whether somebody is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// There.
    #[default]
    Online,
    /// There, but idle.
    Unavailable,
    /// Not there.
    Offline,
}

impl State {
    /// From the specification's word.
    pub fn of(text: &str) -> Option<Self> {
        Some(match text {
            "online" => Self::Online,
            "unavailable" => Self::Unavailable,
            "offline" => Self::Offline,
            _ => return None,
        })
    }

    /// The specification's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Unavailable => "unavailable",
            Self::Offline => "offline",
        }
    }
}

/// What is known of somebody's presence.
#[derive(Clone, Debug)]
pub struct Presence {
    state: State,
    status: Option<String>,
    /// When they last asked for anything, in milliseconds.
    active_at: i64,
    /// The volatile counter at which it last changed.
    changed_at: u64,
}

/// Sets somebody's presence; `status` where it is set as well. Those who share a room are woken where it changed.
pub fn set(server: &Server, user_id: &UserId, state: State, status: Option<Option<String>>) {
    if !server.config.policy.presence {
        return;
    }
    let now = server.now();
    let user = server.live.user(user_id);
    let changed = {
        let mut presence = user.presence.lock();
        match &mut *presence {
            Some(present) => {
                present.active_at = now;
                present.state != state || status.as_ref().is_some_and(|status| *status != present.status)
            }
            None => true,
        }
    };
    if changed {
        server.live.tell_sharers(user_id, |changed_at| {
            let mut presence = user.presence.lock();
            let before = presence.take().and_then(|present| present.status);
            *presence =
                Some(Presence { state, status: status.unwrap_or(before), active_at: now, changed_at });
        });
    }
}

/// Takes those who have not asked for anything for long to be away. To be called now and then.
pub fn expire(server: &Server) {
    if !server.config.policy.presence {
        return;
    }
    let now = server.now();
    for (user_id, user) in server.live.all_users() {
        let gone = user
            .presence
            .lock()
            .as_ref()
            .is_some_and(|present| present.state != State::Offline && now - present.active_at > AWAY_MS);
        if gone {
            server.live.tell_sharers(&user_id, |changed_at| {
                if let Some(present) = &mut *user.presence.lock() {
                    present.state = State::Offline;
                    present.changed_at = changed_at;
                }
            });
        }
    }
}

/// Somebody's presence, as the content of `m.presence`.
pub fn content(server: &Server, user_id: &UserId) -> Value {
    let presence = server.live.user(user_id).presence.lock().clone();
    presence.map_or_else(|| json!({"presence": "offline"}), |present| told(&present, server.now()))
}

fn told(present: &Presence, now: i64) -> Value {
    let ago = (now - present.active_at).max(0);
    let mut content = json!({"presence": present.state.word(), "last_active_ago": ago});
    if present.state == State::Online {
        content["currently_active"] = (ago < ACTIVE_MS).into();
    }
    if let Some(status) = &present.status {
        content["status_msg"] = status.as_str().into();
    }
    content
}

/// Whose presence changed between two values of the volatile counter, or everybody's who is there, of those who share a
/// room with the user and are not ignored.
pub fn changed(
    server: &Server,
    user_id: &UserId,
    ignored: &Ignored,
    (since, upto): (u64, u64),
    everybody: bool,
) -> Vec<(OwnedUserId, Value)> {
    if !server.config.policy.presence {
        return Vec::new();
    }
    // The counter begins anew with the server: a token from before it knows nothing of what is now.
    let since = if everybody || since > upto { 0 } else { since };
    if since == upto {
        return Vec::new();
    }
    let now = server.now();
    let mut found = Vec::new();
    for (other, user) in server.live.all_users() {
        let presence = user.presence.lock().clone();
        let Some(present) = presence.filter(|p| p.changed_at > since && p.changed_at <= upto) else {
            continue;
        };
        if !ignored.contains(&other) && server.live.share_a_room(user_id, &other) {
            found.push((other, told(&present, now)));
        }
    }
    found
}
