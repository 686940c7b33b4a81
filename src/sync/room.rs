//! One room's part of a sync: timeline, state, receipts, typing, unread counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
};

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::filter::{RoomEventFilter, RoomFilter},
    events::StateEventType,
};

use super::{
    bundle, filter,
    render::{write_bundled, write_event, write_list},
    token::{SyncToken, room_token},
};
use crate::{
    error::{Code, Result},
    http::caller::Requester,
    push::counts::{Count, Unread},
    rooms::{
        history, ignored,
        live::{LiveRoom, Membership, Receipt, RoomView},
        pdu::Event,
        state::RoomState,
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
    /// Events as they are stored and signed (`event_format`: `federation`).
    pub raw: bool,
    /// All state, even of rooms that were known.
    pub full_state: bool,
    /// `state_after` instead of `state` (MSC4222, v1.16).
    pub state_after: bool,
    /// Who types is told even where nobody does: the client heard of somebody from a server that was restarted since.
    pub retell_typing: bool,
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

impl Chunk {
    /// Lets the timeline begin after the newest state inside it that its reader may not see. `state` stands at the
    /// timeline's beginning, so what changed out of sight would be told nowhere.
    fn begin_after_hidden(&mut self, sight: &history::Sight, state: &RoomState) {
        let (Some(first), Some(last)) = (self.events.first(), self.events.last()) else { return };
        if sight.is_whole() || !sight.parts(first.position, last.position) {
            return;
        }
        let inside = first.position..last.position;
        let hidden = state.events().map(|event| event.position);
        let hidden = hidden.filter(|at| inside.contains(at) && !sight.sees(*at)).max();
        if let Some(hidden) = hidden {
            self.events.retain(|event| event.position > hidden);
            self.limited = true;
        }
    }
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

/// Writes a joined room's part; false where there is nothing to tell. Where events are delivered, the caller is told up to
/// which and records it before the answer goes out.
pub async fn write_joined(
    server: &Arc<Server>,
    wanted: &Wanted<'_>,
    room_id: &RoomId,
    joined_at: i64,
    delivered: &mut Vec<(OwnedRoomId, i64)>,
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
        && !wanted.retell_typing
        && !wanted.account_data.contains_key(room_id.as_str());
    if quiet {
        return Ok(false);
    }
    let limit = timeline_limit(wanted.filter);
    let sight = history::sight(server, user_id, room_id).await?.1;
    let chunk = if view.row.last_position > from {
        let ignored = ignored::by(server, user_id).await?;
        let pick = |event: &Event| {
            filter::passes(&wanted.filter.timeline, event)
                && sight.sees(event.position)
                && !ignored.hides(event)
        };
        let mut chunk = timeline(server, &room, room_id, (from, wanted.upto.position), limit, pick).await?;
        chunk.limited |= newly && wanted.since.position > 0;
        if !wanted.state_after {
            chunk.begin_after_hidden(&sight, &view.state);
        }
        chunk
    } else {
        Chunk { events: Vec::new(), limited: false }
    };
    if chunk.events.iter().any(|e| e.extra.get().is_none() && (e.is_state() || e.redacted_by.is_some())) {
        history::complete(&mut server.db.read().await?, &chunk.events).await?;
    }
    let state = state_part(server, wanted, &view, &chunk, fresh).await?;
    let ephemeral = ephemeral(wanted, room_id, &room, fresh);
    let account_data = wanted.account_data.get(room_id.as_str());
    // What the filter hides may change who is in the room and what is unread all the same.
    let hidden_news = !fresh && view.row.last_position > from && hides(&wanted.filter.timeline);
    let members_changed = fresh
        || chunk.limited
        || chunk.events.iter().chain(&state).any(|event| event.membership.is_some())
        || hidden_news
            && view.row.state_version > from
            && view.state.of_type(&StateEventType::RoomMember).any(|event| event.position > from);
    let unread = crate::push::counts::unread(server, user_id, &room).await?;
    let counts_changed = hidden_news && unread.total() != Count::default();
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
        && !members_changed
        && !counts_changed
    {
        return Ok(false);
    }
    if let Some(newest) = chunk.events.last() {
        delivered.push((room_id.to_owned(), newest.position));
    }
    let start = chunk.events.first().map_or(wanted.upto.position, |event| event.position - 1);
    let bundles = bundle::bundle(server, wanted.who, &room, &sight, &chunk.events).await?;
    out.push_str("{\"timeline\":{\"events\":");
    write_list(out, &chunk.events, |out, event| wanted.write(out, event, Some(&bundles)));
    let _ = write!(
        out,
        ",\"limited\":{},\"prev_batch\":\"{}\"}}",
        chunk.limited,
        room_token(start, &server.epoch)
    );
    let _ = write!(out, ",\"{}\":{{\"events\":", wanted.state_key());
    write_list(out, &state, |out, event| wanted.write(out, event, None));
    out.push_str("},\"ephemeral\":{\"events\":");
    write_list(out, &ephemeral, |out, event| out.push_str(event));
    out.push_str("},\"account_data\":{\"events\":");
    write_list(out, account_data.into_iter().flatten(), |out, (kind, content)| {
        let _ = write!(out, "{{\"type\":{},\"content\":{content}}}", serde_json::Value::from(kind.as_str()));
    });
    out.push_str("},\"summary\":");
    if members_changed {
        out.push_str(&summary(&view, user_id).to_string());
    } else {
        out.push_str("{}");
    }
    write_unread(out, &unread, wanted.filter.timeline.unread_thread_notifications);
    out.push('}');
    Ok(true)
}

/// Unread counts: one for all, or, for who asks so, threads apart (v1.4).
fn write_unread(out: &mut String, unread: &Unread, threads_apart: bool) {
    let write = |out: &mut String, count: Count| {
        let _ = write!(
            out,
            "{{\"notification_count\":{},\"highlight_count\":{}}}",
            count.notify, count.highlight
        );
    };
    out.push_str(",\"unread_notifications\":");
    if !threads_apart {
        write(out, unread.total());
        return;
    }
    write(out, unread.main);
    if !unread.threads.is_empty() {
        out.push_str(",\"unread_thread_notifications\":{");
        for (i, (root, count)) in unread.threads.iter().enumerate() {
            let _ =
                write!(out, "{}{}:", if i == 0 { "" } else { "," }, serde_json::Value::from(root.as_str()));
            write(out, *count);
        }
        out.push('}');
    }
}

/// Whether a filter may hide events.
fn hides(filter: &RoomEventFilter) -> bool {
    filter.types.is_some()
        || !filter.not_types.is_empty()
        || filter.senders.is_some()
        || !filter.not_senders.is_empty()
        || filter.url_filter.is_some()
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
    fn write(&self, out: &mut String, event: &Event, bundles: Option<&bundle::Bundles>) {
        match bundles {
            _ if self.raw => out.push_str(&event.pdu),
            Some(bundles) => write_bundled(out, event, bundles, self.who, self.now, false),
            None => write_event(out, event, Some(self.who), self.now, false),
        }
    }

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
                    // Without a gap every change is in the timeline itself, but for what the filter hides there.
                    let hidden = hides(&wanted.filter.timeline);
                    view.state
                        .events()
                        .filter(|e| hidden && e.position > known && e.position <= wanted.upto.position)
                        .cloned()
                        .collect()
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
    drop_unwanted(wanted, view, chunk, known, &mut events);
    for event in lazy_members_of(wanted, view, chunk) {
        // One event for each member: the present one, where it is not in the timeline itself.
        events.retain(|e| e.membership.is_none() || e.state_key != event.state_key);
        events.push(event);
    }
    Ok(events)
}

/// Drops what the filter does not want of the state, and, with lazy loading, members whom nothing shown needs.
fn drop_unwanted(
    wanted: &Wanted<'_>,
    view: &RoomView,
    chunk: &Chunk,
    known: i64,
    events: &mut Vec<Arc<Event>>,
) {
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
                || (known > 0 && event.position > known)
        });
    }
    events.retain(|event| filter::passes(&wanted.filter.state, event));
    events.sort_by_key(|event| event.position);
}

