//! The city's rooms (DESIGN 14, 15): opened, changed and closed as one unit each, keyed by the case.

use ruma::{OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId, events::StateEventType};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use unicode_normalization::UnicodeNormalization as _;

use super::{
    append::Intent,
    batch::Batch,
    control_room,
    create::{self, NewRoom},
    member,
};
use crate::{
    error::{Code, Result, forbidden, refuse},
    store,
};

/// The type of the state event that says what a city room is.
pub const ROOM_STATE: &str = "jp.heya.room";

/// What to open.
#[derive(Debug)]
pub struct Opening {
    /// `subject`, `association`, `announcement`, `control` or `liaison`.
    pub kind: String,
    /// The name.
    pub name: String,
    /// The reference of the subject's record (a hash, no name).
    pub subject_key: Option<String>,
    /// The facility of a liaison room.
    pub facility: Option<i64>,
    /// Who is in it.
    pub members: Vec<OwnedUserId>,
    /// City staff among the members, who get power 50.
    pub staff: Vec<OwnedUserId>,
    /// The first message.
    pub notice: Option<String>,
    /// The case that opens it.
    pub case: Option<String>,
}

/// Opens a room with exactly the members and powers of DESIGN 14; returns its id and room number (部屋番号).
pub async fn open(batch: &mut Batch, city: &UserId, opening: Opening) -> Result<(OwnedRoomId, i64)> {
    let number = store::meta::next_number(batch.sql().await?, "room", 1).await?;
    let staff: serde_json::Map<String, Value> =
        opening.staff.iter().map(|id| (id.to_string(), 50.into())).collect();
    let messages = if opening.kind == "announcement" { 50 } else { 0 };
    let room = NewRoom {
        creator: city.to_owned(),
        version: RoomVersionId::V12,
        kind: opening.kind.clone(),
        preset: "private_chat".to_owned(),
        creation_content: ruma::CanonicalJsonObject::new(),
        power_levels: Some(json!({
            "users": staff, "users_default": 0, "events_default": messages, "state_default": 50,
            "invite": 50, "kick": 50, "ban": 50, "redact": 50, "notifications": {"room": 50},
            "events": {
                // A reaction and one's own redaction are always allowed, in the announcement room too.
                "m.reaction": 0, "m.room.redaction": 0,
                // Only the city itself, whose power has no end, changes these.
                "m.room.power_levels": 100, "m.room.history_visibility": 100, "m.room.join_rules": 100,
                "m.room.guest_access": 100, "m.room.encryption": 100, "m.room.server_acl": 100,
                "m.room.tombstone": 150, (ROOM_STATE): 100,
            },
        })),
        initial_state: vec![
            ("m.room.guest_access".to_owned(), String::new(), json!({"guest_access": "forbidden"})),
            (
                ROOM_STATE.to_owned(),
                String::new(),
                room_state(&opening.kind, Some(number), opening.subject_key.as_deref(), "open"),
            ),
        ],
        name: Some(opening.name),
        topic: None,
        invite: Vec::new(),
        is_direct: false,
    };
    let room_id = create::create(batch, room).await?;
    {
        let draft = batch.room_mut(&room_id).await?;
        draft.row.room_number = Some(number);
        draft.row.facility = opening.facility;
        draft.row.subject_key = opening.subject_key;
        draft.row.opened_by_case = opening.case;
    }
    for user_id in &opening.members {
        member::invite(batch, &room_id, city, user_id, None).await?;
    }
    if let Some(text) = opening.notice {
        say(batch, city, &room_id, &text).await?;
    }
    Ok((room_id, number))
}

/// Posts a notice as the city.
pub async fn say(
    batch: &mut Batch,
    city: &UserId,
    room_id: &RoomId,
    text: &str,
) -> Result<ruma::OwnedEventId> {
    Ok(batch.append(notice(city, room_id, text)?).await?.event_id.clone())
}

/// As [`say`], in a closed room too: for what must be told there (DESIGN 15).
pub async fn say_through(batch: &mut Batch, city: &UserId, room_id: &RoomId, text: &str) -> Result<()> {
    let mut intent = notice(city, room_id, text)?;
    intent.through_closed = true;
    batch.append(intent).await?;
    Ok(())
}

