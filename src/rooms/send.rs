//! Sending: messages, state, redactions, receipts. Each is one unit of the committer.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomAliasId, OwnedRoomId,
    OwnedUserId, RoomAliasId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
};
use serde_json::Value;

use super::{
    append::Intent,
    batch::Batch,
    committer::{Hint, TxnKey},
    life,
    live::Receipt,
    member,
    pdu::Event,
    redaction::{self, Redaction},
};
use crate::{
    audit::{self, Origin},
    config::{CreateRooms, Encryption},
    error::{Code, Result, forbidden, invalid, not_found, refuse},
    server::Server,
    store,
};

/// An event as a caller wants it sent.
#[derive(Debug)]
pub struct Sending {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Who.
    pub sender: OwnedUserId,
    /// The type.
    pub kind: TimelineEventType,
    /// The state key, of state events.
    pub state_key: Option<String>,
    /// The content.
    pub content: CanonicalJsonObject,
    /// The client transaction.
    pub txn: Option<TxnKey>,
    /// The time to show, of appservices.
    pub ts: Option<i64>,
    /// From where, of people.
    pub origin: Option<Origin>,
}

/// What members may send as a message at a power below that of state: as state it would stay in every sync, or fool
/// clients into hiding what the server keeps.
const NEVER_STATE: [&str; 6] =
    ["m.room.redaction", "m.reaction", "m.room.message", "m.room.encrypted", "m.sticker", "m.poll.start"];

/// State that says who may come in, read and do what: a change of it is a change of permissions (C23).
const PERMISSIONS: [&str; 4] =
    ["m.room.power_levels", "m.room.join_rules", "m.room.history_visibility", "m.room.guest_access"];

/// Sends an event and answers its id when it is durable.
pub async fn send(server: &Server, sending: Sending) -> Result<OwnedEventId> {
    let kind = sending.kind.to_string();
    if sending.state_key.is_none() && (kind == "m.room.redaction" || kind == "m.room.create") {
        return Err(refuse(Code::InvalidParam, "Redactions have an endpoint of their own."));
    }
    if sending.state_key.is_some() && kind == "m.room.create" {
        return Err(forbidden("A room is created once."));
    }
    known_room(server, &sending.sender, &sending.room_id)?;
    if kind.starts_with("jp.heya.")
        && sending.sender != server.city_user
        && !server.config.policy.open_profile
    {
        return Err(forbidden("What stands under jp.heya is the city's."));
    }
    if sending.state_key.is_some() && NEVER_STATE.contains(&kind.as_str()) {
        return Err(forbidden("This is a message and never state."));
    }
    let hint = Hint { rooms: vec![sending.room_id.clone()], txn: sending.txn.clone() };
    server
        .commit(hint, move |batch| {
            Box::pin(async move {
                if kind == "m.room.power_levels" || kind == "m.room.join_rules" {
                    check_rules_of_room(batch, &sending).await?;
                }
                if kind == "m.room.canonical_alias" && sending.state_key.is_some() {
                    check_aliases(batch, &sending).await?;
                }
                if kind == "m.reaction" {
                    check_reaction(batch, &sending).await?;
                }
                check_edit(batch, &sending).await?;
                if kind == "m.room.member" && sending.state_key.is_some() {
                    check_member(batch, &sending).await?;
                }
                let permissions = match &sending.state_key {
                    Some(state_key) if PERMISSIONS.contains(&kind.as_str()) => {
                        let state = &batch.room(&sending.room_id).await?.state;
                        let present = state.event(&StateEventType::from(kind.as_str()), state_key);
                        Some(present.map(|event| event.event_id.clone()))
                    }
                    _ => None,
                };
                let intent = Intent {
                    room_id: &sending.room_id,
                    sender: &sending.sender,
                    kind: sending.kind,
                    state_key: sending.state_key,
                    content: sending.content,
                    redacts: None,
                    ts: sending.ts,
                    txn: sending.txn,
                    through_closed: false,
                };
                let event_id = batch.append(intent).await?.event_id.clone();
                if permissions.is_some_and(|before| before.as_ref() != Some(&event_id)) {
                    if let Some(origin) = &sending.origin {
                        batch.acting_from(origin.clone());
                    }
                    life::record(
                        batch,
                        sending.sender.as_str(),
                        "room.permissions",
                        &sending.room_id,
                        &kind,
                        "",
                    );
                }
                // In the control room what somebody writes may be an order.
                if let Some(origin) = &sending.origin
                    && batch.room(&sending.room_id).await?.row.kind == "control"
                {
                    store::events::keep_origin(batch.sql().await?, &event_id, origin).await?;
                }
                Ok(event_id)
            })
        })
        .await
}

