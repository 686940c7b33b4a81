//! `GET /sync`: waits until there is something new, then tells it. An idle sync touches memory only.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ruma::{
    OwnedRoomId, RoomId,
    api::client::filter::{EventFormat, FilterDefinition, RoomFilter},
    events::StateEventType,
};

use super::{
    filter,
    render::{write_list, write_stripped},
    room::{self, Wanted},
    token::SyncToken,
    waiting::Waiting,
};
use crate::{
    error::Result,
    http::caller::Requester,
    keys::{self, sync::E2ee},
    rooms::{
        ignored::{self, Ignored},
        invites,
        live::{LiveUser, Membership},
        presence,
    },
    server::Server,
    store,
};

/// A sync request.
#[derive(Debug, Default)]
pub struct Request {
    /// `since`.
    pub since: Option<String>,
    /// `filter`: an id or JSON.
    pub filter: Option<String>,
    /// `full_state`.
    pub full_state: bool,
    /// `timeout`.
    pub timeout: Duration,
    /// `use_state_after`.
    pub state_after: bool,
    /// `set_presence`.
    pub presence: presence::State,
    /// Asked for as `org.matrix.msc4222.use_state_after`: it is answered by such a name.
    pub unstable_state_after: bool,
}

/// Answers a sync.
pub async fn sync(server: &Arc<Server>, who: &Requester, request: Request) -> Result<String> {
    let since = match request.since.as_deref().filter(|since| !since.is_empty()) {
        Some(text) => SyncToken::parse(text, &server.epoch)?,
        None => None,
    };
    let definition = definition(server, who, request.filter.as_deref()).await?;
    let user = server.live.user(&who.user_id);
    if let Some(since) = since {
        keys::sync::acknowledge(server, who, since.position).await?;
    }
    let first = since.unwrap_or_default();
    if request.presence != presence::State::Offline {
        presence::set(server, &who.user_id, request.presence, None);
    }
    let mut waiting = Waiting::new(server, who, request.timeout);
    loop {
        // The wake-up is asked for before looking, so that none is lost in between.
        let wake = user.wake.notified();
        tokio::pin!(wake);
        wake.as_mut().enable();
        let mut upto = SyncToken {
            position: server.live.position(),
            volatile: server.live.volatile(),
            typed: server.live.somebody_types(&user),
        };
        if upto.position < first.position {
            upto.position = first.position;
        }
        let idle = since.is_some()
            && !request.full_state
            && !something_new(&user, first, upto)
            && !retell_typing(server, first);
        if !idle {
            // Apart on the heap: a poll that waits does not hold the room that an answer takes while it is made.
            let made = Box::pin(answer(server, who, &user, &definition, &request, first, upto));
            let (body, something) = made.await?;
            if something || since.is_none() || request.full_state || waiting.over() {
                return Ok(body);
            }
        } else if waiting.over() {
            return empty(server, who, upto).await;
        }
        waiting.wait(&mut wake).await?;
    }
}

/// Whether there may be something for a user after a point: two atomic numbers tell.
pub fn something_new(user: &LiveUser, since: SyncToken, upto: SyncToken) -> bool {
    user.last_position.load(Ordering::Acquire) > since.position
        || user.last_volatile.load(Ordering::Acquire) > since.volatile.min(upto.volatile)
}

/// Whether the client was told that somebody types by a server that was restarted since: nobody would tell it that they
/// ceased to.
fn retell_typing(server: &Server, since: SyncToken) -> bool {
    since.typed && since.volatile < server.live.began()
}

async fn definition(server: &Server, who: &Requester, text: Option<&str>) -> Result<FilterDefinition> {
    match text {
        None | Some("") => Ok(FilterDefinition::default()),
        Some(json) if json.starts_with('{') => filter::parse(json),
        Some(id) => {
            let stored =
                store::personal::filter(&mut server.db.read().await?, who.user_id.as_str(), id).await?;
            filter::parse(&stored.ok_or_else(|| crate::error::invalid("No such filter."))?)
        }
    }
}

async fn empty(server: &Server, who: &Requester, upto: SyncToken) -> Result<String> {
    let mut out = format!("{{\"next_batch\":\"{}\"", upto.to_text(&server.epoch));
    write_e2ee(&keys::sync::e2ee(server, who, 0, upto.position).await?, &mut out)?;
    out.push('}');
    Ok(out)
}