fn notice<'a>(city: &'a UserId, room_id: &'a RoomId, text: &str) -> Result<Intent<'a>> {
    let content = json!({"msgtype": "m.text", "body": text, "m.mentions": {}});
    Intent::message(room_id, city, "m.room.message", content)
}

/// Adds and removes members; returns who was added, removed, and who was as asked already.
pub async fn change_members(
    batch: &mut Batch,
    city: &UserId,
    room_id: &RoomId,
    add: &[OwnedUserId],
    remove: &[OwnedUserId],
) -> Result<(Vec<OwnedUserId>, Vec<OwnedUserId>, Vec<OwnedUserId>)> {
    let status = city_room(batch, room_id).await?;
    if !add.is_empty() && status != "open" {
        return Err(forbidden("This room has been closed: nobody is added (この部屋は終了しました).")
            .with("jp.heya.room", status));
    }
    if batch.room(room_id).await?.row.kind == "control" {
        control_room::check_change(batch, room_id, add, remove).await?;
    }
    let (mut added, mut removed, mut unchanged) = (Vec::new(), Vec::new(), Vec::new());
    for user_id in add {
        let present = batch.room(room_id).await?.state.membership(user_id);
        // Whoever looks in by emergency access is no member yet, and stays when that ends.
        let now = batch.now;
        let looking = present.as_str() == "join"
            && store::life::accesses(batch.reading(), Some(room_id))
                .await?
                .iter()
                .any(|access| access.user_id == user_id.as_str());
        if looking {
            store::life::end_access(batch.sql().await?, room_id, user_id.as_str(), now).await?;
            added.push(user_id.clone());
        } else if matches!(present.as_str(), "join" | "invite") {
            unchanged.push(user_id.clone());
        } else {
            member::invite(batch, room_id, city, user_id, None).await?;
            added.push(user_id.clone());
        }
    }
    for user_id in remove {
        let present = batch.room(room_id).await?.state.membership(user_id);
        if user_id == city || !matches!(present.as_str(), "join" | "invite" | "knock") {
            unchanged.push(user_id.clone());
        } else {
            member::kick(batch, room_id, city, user_id, None).await?;
            removed.push(user_id.clone());
        }
    }
    set_staff(batch, city, room_id, &added, &removed).await?;
    Ok((added, removed, unchanged))
}

/// City staff who are members have power 50, and nobody else has one of their own (DESIGN 14).
async fn set_staff(
    batch: &mut Batch,
    city: &UserId,
    room_id: &RoomId,
    added: &[OwnedUserId],
    removed: &[OwnedUserId],
) -> Result<()> {
    let staff = crate::accounts::register::city_staff(batch.reading()).await?;
    let room = batch.room(room_id).await?;
    let Some(event) = room.state.event(&StateEventType::RoomPowerLevels, "") else { return Ok(()) };
    let mut levels: Value = serde_json::from_str(event.content.get())?;
    let before = levels.clone();
    let Some(users) = levels["users"].as_object_mut() else { return Ok(()) };
    for user_id in added.iter().filter(|id| staff.contains(id)) {
        users.insert(user_id.to_string(), 50.into());
    }
    for user_id in removed {
        users.remove(user_id.as_str());
    }
    if levels != before {
        let mut intent = Intent::state(room_id, city, "m.room.power_levels", "", levels)?;
        // Staff can be removed from a closed room, too.
        intent.through_closed = true;
        batch.append(intent).await?;
    }
    Ok(())
}

/// Closes a room: notice, power levels that leave nobody able to send, status, and the flag that the committer
/// enforces. False where it was closed already.
pub async fn close(batch: &mut Batch, city: &UserId, room_id: &RoomId, notice: &str) -> Result<bool> {
    match city_room(batch, room_id).await?.as_str() {
        "open" => {}
        "closed" => return Ok(false),
        status => return Err(no_longer(status)),
    }
    say(batch, city, room_id, notice).await?;
    set_powers(batch, city, room_id, true).await?;
    set_status(batch, city, room_id, "closed").await?;
    let now = batch.now;
    let row = &mut batch.room_mut(room_id).await?.row;
    row.status = "closed".to_owned();
    row.closed_at = Some(now);
    Ok(true)
}

