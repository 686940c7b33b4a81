//! One room's part of a sliding sync (MSC4186, "Room results").

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
};

use ruma::{RoomId, UserId, events::StateEventType};
use serde_json::Value;

use super::connection::{Reach, RoomConfig, Sent};
use crate::{
    error::Result,
    http::caller::Requester,
    rooms::{
        history, ignored,
        live::{LiveRoom, Membership, Receipt, RoomView},
        pdu::Event,
    },
    server::Server,
    sync::{
        bundle,
        render::{write_bundled, write_event, write_list, write_stripped},
        room::{Chunk, heroes, invite_state, timeline},
        token::{SyncToken, room_token},
    },
};

/// The state key that asks for the members who wrote what is told.
const LAZY: &str = "$LAZY";
/// The state key that stands for the user.
const ME: &str = "$ME";

/// What is the same for every room of an answer.
pub struct Asked<'a> {
    /// Who asks.
    pub who: &'a Requester,
    /// What the client knows.
    pub since: SyncToken,
    /// Up to where it is told.
    pub upto: SyncToken,
    /// Now.
    pub now: i64,
}

/// A room that a rule matches.
pub struct Matched<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// The user's membership.
    pub membership: &'a Membership,
    /// What to tell.
    pub config: &'a RoomConfig,
    /// The lists that it is in.
    pub lists: &'a BTreeSet<&'a str>,
    /// What was told before.
    pub before: Option<&'a Sent>,
    /// Whether the user calls it direct; none where that is as it was.
    pub dm: Option<bool>,
}

/// What was told.
pub struct Told {
    /// The events of its timeline.
    pub events: Vec<Arc<Event>>,
    /// From where on news was told.
    pub from: i64,
    /// Whether everything was told anew.
    pub initial: bool,
}

impl Matched<'_> {
    /// From where on there may be news, and whether everything is told anew: the first time, and where the user came
    /// in again since.
    pub fn from(&self, since: SyncToken) -> (i64, bool) {
        let Some(before) = self.before else { return (0, true) };
        let from = match before.reach {
            Reach::Live => since.position,
            Reach::Upto(position) => position,
        };
        if before.membership == "join" && self.membership.changed_at <= from {
            (from, false)
        } else {
            (0, true)
        }
    }
}

/// Writes a room that the user is in. The caller records what is delivered.
pub async fn write_joined(
    server: &Arc<Server>,
    asked: &Asked<'_>,
    room: &Matched<'_>,
    out: &mut String,
) -> Result<Told> {
    let user_id = &*asked.who.user_id;
    let live = server.live.room(&server.db, room.room_id).await?;
    let view = live.current()?;
    let (from, initial) = room.from(asked.since);
    let upto = asked.upto.position;
    let old = room.before.filter(|_| !initial).map(|sent| &sent.config);
    let expanded = old.is_some_and(|old| old.timeline_limit < room.config.timeline_limit);
    let further = old.is_some_and(|old| !room.config.required.is_subset(&old.required));
    let read = own_receipt_moved(&live, user_id, from, upto);
    if !initial && view.row.last_position <= from && !expanded && !further && room.dm.is_none() && !read {
        return Ok(Told { events: Vec::new(), from, initial });
    }
    let sight = history::sight(server, user_id, room.room_id).await?.1;
    let begin = if initial || expanded { 0 } else { from };
    let chunk = if room.config.timeline_limit == 0 {
        Chunk { events: Vec::new(), limited: view.row.last_position > begin }
    } else if view.row.last_position > begin {
        let ignored = ignored::by(server, user_id).await?;
        let pick = |event: &Event| sight.sees(event.position) && !ignored.hides(event);
        timeline(server, &live, room.room_id, (begin, upto), room.config.timeline_limit, pick).await?
    } else {
        Chunk { events: Vec::new(), limited: false }
    };
    if chunk.events.iter().any(|e| e.extra.get().is_none() && (e.is_state() || e.redacted_by.is_some())) {
        history::complete(&mut server.db.read().await?, &chunk.events).await?;
    }
    let state = required_state(&view, room.config, old, &chunk, (from, upto), initial, user_id);
    let write =
        |out: &mut String, event: &Arc<Event>| write_event(out, event, Some(asked.who), asked.now, false);
    let _ = write!(
        out,
        "{}\"{}\":{{\"membership\":\"join\",\"bump_stamp\":{}",
        if out.is_empty() { "" } else { "," },
        room.room_id,
        live.bumped(&server.db, room.room_id).await?
    );
    if !room.lists.is_empty() {
        let _ = write!(out, ",\"lists\":{}", serde_json::to_string(room.lists)?);
    }
    if initial {
        out.push_str(",\"initial\":true");
    }
    if expanded && chunk.events.first().is_some_and(|event| event.position <= from) {
        out.push_str(",\"expanded_timeline\":true,\"unstable_expanded_timeline\":true");
    }
    write_name(out, &view, user_id, (from, upto), initial);
    if let Some(dm) = room.dm {
        let _ = write!(out, ",\"is_dm\":{dm}");
    }
    if !state.is_empty() {
        out.push_str(",\"required_state\":");
        write_list(out, &state, write);
    }
    if !chunk.events.is_empty() {
        let live_events = chunk.events.iter().filter(|event| event.position > asked.since.position).count();
        let _ = write!(out, ",\"num_live\":{}", if asked.since.position == 0 { 0 } else { live_events });
        let bundles = bundle::bundle(server, asked.who, &live, &sight, &chunk.events).await?;
        out.push_str(",\"timeline\":");
        write_list(out, &chunk.events, |out, event| {
            write_bundled(out, event, &bundles, asked.who, asked.now, false);
        });
    }
    if initial || chunk.limited || !chunk.events.is_empty() {
        let start = chunk.events.first().map_or(upto, |event| event.position - 1);
        let _ = write!(out, ",\"prev_batch\":\"{}\"", room_token(start, &server.epoch));
    }
    if chunk.limited {
        out.push_str(",\"limited\":true");
    }
    let counts = crate::push::counts::unread(server, user_id, &live).await?;
    let _ = write!(
        out,
        ",\"notification_count\":{},\"highlight_count\":{}}}",
        counts.main.notify, counts.main.highlight
    );
    Ok(Told { events: chunk.events, from, initial })
}

