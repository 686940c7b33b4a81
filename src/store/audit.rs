//! The audit log's rows: appended and read, never changed.

use super::{
    Conn, all, insert_many, one,
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

/// What happened in or to a room: the newest entries, oldest first.
pub async fn of_room(conn: &mut Conn, room_id: &str, limit: i64) -> Result<Vec<Row>> {
    let mut rows = all!(
        conn,
        Row,
        "SELECT seq, day, entry, hash, actor, action, room_id FROM audit WHERE room_id = $1 \
         ORDER BY seq DESC LIMIT $2",
        room_id,
        limit
    )?;
    rows.reverse();
    Ok(rows)
}

/// How far and how often somebody looked at a room.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Mark {
    /// Who.
    pub user_id: String,
    /// From which terminal; 0 where there is none.
    pub terminal: i64,
    /// The room.
    pub room_id: String,
    /// `room.delivered` or `room.opened`.
    pub action: String,
    /// How often.
    pub looks: i64,
    /// When last, in milliseconds.
    pub last_at: i64,
    /// The newest position.
    pub upto: i64,
}

/// Advances marks by the looks given; each (account, terminal, room, action) is named once.
pub async fn advance(conn: &mut Conn, marks: &[Mark]) -> Result<()> {
    insert_many!(
        conn,
        "INSERT INTO reading_marks (user_id, terminal, room_id, action, looks, last_at, upto) ",
        marks,
        |b, row| {
            b.push_bind(&row.user_id)
                .push_bind(row.terminal)
                .push_bind(&row.room_id)
                .push_bind(&row.action)
                .push_bind(row.looks)
                .push_bind(row.last_at)
                .push_bind(row.upto);
        },
        " ON CONFLICT (room_id, user_id, terminal, action) DO UPDATE SET \
         looks = reading_marks.looks + excluded.looks, last_at = excluded.last_at, upto = excluded.upto"
    );
    Ok(())
}

/// The marks of a room, the newest look first.
pub async fn marks(conn: &mut Conn, room_id: &str) -> Result<Vec<Mark>> {
    all!(
        conn,
        Mark,
        "SELECT user_id, terminal, room_id, action, looks, last_at, upto FROM reading_marks \
         WHERE room_id = $1 ORDER BY last_at DESC",
        room_id
    )
}