/// Writes a room that the user left: the event that says so, and what came before it where former members may read it;
/// of one that they had left at the last sync only what they have written for themselves since.
pub async fn write_left(
    server: &Arc<Server>,
    wanted: &Wanted<'_>,
    room_id: &RoomId,
    membership: &Membership,
    delivered: &mut Vec<(OwnedRoomId, i64)>,
    out: &mut String,
) -> Result<()> {
    let room = server.live.room(&server.db, room_id).await?;
    let view = room.current()?;
    let user_id = &*wanted.who.user_id;
    let left_at = membership.changed_at;
    let since = wanted.since.position;
    let leave = history::event_of(server, &room, &membership.event_id).await?;
    let mut bundles = bundle::Bundles::default();
    let (chunk, state) = match history::sight(server, user_id, room_id).await {
        Ok((_, sight)) => {
            let ignored = ignored::by(server, user_id).await?;
            let pick = |event: &Event| {
                filter::passes(&wanted.filter.timeline, event)
                    && (sight.sees(event.position) || event.event_id == membership.event_id)
                    && !ignored.hides(event)
            };
            let limit = timeline_limit(wanted.filter);
            let mut chunk = timeline(server, &room, room_id, (since, left_at), limit, pick).await?;
            if !wanted.state_after {
                chunk.begin_after_hidden(&sight, &view.state);
            }
            let state = if sight.reads_state() {
                left_state(server, wanted, &view, &chunk, left_at.min(sight.upto())).await?
            } else {
                Vec::new()
            };
            bundles = bundle::bundle(server, wanted.who, &room, &sight, &chunk.events).await?;
            (chunk, state)
        }
        // They read nothing of it any more, or never could.
        Err(error) if error.code() == Some(Code::Forbidden) => {
            let leave = leave.filter(|_| left_at > since);
            let passing = |filter: &RoomEventFilter| -> Vec<Arc<Event>> {
                leave.iter().filter(|event| filter::passes(filter, event)).cloned().collect()
            };
            let state = if wanted.state_after { passing(&wanted.filter.state) } else { Vec::new() };
            (Chunk { events: passing(&wanted.filter.timeline), limited: false }, state)
        }
        Err(error) => return Err(error),
    };
    if chunk.events.iter().any(|e| e.extra.get().is_none() && (e.is_state() || e.redacted_by.is_some())) {
        history::complete(&mut server.db.read().await?, &chunk.events).await?;
    }
    let start = chunk.events.first().map_or(left_at, |event| event.position - 1);
    if let Some(newest) = chunk.events.iter().rfind(|event| event.event_id != membership.event_id) {
        delivered.push((room_id.to_owned(), newest.position));
    }
    let _ =
        write!(out, "{}\"{room_id}\":{{\"timeline\":{{\"events\":", if out.is_empty() { "" } else { "," });
    write_list(out, &chunk.events, |out, event| wanted.write(out, event, Some(&bundles)));
    let _ = write!(
        out,
        ",\"limited\":{},\"prev_batch\":\"{}\"}},\"{}\":{{\"events\":",
        chunk.limited,
        room_token(start, &server.epoch),
        wanted.state_key(),
    );
    write_list(out, &state, |out, event| wanted.write(out, event, None));
    out.push_str("},\"account_data\":{\"events\":");
    let account_data = wanted.account_data.get(room_id.as_str());
    write_list(out, account_data.into_iter().flatten(), |out, (kind, content)| {
        let _ = write!(out, "{{\"type\":{},\"content\":{content}}}", serde_json::Value::from(kind.as_str()));
    });
    out.push_str("}}");
    Ok(())
}