/// From where an event was sent: as it was kept with it, or what its device's session still tells.
pub async fn origin_of(batch: &mut Batch, event: &Event) -> Result<Origin> {
    let sender = event.sender.as_str();
    if let Some(origin) = store::events::origin(batch.reading(), &event.event_id, sender).await? {
        return Ok(origin);
    }
    let mut origin = Origin { actor: sender.to_owned(), ..Origin::default() };
    if let Some(txn) = &event.txn {
        let sessions = store::sessions::sessions_of(batch.reading(), sender, Some(&txn.device_id)).await?;
        origin.terminal = sessions.first().and_then(|session| session.terminal);
    }
    Ok(origin)
}

/// Who has nothing to do with a room is not told whether it exists.
fn known_room(server: &Server, user_id: &UserId, room_id: &RoomId) -> Result<()> {
    match server.live.membership(user_id, room_id) {
        Some(_) => Ok(()),
        None => Err(forbidden("You are not a member of this room.")),
    }
}

/// In a city room nobody but the city itself changes who may come in and do what, so that the rules of DESIGN 14 stay; a
/// direct room stays one of two.
async fn check_rules_of_room(batch: &mut Batch, sending: &Sending) -> Result<()> {
    let direct_stays = batch.policy.create_rooms == CreateRooms::City;
    let row = &batch.room(&sending.room_id).await?.row;
    let fixed = row.room_number.is_some() || direct_stays && row.kind == "direct";
    if fixed && sending.sender.localpart() != "city" {
        return Err(forbidden("Who may do what in this room is set by the city."));
    }
    Ok(())
}

/// A room's aliases lead to the room (client-server API, `PUT …/state/{eventType}/{stateKey}`). What the present event
/// names already is not looked at again: an alias that is gone must not keep another from being set.
async fn check_aliases(batch: &mut Batch, sending: &Sending) -> Result<()> {
    const ALIASES_MAX: usize = 100;
    let malformed = || invalid("An alias of the room is not well formed.");
    let named = |content: &Value| -> Result<Vec<OwnedRoomAliasId>> {
        let mut texts = Vec::new();
        match &content["alias"] {
            Value::Null => {}
            // Clients take the alias away like this.
            Value::String(text) if text.is_empty() => {}
            alias => texts.push(alias),
        }
        match &content["alt_aliases"] {
            Value::Null => {}
            Value::Array(list) => texts.extend(list),
            _ => return Err(malformed()),
        }
        let parsed = texts
            .into_iter()
            .map(|text| text.as_str().and_then(|text| RoomAliasId::parse(text).ok()).ok_or_else(malformed));
        parsed.collect()
    };
    let aliases = named(&serde_json::to_value(&sending.content)?)?;
    if aliases.len() > ALIASES_MAX {
        return Err(invalid("A room has at most 100 aliases."));
    }
    let kind = StateEventType::RoomCanonicalAlias;
    let state_key = sending.state_key.as_deref().unwrap_or_default();
    let present = batch.room(&sending.room_id).await?.state.event(&kind, state_key);
    let present: Value = match present {
        Some(present) => serde_json::from_str(present.content.get())?,
        None => Value::Null,
    };
    let present = named(&present).unwrap_or_default();
    for alias in aliases {
        if present.contains(&alias) {
            continue;
        }
        let led_to = store::rooms::of_alias(batch.reading(), alias.as_str()).await?;
        if led_to.is_none_or(|(room_id, _)| room_id != sending.room_id) {
            return Err(refuse(Code::BadAlias, "An alias of the room does not lead to it."));
        }
    }
    Ok(())
}

