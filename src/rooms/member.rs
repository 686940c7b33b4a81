//! Memberships: invite, join, leave, kick, ban. Each is a member event that the room's rules must allow.

use std::sync::Arc;

use ruma::{RoomId, UserId, events::StateEventType, events::room::member::MembershipState};
use serde_json::{Value, json};

use super::{access, append::Intent, batch::Batch, invites, pdu::Event, send, upgrade};
use crate::{
    accounts::guests,
    config::CreateRooms,
    error::{Code, Result, forbidden, not_found, refuse},
    store::{self, accounts::Account, personal::Profile},
};

/// Display name and avatar, for member events.
pub async fn profile(batch: &mut Batch, user_id: &UserId) -> Result<Profile> {
    Ok(store::personal::profile(batch.reading(), user_id.as_str()).await?.unwrap_or_default())
}

/// The content of a member event.
pub fn content(membership: &str, profile: &Profile, reason: Option<&str>) -> Value {
    let mut content = json!({"membership": membership});
    if matches!(membership, "join" | "invite" | "knock") {
        if let Some(name) = &profile.display_name {
            content["displayname"] = name.as_str().into();
        }
        if let Some(url) = &profile.avatar_url {
            content["avatar_url"] = url.as_str().into();
        }
    }
    if let Some(reason) = reason {
        content["reason"] = reason.into();
    }
    content
}

/// Invites someone. An invitation by the city to an active local account is accepted for it in the same unit
/// (the handbook's members are *added*; policy `accept_city_invitations`).
pub async fn invite(
    batch: &mut Batch,
    room_id: &RoomId,
    sender: &UserId,
    target: &UserId,
    reason: Option<&str>,
) -> Result<()> {
    invite_with(batch, room_id, sender, target, reason, false).await
}

/// Invites someone to a direct room.
pub async fn invite_direct(
    batch: &mut Batch,
    room_id: &RoomId,
    sender: &UserId,
    target: &UserId,
) -> Result<()> {
    invite_with(batch, room_id, sender, target, None, true).await
}

async fn invite_with(
    batch: &mut Batch,
    room_id: &RoomId,
    sender: &UserId,
    target: &UserId,
    reason: Option<&str>,
    is_direct: bool,
) -> Result<()> {
    let account = check_invitation(batch, room_id, sender, target).await?;
    let profile = profile(batch, target).await?;
    let mut invited = content("invite", &profile, reason);
    if is_direct {
        invited["is_direct"] = true.into();
    }
    batch.append(Intent::state(room_id, sender, "m.room.member", target.as_str(), invited)?).await?;
    let city = sender.localpart() == "city" && sender.server_name() == batch.server_name();
    if city && batch.policy.accept_city_invitations && account.kind != "appservice" {
        let joined = content("join", &profile, None);
        batch.append(Intent::state(room_id, target, "m.room.member", target.as_str(), joined)?).await?;
    }
    Ok(())
}

/// What every invitation must fit, in whatever way it comes; the account of whom it is for.
pub async fn check_invitation(
    batch: &mut Batch,
    room_id: &RoomId,
    sender: &UserId,
    target: &UserId,
) -> Result<Account> {
    if target.server_name() != batch.server_name() {
        return Err(forbidden("People of other servers cannot be invited: this server does not federate."));
    }
    let room = batch.room(room_id).await?;
    if room.state.membership(target) == MembershipState::Join
        && room.state.membership(sender) == MembershipState::Join
    {
        // Bridges go on where they are told so (MSC3848, by its unstable name; the words are another server's of old).
        return Err(forbidden("This person is already in the room.")
            .with("org.matrix.msc3848.unstable.errcode", "ORG.MATRIX.MSC3848.ALREADY_JOINED"));
    }
    if batch.policy.create_rooms == CreateRooms::City {
        let room = batch.room(room_id).await?;
        let inside = room.state.members("join").count() + room.state.members("invite").count();
        let direct = room.row.kind == "direct";
        let stranger = target.localpart() != "city" && !batch.live.share_a_room(sender, target);
        if direct && (inside >= 2 || stranger) {
            return Err(forbidden(
                "A direct room is for two: rooms for more are opened by the city (部屋の開設は市に依頼してください).",
            ));
        }
    }
    let account = store::accounts::account(batch.reading(), target.as_str()).await?;
    let Some(account) = account.filter(|account| account.status != "ended") else {
        return Err(not_found("There is no such account."));
    };
    invites::check(batch.reading(), sender, target).await?;
    Ok(account)
}