/// The state beside the timeline of a room that the user left, as of their leaving, so far as the client does not
/// know it: who was not in the room at the last sync knows nothing.
async fn left_state(
    server: &Server,
    wanted: &Wanted<'_>,
    view: &RoomView,
    chunk: &Chunk,
    left_at: i64,
) -> Result<Vec<Arc<Event>>> {
    let since = wanted.since.position;
    let room_id = &view.row.room_id;
    let known = if since == 0 || wanted.full_state {
        0
    } else {
        let mut conn = server.db.read().await?;
        let user_id = wanted.who.user_id.as_str();
        let then =
            store::rooms::state_entry_before(&mut conn, room_id, "m.room.member", user_id, since + 1).await?;
        let inside = then.is_some_and(|event| event.membership.as_deref() == Some("join"));
        if inside || left_at <= since { since } else { 0 }
    };
    let order = match chunk.events.first() {
        Some(first) if !wanted.state_after => first.position,
        _ => left_at + 1,
    };
    let mut events = history::state_before(server, view, order).await?;
    events.retain(|event| event.position > known);
    drop_unwanted(wanted, view, chunk, known, &mut events);
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
        .filter_map(|sender| {
            let present = view.state.event(&StateEventType::RoomMember, sender.as_str())?;
            let own = |event: &&Arc<Event>| {
                event.membership.is_some() && event.state_key.as_deref() == Some(sender.as_str())
            };
            match chunk.events.iter().find(own) {
                None => Some(Arc::clone(present)),
                // What they were when they wrote before it; `state_after` stands behind it.
                Some(change)
                    if !wanted.state_after
                        && chunk.events.iter().take_while(|e| !own(e)).any(|e| e.sender == *sender) =>
                {
                    change.extra.get()?.replaces.clone()
                }
                Some(_) => None,
            }
        })
        .collect()
}