/// A membership that an appservice sets as state, with fields of its own: bound by the same rules as the endpoint for it, and
/// with the same line in the audit log (C23).
async fn check_member(batch: &mut Batch, sending: &Sending) -> Result<()> {
    let target = OwnedUserId::try_from(sending.state_key.as_deref().unwrap_or_default())
        .map_err(|_| invalid("The state key is no user id."))?;
    let membership =
        sending.content.get("membership").and_then(CanonicalJsonValue::as_str).unwrap_or_default();
    if membership == "invite" {
        member::check_invitation(batch, &sending.room_id, &sending.sender, &target).await?;
    }
    let before = batch.room(&sending.room_id).await?.state.membership(&target);
    let action = match membership {
        now if now == before.as_str() => return Ok(()),
        "invite" => "member.invite",
        "join" => "member.join",
        "knock" => "member.knock",
        "ban" => "member.ban",
        _ if target == sending.sender => "member.leave",
        _ if before.as_str() == "ban" => "member.unban",
        _ => "member.remove",
    };
    let at = batch.now;
    batch.audit(audit::Entry {
        at,
        actor: sending.sender.to_string(),
        action: action.to_owned(),
        target: target.to_string(),
        room_id: sending.room_id.to_string(),
        result: "ok".to_owned(),
        ..audit::Entry::default()
    });
    Ok(())
}

/// Nobody edits what was redacted: an edit that was under way then would bring the text back.
async fn check_edit(batch: &mut Batch, sending: &Sending) -> Result<()> {
    let relates = sending.content.get("m.relates_to").and_then(|r| r.as_object());
    let field = |name: &str| relates.and_then(|r| r.get(name)).and_then(|v| v.as_str());
    let (Some("m.replace"), Some(target)) = (field("rel_type"), field("event_id")) else { return Ok(()) };
    let known = sending.txn.as_ref().is_some_and(|key| batch.known_txn(key).is_some());
    let Some(target) = <&EventId>::try_from(target).ok().filter(|_| !known) else { return Ok(()) };
    match batch.event(target).await? {
        Some(event) if event.room_id == sending.room_id && event.redacted_by.is_some() => {
            Err(forbidden("This message was removed (この投稿は取り消されています)."))
        }
        _ => Ok(()),
    }
}

/// One reaction of a kind per person and event (client-server API, "Event annotations and reactions").
async fn check_reaction(batch: &mut Batch, sending: &Sending) -> Result<()> {
    if sending.txn.as_ref().is_some_and(|key| batch.known_txn(key).is_some()) {
        return Ok(());
    }
    let relates = sending.content.get("m.relates_to").and_then(|r| r.as_object());
    let field = |name: &str| relates.and_then(|r| r.get(name)).and_then(|v| v.as_str());
    let (Some(target), Some(key)) = (field("event_id"), field("key")) else { return Ok(()) };
    let twice = store::one!(
        batch.reading(),
        (String,),
        "SELECT event_id FROM relations WHERE target_id = $1 AND rel_type = 'm.annotation' AND sender = $2 AND key = $3 \
         AND room_id = $4",
        target,
        sending.sender.as_str(),
        key,
        sending.room_id.as_str()
    )?
    .is_some();
    if twice {
        return Err(refuse(Code::DuplicateAnnotation, "You have reacted with this already."));
    }
    Ok(())
}

