//! Rooms from outside: who is told that one exists and what it is, and whom its join rule lets in without an
//! invitation.

use std::sync::Arc;

use ruma::{
    OwnedRoomId, RoomId, UserId,
    events::{StateEventType, room::member::MembershipState},
};
use serde_json::{Value, json};

use super::{batch::Batch, live::RoomView, send, state::RoomState};
use crate::{
    error::{Code, Result, forbidden},
    http::caller::Requester,
    server::Server,
    store,
};

/// Rooms of an `allow` list that count.
const ALLOWED_MAX: usize = 50;

/// A room that somebody may know of.
pub struct Seen {
    /// The room.
    pub view: Arc<RoomView>,
    /// The caller's membership; `leave` where there is none.
    pub membership: String,
}

/// The room, where the caller may know of it: as a member, invited or knocking, or because its join rule would let
/// them in or knock and the policies allow that. A room that is not open is for its members alone. None tells a room
/// that is hidden and one that does not exist alike.
pub async fn seen(server: &Server, who: &Requester, room_id: &RoomId) -> Result<Option<Seen>> {
    let policy = &server.config.policy;
    let membership = server.live.membership(&who.user_id, room_id).map(|m| m.membership);
    let inside = matches!(membership.as_deref(), Some("join" | "invite" | "knock"));
    let everybody = policy.open_profile || who.appservice.is_some();
    let by_rule = everybody || policy.public_directory || policy.knocking || policy.restricted_joins;
    if membership.as_deref() == Some("ban") || !(inside || by_rule) {
        return Ok(None);
    }
    let room = match server.live.room(&server.db, room_id).await {
        Ok(room) => room,
        Err(error) if error.code() == Some(Code::NotFound) => return Ok(None),
        Err(error) => return Err(error),
    };
    let view = room.current()?;
    let seen = inside || (view.row.status == "open" && lets_in(server, who, everybody, &view).await?);
    Ok(seen.then(|| Seen { view, membership: membership.unwrap_or_else(|| "leave".to_owned()) }))
}

/// Whether a room's rules show it to somebody who is not in it.
async fn lets_in(server: &Server, who: &Requester, everybody: bool, view: &RoomView) -> Result<bool> {
    let policy = &server.config.policy;
    let admitted = || {
        policy.restricted_joins
            && allowed_rooms(&view.state).iter().any(|room_id| server.live.is_joined(&who.user_id, room_id))
    };
    let by_rule = match join_rule(&view.state).as_str() {
        "public" => {
            everybody
                || (policy.public_directory
                    && store::rooms::is_public(&mut server.db.read().await?, &view.row.room_id).await?)
        }
        "knock" => policy.knocking,
        "restricted" => admitted(),
        "knock_restricted" => policy.knocking || admitted(),
        _ => false,
    };
    Ok(by_rule || everybody && view.state.history_visibility() == "world_readable")
}

/// The join rule; `invite` where none is set.
pub fn join_rule(state: &RoomState) -> String {
    state.content_str(&StateEventType::RoomJoinRules, "", "join_rule").unwrap_or_else(|| "invite".to_owned())
}

/// The rooms whose members a restricted room lets in (client-server API, "Restricted rooms").
pub fn allowed_rooms(state: &RoomState) -> Vec<OwnedRoomId> {
    let allow =
        state.event(&StateEventType::RoomJoinRules, "").and_then(|event| event.content_field("allow"));
    let Some(Value::Array(allow)) = allow else { return Vec::new() };
    allow
        .iter()
        .filter(|one| one["type"] == "m.room_membership")
        .filter_map(|one| OwnedRoomId::try_from(one["room_id"].as_str()?).ok())
        .take(ALLOWED_MAX)
        .collect()
}

/// What a room is, for whoever may know of it (client-server API, room summary). What is not set is left out.
pub fn summary(view: &RoomView) -> Value {
    let state = &view.state;
    let text = |kind: StateEventType, field: &str| state.content_str(&kind, "", field);
    let rule = join_rule(state);
    let mut summary = json!({
        "room_id": view.row.room_id,
        "name": text(StateEventType::RoomName, "name"),
        "topic": text(StateEventType::RoomTopic, "topic"),
        "canonical_alias": text(StateEventType::RoomCanonicalAlias, "alias"),
        "avatar_url": text(StateEventType::RoomAvatar, "url"),
        "room_type": text(StateEventType::RoomCreate, "type"),
        "encryption": text(StateEventType::RoomEncryption, "algorithm"),
        "room_version": view.row.version,
        "num_joined_members": state.members("join").count(),
        "world_readable": state.history_visibility() == "world_readable",
        "guest_can_join":
            text(StateEventType::RoomGuestAccess, "guest_access").as_deref() == Some("can_join"),
    });
    if matches!(rule.as_str(), "restricted" | "knock_restricted") {
        summary["allowed_room_ids"] = json!(allowed_rooms(state));
    }
    summary["join_rule"] = rule.into();
    if let Some(fields) = summary.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    summary
}

/// For a join without an invitation into a restricted room: the member who is named as its authority. None where the
/// room's own rules decide; 403 where the joiner is in none of the rooms that it asks for.
pub async fn authority(
    batch: &mut Batch,
    room_id: &RoomId,
    user_id: &UserId,
) -> Result<Option<ruma::OwnedUserId>> {
    let room = batch.room(room_id).await?;
    let rule = join_rule(&room.state);
    let invited = room.state.membership(user_id) == MembershipState::Invite;
    if invited || !matches!(rule.as_str(), "restricted" | "knock_restricted") {
        return Ok(None);
    }
    let allowed = allowed_rooms(&room.state);
    if !batch.policy.restricted_joins {
        return Err(forbidden("You are not invited to this room."));
    }
    let mut admitted = false;
    for other in allowed {
        match batch.room(&other).await {
            Ok(other) => admitted |= other.state.membership(user_id) == MembershipState::Join,
            Err(error) if error.code() == Some(Code::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    if !admitted {
        return Err(forbidden("You are in none of the rooms whose members may join this one."));
    }
    let room = batch.room(room_id).await?;
    let needed = send::level(&room.state, "invite", 0);
    let mut best: Option<(i64, ruma::OwnedUserId)> = None;
    for (member, _) in room.state.members("join") {
        let power = send::power(room, &member)?;
        if power >= needed && best.as_ref().is_none_or(|(most, _)| power > *most) {
            best = Some((power, member));
        }
    }
    match best {
        Some((_, member)) => Ok(Some(member)),
        None => Err(forbidden("Nobody in this room may let anybody in.")),
    }
}
