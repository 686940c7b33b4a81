//! Making a room (client-server API, `POST /createRoom`), as one unit: all of its events or none.

use ruma::{CanonicalJsonObject, OwnedRoomId, OwnedUserId, RoomVersionId, UserId};
use serde_json::{Value, json};

use super::{
    append::{Intent, canonical, rules_of},
    batch::Batch,
    member,
};
use crate::{
    config::{CreateRooms, Encryption},
    error::{Code, Result, forbidden, invalid, refuse},
};

/// What a room is made of.
#[derive(Debug)]
pub struct NewRoom {
    /// Who makes it.
    pub creator: OwnedUserId,
    /// The version.
    pub version: RoomVersionId,
    /// What it is for; see the table's comment.
    pub kind: String,
    /// `private_chat`, `trusted_private_chat` or `public_chat`.
    pub preset: String,
    /// Fields for the create event.
    pub creation_content: CanonicalJsonObject,
    /// Overrides of the power levels.
    pub power_levels: Option<Value>,
    /// Further state: (type, state key, content).
    pub initial_state: Vec<(String, String, Value)>,
    /// The name.
    pub name: Option<String>,
    /// The topic.
    pub topic: Option<String>,
    /// Whom to invite.
    pub invite: Vec<OwnedUserId>,
    /// The invitations say that it is a direct room.
    pub is_direct: bool,
}

/// Direct rooms of one pair, and of one person that the other has not joined.
const DIRECT_OF_PAIR_MAX: usize = 5;
const DIRECT_WAITING_MAX: usize = 20;
/// What one request makes a room with.
const INITIAL_STATE_MAX: usize = 100;
const INVITED_MAX: usize = 300;

/// Whether this account may make this room, and what kind of room it is then (policy `create_rooms`).
pub fn check_policy(batch: &Batch, room: &NewRoom, city_user: &UserId) -> Result<String> {
    if batch.policy.create_rooms == CreateRooms::Everybody || room.creator == city_user {
        return Ok(if room.is_direct { "direct" } else { "other" }.to_owned());
    }
    let city_makes = || {
        forbidden(
            "Rooms are opened by the city: ask the city desk, or write to the city in a direct room \
             (部屋の開設は市に依頼してください).",
        )
    };
    let [other] = room.invite.as_slice() else { return Err(city_makes()) };
    let alone = room.preset != "public_chat"
        && room.initial_state.iter().all(|(kind, _, _)| {
            kind != "m.room.join_rules" && kind != "m.room.member" && !kind.starts_with("jp.heya.")
        });
    let together = *other == *city_user || batch.live.share_a_room(&room.creator, other);
    if !batch.policy.direct_rooms || !alone || !together || *other == room.creator {
        return Err(city_makes());
    }
    let of_other = batch.live.joined_rooms(other);
    let both = batch.live.joined_rooms(&room.creator);
    let direct = both
        .intersection(&of_other)
        .filter_map(|id| batch.live.room_in_memory(id)?.view())
        .filter(|view| view.row.kind == "direct")
        .count();
    let mine = both
        .iter()
        .filter_map(|id| batch.live.room_in_memory(id)?.view())
        .filter(|view| view.row.kind == "direct" && view.state.members("join").count() < 2)
        .count();
    if direct >= DIRECT_OF_PAIR_MAX || mine >= DIRECT_WAITING_MAX {
        return Err(refuse(
            Code::LimitExceeded { retry_after_ms: 3_600_000 },
            "You have direct rooms enough with this person, or that nobody has joined yet.",
        ));
    }
    Ok("direct".to_owned())
}

