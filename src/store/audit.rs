//! The audit log's rows: appended and read, never changed.

use super::{
    Conn, all, one,
    script::{Script, queue_many},
};
use crate::error::Result;

/// A row.
#[derive(sqlx::FromRow)]
pub struct Row {
    /// Number in the chain, from 1.
    pub seq: i64,
    /// Date in Japan.
    pub day: String,
    /// The entry as JSON, as it was hashed.
    pub entry: String,
    /// The chain's hash with this entry.
    pub hash: String,
    /// For reading by person.
    pub actor: String,
    /// For reading by what was done.
    pub action: String,
    /// For reading by room.
    pub room_id: String,
}

/// The newest number and hash.
pub async fn newest(conn: &mut Conn) -> Result<Option<(i64, String)>> {
    one!(conn, (i64, String), "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
}

/// Appends rows.
pub fn insert(script: &mut Script, rows: &[Row]) {
    queue_many!(
        script,
        "INSERT INTO audit (seq, day, entry, hash, actor, action, room_id) ",
        rows,
        |b, row| {
            b.push_bind(row.seq)
                .push_bind(&row.day)
                .push_bind(&row.entry)
                .push_bind(&row.hash)
                .push_bind(&row.actor)
                .push_bind(&row.action)
                .push_bind(&row.room_id);
        },
        ""
    );
}

/// Rows after a number, in order.
pub async fn after(conn: &mut Conn, seq: i64, limit: i64) -> Result<Vec<Row>> {
    all!(
        conn,
        Row,
        "SELECT seq, day, entry, hash, actor, action, room_id FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2",
        seq,
        limit
    )
}

/// What happened in or to a room, oldest first.
pub async fn of_room(conn: &mut Conn, room_id: &str, limit: i64) -> Result<Vec<Row>> {
    all!(
        conn,
        Row,
        "SELECT seq, day, entry, hash, actor, action, room_id FROM audit WHERE room_id = $1 ORDER BY seq LIMIT $2",
        room_id,
        limit
    )
}
