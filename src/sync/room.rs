//! One room's part of a sync: timeline, state, receipts, typing, unread counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
};

use ruma::{OwnedUserId, RoomId, UserId, api::client::filter::RoomFilter, events::StateEventType};

use super::{
    filter,
    render::{write_event, write_list},
    token::{SyncToken, room_token},
};
use crate::{
    error::Result,
    http::caller::Requester,
    rooms::{
        history,
        live::{LiveRoom, RoomView},
        pdu::Event,
    },
    server::Server,
    store,
};

/// Events in a timeline where the filter says nothing.
const TIMELINE_DEFAULT: usize = 20;
/// Events in a timeline at most.
const TIMELINE_MAX: usize = 100;

/// Events looked at for one timeline: a filter that nothing passes must not read a whole room.
const LOOKED_AT_MAX: usize = 2_000;

/// What a sync asks for, the same for all of its rooms.
pub struct Wanted<'a> {
    /// Who asks.
    pub who: &'a Requester,
    /// From where; 0 for the first sync.
    pub since: SyncToken,
    /// Up to where.
    pub upto: SyncToken,
    /// The room part of the filter.
    pub filter: &'a RoomFilter,
    /// All state, even of rooms that were known.
    pub full_state: bool,
    /// `state_after` instead of `state` (MSC4222, v1.16).
    pub state_after: bool,
    /// `state_after` under its name from before v1.16.
    pub unstable_state_after: bool,
    /// Account data by room: (type, content).
    pub account_data: &'a BTreeMap<String, Vec<(String, String)>>,
    /// Now.
    pub now: i64,
}

/// A timeline.
pub struct Chunk {
    /// The events, oldest first.
    pub events: Vec<Arc<Event>>,
    /// Whether there are older ones since the last sync.
    pub limited: bool,
}

/// The newest events of a room after `since` and up to `upto`, at most `limit`.
pub async fn timeline(
    server: &Server,
    room: &LiveRoom,
    room_id: &RoomId,
    (since, upto): (i64, i64),
    limit: usize,
    pick: impl Fn(&Event) -> bool,
) -> Result<Chunk> {
    let mut events: Vec<Arc<Event>> = Vec::with_capacity(limit.min(32));
    let mut limited = false;
    let oldest = {
        let timeline = room.timeline.read();
        for event in timeline.events.iter().rev() {
            if event.position > upto || !pick(event) && event.position > since {
                continue;
            }
            if event.position <= since {
                events.reverse();
                return Ok(Chunk { events, limited: false });
            }
            if events.len() == limit {
                limited = true;
                break;
            }
            events.push(Arc::clone(event));
        }
        timeline.complete_after
    };
    if !limited && oldest > since {
        // Memory does not reach back far enough.
        let mut before = events.last().map_or_else(|| upto.min(oldest) + 1, |event| event.position);
        let mut conn = server.db.read().await?;
        let mut looked_at = 0;
        'pages: loop {
            if looked_at >= LOOKED_AT_MAX {
                limited = true;
                break;
            }
            let page = store::events::before(&mut conn, room_id, before, limit + 1).await?;
            let Some(last) = page.last() else { break };
            before = last.position;
            looked_at += page.len();
            for event in page {
                if event.position <= since {
                    break 'pages;
                }
                if !pick(&event) {
                    continue;
                }
                if events.len() == limit {
                    limited = true;
                    break 'pages;
                }
                events.push(event);
            }
        }
    }
    events.reverse();
    Ok(Chunk { events, limited })
}