/// Redacts an event with the edits of it: one's own always, others' by power level.
pub async fn redact(
    server: &Server,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    target: OwnedEventId,
    reason: Option<String>,
    txn: Option<TxnKey>,
) -> Result<OwnedEventId> {
    known_room(server, &sender, &room_id)?;
    let hint = Hint { rooms: vec![room_id.clone()], txn: txn.clone() };
    server
        .commit(hint, move |batch| {
            Box::pin(async move {
                if let Some(known) = txn.as_ref().and_then(|key| batch.known_txn(key)) {
                    return Ok(known);
                }
                let event = batch
                    .event(&target)
                    .await?
                    .filter(|event| event.room_id == room_id)
                    .ok_or_else(|| not_found("No such event in this room."))?;
                if event.kind == TimelineEventType::RoomCreate {
                    return Err(forbidden("A room's creation cannot be redacted."));
                }
                if event.sender != sender && !may_redact_others(batch, &room_id, &sender).await? {
                    return Err(forbidden("You may redact only what you wrote yourself."));
                }
                if event.is_state() && !may_set(batch, &room_id, &sender, &event).await? {
                    return Err(forbidden("You may redact only what you could set."));
                }
                let mut content = CanonicalJsonObject::new();
                if let Some(reason) = reason {
                    content.insert("reason".to_owned(), reason.into());
                }
                let redaction = Redaction {
                    room_id: &room_id,
                    sender: &sender,
                    event: &event,
                    content,
                    txn,
                    through_closed: false,
                    keeps_original: true,
                };
                redaction::redact(batch, redaction).await
            })
        })
        .await
}

/// In a room of the city, whoever empties a piece of state must be able to set it; one's own membership stays readable.
async fn may_set(batch: &mut Batch, room_id: &RoomId, user_id: &UserId, event: &Event) -> Result<bool> {
    let room = batch.room(room_id).await?;
    if room.row.room_number.is_none() {
        return Ok(true);
    }
    let levels = room.state.event(&StateEventType::RoomPowerLevels, "");
    let levels: Value = match levels {
        Some(levels) => serde_json::from_str(levels.content.get())?,
        None => Value::Null,
    };
    let needed =
        levels["events"][event.kind.to_string()].as_i64().or_else(|| levels["state_default"].as_i64());
    Ok(power(room, user_id)? >= needed.unwrap_or(50))
}

/// Whether the user's power reaches the room's `redact` level.
async fn may_redact_others(batch: &mut Batch, room_id: &RoomId, user_id: &UserId) -> Result<bool> {
    let room = batch.room(room_id).await?;
    Ok(power(room, user_id)? >= level(&room.state, "redact", 50))
}

/// The power of a user in a room; a creator's has no end in room version 12.
pub fn power(room: &super::batch::RoomDraft, user_id: &UserId) -> Result<i64> {
    power_in(&room.row.version, &room.state, user_id)
}

/// As [`power`], on a state.
pub fn power_in(
    version: &ruma::RoomVersionId,
    state: &super::state::RoomState,
    user_id: &UserId,
) -> Result<i64> {
    let rules = super::append::rules_of(version)?;
    let create = state.event(&StateEventType::RoomCreate, "");
    let is_creator = create.is_some_and(|create| {
        create.sender == *user_id
            || (rules.authorization.additional_room_creators
                && create
                    .content_field("additional_creators")
                    .and_then(|list| list.as_array().map(|l| l.iter().any(|id| id == user_id.as_str())))
                    .unwrap_or(false))
    });
    if is_creator && rules.authorization.explicitly_privilege_room_creators {
        return Ok(i64::MAX);
    }
    let Some(levels) = state.event(&StateEventType::RoomPowerLevels, "") else {
        return Ok(if is_creator { 100 } else { 0 });
    };
    let levels: Value = serde_json::from_str(levels.content.get())?;
    Ok(levels["users"][user_id.as_str()].as_i64().or_else(|| levels["users_default"].as_i64()).unwrap_or(0))
}

/// A level of the power levels, such as `redact`.
pub fn level(state: &super::state::RoomState, name: &str, otherwise: i64) -> i64 {
    state
        .event(&StateEventType::RoomPowerLevels, "")
        .and_then(|event| event.content_field(name))
        .and_then(|value| value.as_i64())
        .unwrap_or(otherwise)
}

