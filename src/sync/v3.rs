//! `GET /sync`: waits until there is something new, then tells it. An idle sync touches memory only.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ruma::{OwnedRoomId, RoomId, api::client::filter::FilterDefinition, events::StateEventType};

use super::{
    bundle, filter,
    render::{write_bundled, write_list, write_stripped},
    room::{self, Wanted},
    token::SyncToken,
};
use crate::{
    error::{Code, Result, refuse},
    http::caller::Requester,
    rooms::{
        ignored::{self, Ignored},
        invites,
        live::{LiveUser, Membership},
        presence,
    },
    server::Server,
    store,
};

/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// Messages to a device in one sync.
const TO_DEVICE_MAX: i64 = 100;

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
}

/// Answers a sync.
pub async fn sync(server: &Arc<Server>, who: &Requester, request: Request) -> Result<String> {
    let since = match request.since.as_deref().filter(|since| !since.is_empty()) {
        Some(text) => SyncToken::parse(text, &server.epoch)?,
        None => None,
    };
    let definition = definition(server, who, request.filter.as_deref()).await?;
    let user = server.live.user(&who.user_id);
    if let (Some(since), Some(device)) = (since, &who.device_id) {
        acknowledge(server, who, device, since.position, &user).await?;
    }
    let first = since.unwrap_or(SyncToken { position: 0, volatile: 0 });
    if request.presence != presence::State::Offline {
        presence::set(server, &who.user_id, request.presence, None);
    }
    let deadline = tokio::time::Instant::now() + request.timeout.min(WAIT_MAX);
    let mut stopping = server.stopping.subscribe();
    let mut ended = who.session.as_ref().map(|session| session.ended.subscribe());
    loop {
        // The wake-up is asked for before looking, so that none is lost in between.
        let wake = user.wake.notified();
        tokio::pin!(wake);
        wake.as_mut().enable();
        let mut upto = SyncToken { position: server.live.position(), volatile: server.live.volatile() };
        if upto.position < first.position {
            upto.position = first.position;
        }
        let idle = since.is_some()
            && !request.full_state
            && user.last_position.load(Ordering::Acquire) <= first.position
            && user.last_volatile.load(Ordering::Acquire) <= first.volatile.min(upto.volatile);
        if !idle {
            let (body, something) = answer(server, who, &user, &definition, &request, first, upto).await?;
            if something || since.is_none() || request.full_state || tokio::time::Instant::now() >= deadline {
                return Ok(body);
            }
        } else if tokio::time::Instant::now() >= deadline {
            return empty(server, who, upto).await;
        }
        tokio::select! {
            () = &mut wake => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = crate::server::stopped(&mut stopping) => return empty(server, who, upto).await,
            () = session_ended(&mut ended) => {
                return Err(refuse(Code::UnknownToken { soft_logout: false }, "This session has ended: please log in."));
            }
        }
    }
}

