//! Who looked at which subject (閲覧履歴, C21, DESIGN 19): the first look of an account, from a terminal, at a room in an
//! hour is in the audit log before the answer goes out; further looks advance a mark (how often, when last, how far),
//! which is written every minute. Appservices look, too: what a bridge reads, and what is sent to it.

use std::{collections::HashMap, sync::Arc};

use ruma::{OwnedRoomId, RoomId};

use crate::{
    audit,
    error::Result,
    http::caller::Requester,
    rooms::committer::Hint,
    rooms::live::parking::Mutex,
    server::Server,
    store::{self, audit::Mark},
};

/// How long a look counts.
const HOUR_MS: i64 = 3_600_000;
/// Looks remembered; beyond it every look is logged.
const LOOKS_MAX: usize = 200_000;
/// The two kinds of looks, as the log has them.
const OPENED: &str = "room.opened";
const DELIVERED: &str = "room.delivered";
/// The city's bot, as [`of_service`] would name it.
const OF_CITY: &str = "appservice:city";
/// Marks written in one unit.
const MARKS_MAX: usize = 500;

/// Who looked at what, by (account, action, terminal, room).
#[derive(Default)]
pub struct Looks(Mutex<HashMap<Look, Seen>>);

type Look = (String, &'static str, Option<i64>, String);

/// What is known of one look.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// When the audit log last got it.
    logged_at: i64,
    /// When it last happened.
    last_at: i64,
    /// How far it went.
    upto: i64,
    /// Looks that no mark has yet.
    unsaved: i64,
}

/// Records that a room was opened: by its history, a search hit, a medium, a receipt that moved.
pub async fn opened(
    server: &Arc<Server>,
    who: &Requester,
    room_id: &RoomId,
    what: &'static str,
) -> Result<()> {
    record(server, who, &[(room_id.to_owned(), server.live.position())], OPENED, what).await
}

/// Records that events of rooms, up to a position of each, are delivered to a terminal by sync: before the answer goes
/// out, in one unit for all rooms of the answer.
pub async fn delivered(server: &Arc<Server>, who: &Requester, rooms: &[(OwnedRoomId, i64)]) -> Result<()> {
    record(server, who, rooms, DELIVERED, "sync").await
}

/// Records that an appservice read a room's state. People's clients have it by sync, which is recorded there.
pub async fn state(server: &Arc<Server>, who: &Requester, room_id: &RoomId) -> Result<()> {
    if who.appservice.is_none() {
        return Ok(());
    }
    opened(server, who, room_id, "state").await
}

/// Records that events of rooms, up to a position of each, are about to be sent to an appservice.
pub async fn sent(server: &Arc<Server>, appservice: &str, rooms: &[(OwnedRoomId, i64)]) -> Result<()> {
    let entry = of_service(appservice, server.now(), DELIVERED);
    look(server, entry, rooms, DELIVERED, "transaction").await
}

/// How an appservice stands in the log: itself, whomever it acts as. It has no terminal.
fn of_service(appservice: &str, now: i64, action: &str) -> audit::Entry {
    audit::Entry {
        at: now,
        actor: format!("appservice:{appservice}"),
        action: action.to_owned(),
        result: "ok".to_owned(),
        ..audit::Entry::default()
    }
}

async fn record(
    server: &Arc<Server>,
    who: &Requester,
    rooms: &[(OwnedRoomId, i64)],
    action: &'static str,
    what: &'static str,
) -> Result<()> {
    if rooms.is_empty() {
        return Ok(());
    }
    let now = server.now();
    let entry = match &who.appservice {
        None => who.entry(now, action),
        Some(id) => audit::Entry {
            target: who.user_id.to_string(),
            address: Some(who.address.ip().to_string()),
            ..of_service(id, now, action)
        },
    };
    look(server, entry, rooms, action, what).await
}

/// `entry` says who looks; those of the first looks of an hour go into the log.
async fn look(
    server: &Arc<Server>,
    entry: audit::Entry,
    rooms: &[(OwnedRoomId, i64)],
    action: &'static str,
    what: &'static str,
) -> Result<()> {
    // The city's own bot is in every room of the city, to hear what is asked for there: the city itself, and no look.
    if rooms.is_empty() || entry.actor == OF_CITY {
        return Ok(());
    }
    let (now, terminal) = (entry.at, entry.terminal);
    let mut first: Vec<(Look, i64)> = Vec::new();
    {
        let mut looks = server.looks.0.lock();
        for (room_id, upto) in rooms {
            let key = (entry.actor.clone(), action, terminal, room_id.to_string());
            match looks.get_mut(&key) {
                Some(seen) if now - seen.logged_at < HOUR_MS => {
                    seen.last_at = now;
                    seen.upto = seen.upto.max(*upto);
                    seen.unsaved += 1;
                }
                _ => first.push((key, *upto)),
            }
        }
        if !first.is_empty() && looks.len() >= LOOKS_MAX {
            looks.retain(|_, seen| now - seen.logged_at < HOUR_MS || seen.unsaved > 0);
        }
    }
    if first.is_empty() {
        return Ok(());
    }
    let entries: Vec<audit::Entry> = first
        .iter()
        .map(|((.., room_id), upto)| audit::Entry {
            room_id: room_id.clone(),
            detail: format!("{what} up to {upto}"),
            ..entry.clone()
        })
        .collect();
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                for entry in entries {
                    batch.audit(entry);
                }
                Ok(())
            })
        })
        .await?;
    let mut looks = server.looks.0.lock();
    for (key, upto) in first {
        if looks.len() >= LOOKS_MAX && !looks.contains_key(&key) {
            // Not remembered: the next look of this one is logged again.
            continue;
        }
        let seen = looks.entry(key).or_insert(Seen { logged_at: now, last_at: now, upto, unsaved: 0 });
        *seen = Seen { logged_at: now, last_at: now, upto: seen.upto.max(upto), unsaved: seen.unsaved + 1 };
    }
    Ok(())
}

/// Writes the marks that have advanced. To be called every minute and at the end.
pub async fn save_marks(server: &Arc<Server>) -> Result<()> {
    loop {
        let marks: Vec<Mark> = {
            let mut looks = server.looks.0.lock();
            looks
                .iter_mut()
                .filter(|(_, seen)| seen.unsaved > 0)
                .take(MARKS_MAX)
                .map(|((user_id, action, terminal, room_id), seen)| Mark {
                    user_id: user_id.clone(),
                    terminal: terminal.unwrap_or_default(),
                    room_id: room_id.clone(),
                    action: (*action).to_owned(),
                    looks: std::mem::take(&mut seen.unsaved),
                    last_at: seen.last_at,
                    upto: seen.upto,
                })
                .collect()
        };
        if marks.is_empty() {
            return Ok(());
        }
        let more = marks.len() == MARKS_MAX;
        let written = marks.clone();
        let saved = server
            .commit(Hint::default(), move |batch| {
                Box::pin(async move { store::audit::advance(batch.sql().await?, &written).await })
            })
            .await;
        if let Err(error) = saved {
            // The next minute counts them.
            let mut looks = server.looks.0.lock();
            for mark in marks {
                let terminal = (mark.terminal != 0).then_some(mark.terminal);
                let action = if mark.action == DELIVERED { DELIVERED } else { OPENED };
                if let Some(seen) = looks.get_mut(&(mark.user_id, action, terminal, mark.room_id)) {
                    seen.unsaved += mark.looks;
                }
            }
            return Err(error);
        }
        if !more {
            return Ok(());
        }
    }
}