fn ephemeral(wanted: &Wanted<'_>, room_id: &RoomId, room: &LiveRoom, fresh: bool) -> Vec<String> {
    let mut events = Vec::new();
    let since = if fresh { 0 } else { wanted.since.position };
    let passes = |kind| filter::of_room_passes(&wanted.filter.ephemeral, room_id, kind);
    let told = passes("m.receipt");
    events.extend(receipts(room, |receipt| {
        let mine = receipt.user_id == wanted.who.user_id;
        told && receipt.position > since
            && receipt.position <= wanted.upto.position
            && (receipt.kind != "m.read.private" || mine)
    }));
    let typing_at = room.typing_at.load(Ordering::Acquire);
    let typed = wanted.retell_typing || typing_at > if fresh { 0 } else { wanted.since.volatile };
    if typed && passes("m.typing") {
        let users: Vec<OwnedUserId> = room.typing_users();
        events.push(serde_json::json!({"type": "m.typing", "content": {"user_ids": users}}).to_string());
    }
    events
}

/// The receipts of a room that are wanted, as one `m.receipt` event; none where there are none.
pub fn receipts(room: &LiveRoom, wanted: impl Fn(&Receipt) -> bool) -> Option<String> {
    // By event, kind and user. Who has read an event in its thread and as a whole is said to have read the whole.
    type ByUser = BTreeMap<String, (bool, serde_json::Value)>;
    let mut content: BTreeMap<String, BTreeMap<String, ByUser>> = BTreeMap::new();
    for receipt in room.receipts.read().values().filter(|receipt| wanted(receipt)) {
        let mut data = serde_json::json!({"ts": receipt.ts});
        if !receipt.thread.is_empty() {
            data["thread_id"] = receipt.thread.as_str().into();
        }
        let place = content
            .entry(receipt.event_id.to_string())
            .or_default()
            .entry(receipt.kind.clone())
            .or_default()
            .entry(receipt.user_id.to_string())
            .or_insert((false, serde_json::Value::Null));
        if !place.0 {
            *place = (receipt.thread.is_empty(), data);
        }
    }
    let content: serde_json::Map<String, serde_json::Value> = content
        .into_iter()
        .map(|(event_id, kinds)| {
            let kinds: serde_json::Map<String, serde_json::Value> = kinds
                .into_iter()
                .map(|(kind, users)| {
                    let users: serde_json::Map<String, serde_json::Value> =
                        users.into_iter().map(|(user, (_, data))| (user, data)).collect();
                    (kind, users.into())
                })
                .collect();
            (event_id, kinds.into())
        })
        .collect();
    (!content.is_empty()).then(|| serde_json::json!({"type": "m.receipt", "content": content}).to_string())
}

/// What is told to who is invited, or knocks (client-server API, "Stripped state"): as it was at that time, since what
/// comes later is for those who are in the room.
pub async fn invite_state(
    server: &Server,
    view: &RoomView,
    user_id: &UserId,
    at: i64,
) -> Result<Vec<Arc<Event>>> {
    let mut state = RoomState::default();
    for event in history::state_before(server, view, at + 1).await? {
        state.set(event);
    }
    let mut events = Vec::new();
    for kind in [
        StateEventType::RoomCreate,
        StateEventType::RoomJoinRules,
        StateEventType::RoomName,
        StateEventType::RoomAvatar,
        StateEventType::RoomTopic,
        StateEventType::RoomCanonicalAlias,
        StateEventType::RoomEncryption,
        StateEventType::from(crate::rooms::city::ROOM_STATE),
    ] {
        events.extend(state.event(&kind, "").cloned());
    }
    if let Some(own) = state.event(&StateEventType::RoomMember, user_id.as_str()) {
        events.extend(state.event(&StateEventType::RoomMember, own.sender.as_str()).cloned());
        events.push(Arc::clone(own));
    }
    Ok(events)
}

/// Who names the room where it has no name: up to five members beside the reader.
pub fn heroes(view: &RoomView, user_id: &UserId) -> Vec<OwnedUserId> {
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
