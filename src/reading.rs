//! Who looked at which subject (閲覧履歴, C21, DESIGN 19): the first look of an account, from a terminal, at a room in an
//! hour is in the audit log before the answer goes out; further looks in that hour add nothing.

use std::{collections::HashMap, sync::Arc};

use ruma::RoomId;

use crate::{
    audit, error::Result, http::caller::Requester, rooms::committer::Hint, rooms::live::parking::Mutex,
    server::Server,
};

/// How long a look counts.
const HOUR_MS: i64 = 3_600_000;
/// Looks remembered; beyond it the oldest are written again when they recur.
const LOOKS_MAX: usize = 200_000;

/// Who looked at what, and when it was last written: (account and action, terminal, room).
#[derive(Default)]
pub struct Looks(Mutex<HashMap<Look, i64>>);

type Look = (String, Option<i64>, String);

/// Records that a room was opened: by its history, a search hit, a medium, a receipt that moved.
pub async fn opened(
    server: &Arc<Server>,
    who: &Requester,
    room_id: &RoomId,
    what: &'static str,
) -> Result<()> {
    record(server, who, room_id, "room.opened", what).await
}

/// Records that a room's events were delivered to a terminal by sync.
pub async fn delivered(server: &Arc<Server>, who: &Requester, room_id: &RoomId) -> Result<()> {
    record(server, who, room_id, "room.delivered", "sync").await
}

async fn record(
    server: &Arc<Server>,
    who: &Requester,
    room_id: &RoomId,
    action: &str,
    what: &'static str,
) -> Result<()> {
    if who.appservice.is_some() {
        return Ok(());
    }
    let now = server.now();
    let terminal = who.terminal.as_ref().map(|known| known.terminal);
    let key = (format!("{} {action}", who.user_id), terminal, room_id.to_string());
    {
        let mut looks = server.looks.0.lock();
        if looks.get(&key).is_some_and(|at| now - *at < HOUR_MS) {
            return Ok(());
        }
        if looks.len() >= LOOKS_MAX {
            looks.retain(|_, at| now - *at < HOUR_MS);
            if looks.len() >= LOOKS_MAX {
                looks.clear();
            }
        }
    }
    let entry =
        audit::Entry { room_id: room_id.to_string(), detail: what.to_owned(), ..who.entry(now, action) };
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                batch.audit(entry);
                Ok(())
            })
        })
        .await?;
    server.looks.0.lock().insert(key, now);
    Ok(())
}
