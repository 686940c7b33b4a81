//! What follows a room's closing: legal holds, emergency access, purges.

use ruma::RoomId;

use super::{Conn, all, one, run, run_in};
use crate::error::Result;

/// An emergency access (緊急閲覧) that runs.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Access {
    /// The room.
    pub room_id: String,
    /// Who looks.
    pub user_id: String,
    /// When it began, in milliseconds.
    pub began_at: i64,
    /// When it ends by itself, in milliseconds.
    pub ends_at: i64,
}

/// The purge of a room: what its certificate says.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Purge {
    /// The room.
    pub room_id: String,
    /// Its room number (部屋番号).
    pub room_number: i64,
    /// The member of staff who ordered it.
    pub acting: String,
    /// When it began, in milliseconds.
    pub begun_at: i64,
    /// When everything was gone.
    pub finished_at: Option<i64>,
    /// Events that the room had.
    pub events: i64,
    /// Media that only this room showed.
    pub media: i64,
    /// SHA-256, in hex, of the event ids in room order, each with a line feed.
    pub digest: String,
}

/// The reason of the legal hold that stands on a room.
pub async fn hold(conn: &mut Conn, room_id: &RoomId) -> Result<Option<String>> {
    Ok(one!(
        conn,
        (String,),
        "SELECT reason FROM legal_holds WHERE room_id = $1 AND lifted_at IS NULL",
        room_id.as_str()
    )?
    .map(|(reason,)| reason))
}

/// The rooms with a legal hold.
pub async fn held_rooms(conn: &mut Conn) -> Result<Vec<String>> {
    Ok(all!(conn, (String,), "SELECT DISTINCT room_id FROM legal_holds WHERE lifted_at IS NULL")?
        .into_iter()
        .map(|(id,)| id)
        .collect())
}

/// Places a legal hold.
pub async fn place_hold(
    conn: &mut Conn,
    room_id: &RoomId,
    reason: &str,
    acting: &str,
    now: i64,
) -> Result<()> {
    run!(
        conn,
        "INSERT INTO legal_holds (room_id, placed_at, placed_by, reason) VALUES ($1, $2, $3, $4)",
        room_id.as_str(),
        now,
        acting,
        reason
    )?;
    Ok(())
}

/// Lifts it; false where none stood.
pub async fn lift_hold(conn: &mut Conn, room_id: &RoomId, acting: &str, now: i64) -> Result<bool> {
    Ok(run!(
        conn,
        "UPDATE legal_holds SET lifted_at = $1, lifted_by = $2 WHERE room_id = $3 AND lifted_at IS NULL",
        now,
        acting,
        room_id.as_str()
    )? > 0)
}

/// Emergency accesses that run: of one room, or of all.
pub async fn accesses(conn: &mut Conn, room_id: Option<&RoomId>) -> Result<Vec<Access>> {
    all!(
        conn,
        Access,
        "SELECT room_id, user_id, began_at, ends_at FROM break_glass \
         WHERE ended_at IS NULL AND ($1 IS NULL OR room_id = $1) ORDER BY ends_at",
        room_id.map(|id| id.as_str().to_owned())
    )
}

/// Records that an emergency access began.
pub async fn begin_access(conn: &mut Conn, access: &Access, reason: &str) -> Result<()> {
    run!(
        conn,
        "INSERT INTO break_glass (room_id, user_id, began_at, ends_at, reason) VALUES ($1, $2, $3, $4, $5)",
        &access.room_id,
        &access.user_id,
        access.began_at,
        access.ends_at,
        reason
    )?;
    Ok(())
}

/// Records that it ended; false where it had ended already.
pub async fn end_access(conn: &mut Conn, room_id: &RoomId, user_id: &str, now: i64) -> Result<bool> {
    Ok(run!(
        conn,
        "UPDATE break_glass SET ended_at = $1 WHERE room_id = $2 AND user_id = $3 AND ended_at IS NULL",
        now,
        room_id.as_str(),
        user_id
    )? > 0)
}

/// Archived rooms without a legal hold of which the city has not been told that their retention has run out, by kind
/// and time of closing.
pub async fn archived_and_untold(conn: &mut Conn) -> Result<Vec<(String, i64, String, i64)>> {
    all!(
        conn,
        (String, i64, String, i64),
        "SELECT r.room_id, r.room_number, r.kind, r.closed_at FROM rooms r \
         WHERE r.status = 'archived' AND r.room_number IS NOT NULL AND r.closed_at IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM retention_told t WHERE t.room_id = r.room_id) \
         AND NOT EXISTS (SELECT 1 FROM legal_holds h WHERE h.room_id = r.room_id AND h.lifted_at IS NULL) \
         ORDER BY r.room_number"
    )
}

/// Remembers that the city was told.
pub async fn told(conn: &mut Conn, room_id: &str, now: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO retention_told (room_id, told_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        room_id,
        now
    )?;
    Ok(())
}