/// Makes the room in the batch.
pub async fn create(batch: &mut Batch, room: NewRoom) -> Result<OwnedRoomId> {
    // One unit writes all of it, and everybody waits for it.
    if room.initial_state.len() > INITIAL_STATE_MAX || room.invite.len() > INVITED_MAX {
        return Err(invalid("At most 100 events of initial_state, and 300 people invited at once."));
    }
    let rules = rules_of(&room.version)?;
    let privileged = rules.authorization.explicitly_privilege_room_creators;
    let mut creation = room.creation_content;
    let trusted = room.preset == "trusted_private_chat";
    if trusted && privileged && !room.invite.is_empty() {
        // In room version 12 trusted people become creators too (MSC4289).
        creation.insert(
            "additional_creators".to_owned(),
            ruma::CanonicalJsonValue::Array(room.invite.iter().map(|id| id.to_string().into()).collect()),
        );
    }
    creation.remove("room_version");
    creation.remove("creator");
    let room_id = batch.create_room(&room.creator, room.version.clone(), &room.kind, creation)?;
    let creator = &*room.creator;
    let profile = member::profile(batch, creator).await?;
    let state = |kind: &str, key: &str, content: Value| Intent::state(&room_id, creator, kind, key, content);
    batch.append(state("m.room.member", creator.as_str(), member::content("join", &profile, None))?).await?;
    let mut users = serde_json::Map::new();
    if !privileged {
        users.insert(creator.to_string(), 100.into());
        if trusted {
            users.extend(room.invite.iter().map(|id| (id.to_string(), 100.into())));
        }
    }
    let mut levels = json!({
        "users": users, "users_default": 0, "events_default": 0, "state_default": 50,
        "ban": 50, "kick": 50, "redact": 50, "invite": if room.preset == "public_chat" { 50 } else { 0 },
        "notifications": {"room": 50},
        "events": {
            "m.room.name": 50, "m.room.power_levels": 100, "m.room.history_visibility": 100,
            "m.room.canonical_alias": 50, "m.room.avatar": 50,
            "m.room.tombstone": if privileged { 150 } else { 100 },
            "m.room.server_acl": 100, "m.room.encryption": 100,
        },
    });
    if let Some(Value::Object(overrides)) = room.power_levels
        && let Some(levels) = levels.as_object_mut()
    {
        levels.extend(overrides);
    }
    batch.append(state("m.room.power_levels", "", levels)?).await?;
    let (join_rule, history, guests) = match room.preset.as_str() {
        "public_chat" => ("public", "shared", "forbidden"),
        _ => ("invite", "shared", if batch.policy.open_profile { "can_join" } else { "forbidden" }),
    };
    let given = |kind: &str| room.initial_state.iter().any(|(k, key, _)| k == kind && key.is_empty());
    for (kind, content) in [
        ("m.room.join_rules", json!({"join_rule": join_rule})),
        ("m.room.history_visibility", json!({"history_visibility": history})),
        ("m.room.guest_access", json!({"guest_access": guests})),
    ] {
        if !given(kind) {
            batch.append(state(kind, "", content)?).await?;
        }
    }
    for (kind, key, content) in &room.initial_state {
        if batch.policy.encryption == Encryption::Forbidden && kind == "m.room.encryption" {
            return Err(forbidden(
                "Encryption between users is switched off on this server (部屋の暗号化はできません).",
            ));
        }
        if kind == "m.room.create" || kind == "m.room.member" {
            return Err(invalid("initial_state cannot hold m.room.create or m.room.member."));
        }
        batch.append(Intent { content: canonical(content.clone())?, ..state(kind, key, json!({}))? }).await?;
    }
    if let Some(name) = &room.name {
        batch.append(state("m.room.name", "", json!({"name": name}))?).await?;
    }
    if let Some(topic) = &room.topic {
        let content = json!({"topic": topic, "m.topic": {"m.text": [{"body": topic}]}});
        batch.append(state("m.room.topic", "", content)?).await?;
    }
    for user_id in &room.invite {
        if room.is_direct {
            member::invite_direct(batch, &room_id, creator, user_id).await?;
        } else {
            member::invite(batch, &room_id, creator, user_id, None).await?;
        }
    }
    Ok(room_id)
}
