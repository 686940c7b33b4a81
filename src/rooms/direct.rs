//! Rooms of two people have an end, too (C28): one that nobody is left in is archived by the server itself, gets a room
//! number (部屋番号), and goes on as the city's rooms do: legal hold, export, and a purge when its retention is over. While
//! somebody is in it, it never ends by itself.

use std::{collections::BTreeSet, sync::Arc};

use ruma::{OwnedUserId, RoomId, UserId, events::StateEventType};

use super::{batch::Batch, committer::Hint, life, member, state::RoomState};
use crate::{
    error::{Code, Result, refuse},
    server::Server,
    store,
};

/// What the withdrawn invitation says.
const REASON: &str = "Nobody is left in this room (この部屋にはだれもいません).";

/// Archives the rooms of two people that nobody is left in. To be called every minute.
pub async fn tend(server: &Arc<Server>) -> Result<()> {
    let city = server.city_user.clone();
    let left = store::rooms::direct_rooms_left(&mut server.db.read().await?, city.as_str()).await?;
    for room_id in left {
        if lets_people_in(&server.live.room(&server.db, &room_id).await?.current()?.state) {
            continue;
        }
        let (id, city) = (room_id.clone(), city.clone());
        let ended = server
            .commit(Hint { rooms: vec![room_id], txn: None }, move |batch| {
                Box::pin(async move { end(batch, &city, &id).await })
            })
            .await;
        // One that fails holds up no other.
        if let Err(error) = ended {
            tracing::error!(%error, "a room that nobody is left in could not be archived");
        }
    }
    Ok(())
}

/// Whether somebody could come back without being invited: such a room is not over (only where everybody makes rooms).
fn lets_people_in(state: &RoomState) -> bool {
    state
        .content_str(&StateEventType::RoomJoinRules, "", "join_rule")
        .is_some_and(|rule| !matches!(rule.as_str(), "invite" | "private" | "knock"))
}

/// Archives one; its retention runs from now, a minute after the last one left: the time that their events show may be an
/// appservice's word. The room's row alone says so: the city is no member and writes no event there.
async fn end(batch: &mut Batch, city: &UserId, room_id: &RoomId) -> Result<()> {
    let room = batch.room(room_id).await?;
    let somebody = room.state.members("join").any(|(id, _)| id != city);
    if room.row.status != "open" || room.row.kind != "direct" || somebody || lets_people_in(&room.state) {
        return Ok(());
    }
    let waiting: Vec<OwnedUserId> = ["invite", "knock"]
        .iter()
        .flat_map(|membership| room.state.members(membership).map(|(id, _)| id).collect::<Vec<_>>())
        .collect();
    let people = people(&room.state, city);
    for user_id in &waiting {
        member::leave(batch, room_id, user_id, Some(REASON)).await?;
    }
    let number = store::meta::next_number(batch.sql().await?, "room", 1).await?;
    let now = batch.now;
    let row = &mut batch.room_mut(room_id).await?.row;
    row.room_number = Some(number);
    row.status = "archived".to_owned();
    row.closed_at = Some(now);
    row.archived_at = Some(now);
    life::record(
        batch,
        "server",
        "room.archive",
        room_id,
        &people.join(" "),
        &format!("room {number}: nobody is left"),
    );
    Ok(())
}

/// Whose room it was, by login id; the city aside.
fn people(state: &RoomState, city: &UserId) -> Vec<String> {
    let ids: BTreeSet<OwnedUserId> = ["join", "invite", "leave", "ban"]
        .iter()
        .flat_map(|membership| state.members(membership).map(|(id, _)| id).collect::<Vec<_>>())
        .filter(|id| id != city)
        .collect();
    ids.into_iter().map(|id| id.localpart().to_owned()).collect()
}

/// How city staff are told which room it was: by login ids. What the two have called it is theirs, and may be a
/// patient's name.
pub fn name(state: &RoomState, city: &UserId) -> String {
    let people = people(state, city);
    if people.is_empty() {
        "二人の部屋".to_owned()
    } else {
        format!("二人の部屋（{}）", people.join("、"))
    }
}

/// Refuses what the city does as a member of its rooms: of a room of two people it is none.
pub async fn refuse_direct(batch: &mut Batch, room_id: &RoomId) -> Result<()> {
    let row = &batch.room(room_id).await?.row;
    if row.kind != "direct" {
        return Ok(());
    }
    Err(refuse(
        Code::RoomState,
        "The city is no member of a room of two people: it is read by an export (二人の部屋は書き出して読みます).",
    )
    .with("status", row.status.clone()))
}
