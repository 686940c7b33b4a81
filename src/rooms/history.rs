//! Reading a room's past, and who may read what of it: history visibility, former members (DESIGN 14).

use std::sync::Arc;

use ruma::{EventId, RoomId, UserId, events::StateEventType};

use super::{
    live::{LiveRoom, RoomView},
    pdu::{Event, Extra},
};
use crate::{
    error::{Result, forbidden, not_found},
    server::Server,
    store::{self, Conn},
};

/// What a user may see of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Everything from an order on (0 = everything), as a member.
    Member {
        /// Events before it are hidden (history visibility `joined` or `invited`).
        from: i64,
    },
    /// What there was up to leaving (`former_members_read = "until_leave"`).
    Former {
        /// As for members.
        from: i64,
        /// Position of the leave event, which is the last one seen.
        upto: i64,
    },
}

impl Sight {
    /// Whether an event at this order can be seen.
    pub fn sees(&self, order: i64) -> bool {
        match self {
            Self::Member { from } => order >= *from,
            Self::Former { from, upto } => order >= *from && order <= *upto,
        }
    }

    /// The newest order that can be seen.
    pub fn upto(&self) -> i64 {
        match self {
            Self::Member { .. } => i64::MAX,
            Self::Former { upto, .. } => *upto,
        }
    }

    /// The oldest order that can be seen.
    pub fn from(&self) -> i64 {
        match self {
            Self::Member { from } | Self::Former { from, .. } => *from,
        }
    }
}

/// What the user may see of the room; 403 where that is nothing. A room that does not exist looks like one that the
/// user is not in.
pub async fn sight(server: &Server, user_id: &UserId, room_id: &RoomId) -> Result<(Arc<LiveRoom>, Sight)> {
    let denied = || forbidden("You are not a member of this room.");
    let membership = server.live.membership(user_id, room_id).ok_or_else(denied)?;
    match membership.membership.as_str() {
        "join" => {
            let room = server.live.room(&server.db, room_id).await?;
            let from = visible_from(server, &room, user_id, room_id).await?;
            Ok((room, Sight::Member { from }))
        }
        "leave" | "ban"
            if server.config.policy.former_members_read == "until_leave" && !membership.forgotten =>
        {
            let room = server.live.room(&server.db, room_id).await?;
            let from = visible_from(server, &room, user_id, room_id).await?;
            Ok((room, Sight::Former { from, upto: membership.changed_at }))
        }
        _ => Err(denied()),
    }
}

/// From which order on a member sees a room's events. `shared` and `world_readable` show everything; with `joined`
/// and `invited` the beginning of the present membership counts. A room that changed its visibility shows the
/// stricter part only.
async fn visible_from(server: &Server, room: &LiveRoom, user_id: &UserId, room_id: &RoomId) -> Result<i64> {
    let view = room.current()?;
    let visibility = view.state.history_visibility();
    if visibility == "shared" || visibility == "world_readable" {
        let present =
            view.state.event(&StateEventType::RoomHistoryVisibility, "").map(|e| e.event_id.clone());
        if let (Some(present), Some((known, true))) = (&present, &*room.always_shared.lock())
            && known == present
        {
            return Ok(0);
        }
        // What was written while the room was stricter stays hidden from those who were not there.
        let mut conn = server.db.read().await?;
        let past =
            store::rooms::history_of_entry(&mut conn, room_id, "m.room.history_visibility", "").await?;
        let strict = past.iter().any(|event| {
            matches!(event.content_str("history_visibility").as_deref(), Some("joined" | "invited"))
        });
        if let Some(present) = present {
            *room.always_shared.lock() = Some((present, !strict));
        }
        if !strict {
            return Ok(0);
        }
        let strict_until = past
            .windows(2)
            .filter(|pair| {
                matches!(pair[0].content_str("history_visibility").as_deref(), Some("joined" | "invited"))
            })
            .map(|pair| pair[1].position)
            .max();
        return match strict_until {
            None => Ok(0),
            Some(until) => {
                let since = member_since(&mut conn, room_id, user_id, &["join"]).await?;
                Ok(if since < until { since } else { until })
            }
        };
    }
    let mut conn = server.db.read().await?;
    let kinds: &[&str] = if visibility == "invited" { &["join", "invite"] } else { &["join"] };
    member_since(&mut conn, room_id, user_id, kinds).await
}

/// The order at which the user's present membership began.
async fn member_since(conn: &mut Conn, room_id: &RoomId, user_id: &UserId, kinds: &[&str]) -> Result<i64> {
    let past = store::rooms::history_of_entry(conn, room_id, "m.room.member", user_id.as_str()).await?;
    let mut since = i64::MAX;
    let mut inside = false;
    for event in &past {
        let counts = event.membership.as_deref().is_some_and(|m| kinds.contains(&m));
        if counts && !inside {
            since = event.position;
        }
        inside = counts;
    }
    Ok(since)
}

/// An event that the user may see; 404 where there is none or it is hidden.
pub async fn visible_event(
    server: &Server,
    user_id: &UserId,
    room_id: &RoomId,
    event_id: &EventId,
) -> Result<(Arc<LiveRoom>, Arc<Event>)> {
    let (room, sight) = sight(server, user_id, room_id).await?;
    let event = event_of(server, &room, event_id).await?.filter(|event| event.room_id == room_id);
    match event {
        Some(event) if sight.sees(event.position) => Ok((room, event)),
        _ => Err(not_found("No such event, or you cannot see it.")),
    }
}

/// An event, from memory or the database.
pub async fn event_of(server: &Server, room: &LiveRoom, event_id: &EventId) -> Result<Option<Arc<Event>>> {
    if let Some(event) = room.timeline.read().events.iter().rev().find(|e| e.event_id == event_id) {
        return Ok(Some(Arc::clone(event)));
    }
    store::events::by_id(&mut server.db.read().await?, event_id).await
}

/// Fills in what `unsigned` tells about each event: what it replaced, what redacted it.
pub async fn complete(conn: &mut Conn, events: &[Arc<Event>]) -> Result<()> {
    for event in events {
        if event.extra.get().is_some() || (event.state_key.is_none() && event.redacted_by.is_none()) {
            continue;
        }
        let because = match &event.redacted_by {
            Some(id) => store::events::by_id(conn, id).await?,
            None => None,
        };
        let replaces = store::rooms::replaced_by(conn, event).await?;
        // Another reader may have been quicker, with the same answer.
        let _ = event.extra.set(Extra { replaces, because });
    }
    Ok(())
}

/// The state of a room just after an event, which may stand off the room's line (DESIGN 6).
pub async fn state_after(server: &Server, view: &RoomView, event: &Arc<Event>) -> Result<Vec<Arc<Event>>> {
    let mut conn = server.db.read().await?;
    if !store::rooms::is_off_the_line(&mut conn, event).await? {
        drop(conn);
        return state_before(server, view, event.position + 1).await;
    }
    let mut state = store::rooms::state_at(&mut conn, event).await?;
    if let Some(state_key) = &event.state_key {
        state.retain(|e| e.kind != event.kind || e.state_key.as_ref() != Some(state_key));
        state.push(Arc::clone(event));
    }
    Ok(state)
}

/// The state of a room just before an event, in memory where nothing changed since.
pub async fn state_before(server: &Server, view: &RoomView, order: i64) -> Result<Vec<Arc<Event>>> {
    if order > view.row.state_version {
        return Ok(view.state.events().cloned().collect());
    }
    store::rooms::state_before(&mut server.db.read().await?, &view.row.room_id, order).await
}