/// Writes a room that the user is invited to, or knocks at: what strangers may know of it.
pub async fn write_invited(
    server: &Arc<Server>,
    asked: &Asked<'_>,
    room: &Matched<'_>,
    out: &mut String,
) -> Result<bool> {
    let told = room.before.is_some_and(|before| {
        before.membership == room.membership.membership
            && match before.reach {
                Reach::Live => room.membership.position <= asked.since.position,
                Reach::Upto(position) => room.membership.position <= position,
            }
    });
    if told {
        return Ok(false);
    }
    let view = server.live.room(&server.db, room.room_id).await?.current()?;
    let ignored = ignored::by(server, &asked.who.user_id).await?;
    if room.membership.membership == "invite"
        && !crate::sync::v3::invite_is_told(server, asked.who, &ignored, room.room_id).await?
    {
        return Ok(false);
    }
    let _ = write!(
        out,
        "{}\"{}\":{{\"initial\":true,\"membership\":\"{}\",\"bump_stamp\":{}",
        if out.is_empty() { "" } else { "," },
        room.room_id,
        room.membership.membership,
        room.membership.position,
    );
    if !room.lists.is_empty() {
        let _ = write!(out, ",\"lists\":{}", serde_json::to_string(room.lists)?);
    }
    out.push_str(",\"invite_state\":");
    let state = invite_state(server, &view, &asked.who.user_id, room.membership.position).await?;
    write_list(out, &state, |out, event| write_stripped(out, event));
    out.push('}');
    Ok(true)
}

/// Writes a room that the user is not in any more: the event that says so, and nothing else of it.
pub async fn write_left(
    server: &Arc<Server>,
    asked: &Asked<'_>,
    room_id: &RoomId,
    membership: &Membership,
    out: &mut String,
) -> Result<()> {
    let live = server.live.room(&server.db, room_id).await?;
    let event = history::event_of(server, &live, &membership.event_id).await?;
    let events: Vec<Arc<Event>> = event.into_iter().collect();
    let write =
        |out: &mut String, event: &Arc<Event>| write_event(out, event, Some(asked.who), asked.now, false);
    let _ = write!(
        out,
        "{}\"{room_id}\":{{\"membership\":\"{}\",\"bump_stamp\":{},\"required_state\":",
        if out.is_empty() { "" } else { "," },
        membership.membership,
        membership.changed_at,
    );
    write_list(out, &events, write);
    let _ = write!(out, ",\"num_live\":{},\"timeline\":", events.len());
    write_list(out, &events, write);
    out.push_str(",\"notification_count\":0,\"highlight_count\":0}");
    Ok(())
}