async fn answer(
    server: &Arc<Server>,
    who: &Requester,
    user: &LiveUser,
    definition: &FilterDefinition,
    request: &Request,
    since: SyncToken,
    upto: SyncToken,
) -> Result<(String, bool)> {
    let memberships: Vec<(OwnedRoomId, Membership)> =
        user.rooms.read().iter().map(|(id, m)| (id.clone(), m.clone())).collect();
    let personal = user.personal_position.load(Ordering::Acquire) > since.position || since.position == 0;
    let mut account_data: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut upto = upto;
    // The rest comes with the next sync, which therefore begins at the last one told here.
    let to_device =
        keys::sync::to_device(server, who, since.position, upto.position, keys::sync::TO_DEVICE_MAX).await?;
    upto.position = to_device.upto;
    // Most syncs are of a message that somebody wrote: they need no database.
    if personal {
        let rows = store::personal::account_data_after(
            &mut server.db.read().await?,
            who.user_id.as_str(),
            since.position,
            upto.position,
        )
        .await?;
        for (room_id, kind, content) in rows {
            if !data_passes(definition, &room_id, &kind) {
                continue;
            }
            account_data.entry(room_id).or_default().push((kind, content));
        }
    }
    if since.position > 0 {
        let came = |m: &Membership| {
            m.membership == "join" && m.changed_at > since.position && m.changed_at <= upto.position
        };
        // With a room that the user came (back) to comes all that they wrote for it, whenever that was.
        for (room_id, _) in memberships.iter().filter(|(_, membership)| came(membership)) {
            let mut conn = server.db.read().await?;
            let (user_id, room_id) = (who.user_id.as_str(), room_id.as_str());
            let mut all =
                store::personal::account_data_of_room(&mut conn, user_id, room_id, upto.position).await?;
            all.retain(|(kind, _)| data_passes(definition, room_id, kind));
            if !all.is_empty() {
                account_data.insert(room_id.to_owned(), all);
            }
        }
    }
    let e2ee = keys::sync::e2ee(server, who, since.position, upto.position).await?;
    if since.position == 0
        && data_passes(definition, "", "m.push_rules")
        && !account_data.get("").is_some_and(|l| l.iter().any(|(k, _)| k == "m.push_rules"))
    {
        let rules = crate::push::rules::ruleset(server, &who.user_id).await?;
        let content = serde_json::json!({"global": crate::push::rules::global(&rules)?}).to_string();
        account_data.entry(String::new()).or_default().push(("m.push_rules".to_owned(), content));
    }
    let wanted = Wanted {
        who,
        since,
        upto,
        filter: &definition.room,
        raw: definition.event_format == EventFormat::Federation,
        full_state: request.full_state,
        state_after: request.state_after,
        retell_typing: retell_typing(server, since),
        unstable_state_after: request.unstable_state_after,
        account_data: &account_data,
        now: server.now(),
    };
    let ignored = ignored::by(server, &who.user_id).await?;
    if since.position == 0 {
        let joined = memberships.iter().filter(|(_, m)| m.membership == "join");
        let joined = joined.map(|(id, _)| id).filter(|id| is_wanted(&definition.room, id));
        let joined: Vec<OwnedRoomId> = joined.cloned().collect();
        server.live.prepare(&server.db, Vec::clone(&joined)).await?;
        crate::push::counts::prepare(server, &who.user_id, joined).await?;
    }
    let mut delivered = Vec::new();
    let mut join = String::new();
    let mut invite = String::new();
    let mut knock = String::new();
    let mut leave = String::new();
    for (room_id, membership) in &memberships {
        if !is_wanted(&definition.room, room_id) || membership.changed_at > upto.position {
            continue;
        }
        match membership.membership.as_str() {
            "join" => {
                let begin = join.len();
                let _ = write!(join, "{}\"{room_id}\":", if begin == 0 { "" } else { "," });
                let joined_at = membership.changed_at;
                if !room::write_joined(server, &wanted, room_id, joined_at, &mut delivered, &mut join).await?
                {
                    join.truncate(begin);
                }
            }
            // Who is invited once more, for another reason or by somebody else, is told.
            "invite"
                if membership.position > since.position
                    && invite_is_told(server, who, &ignored, room_id).await? =>
            {
                let at = membership.position;
                write_stripped_room(server, who, room_id, ("invite_state", at), &mut invite).await?;
            }
            "knock" if membership.position > since.position => {
                let at = membership.position;
                write_stripped_room(server, who, room_id, ("knock_state", at), &mut knock).await?;
            }
            "leave" | "ban" => {
                let told = if since.position == 0 {
                    !membership.forgotten
                        && definition.room.include_leave
                        && server.config.policy.former_members_read == "until_leave"
                } else {
                    // Forgotten on one device, the room has still ended for the others.
                    membership.changed_at > since.position
                        || definition.room.include_leave
                            && !membership.forgotten
                            && account_data.contains_key(room_id.as_str())
                };
                if told {
                    room::write_left(server, &wanted, room_id, membership, &mut delivered, &mut leave)
                        .await?;
                }
            }
            _ => {}
        }
    }
    crate::reading::delivered(server, who, &delivered).await?;
    let mut out = format!("{{\"next_batch\":\"{}\"", upto.to_text(&server.epoch));
    let rooms = [&join, &invite, &knock, &leave].iter().any(|part| !part.is_empty());
    if rooms {
        let _ = write!(
            out,
            ",\"rooms\":{{\"join\":{{{join}}},\"invite\":{{{invite}}},\"knock\":{{{knock}}},\"leave\":{{{leave}}}}}"
        );
    }
    let global = account_data.get("");
    if let Some(global) = global {
        out.push_str(",\"account_data\":{\"events\":");
        write_list(&mut out, global, |out, (kind, content)| {
            let _ =
                write!(out, "{{\"type\":{},\"content\":{content}}}", serde_json::Value::from(kind.as_str()));
        });
        out.push('}');
    }
    if !to_device.events.is_empty() {
        out.push_str(",\"to_device\":{\"events\":");
        write_list(&mut out, &to_device.events, |out, event| out.push_str(event));
        out.push('}');
    }
    let present = presence::changed(
        server,
        &who.user_id,
        &ignored,
        (since.volatile, upto.volatile),
        since.position == 0,
    );
    let present: Vec<_> =
        present.into_iter().filter(|(user_id, _)| passes_presence(&definition.presence, user_id)).collect();
    if !present.is_empty() {
        out.push_str(",\"presence\":{\"events\":");
        write_list(&mut out, &present, |out, (user_id, content)| {
            let _ = write!(out, "{{\"type\":\"m.presence\",\"sender\":\"{user_id}\",\"content\":{content}}}");
        });
        out.push('}');
    }
    write_e2ee(&e2ee, &mut out)?;
    out.push('}');
    let something =
        rooms || global.is_some() || !to_device.events.is_empty() || e2ee.is_news() || !present.is_empty();
    Ok((out, something))
}

