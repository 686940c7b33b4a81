//! Ignored users (client-server API, "Ignoring Users"): their messages and invitations are left out of what the server
//! tells whoever ignores them. State is told all the same, and the city is never ignored: what it says in a room is for
//! everybody in it.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use ruma::{OwnedUserId, UserId};
use serde::Deserialize;

use super::pdu::Event;
use crate::{error::Result, server::Server, store};

/// The account data that names them.
const KIND: &str = "m.ignored_user_list";
/// Users that count of one list.
const IGNORED_MAX: usize = 1_000;

/// Whom a user ignores.
#[derive(Clone, Debug, Default)]
pub struct Ignored(Arc<BTreeSet<OwnedUserId>>);

impl Ignored {
    /// Whether the event is left out of what the user is told.
    pub fn hides(&self, event: &Event) -> bool {
        !self.0.is_empty() && !event.is_state() && self.0.contains(&event.sender)
    }

    /// Whether the user is ignored.
    pub fn contains(&self, user_id: &UserId) -> bool {
        self.0.contains(user_id)
    }

    /// All of them.
    pub fn users(&self) -> &BTreeSet<OwnedUserId> {
        &self.0
    }

    /// Whether this is the list that another is, not merely an equal one.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Whom a user ignores: from memory, where their account data has not changed since.
pub async fn by(server: &Server, user_id: &UserId) -> Result<Ignored> {
    let live = server.live.user(user_id);
    // Read before the load: what is loaded after a change is never kept as from before it, nor the other way round.
    let generation = live.generation.load(Ordering::Acquire);
    let cached = live.ignored.lock().clone();
    if let Some((of, ignored)) = cached
        && of == generation
    {
        return Ok(ignored);
    }
    let stored = {
        let mut conn = server.db.read().await?;
        store::personal::account_data(&mut conn, user_id.as_str(), "", KIND).await?
    };
    let mut users = stored.as_deref().map(listed).unwrap_or_default();
    users.remove(&server.city_user);
    users.remove(user_id);
    let mut cache = live.ignored.lock();
    let ignored = match &*cache {
        Some((_, before)) if *before.0 == users => before.clone(),
        _ => Ignored(Arc::new(users)),
    };
    if live.generation.load(Ordering::Acquire) == generation {
        *cache = Some((generation, ignored.clone()));
    }
    Ok(ignored)
}

/// The users in the account data; what is no user id is no user.
fn listed(content: &str) -> BTreeSet<OwnedUserId> {
    #[derive(Deserialize)]
    struct Content {
        ignored_users: serde_json::Map<String, serde_json::Value>,
    }
    let Ok(content) = serde_json::from_str::<Content>(content) else { return BTreeSet::new() };
    content
        .ignored_users
        .keys()
        .filter_map(|id| OwnedUserId::try_from(id.as_str()).ok())
        .take(IGNORED_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_list_ignores_nobody() {
        assert!(listed("{}").is_empty());
        assert!(listed(r#"{"ignored_users":["@a:example.jp"]}"#).is_empty());
        let users = listed(r#"{"ignored_users":{"@a:example.jp":{},"nobody":{}}}"#);
        assert_eq!(users.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["@a:example.jp"]);
    }
}