/// Joins a room that the user is invited to, that is open to all, or that lets the members of another room in.
pub async fn join(
    batch: &mut Batch,
    room_id: &RoomId,
    user_id: &UserId,
    reason: Option<&str>,
) -> Result<Arc<Event>> {
    let present = batch.room(room_id).await?.state.membership(user_id);
    if present == MembershipState::Join
        && let Some(event) =
            batch.room(room_id).await?.state.event(&StateEventType::RoomMember, user_id.as_str())
    {
        return Ok(Arc::clone(event));
    }
    if guests::is_guest(user_id) {
        let state = &batch.room(room_id).await?.state;
        let access = state.content_str(&"m.room.guest_access".into(), "", "guest_access");
        if access.as_deref() != Some("can_join") {
            return Err(refuse(Code::GuestAccessForbidden, "This room does not let guests in."));
        }
    }
    let authority = access::authority(batch, room_id, user_id).await?;
    let profile = profile(batch, user_id).await?;
    let mut joined = content("join", &profile, reason);
    if let Some(authority) = authority {
        joined["join_authorised_via_users_server"] = authority.as_str().into();
    }
    let event =
        batch.append(Intent::state(room_id, user_id, "m.room.member", user_id.as_str(), joined)?).await?;
    upgrade::take_along(batch, room_id, user_id).await?;
    Ok(event)
}

/// Knocks (入室の申請): asks the members to be let in.
pub async fn knock(
    batch: &mut Batch,
    room_id: &RoomId,
    user_id: &UserId,
    reason: Option<&str>,
) -> Result<()> {
    let profile = profile(batch, user_id).await?;
    let knocks = content("knock", &profile, reason);
    batch.append(Intent::state(room_id, user_id, "m.room.member", user_id.as_str(), knocks)?).await?;
    Ok(())
}

/// Leaves a room, or turns an invitation down.
pub async fn leave(
    batch: &mut Batch,
    room_id: &RoomId,
    user_id: &UserId,
    reason: Option<&str>,
) -> Result<()> {
    match batch.room(room_id).await?.state.membership(user_id) {
        MembershipState::Leave => return Ok(()),
        MembershipState::Ban => return Err(forbidden("You are banned from this room.")),
        _ => {}
    }
    let leave = content("leave", &Profile::default(), reason);
    batch.append(Intent::state(room_id, user_id, "m.room.member", user_id.as_str(), leave)?).await?;
    Ok(())
}

/// Removes someone from a room.
pub async fn kick(
    batch: &mut Batch,
    room_id: &RoomId,
    sender: &UserId,
    target: &UserId,
    reason: Option<&str>,
) -> Result<()> {
    match batch.room(room_id).await?.state.membership(target) {
        MembershipState::Join | MembershipState::Invite | MembershipState::Knock => {}
        _ => return Err(forbidden("This person is not in the room.")),
    }
    let mut intent = Intent::state(
        room_id,
        sender,
        "m.room.member",
        target.as_str(),
        content("leave", &Profile::default(), reason),
    )?;
    // Removal by the city is possible in a closed room too.
    intent.through_closed = sender.localpart() == "city" && sender.server_name() == batch.server_name();
    batch.append(intent).await?;
    Ok(())
}

/// Bans or lifts a ban.
pub async fn ban(
    batch: &mut Batch,
    room_id: &RoomId,
    sender: &UserId,
    target: &UserId,
    banned: bool,
    reason: Option<&str>,
) -> Result<()> {
    let room = batch.room(room_id).await?;
    let may = room.state.membership(sender) == MembershipState::Join
        && send::power(room, sender)? >= send::level(&room.state, "ban", 50);
    if !may {
        return Err(forbidden("You are not allowed to do this in this room."));
    }
    if !banned && room.state.membership(target) != MembershipState::Ban {
        return Err(refuse(Code::BadState, "This person is not banned."));
    }
    let membership = if banned { "ban" } else { "leave" };
    let content = content(membership, &Profile::default(), reason);
    batch.append(Intent::state(room_id, sender, "m.room.member", target.as_str(), content)?).await?;
    Ok(())
}