/// The ids of a room's events in order, after a position.
pub async fn event_ids(
    conn: &mut Conn,
    room_id: &RoomId,
    after: i64,
    limit: i64,
) -> Result<Vec<(i64, String)>> {
    all!(
        conn,
        (i64, String),
        "SELECT room_order, event_id FROM events WHERE room_id = $1 AND room_order > $2 \
         ORDER BY room_order LIMIT $3",
        room_id.as_str(),
        after,
        limit
    )
}

/// How many media only this room shows.
pub async fn media_of_room_alone(conn: &mut Conn, room_id: &RoomId) -> Result<i64> {
    Ok(one!(
        conn,
        (i64,),
        "SELECT COUNT(DISTINCT l.media_id) FROM media_links l WHERE l.room_id = $1 \
         AND NOT EXISTS (SELECT 1 FROM media_links o WHERE o.media_id = l.media_id AND o.room_id <> $1)",
        room_id.as_str()
    )?
    .map_or(0, |(n,)| n))
}

/// The media that a room shows: (media id, event id).
pub async fn media_of_room(conn: &mut Conn, room_id: &RoomId) -> Result<Vec<(String, String)>> {
    all!(
        conn,
        (String, String),
        "SELECT media_id, event_id FROM media_links WHERE room_id = $1 ORDER BY media_id",
        room_id.as_str()
    )
}

/// Begins a purge; one per room.
pub async fn begin_purge(conn: &mut Conn, purge: &Purge) -> Result<()> {
    run!(
        conn,
        "INSERT INTO purges (room_id, room_number, acting, begun_at, events, media, digest) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &purge.room_id,
        purge.room_number,
        &purge.acting,
        purge.begun_at,
        purge.events,
        purge.media,
        &purge.digest
    )?;
    Ok(())
}

/// The purge of a room.
pub async fn purge(conn: &mut Conn, room_id: &RoomId) -> Result<Option<Purge>> {
    one!(
        conn,
        Purge,
        "SELECT room_id, room_number, acting, begun_at, finished_at, events, media, digest FROM purges \
         WHERE room_id = $1",
        room_id.as_str()
    )
}

/// The rooms whose purge was begun and is not finished.
pub async fn unfinished_purges(conn: &mut Conn) -> Result<Vec<String>> {
    Ok(all!(conn, (String,), "SELECT room_id FROM purges WHERE finished_at IS NULL ORDER BY room_id")?
        .into_iter()
        .map(|(id,)| id)
        .collect())
}

/// Deletes these events and all that hangs on them but their entries in the search index. `events` are (position, event id).
pub async fn delete_events(conn: &mut Conn, events: &[(i64, String)]) -> Result<()> {
    let ids: Vec<String> = events.iter().map(|(_, id)| id.clone()).collect();
    run_in!(conn, "DELETE FROM event_edges WHERE event_id IN ", &ids);
    run_in!(conn, "DELETE FROM event_auth WHERE event_id IN ", &ids);
    run_in!(conn, "DELETE FROM event_originals WHERE event_id IN ", &ids);
    run_in!(conn, "DELETE FROM relations WHERE event_id IN ", &ids);
    run_in!(conn, "DELETE FROM media_links WHERE event_id IN ", &ids);
    run_in!(conn, "DELETE FROM events WHERE event_id IN ", &ids);
    Ok(())
}

/// Deletes what a room has beside its events. Its row stays, so that its number is never given again, and so do the
/// memberships (ids only): whoever was away is still told that they left.
pub async fn delete_rest(conn: &mut Conn, room_id: &RoomId) -> Result<()> {
    let id = room_id.as_str();
    run!(conn, "DELETE FROM room_state WHERE room_id = $1", id)?;
    run!(conn, "UPDATE memberships SET membership = 'leave' WHERE room_id = $1", id)?;
    run!(conn, "DELETE FROM receipts WHERE room_id = $1", id)?;
    run!(conn, "DELETE FROM account_data WHERE room_id = $1", id)?;
    run!(conn, "DELETE FROM media_links WHERE room_id = $1", id)?;
    run!(conn, "DELETE FROM public_rooms WHERE room_id = $1", id)?;
    run!(conn, "DELETE FROM network_rooms WHERE room_id = $1", id)?;
    super::reports::forget(conn, room_id).await?;
    run!(conn, "DELETE FROM break_glass WHERE room_id = $1", id)?;
    run!(conn, "DELETE FROM legal_holds WHERE room_id = $1", id)?;
    run!(conn, "DELETE FROM reading_marks WHERE room_id = $1", id)?;
    run!(conn, "DELETE FROM room_aliases WHERE room_id = $1", id)?;
    Ok(())
}

/// Marks a purge as finished.
pub async fn finish_purge(conn: &mut Conn, room_id: &RoomId, now: i64) -> Result<()> {
    run!(conn, "UPDATE purges SET finished_at = $1 WHERE room_id = $2", now, room_id.as_str())?;
    Ok(())
}
