//! Deleting a room that is not the city's: of two people who are still in it, or made by users. Ordered by an administrator,
//! carried out in many units, so that nobody waits behind it, and gone on with after a restart. Rooms of the city close, are
//! archived and kept instead (DESIGN 15; `life`).

use std::sync::Arc;

use ruma::{OwnedRoomId, OwnedUserId, RoomId};

use super::{batch::Batch, committer::Hint, life, member};
use crate::{
    audit,
    error::{Code, Error, Result, forbidden, not_found, refuse},
    server::Server,
    store::{self, deletions::Deletion},
};

/// Members removed in one unit.
const LEAVE_CHUNK: usize = 100;
/// What the members' last event says.
const REASON: &str = "The room is deleted (部屋は削除されました).";

/// Orders the deletion of a room: from here on nobody can write in it or come in. Returns the order's id.
pub async fn order(batch: &mut Batch, room_id: &RoomId, by: &str) -> Result<String> {
    let row = batch.room(room_id).await?.row.clone();
    if row.room_number.is_some() {
        return Err(forbidden(
            "A room of the city is not deleted: it is closed, archived and purged when its retention is over \
             (市の部屋は管理室から「終了」「保管」「消去」の順に進めてください).",
        ));
    }
    if row.status == "purged" {
        return Err(not_found("There is no such room."));
    }
    if store::deletions::unfinished_of(batch.reading(), room_id.as_str()).await? {
        return Err(refuse(Code::BadState, "This room is being deleted already."));
    }
    let now = batch.now;
    let deletion = Deletion {
        delete_id: crate::clock::random_token(16),
        room_id: room_id.to_string(),
        ordered_by: by.to_owned(),
        ordered_at: now,
        status: "shutting_down".to_owned(),
        removed: "[]".to_owned(),
        finished_at: None,
    };
    store::deletions::insert(batch.sql().await?, &deletion).await?;
    store::rooms::set_public(batch.sql().await?, room_id, false, now).await?;
    batch.room_mut(room_id).await?.row.status = "purging".to_owned();
    Ok(deletion.delete_id)
}

/// Carries on with a deletion until it is finished or the server stops.
pub async fn carry_out(server: &Arc<Server>, delete_id: &str) -> Result<()> {
    while !*server.stopping.borrow() {
        // No upload may come to share a blob between its last row and its file's end.
        let alone = server.blobs.alone().await;
        let (id, live) = (delete_id.to_owned(), Arc::clone(&server.live));
        let (finished, blobs) = server
            .commit(Hint::default(), move |batch| Box::pin(async move { some(batch, &id, live).await }))
            .await?;
        for sha256 in &blobs {
            server.blobs.remove(&alone, sha256).await?;
        }
        if finished {
            server.db.settle().await;
            return Ok(());
        }
    }
    Ok(())
}

/// Goes on with what a restart cut short. To be called every minute.
pub async fn tend(server: &Arc<Server>) -> Result<()> {
    let waiting = store::deletions::unfinished(&mut server.db.read().await?).await?;
    for delete_id in waiting {
        if let Err(error) = carry_out(server, &delete_id).await {
            tracing::error!(%error, "a room's deletion cannot go on");
        }
    }
    Ok(())
}

/// One unit of a deletion: members leave, then events go, then the rest. Whether it is finished, and the blobs whose
/// files may go when it is committed.
async fn some(
    batch: &mut Batch,
    delete_id: &str,
    live: Arc<super::live::Live>,
) -> Result<(bool, Vec<String>)> {
    let mut deletion = store::deletions::one(batch.reading(), delete_id)
        .await?
        .ok_or_else(|| Error::internal("a deletion that was not ordered"))?;
    if deletion.finished_at.is_some() {
        return Ok((true, Vec::new()));
    }
    let room_id = OwnedRoomId::try_from(deletion.room_id.as_str())?;
    let room = batch.room(&room_id).await?;
    let inside: Vec<OwnedUserId> = ["join", "invite", "knock"]
        .iter()
        .flat_map(|membership| room.state.members(membership).map(|(id, _)| id).collect::<Vec<_>>())
        .take(LEAVE_CHUNK)
        .collect();
    let now = batch.now;
    if !inside.is_empty() {
        let mut removed: Vec<String> = serde_json::from_str(&deletion.removed)?;
        for user_id in &inside {
            member::leave(batch, &room_id, user_id, Some(REASON)).await?;
            removed.push(user_id.to_string());
        }
        deletion.removed = serde_json::to_string(&removed)?;
        store::deletions::update(batch.sql().await?, &deletion).await?;
        return Ok((false, Vec::new()));
    }
    let (rows_gone, blobs) = life::delete_some(batch, &room_id).await?;
    if rows_gone {
        deletion.status = "complete".to_owned();
        deletion.finished_at = Some(now);
        batch.room_mut(&room_id).await?.row.status = "purged".to_owned();
        batch.audit(audit::Entry {
            at: now,
            actor: deletion.ordered_by.clone(),
            action: "room.deleted".to_owned(),
            room_id: room_id.to_string(),
            result: "ok".to_owned(),
            ..audit::Entry::default()
        });
        batch.after_commit(move || live.drop_room(&room_id));
    } else {
        deletion.status = "purging".to_owned();
    }
    store::deletions::update(batch.sql().await?, &deletion).await?;
    Ok((rows_gone, blobs))
}
