//! Who may be in the city's control room (管理室), which names subjects and takes orders: only city staff, and never nobody
//! who can act. However a member event comes: by the bot, a client, an appservice, or the end of an account.

use ruma::{OwnedUserId, RoomId, UserId, events::TimelineEventType};

use super::{append::Intent, batch::Batch};
use crate::{
    accounts::register::city_staff,
    error::{Code, Result, forbidden, refuse},
    store,
};

/// What is said to whoever would let in somebody else.
const STAFF_ONLY: &str = "Only city staff are in the control room (管理室に入れるのは市の職員だけです).";
/// What is said to whoever would leave nobody.
const NOBODY_LEFT: &str =
    "Nobody of the city's staff would be left in the control room (管理室に市の職員がいなくなります).";

/// Refuses, to the bot, a change of members that would let in somebody else, or leave nobody: by a code that it knows.
pub async fn check_change(
    batch: &mut Batch,
    room_id: &RoomId,
    add: &[OwnedUserId],
    remove: &[OwnedUserId],
) -> Result<()> {
    let staff = city_staff(batch.reading()).await?;
    if add.iter().any(|user_id| !staff.contains(user_id)) {
        return Err(refuse(Code::Staff, STAFF_ONLY));
    }
    if is_emptied(batch, room_id, remove).await? {
        return Err(refuse(Code::Staff, NOBODY_LEFT));
    }
    Ok(())
}

/// Refuses a member event that would let in somebody else, or leave nobody.
pub async fn check(batch: &mut Batch, intent: &Intent<'_>) -> Result<()> {
    if intent.kind != TimelineEventType::RoomMember || batch.room(intent.room_id).await?.row.kind != "control"
    {
        return Ok(());
    }
    let Some(target) = intent.state_key.as_deref().and_then(|key| OwnedUserId::try_from(key).ok()) else {
        return Ok(());
    };
    match intent.content.get("membership").and_then(|membership| membership.as_str()) {
        Some("invite" | "join" | "knock") if !is_city(batch, intent.sender) && !is_city(batch, &target) => {
            if city_staff(batch.reading()).await?.contains(&target) {
                return Ok(());
            }
            Err(forbidden(STAFF_ONLY))
        }
        Some("leave" | "ban") => {
            if !is_emptied(batch, intent.room_id, &[target]).await? {
                return Ok(());
            }
            Err(forbidden(NOBODY_LEFT))
        }
        _ => Ok(()),
    }
}

fn is_city(batch: &Batch, user_id: &UserId) -> bool {
    user_id.localpart() == "city" && user_id.server_name() == batch.server_name()
}

/// Whether nobody who can act would be left in it, with these gone who are in it.
pub async fn is_emptied(batch: &mut Batch, room_id: &RoomId, gone: &[OwnedUserId]) -> Result<bool> {
    let joined: Vec<OwnedUserId> =
        batch.room(room_id).await?.state.members("join").map(|(user_id, _)| user_id).collect();
    let (mut goes, mut stays) = (false, false);
    for user_id in city_staff(batch.reading()).await? {
        if joined.contains(&user_id) && can_act(batch, &user_id).await? {
            if gone.contains(&user_id) {
                goes = true;
            } else {
                stays = true;
            }
        }
    }
    Ok(goes && !stays)
}

/// Whether an account has a password of its own: one that was only issued, or reset, waits for its sheets.
pub async fn can_act(batch: &mut Batch, user_id: &UserId) -> Result<bool> {
    let account = store::accounts::account(batch.reading(), user_id.as_str()).await?;
    Ok(account.is_some_and(|account| account.status == "active" && account.password_own))
}
