//! Key backups: encrypted room keys that a user's devices leave with the server.

use super::{Conn, all, insert_many, one, run};
use crate::error::Result;

/// A version of a backup.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Backup {
    /// Its number.
    pub version: i64,
    /// The algorithm.
    pub algorithm: String,
    /// What the algorithm needs, as JSON text.
    pub auth_data: String,
    /// Counts the changes of the keys.
    pub etag: i64,
    /// How many keys it has.
    pub sessions: i64,
    /// How many bytes those have.
    pub bytes: i64,
}

/// The key of a session in a backup.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Session {
    /// The room.
    pub room_id: String,
    /// The megolm session.
    pub session_id: String,
    /// Index of the first message that the key can decrypt.
    pub first_message_index: i64,
    /// How often the key was forwarded.
    pub forwarded_count: i64,
    /// The device that backed it up had verified the device that it is from.
    pub is_verified: bool,
    /// What is encrypted, as JSON text.
    pub session_data: String,
}

/// The current version: the newest that was not deleted.
pub async fn current(conn: &mut Conn, user_id: &str) -> Result<Option<Backup>> {
    one!(
        conn,
        Backup,
        "SELECT version, algorithm, auth_data, etag, sessions, bytes FROM key_backups \
         WHERE user_id = $1 AND deleted = FALSE ORDER BY version DESC LIMIT 1",
        user_id
    )
}

/// A version that was not deleted.
pub async fn version(conn: &mut Conn, user_id: &str, version: i64) -> Result<Option<Backup>> {
    one!(
        conn,
        Backup,
        "SELECT version, algorithm, auth_data, etag, sessions, bytes FROM key_backups \
         WHERE user_id = $1 AND version = $2 AND deleted = FALSE",
        user_id,
        version
    )
}

/// The highest number given out, deleted or not, and how many versions there are.
pub async fn numbers(conn: &mut Conn, user_id: &str) -> Result<(i64, i64)> {
    Ok(one!(
        conn,
        (i64, i64),
        "SELECT CAST(COALESCE(MAX(version), 0) AS BIGINT), COUNT(*) FROM key_backups WHERE user_id = $1",
        user_id
    )?
    .unwrap_or_default())
}

/// Stores a new version.
pub async fn insert(conn: &mut Conn, user_id: &str, backup: &Backup, now: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO key_backups (user_id, version, algorithm, auth_data, etag, sessions, bytes, created_at, deleted) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, FALSE)",
        user_id,
        backup.version,
        &backup.algorithm,
        &backup.auth_data,
        backup.etag,
        backup.sessions,
        backup.bytes,
        now
    )?;
    Ok(())
}

/// Writes a version's data and counters.
pub async fn update(conn: &mut Conn, user_id: &str, backup: &Backup) -> Result<()> {
    run!(
        conn,
        "UPDATE key_backups SET auth_data = $3, etag = $4, sessions = $5, bytes = $6 WHERE user_id = $1 AND version = $2",
        user_id,
        backup.version,
        &backup.auth_data,
        backup.etag,
        backup.sessions,
        backup.bytes
    )?;
    Ok(())
}

/// Deletes a version with its keys. The highest number stays known, so that it is not given out again.
pub async fn delete(conn: &mut Conn, user_id: &str, version: i64) -> Result<()> {
    run!(conn, "DELETE FROM key_backup_sessions WHERE user_id = $1 AND version = $2", user_id, version)?;
    run!(
        conn,
        "UPDATE key_backups SET deleted = TRUE, auth_data = '', sessions = 0, bytes = 0 \
         WHERE user_id = $1 AND version = $2",
        user_id,
        version
    )?;
    run!(
        conn,
        "DELETE FROM key_backups WHERE user_id = $1 AND deleted = TRUE \
         AND version < (SELECT MAX(version) FROM key_backups WHERE user_id = $1)",
        user_id
    )?;
    Ok(())
}

/// All keys of a version.
pub async fn sessions(conn: &mut Conn, user_id: &str, version: i64) -> Result<Vec<Session>> {
    all!(
        conn,
        Session,
        "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data \
         FROM key_backup_sessions WHERE user_id = $1 AND version = $2 ORDER BY room_id, session_id",
        user_id,
        version
    )
}

/// The keys of a room.
pub async fn sessions_of_room(
    conn: &mut Conn,
    user_id: &str,
    version: i64,
    room_id: &str,
) -> Result<Vec<Session>> {
    all!(
        conn,
        Session,
        "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data \
         FROM key_backup_sessions WHERE user_id = $1 AND version = $2 AND room_id = $3 ORDER BY session_id",
        user_id,
        version,
        room_id
    )
}

/// The key of a session.
pub async fn session(
    conn: &mut Conn,
    user_id: &str,
    version: i64,
    room_id: &str,
    session_id: &str,
) -> Result<Option<Session>> {
    one!(
        conn,
        Session,
        "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data \
         FROM key_backup_sessions WHERE user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4",
        user_id,
        version,
        room_id,
        session_id
    )
}

/// Stores keys, each in the place of the one before.
pub async fn put_sessions(conn: &mut Conn, user_id: &str, version: i64, sessions: &[Session]) -> Result<()> {
    insert_many!(
        conn,
        "INSERT INTO key_backup_sessions (user_id, version, room_id, session_id, first_message_index, \
         forwarded_count, is_verified, session_data) ",
        sessions,
        |b, session| {
            b.push_bind(user_id)
                .push_bind(version)
                .push_bind(&session.room_id)
                .push_bind(&session.session_id)
                .push_bind(session.first_message_index)
                .push_bind(session.forwarded_count)
                .push_bind(session.is_verified)
                .push_bind(&session.session_data);
        },
        " ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET \
         first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count, \
         is_verified = excluded.is_verified, session_data = excluded.session_data"
    );
    Ok(())
}

/// Deletes keys: all of a version, those of a room, or one.
pub async fn delete_sessions(
    conn: &mut Conn,
    user_id: &str,
    version: i64,
    room_id: Option<&str>,
    session_id: Option<&str>,
) -> Result<u64> {
    match (room_id, session_id) {
        (Some(room_id), Some(session_id)) => run!(
            conn,
            "DELETE FROM key_backup_sessions WHERE user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4",
            user_id,
            version,
            room_id,
            session_id
        ),
        (Some(room_id), None) => run!(
            conn,
            "DELETE FROM key_backup_sessions WHERE user_id = $1 AND version = $2 AND room_id = $3",
            user_id,
            version,
            room_id
        ),
        _ => run!(
            conn,
            "DELETE FROM key_backup_sessions WHERE user_id = $1 AND version = $2",
            user_id,
            version
        ),
    }
}

/// How many keys a version has, and how many bytes.
pub async fn size(conn: &mut Conn, user_id: &str, version: i64) -> Result<(i64, i64)> {
    Ok(one!(
        conn,
        (i64, i64),
        "SELECT COUNT(*), CAST(COALESCE(SUM(LENGTH(session_data)), 0) AS BIGINT) FROM key_backup_sessions \
         WHERE user_id = $1 AND version = $2",
        user_id,
        version
    )?
    .unwrap_or_default())
}