/// Opens a closed room again. False where it is open.
pub async fn reopen(batch: &mut Batch, city: &UserId, room_id: &RoomId, notice: &str) -> Result<bool> {
    match city_room(batch, room_id).await?.as_str() {
        "open" => return Ok(false),
        "closed" => {}
        status => return Err(no_longer(status)),
    }
    let row = &mut batch.room_mut(room_id).await?.row;
    row.status = "open".to_owned();
    row.closed_at = None;
    set_powers(batch, city, room_id, false).await?;
    set_status(batch, city, room_id, "open").await?;
    say(batch, city, room_id, notice).await?;
    Ok(true)
}

/// A room that has gone beyond closing.
fn no_longer(status: &str) -> crate::error::Error {
    refuse(Code::RoomState, "This room has been archived or purged: it is neither closed nor opened again.")
        .with("status", status)
}

/// Composers disappear in clients when nobody's power reaches `events_default`. The creator's has no end in room
/// version 12, so that the row's status is what really stops writes.
async fn set_powers(batch: &mut Batch, city: &UserId, room_id: &RoomId, closed: bool) -> Result<()> {
    const SENT: [&str; 2] = ["m.reaction", "m.room.redaction"];
    let room = batch.room(room_id).await?;
    let announcement = room.row.kind == "announcement";
    let mut levels: Value = room
        .state
        .event(&StateEventType::RoomPowerLevels, "")
        .map(|event| serde_json::from_str(event.content.get()))
        .transpose()?
        .unwrap_or_else(|| json!({}));
    levels["events_default"] = if closed {
        100
    } else if announcement {
        50
    } else {
        0
    }
    .into();
    levels["state_default"] = if closed { 100 } else { 50 }.into();
    levels["invite"] = if closed { 100 } else { 50 }.into();
    for kind in SENT {
        levels["events"][kind] = if closed { 100 } else { 0 }.into();
    }
    batch.append(Intent::state(room_id, city, "m.room.power_levels", "", levels)?).await?;
    Ok(())
}

/// Says in the room's state what its status is.
pub(super) async fn set_status(
    batch: &mut Batch,
    city: &UserId,
    room_id: &RoomId,
    status: &str,
) -> Result<()> {
    let room = batch.room(room_id).await?;
    let row = &room.row;
    let content = room_state(&row.kind, row.room_number, row.subject_key.as_deref(), status);
    let mut intent = Intent::state(room_id, city, ROOM_STATE, "", content)?;
    // Of a closed room, too: it is archived.
    intent.through_closed = true;
    batch.append(intent).await?;
    Ok(())
}

/// The content of the state that says what a room is: kind, room number, subject reference, status.
fn room_state(kind: &str, number: Option<i64>, subject_key: Option<&str>, status: &str) -> Value {
    let mut content = json!({"kind": kind, "room_number": number, "status": status});
    if let Some(reference) = subject_key.and_then(|key| key.get(..16)) {
        content["subject"] = reference.into();
    }
    content
}

/// The status of a city room; a room that is not one is refused.
pub async fn city_room(batch: &mut Batch, room_id: &RoomId) -> Result<String> {
    let row = &batch.room(room_id).await?.row;
    if row.room_number.is_none() {
        return Err(crate::error::not_found("That is no room of the city."));
    }
    Ok(row.status.clone())
}

/// What stands for a subject, to notice a second room: a hash of name and birth date after NFKC, without spaces.
/// It is keyed, since names and birth dates could be tried out; its beginning is the subject's reference in the room.
pub fn subject_key(secret: &str, name: &str, birth_date: &str) -> String {
    let name: String = name.nfkc().filter(|c| !c.is_whitespace()).collect();
    let birth_date: String = birth_date.nfkc().filter(|c| !c.is_whitespace()).collect();
    crate::audit::hex(&Sha256::digest(format!("{secret}\n{name}\n{birth_date}").as_bytes()))
}
