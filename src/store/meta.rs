//! What belongs to the whole server: names and numbers, and the one sequence of positions.

use std::collections::BTreeMap;

use super::{
    Conn, all, one, run,
    script::{Script, queue},
};
use crate::error::{Error, Result};

/// A stored value.
pub async fn value(conn: &mut Conn, key: &str) -> Result<Option<String>> {
    Ok(one!(conn, (String,), "SELECT value FROM meta WHERE key = $1", key)?.map(|(value,)| value))
}

/// How many rows the tables have that hold a city's records, by table.
pub async fn counts(conn: &mut Conn) -> Result<BTreeMap<String, i64>> {
    let rows = all!(
        conn,
        (String, i64),
        "SELECT 'accounts', count(*) FROM accounts UNION ALL SELECT 'facilities', count(*) FROM facilities \
         UNION ALL SELECT 'terminals', count(*) FROM terminals UNION ALL SELECT 'certificates', count(*) FROM certificates \
         UNION ALL SELECT 'rooms', count(*) FROM rooms UNION ALL SELECT 'memberships', count(*) FROM memberships \
         UNION ALL SELECT 'events', count(*) FROM events UNION ALL SELECT 'event_originals', count(*) FROM event_originals \
         UNION ALL SELECT 'room_state', count(*) FROM room_state UNION ALL SELECT 'receipts', count(*) FROM receipts \
         UNION ALL SELECT 'account_data', count(*) FROM account_data UNION ALL SELECT 'media', count(*) FROM media \
         UNION ALL SELECT 'media_links', count(*) FROM media_links UNION ALL SELECT 'mails', count(*) FROM mails \
         UNION ALL SELECT 'audit', count(*) FROM audit UNION ALL SELECT 'reading_marks', count(*) FROM reading_marks"
    )?;
    Ok(rows.into_iter().collect())
}

/// Stores a value.
pub async fn set(conn: &mut Conn, key: &str, value: &str) -> Result<()> {
    run!(
        conn,
        "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        key,
        value
    )?;
    Ok(())
}

/// The newest committed position.
pub async fn position(conn: &mut Conn) -> Result<i64> {
    Ok(one!(conn, (i64,), "SELECT n FROM positions WHERE id = 1")?.map_or(0, |(n,)| n))
}

/// Writes the newest position and the batch's id.
pub fn write_position(script: &mut Script, n: i64, batch_id: &str) {
    queue!(script, "UPDATE positions SET n = ", n, ", batch = ", batch_id, " WHERE id = 1");
}

/// Ends the transaction.
pub fn commit(script: &mut Script) {
    queue!(script, "COMMIT");
}

/// The id of the last batch that was committed.
pub async fn batch(conn: &mut Conn) -> Result<String> {
    one!(conn, (String,), "SELECT batch FROM positions WHERE id = 1")?
        .map(|(id,)| id)
        .ok_or_else(|| Error::internal("the row of positions is missing"))
}

/// The next number of a kind; never given twice.
pub async fn next_number(conn: &mut Conn, name: &str, first: i64) -> Result<i64> {
    one!(
        conn,
        (i64,),
        "INSERT INTO numbers (name, n) VALUES ($1, $2) \
         ON CONFLICT (name) DO UPDATE SET n = numbers.n + 1 RETURNING n",
        name,
        first
    )?
    .map(|(n,)| n)
    .ok_or_else(|| Error::internal("no number was given"))
}

/// The answer that a call with this idempotency key got.
pub async fn idempotent_answer(conn: &mut Conn, key: &str) -> Result<Option<String>> {
    Ok(one!(conn, (String,), "SELECT answer FROM idempotency WHERE key = $1", key)?.map(|(answer,)| answer))
}

/// Keeps the answer of a call.
pub async fn keep_answer(conn: &mut Conn, key: &str, answer: &str, now: i64) -> Result<()> {
    run!(conn, "INSERT INTO idempotency (key, answer, at) VALUES ($1, $2, $3)", key, answer, now)?;
    Ok(())
}

/// How far a follower of the stream has come.
pub async fn follower(conn: &mut Conn, name: &str) -> Result<Option<i64>> {
    Ok(one!(conn, (i64,), "SELECT position FROM followers WHERE name = $1", name)?.map(|(n,)| n))
}

/// Moves a follower.
pub async fn move_follower(conn: &mut Conn, name: &str, position: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO followers (name, position) VALUES ($1, $2) \
         ON CONFLICT (name) DO UPDATE SET position = excluded.position",
        name,
        position
    )?;
    Ok(())
}
