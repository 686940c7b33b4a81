//! Sessions of the account page: a browser in which somebody has given ID and password a moment ago, on a connection of a
//! terminal. They reach the page and nothing else.

use std::collections::HashMap;

use ruma::OwnedUserId;

use crate::{
    accounts::{login::Proven, sessions::hash_of, terminals::Known},
    error::Result,
    server::Server,
    store,
};

/// How long one lasts: a quarter of an hour.
pub const LIFE_MS: i64 = 900_000;
/// At once; the oldest give way.
const ALL_MAX: usize = 5_000;

/// All of them, by the hash of their cookie.
pub type Browsers = HashMap<String, Browser>;

/// One of them.
#[derive(Clone)]
pub struct Browser {
    /// Who.
    pub user_id: OwnedUserId,
    terminal: Option<i64>,
    /// A new password ends it.
    proven: Proven,
    since: i64,
}

/// Begins one for somebody who has just given ID and password; its cookie.
pub fn begin(server: &Server, proven: Proven, terminal: Option<&Known>) -> String {
    let now = server.now();
    let cookie = crate::clock::random_token(43);
    let browser = Browser {
        user_id: proven.user_id.clone(),
        terminal: terminal.map(|known| known.terminal),
        proven,
        since: now,
    };
    let mut all = server.oauth.browsers.lock();
    if all.len() >= ALL_MAX {
        all.retain(|_, one| now - one.since < LIFE_MS);
    }
    if all.len() >= ALL_MAX
        && let Some(oldest) = all.iter().min_by_key(|(_, one)| one.since).map(|(id, _)| id.clone())
    {
        all.remove(&oldest);
    }
    all.insert(hash_of(&cookie), browser);
    cookie
}

/// The one of a cookie, on the same terminal, while account and password are as they were.
pub async fn of(server: &Server, cookie: &str, terminal: Option<&Known>) -> Result<Option<Browser>> {
    let now = server.now();
    let found = server.oauth.browsers.lock().get(&hash_of(cookie)).cloned();
    let found =
        found.filter(|one| now - one.since < LIFE_MS && one.terminal == terminal.map(|known| known.terminal));
    let Some(found) = found else { return Ok(None) };
    let account = store::accounts::account(&mut server.db.read().await?, found.user_id.as_str()).await?;
    Ok(found.proven.holds(account.as_ref()).then_some(found))
}

/// Ends one.
pub fn end(server: &Server, cookie: &str) {
    server.oauth.browsers.lock().remove(&hash_of(cookie));
}
