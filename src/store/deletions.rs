//! Orders to delete rooms that are not the city's.

use super::{Conn, all, one, run};
use crate::error::Result;

/// An order.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Deletion {
    /// Its id.
    pub delete_id: String,
    /// The room.
    pub room_id: String,
    /// Who ordered it.
    pub ordered_by: String,
    /// When, in milliseconds.
    pub ordered_at: i64,
    /// `shutting_down`, `purging` or `complete`.
    pub status: String,
    /// The users who were in the room, as a JSON array.
    pub removed: String,
    /// When everything was gone.
    pub finished_at: Option<i64>,
}

/// Records an order.
pub async fn insert(conn: &mut Conn, deletion: &Deletion) -> Result<()> {
    run!(
        conn,
        "INSERT INTO room_deletions (delete_id, room_id, ordered_by, ordered_at, status, removed) \
         VALUES ($1, $2, $3, $4, $5, $6)",
        &deletion.delete_id,
        &deletion.room_id,
        &deletion.ordered_by,
        deletion.ordered_at,
        &deletion.status,
        &deletion.removed
    )?;
    Ok(())
}

/// Records how far it has come.
pub async fn update(conn: &mut Conn, deletion: &Deletion) -> Result<()> {
    run!(
        conn,
        "UPDATE room_deletions SET status = $2, removed = $3, finished_at = $4 WHERE delete_id = $1",
        &deletion.delete_id,
        &deletion.status,
        &deletion.removed,
        deletion.finished_at
    )?;
    Ok(())
}

/// An order by its id.
pub async fn one(conn: &mut Conn, delete_id: &str) -> Result<Option<Deletion>> {
    one!(
        conn,
        Deletion,
        "SELECT delete_id, room_id, ordered_by, ordered_at, status, removed, finished_at \
         FROM room_deletions WHERE delete_id = $1",
        delete_id
    )
}

/// The orders for a room, newest last.
pub async fn of_room(conn: &mut Conn, room_id: &str) -> Result<Vec<Deletion>> {
    all!(
        conn,
        Deletion,
        "SELECT delete_id, room_id, ordered_by, ordered_at, status, removed, finished_at \
         FROM room_deletions WHERE room_id = $1 ORDER BY ordered_at",
        room_id
    )
}

/// Whether a room is being deleted.
pub async fn unfinished_of(conn: &mut Conn, room_id: &str) -> Result<bool> {
    Ok(of_room(conn, room_id).await?.iter().any(|deletion| deletion.finished_at.is_none()))
}

/// The orders that are not finished.
pub async fn unfinished(conn: &mut Conn) -> Result<Vec<String>> {
    Ok(all!(
        conn,
        (String,),
        "SELECT delete_id FROM room_deletions WHERE finished_at IS NULL ORDER BY ordered_at"
    )?
    .into_iter()
    .map(|(id,)| id)
    .collect())
}