/// The receipts of a room that are told: what moved, and, where the room is new to the client, the user's own and
/// those of the events in the timeline.
pub fn write_receipts(room: &LiveRoom, user_id: &UserId, told: &Told, upto: i64) -> Option<String> {
    let shown: BTreeSet<&str> = told.events.iter().map(|event| event.event_id.as_str()).collect();
    let wanted = |receipt: &Receipt| {
        let mine = receipt.user_id == user_id;
        receipt.position > told.from
            && receipt.position <= upto
            && (receipt.kind != "m.read.private" || mine)
            && (!told.initial || mine || shown.contains(receipt.event_id.as_str()))
    };
    crate::sync::room::receipts(room, wanted)
}

fn own_receipt_moved(room: &LiveRoom, user_id: &UserId, from: i64, upto: i64) -> bool {
    room.receipts_at.load(Ordering::Acquire) > from
        && room
            .receipts
            .read()
            .values()
            .any(|r| r.user_id == user_id && r.position > from && r.position <= upto)
}

/// Name, picture, heroes and counts: with the first entry, and when they change.
fn write_name(out: &mut String, view: &RoomView, user_id: &UserId, (from, upto): (i64, i64), initial: bool) {
    let changed = |kind: &StateEventType| {
        view.state.event(kind, "").is_some_and(|event| event.position > from && event.position <= upto)
    };
    let text = |kind: StateEventType, field: &str| {
        view.state.content_str(&kind, "", field).filter(|text| !text.is_empty())
    };
    let name = text(StateEventType::RoomName, "name");
    if initial && name.is_some() || !initial && changed(&StateEventType::RoomName) {
        let _ = write!(out, ",\"name\":{}", Value::from(name.clone()));
    }
    let avatar = text(StateEventType::RoomAvatar, "url");
    if initial && avatar.is_some() || !initial && changed(&StateEventType::RoomAvatar) {
        let _ = write!(out, ",\"avatar\":{}", Value::from(avatar));
    }
    let members_changed = initial
        || view.row.state_version > from
            && view.state.of_type(&StateEventType::RoomMember).any(|event| event.position > from);
    if !members_changed && !changed(&StateEventType::RoomName) {
        return;
    }
    if name.is_none() {
        let heroes: Vec<Value> = heroes(view, user_id)
            .into_iter()
            .map(|id| {
                let member = view.state.event(&StateEventType::RoomMember, id.as_str());
                let mut hero = serde_json::json!({"user_id": id});
                for (key, field) in [("displayname", "displayname"), ("avatar_url", "avatar_url")] {
                    if let Some(text) = member.and_then(|event| event.content_str(field)) {
                        hero[key] = text.into();
                    }
                }
                hero
            })
            .collect();
        let _ = write!(out, ",\"heroes\":{}", Value::from(heroes));
    }
    let _ = write!(
        out,
        ",\"joined_count\":{},\"invited_count\":{}",
        view.state.members("join").count(),
        view.state.members("invite").count()
    );
}

/// The state to tell: what was asked for and changed, what is asked for now and was not before, and the members whom
/// the timeline needs (MSC4186, "Lazy loaded memberships").
fn required_state(
    view: &RoomView,
    config: &RoomConfig,
    old: Option<&Arc<RoomConfig>>,
    chunk: &Chunk,
    (from, upto): (i64, i64),
    initial: bool,
    user_id: &UserId,
) -> Vec<Arc<Event>> {
    let lazy = config.required.contains(&("m.room.member".to_owned(), LAZY.to_owned()));
    let mut lazily: BTreeSet<&str> = BTreeSet::new();
    if lazy {
        for event in &chunk.events {
            lazily.insert(event.sender.as_str());
            if event.membership.is_some() {
                lazily.extend(event.state_key.as_deref());
            }
        }
    }
    let mut events: Vec<Arc<Event>> = view
        .state
        .events()
        .filter(|event| {
            if event.position > upto {
                return false;
            }
            let (kind, key) = (event.kind.to_string(), event.state_key.as_deref().unwrap_or_default());
            let member = event.membership.is_some();
            if member && lazily.contains(key) {
                return true;
            }
            let changed = initial || event.position > from;
            if member && lazy && !initial && !chunk.limited && changed {
                return true;
            }
            wants(&config.required, &kind, key, user_id)
                && (changed || old.is_some_and(|old| !wants(&old.required, &kind, key, user_id)))
        })
        .cloned()
        .collect();
    events.sort_by_key(|event| event.position);
    events
}

fn wants(required: &BTreeSet<(String, String)>, kind: &str, key: &str, user_id: &UserId) -> bool {
    required.iter().any(|(of, state_key)| {
        (of == "*" || of == kind)
            && match state_key.as_str() {
                "*" => true,
                ME => key == user_id.as_str(),
                LAZY if of == "m.room.member" => false,
                exact => exact == key,
            }
    })
}