async fn session_ended(ended: &mut Option<tokio::sync::watch::Receiver<bool>>) {
    match ended {
        Some(ended) => {
            // The sender goes with the session: either way it is over.
            let _ = ended.wait_for(|ended| *ended).await;
        }
        None => std::future::pending().await,
    }
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

/// A device that syncs past its messages has them (client-server API, "Send-to-Device messaging").
async fn acknowledge(
    server: &Server,
    who: &Requester,
    device: &str,
    position: i64,
    user: &LiveUser,
) -> Result<()> {
    // Read before the database is asked: a message that comes afterwards moves it, and is asked for then.
    let personal = user.personal_position.load(Ordering::Acquire);
    if personal == 0 || user.nothing_waits_at.load(Ordering::Acquire) == personal {
        return Ok(());
    }
    let mut conn = server.db.read().await?;
    let waiting = store::keys::to_device(&mut conn, who.user_id.as_str(), device, 0, position, 1).await?;
    if waiting.is_empty() {
        if !store::keys::any_to_device(&mut conn, who.user_id.as_str()).await? {
            user.nothing_waits_at.store(personal, Ordering::Release);
        }
        return Ok(());
    }
    drop(conn);
    let (user_id, device) = (who.user_id.clone(), device.to_owned());
    server
        .commit(crate::rooms::committer::Hint::default(), move |batch| {
            Box::pin(async move {
                store::keys::acknowledge_to_device(batch.sql().await?, user_id.as_str(), &device, position)
                    .await?;
                Ok(())
            })
        })
        .await
}

async fn empty(server: &Server, who: &Requester, upto: SyncToken) -> Result<String> {
    let mut out = format!("{{\"next_batch\":\"{}\"", upto.to_text(&server.epoch));
    write_key_counts(server, who, &mut out).await?;
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
    let mut to_device = Vec::new();
    let mut changed_devices = Vec::new();
    let mut upto = upto;
    // Most syncs are of a message that somebody wrote: they need no database.
    let keys_changed =
        since.position > 0 && server.live.device_keys_at.load(Ordering::Acquire) > since.position;
    if personal || keys_changed {
        let mut conn = server.db.read().await?;
        if personal {
            let rows = store::personal::account_data_after(
                &mut conn,
                who.user_id.as_str(),
                since.position,
                upto.position,
            )
            .await?;
            for (room_id, kind, content) in rows {
                account_data.entry(room_id).or_default().push((kind, content));
            }
            if let Some(device) = &who.device_id {
                to_device = store::keys::to_device(
                    &mut conn,
                    who.user_id.as_str(),
                    device,
                    since.position,
                    upto.position,
                    TO_DEVICE_MAX,
                )
                .await?;
            }
        }
        if keys_changed {
            changed_devices = store::keys::changed(&mut conn, since.position, upto.position).await?;
            changed_devices.retain(|id| {
                <&ruma::UserId>::try_from(id.as_str())
                    .is_ok_and(|id| server.live.share_a_room(&who.user_id, id))
            });
        }
    }
    if to_device.len() == usize::try_from(TO_DEVICE_MAX).unwrap_or(usize::MAX) {
        // The rest comes with the next sync, which therefore begins at the last one told here.
        if let Some((last, _)) = to_device.last() {
            upto.position = *last;
        }
    }
    if since.position == 0
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
        full_state: request.full_state,
        state_after: request.state_after,
        account_data: &account_data,
        now: server.now(),
    };
    let ignored = ignored::by(server, &who.user_id).await?;
    let mut join = String::new();
    let mut invite = String::new();
    let mut knock = String::new();
    let mut leave = String::new();
    for (room_id, membership) in &memberships {
        if definition.room.not_rooms.contains(room_id)
            || definition.room.rooms.as_ref().is_some_and(|rooms| !rooms.contains(room_id))
            || membership.changed_at > upto.position
        {
            continue;
        }
        match membership.membership.as_str() {
            "join" => {
                let begin = join.len();
                let _ = write!(join, "{}\"{room_id}\":", if begin == 0 { "" } else { "," });
                if !room::write_joined(server, &wanted, room_id, membership.changed_at, &mut join).await? {
                    join.truncate(begin);
                }
            }
            "invite"
                if membership.changed_at > since.position
                    && invite_is_told(server, who, &ignored, room_id).await? =>
            {
                write_stripped_room(server, who, room_id, "invite_state", &mut invite).await?;
            }
            "knock" if membership.changed_at > since.position => {
                write_stripped_room(server, who, room_id, "knock_state", &mut knock).await?;
            }
            "leave" | "ban" if !membership.forgotten => {
                let told = if since.position == 0 {
                    definition.room.include_leave && server.config.policy.former_members_read == "until_leave"
                } else {
                    membership.changed_at > since.position
                };
                if told {
                    write_left(server, &wanted, room_id, membership, &mut leave).await?;
                }
            }
            _ => {}
        }
    }
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
    if !to_device.is_empty() {
        out.push_str(",\"to_device\":{\"events\":");
        write_list(&mut out, &to_device, |out, (_, event)| out.push_str(event));
        out.push('}');
    }
    if !changed_devices.is_empty() {
        let _ = write!(
            out,
            ",\"device_lists\":{{\"changed\":{},\"left\":[]}}",
            serde_json::Value::from(changed_devices.clone())
        );
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
    write_key_counts(server, who, &mut out).await?;
    out.push('}');
    let something = rooms
        || global.is_some()
        || !to_device.is_empty()
        || !changed_devices.is_empty()
        || !present.is_empty();
    Ok((out, something))
}

/// Whether the filter lets somebody's presence through.
fn passes_presence(filter: &ruma::api::client::filter::Filter, user_id: &ruma::UserId) -> bool {
    let is_presence = |kind: &String| matches!(kind.as_str(), "m.presence" | "*" | "m.*");
    !filter.not_senders.iter().any(|id| id == user_id)
        && filter.senders.as_ref().is_none_or(|senders| senders.iter().any(|id| id == user_id))
        && !filter.not_types.iter().any(is_presence)
        && filter.types.as_ref().is_none_or(|types| types.iter().any(is_presence))
}

/// How many one-time keys the device has left; clients upload more when they see few.
async fn write_key_counts(server: &Server, who: &Requester, out: &mut String) -> Result<()> {
    let Some(device) = &who.device_id else { return Ok(()) };
    if server.config.policy.encryption == crate::config::Encryption::Forbidden {
        // Nobody claims keys: a constant spares every idle sync two queries, and keeps clients from uploading more.
        out.push_str(",\"device_one_time_keys_count\":{\"signed_curve25519\":50},\"device_unused_fallback_key_types\":[\"signed_curve25519\"]");
        return Ok(());
    }
    let mut conn = server.db.read().await?;
    let counts = store::keys::one_time_key_counts(&mut conn, who.user_id.as_str(), device).await?;
    let fallbacks = store::keys::unused_fallbacks(&mut conn, who.user_id.as_str(), device).await?;
    let mut counts: BTreeMap<String, i64> = counts.into_iter().collect();
    counts.entry("signed_curve25519".to_owned()).or_insert(0);
    let _ = write!(
        out,
        ",\"device_one_time_keys_count\":{},\"device_unused_fallback_key_types\":{}",
        serde_json::to_string(&counts)?,
        serde_json::to_string(&fallbacks)?
    );
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

/// A room that the user is invited to or knocks on, by its stripped state.
async fn write_stripped_room(
    server: &Arc<Server>,
    who: &Requester,
    room_id: &RoomId,
    part: &str,
    out: &mut String,
) -> Result<()> {
    let room = server.live.room(&server.db, room_id).await?;
    let view = room.current()?;
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
        events.extend(view.state.event(&kind, "").cloned());
    }
    if let Some(own) = view.state.event(&StateEventType::RoomMember, who.user_id.as_str()) {
        events.extend(view.state.event(&StateEventType::RoomMember, own.sender.as_str()).cloned());
        events.push(Arc::clone(own));
    }
    let _ = write!(out, "{}\"{room_id}\":{{\"{part}\":{{\"events\":", if out.is_empty() { "" } else { "," });
    write_list(out, &events, |out, event| write_stripped(out, event));
    out.push_str("}}");
    Ok(())
}

/// A room that the user left: the leave event, and what came before it where former members may read it.
async fn write_left(
    server: &Arc<Server>,
    wanted: &Wanted<'_>,
    room_id: &RoomId,
    membership: &Membership,
    out: &mut String,
) -> Result<()> {
    let room = server.live.room(&server.db, room_id).await?;
    let mut events = Vec::new();
    let mut bundles = bundle::Bundles::default();
    if server.config.policy.former_members_read == "until_leave" {
        let (_, sight) = crate::rooms::history::sight(server, &wanted.who.user_id, room_id).await?;
        let upto = membership.changed_at;
        let limit = room::timeline_limit(wanted.filter);
        let ignored = ignored::by(server, &wanted.who.user_id).await?;
        let pick = |event: &crate::rooms::pdu::Event| {
            filter::passes(&wanted.filter.timeline, event)
                && sight.sees(event.position)
                && !ignored.hides(event)
        };
        events =
            room::timeline(server, &room, room_id, (wanted.since.position, upto), limit, pick).await?.events;
        bundles = bundle::bundle(server, wanted.who, &room, &sight, &events).await?;
    } else if let Some(event) = crate::rooms::history::event_of(server, &room, &membership.event_id).await? {
        events.push(event);
    }
    let start = events.first().map_or(wanted.upto.position, |event| event.position - 1);
    let _ =
        write!(out, "{}\"{room_id}\":{{\"timeline\":{{\"events\":", if out.is_empty() { "" } else { "," });
    write_list(out, &events, |out, event| {
        write_bundled(out, event, &bundles, wanted.who, wanted.now, false);
    });
    let _ = write!(
        out,
        ",\"limited\":false,\"prev_batch\":\"{}\"}},\"state\":{{\"events\":[]}}}}",
        super::token::room_token(start, &server.epoch)
    );
    Ok(())
}
