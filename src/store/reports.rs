//! Reports (通報) of rooms, events and people.

use ruma::RoomId;

use super::{Conn, all, one, run};
use crate::error::Result;

/// A report.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Report {
    /// Its number.
    pub id: i64,
    /// When, in milliseconds.
    pub at: i64,
    /// Who reports.
    pub reporter: String,
    /// The room, or "".
    pub room_id: String,
    /// The event, or "".
    pub event_id: String,
    /// The person, or "".
    pub user_id: String,
    /// Why, in the reporter's words.
    pub reason: String,
    /// Whether there is such a thing, as far as the reporter may know.
    pub known: bool,
}

/// Writes a report.
pub async fn insert(conn: &mut Conn, report: &Report) -> Result<()> {
    run!(
        conn,
        "INSERT INTO reports (id, at, reporter, room_id, event_id, user_id, reason, known) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        report.id,
        report.at,
        &report.reporter,
        &report.room_id,
        &report.event_id,
        &report.user_id,
        &report.reason,
        report.known
    )?;
    Ok(())
}

/// How often somebody has reported since a time.
pub async fn count_since(conn: &mut Conn, reporter: &str, since_ms: i64) -> Result<i64> {
    let counted = one!(
        conn,
        (i64,),
        "SELECT COUNT(*) FROM reports WHERE reporter = $1 AND at > $2",
        reporter,
        since_ms
    )?;
    Ok(counted.map_or(0, |(n,)| n))
}

/// The reports of what there is, the newest first, before a number.
pub async fn newest(conn: &mut Conn, before: i64, limit: i64) -> Result<Vec<Report>> {
    all!(
        conn,
        Report,
        "SELECT id, at, reporter, room_id, event_id, user_id, reason, known FROM reports \
         WHERE known AND id < $1 ORDER BY id DESC LIMIT $2",
        before,
        limit
    )
}

/// Deletes the reports of a room.
pub async fn forget(conn: &mut Conn, room_id: &RoomId) -> Result<()> {
    run!(conn, "DELETE FROM reports WHERE room_id = $1", room_id.as_str())?;
    Ok(())
}