/// Moves the user's receipts and the fully-read marker. A receipt never moves backwards.
pub async fn read(
    server: &Server,
    user_id: OwnedUserId,
    room_id: OwnedRoomId,
    receipts: Vec<(String, String, OwnedEventId)>,
    fully_read: Option<OwnedEventId>,
) -> Result<()> {
    let room = server.live.room(&server.db, &room_id).await?;
    let mut moves = Vec::new();
    for (kind, thread, event_id) in receipts {
        check_thread(server, &room, &user_id, &thread).await?;
        let Some(event) = super::history::event_of(server, &room, &event_id).await? else { continue };
        if event.room_id != room_id {
            continue;
        }
        let key = (user_id.clone(), kind.clone(), thread.clone());
        if room.receipts.read().get(&key).is_some_and(|old| old.event_order >= event.position) {
            continue;
        }
        moves.push((kind, thread, event));
    }
    if moves.is_empty() && fully_read.is_none() {
        return Ok(());
    }
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                for (kind, thread, event) in moves {
                    batch.receipt(receipt(&room_id, &user_id, kind, thread, &event, batch.now));
                }
                if let Some(event_id) = fully_read {
                    let content = serde_json::json!({"event_id": event_id}).to_string();
                    batch.account_data(&user_id, room_id.as_str(), "m.fully_read", content);
                }
                Ok(())
            })
        })
        .await
}

/// A thread is `main` or an event of the room, and one person has so many threads in one room.
async fn check_thread(
    server: &Server,
    room: &super::live::LiveRoom,
    user_id: &UserId,
    thread: &str,
) -> Result<()> {
    const THREADS_MAX: usize = 500;
    if thread.is_empty() || thread == "main" {
        return Ok(());
    }
    let known = match <&EventId>::try_from(thread) {
        Ok(id) => super::history::event_of(server, room, id).await?,
        Err(_) => None,
    };
    let of_room =
        known.is_some_and(|event| room.view().is_some_and(|view| view.row.room_id == event.room_id));
    let threads = room.receipts.read().keys().filter(|(user, _, _)| user == user_id).count();
    if !of_room || threads > THREADS_MAX {
        return Err(crate::error::invalid("thread_id is \"main\" or the id of an event of the room."));
    }
    Ok(())
}

fn receipt(
    room_id: &RoomId,
    user_id: &UserId,
    kind: String,
    thread: String,
    event: &Arc<Event>,
    ts: i64,
) -> Receipt {
    Receipt {
        room_id: room_id.to_owned(),
        user_id: user_id.to_owned(),
        kind,
        thread,
        event_id: event.event_id.clone(),
        event_order: event.position,
        ts,
        position: 0,
    }
}

/// The longest id that a client chooses, in bytes: PostgreSQL's indexes hold no long ones.
pub const ID_BYTES_MAX: usize = 255;

/// A transaction key of a client's request.
pub fn txn_key(user_id: &UserId, device_id: Option<&str>, scope: String, txn_id: &str) -> Result<TxnKey> {
    if txn_id.len() > ID_BYTES_MAX || scope.len() > 4 * ID_BYTES_MAX {
        return Err(crate::error::invalid("A transaction id has at most 255 bytes."));
    }
    Ok(TxnKey {
        user_id: user_id.to_owned(),
        device_id: device_id.unwrap_or_default().to_owned(),
        scope,
        txn_id: txn_id.to_owned(),
    })
}

/// An event id as it may come in a path.
pub fn event_id(text: &str) -> Result<OwnedEventId> {
    <&EventId>::try_from(text)
        .map(ToOwned::to_owned)
        .map_err(|_| crate::error::invalid("That is no event id."))
}

/// Refuses account data that would bring key screens back where encryption is forbidden (STACK, DESIGN 13).
pub fn check_account_data(server: &Server, kind: &str) -> Result<()> {
    let secret = kind.starts_with("m.secret_storage.")
        || kind.starts_with("m.cross_signing.")
        || kind.starts_with("m.megolm_backup");
    if secret && server.config.policy.encryption == Encryption::Forbidden {
        return Err(forbidden("Encryption between users is switched off on this server."));
    }
    Ok(())
}