/// Whether the filter lets a room through.
fn is_wanted(filter: &RoomFilter, room_id: &OwnedRoomId) -> bool {
    !filter.not_rooms.contains(room_id) && filter.rooms.as_ref().is_none_or(|rooms| rooms.contains(room_id))
}

/// Whether the filter lets account data through; `room_id` is "" for what belongs to no room.
fn data_passes(definition: &FilterDefinition, room_id: &str, kind: &str) -> bool {
    if room_id.is_empty() {
        let filter = &definition.account_data;
        return filter::kind_passes(filter.types.as_deref(), &filter.not_types, kind);
    }
    <&RoomId>::try_from(room_id)
        .is_ok_and(|room_id| filter::of_room_passes(&definition.room.account_data, room_id, kind))
}

/// Whether the filter lets somebody's presence through.
fn passes_presence(filter: &ruma::api::client::filter::Filter, user_id: &ruma::UserId) -> bool {
    !filter.not_senders.iter().any(|id| id == user_id)
        && filter.senders.as_ref().is_none_or(|senders| senders.iter().any(|id| id == user_id))
        && filter::kind_passes(filter.types.as_deref(), &filter.not_types, "m.presence")
}

/// Whose devices changed, and how many one-time keys the device has left; clients upload more when they see few.
fn write_e2ee(e2ee: &E2ee, out: &mut String) -> Result<()> {
    if e2ee.is_news() {
        let _ = write!(
            out,
            ",\"device_lists\":{{\"changed\":{},\"left\":{}}}",
            serde_json::to_string(&e2ee.changed)?,
            serde_json::to_string(&e2ee.left)?
        );
    }
    if let Some(counts) = &e2ee.counts {
        let _ = write!(
            out,
            ",\"device_one_time_keys_count\":{},\"device_unused_fallback_key_types\":{}",
            serde_json::to_string(&counts.one_time)?,
            serde_json::to_string(&counts.unused_fallbacks)?
        );
    }
    Ok(())
}

/// Whether an invitation reaches whom it is for: not where they ignore its sender or have set that it does not.
pub async fn invite_is_told(
    server: &Arc<Server>,
    who: &Requester,
    ignored: &Ignored,
    room_id: &RoomId,
) -> Result<bool> {
    let room = server.live.room(&server.db, room_id).await?;
    let view = room.current()?;
    let Some(own) = view.state.event(&StateEventType::RoomMember, who.user_id.as_str()) else {
        return Ok(true);
    };
    if ignored.contains(&own.sender) {
        return Ok(false);
    }
    let mut conn = server.db.read().await?;
    // One that was blocked later was there before.
    Ok(invites::verdict(&mut conn, &own.sender, &who.user_id).await? != invites::Verdict::Ignored)
}

/// A room that the user is invited to or knocks on, by its stripped state of that time.
async fn write_stripped_room(
    server: &Arc<Server>,
    who: &Requester,
    room_id: &RoomId,
    (part, at): (&str, i64),
    out: &mut String,
) -> Result<()> {
    let view = server.live.room(&server.db, room_id).await?.current()?;
    let events = room::invite_state(server, &view, &who.user_id, at).await?;
    let _ = write!(out, "{}\"{room_id}\":{{\"{part}\":{{\"events\":", if out.is_empty() { "" } else { "," });
    write_list(out, &events, |out, event| write_stripped(out, event));
    out.push_str("}}");
    Ok(())
}