/// Writes a joined room's part; false where there is nothing to tell.
pub async fn write_joined(
    server: &Arc<Server>,
    wanted: &Wanted<'_>,
    room_id: &RoomId,
    joined_at: i64,
    out: &mut String,
) -> Result<bool> {
    let room = server.live.room(&server.db, room_id).await?;
    let view = room.current()?;
    let user_id = &*wanted.who.user_id;
    let newly = joined_at > wanted.since.position;
    let fresh = newly || wanted.since.position == 0;
    let from = if fresh { 0 } else { wanted.since.position };
    let quiet = !fresh
        && !wanted.full_state
        && view.row.last_position <= from
        && room.receipts_at.load(Ordering::Acquire) <= from
        && room.typing_at.load(Ordering::Acquire) <= wanted.since.volatile
        && !wanted.account_data.contains_key(room_id.as_str());
    if quiet {
        return Ok(false);
    }
    let limit = timeline_limit(wanted.filter);
    let sight = history::sight(server, user_id, room_id).await?.1;
    let chunk = if view.row.last_position > from {
        let pick =
            |event: &Event| filter::passes(&wanted.filter.timeline, event) && sight.sees(event.position);
        let mut chunk = timeline(server, &room, room_id, (from, wanted.upto.position), limit, pick).await?;
        chunk.limited |= newly && wanted.since.position > 0;
        chunk
    } else {
        Chunk { events: Vec::new(), limited: false }
    };
    if chunk.events.iter().any(|e| e.extra.get().is_none() && (e.is_state() || e.redacted_by.is_some())) {
        history::complete(&mut server.db.read().await?, &chunk.events).await?;
    }
    let state = state_part(server, wanted, &view, &chunk, fresh).await?;
    let ephemeral = ephemeral(wanted, &room, fresh);
    let account_data = wanted.account_data.get(room_id.as_str());
    let receipts_moved = room.receipts.read().values().any(|r| {
        r.user_id == user_id && r.position > wanted.since.position && r.position <= wanted.upto.position
    });
    if !fresh
        && !wanted.full_state
        && chunk.events.is_empty()
        && state.is_empty()
        && ephemeral.is_empty()
        && account_data.is_none()
        && !receipts_moved
    {
        return Ok(false);
    }
    if !chunk.events.is_empty() {
        let newest = chunk.events.last().map_or(wanted.upto.position, |event| event.position);
        crate::reading::delivered(server, wanted.who, room_id, newest).await?;
    }
    let start = chunk.events.first().map_or(wanted.upto.position, |event| event.position - 1);
    out.push_str("{\"timeline\":{\"events\":");
    write_list(out, &chunk.events, |out, event| write_event(out, event, Some(wanted.who), wanted.now, false));
    let _ = write!(
        out,
        ",\"limited\":{},\"prev_batch\":\"{}\"}}",
        chunk.limited,
        room_token(start, &server.epoch)
    );
    let _ = write!(out, ",\"{}\":{{\"events\":", wanted.state_key());
    write_list(out, &state, |out, event| write_event(out, event, Some(wanted.who), wanted.now, false));
    out.push_str("},\"ephemeral\":{\"events\":");
    write_list(out, &ephemeral, |out, event| out.push_str(event));
    out.push_str("},\"account_data\":{\"events\":");
    write_list(out, account_data.into_iter().flatten(), |out, (kind, content)| {
        let _ = write!(out, "{{\"type\":{},\"content\":{content}}}", serde_json::Value::from(kind.as_str()));
    });
    out.push_str("},\"summary\":");
    let members_changed =
        fresh || chunk.limited || chunk.events.iter().chain(&state).any(|event| event.membership.is_some());
    if members_changed {
        out.push_str(&summary(&view, user_id).to_string());
    } else {
        out.push_str("{}");
    }
    let (notify, highlight) = crate::push::counts::unread(server, user_id, &room).await?;
    let _ = write!(
        out,
        ",\"unread_notifications\":{{\"notification_count\":{notify},\"highlight_count\":{highlight}}}}}"
    );
    Ok(true)
}

/// The limit of the timeline.
pub fn timeline_limit(filter: &RoomFilter) -> usize {
    filter
        .timeline
        .limit
        .map_or(TIMELINE_DEFAULT, |n| usize::try_from(u64::from(n)).unwrap_or(TIMELINE_MAX))
        .clamp(1, TIMELINE_MAX)
}

impl Wanted<'_> {
    /// The name under which a room's state goes out.
    fn state_key(&self) -> &'static str {
        match (self.state_after, self.unstable_state_after) {
            (false, _) => "state",
            (true, false) => "state_after",
            (true, true) => "org.matrix.msc4222.state_after",
        }
    }
}

/// The state beside the timeline: what held before its first event (or, as `state_after`, after its last one), so far
/// as the client does not know it.
async fn state_part(
    server: &Server,
    wanted: &Wanted<'_>,
    view: &RoomView,
    chunk: &Chunk,
    fresh: bool,
) -> Result<Vec<Arc<Event>>> {
    let everything = fresh || wanted.full_state;
    if !everything && view.row.state_version <= wanted.since.position {
        return Ok(lazy_members_of(wanted, view, chunk));
    }
    let known = if everything { 0 } else { wanted.since.position };
    let in_timeline: BTreeSet<&str> = chunk.events.iter().map(|event| event.event_id.as_str()).collect();
    let mut events: Vec<Arc<Event>> = if wanted.state_after {
        view.state
            .events()
            .filter(|e| e.position > known && e.position <= wanted.upto.position)
            .cloned()
            .collect()
    } else {
        match chunk.events.first() {
            // Nothing of the state changed within the timeline: the present state is the one before it.
            Some(first) if view.row.state_version >= first.position => {
                if !everything && !chunk.limited {
                    // Without a gap every change is in the timeline itself.
                    Vec::new()
                } else {
                    store::rooms::state_before(
                        &mut server.db.read().await?,
                        &view.row.room_id,
                        first.position,
                    )
                    .await?
                    .into_iter()
                    .filter(|event| event.position > known)
                    .collect()
                }
            }
            _ => view
                .state
                .events()
                .filter(|e| e.position > known && e.position <= wanted.upto.position)
                .cloned()
                .collect(),
        }
    };
    if !wanted.state_after {
        events.retain(|event| !in_timeline.contains(event.event_id.as_str()));
    }
    if filter::is_lazy(&wanted.filter.state) {
        let mut wanted_members: BTreeSet<&str> =
            chunk.events.iter().map(|event| event.sender.as_str()).collect();
        wanted_members.insert(wanted.who.user_id.as_str());
        let heroes = heroes(view, &wanted.who.user_id);
        wanted_members.extend(heroes.iter().map(|id| id.as_str()));
        events.retain(|event| {
            event.membership.is_none()
                || event.state_key.as_deref().is_some_and(|key| wanted_members.contains(key))
                // What changed since the last sync is told, whoever wrote.
                || (!everything && event.position > known)
        });
    }
    events.retain(|event| filter::passes(&wanted.filter.state, event));
    events.sort_by_key(|event| event.position);
    for event in lazy_members_of(wanted, view, chunk) {
        if !events.iter().any(|e| e.event_id == event.event_id) {
            events.push(event);
        }
    }
    Ok(events)
}

/// With lazy loading: the members who wrote what is in the timeline.
fn lazy_members_of(wanted: &Wanted<'_>, view: &RoomView, chunk: &Chunk) -> Vec<Arc<Event>> {
    if !filter::is_lazy(&wanted.filter.state) {
        return Vec::new();
    }
    let senders: BTreeSet<&UserId> = chunk.events.iter().map(|event| &*event.sender).collect();
    senders
        .into_iter()
        .filter_map(|sender| view.state.event(&StateEventType::RoomMember, sender.as_str()))
        .filter(|event| !chunk.events.iter().any(|e| e.event_id == event.event_id))
        .cloned()
        .collect()
}

fn ephemeral(wanted: &Wanted<'_>, room: &LiveRoom, fresh: bool) -> Vec<String> {
    let mut events = Vec::new();
    let since = if fresh { 0 } else { wanted.since.position };
    let mut content: BTreeMap<String, BTreeMap<String, BTreeMap<String, serde_json::Value>>> =
        BTreeMap::new();
    for receipt in room.receipts.read().values() {
        let mine = receipt.user_id == wanted.who.user_id;
        if receipt.position <= since
            || receipt.position > wanted.upto.position
            || (receipt.kind == "m.read.private" && !mine)
        {
            continue;
        }
        let mut data = serde_json::json!({"ts": receipt.ts});
        if !receipt.thread.is_empty() {
            data["thread_id"] = receipt.thread.as_str().into();
        }
        content
            .entry(receipt.event_id.to_string())
            .or_default()
            .entry(receipt.kind.clone())
            .or_default()
            .insert(receipt.user_id.to_string(), data);
    }
    if !content.is_empty() {
        events.push(serde_json::json!({"type": "m.receipt", "content": content}).to_string());
    }
    let typing_at = room.typing_at.load(Ordering::Acquire);
    if typing_at > if fresh { 0 } else { wanted.since.volatile } {
        let users: Vec<OwnedUserId> = room.typing_users();
        events.push(serde_json::json!({"type": "m.typing", "content": {"user_ids": users}}).to_string());
    }
    events
}

/// Who names the room where it has no name: up to five members beside the reader.
fn heroes(view: &RoomView, user_id: &UserId) -> Vec<OwnedUserId> {
    let mut events: Vec<(i64, OwnedUserId)> = ["join", "invite"]
        .iter()
        .flat_map(|membership| view.state.members(membership))
        .filter(|(id, _)| id != user_id)
        .map(|(id, event)| (event.position, id))
        .collect();
    events.sort_unstable();
    events.into_iter().take(5).map(|(_, id)| id).collect()
}

/// The room summary.
pub fn summary(view: &RoomView, user_id: &UserId) -> serde_json::Value {
    serde_json::json!({
        "m.heroes": heroes(view, user_id),
        "m.joined_member_count": view.state.members("join").count(),
        "m.invited_member_count": view.state.members("invite").count(),
    })
}
