//! Sessions: access tokens by their hashes, with device and terminal.

use super::{Conn, all, run};
use crate::error::Result;

/// A session: an access token, by its hash, bound to a device and a terminal. After a refresh the device has a second
/// row until the new token is used.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Session {
    /// SHA-256 of the token, in hex.
    pub token_hash: String,
    /// Whose.
    pub user_id: String,
    /// The Matrix device.
    pub device_id: String,
    /// The terminal on which the log-in was; none where the policy asks for no certificate.
    pub terminal: Option<i64>,
    /// `connection`, `login` or `none` (DESIGN 2).
    pub binding: String,
    /// When the access token runs out (ms).
    pub expires_at: Option<i64>,
    /// The OAuth client.
    pub client_id: Option<String>,
    /// What the OAuth client was given.
    pub scope: Option<String>,
    /// The serial number (hex) of the certificate shown at the log-in.
    pub certificate: Option<String>,
    /// It came by a refresh and was not used yet.
    pub unused: bool,
}

/// All sessions.
pub async fn all_sessions(conn: &mut Conn) -> Result<Vec<Session>> {
    all!(
        conn,
        Session,
        "SELECT token_hash, user_id, device_id, terminal, binding, expires_at, client_id, scope, certificate, unused \
         FROM sessions"
    )
}

/// Makes a session.
pub async fn insert_session(conn: &mut Conn, session: &Session, now: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO sessions (token_hash, user_id, device_id, terminal, binding, created_at, expires_at, client_id, \
         scope, certificate, unused) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        &session.token_hash,
        &session.user_id,
        &session.device_id,
        session.terminal,
        &session.binding,
        now,
        session.expires_at,
        &session.client_id,
        &session.scope,
        &session.certificate,
        session.unused
    )?;
    Ok(())
}

/// The sessions of a user, or of one device of theirs.
pub async fn sessions_of(conn: &mut Conn, user_id: &str, device_id: Option<&str>) -> Result<Vec<Session>> {
    all!(
        conn,
        Session,
        "SELECT token_hash, user_id, device_id, terminal, binding, expires_at, client_id, scope, certificate, unused \
         FROM sessions WHERE user_id = $1 AND (CAST($2 AS TEXT) IS NULL OR device_id = $2)",
        user_id,
        device_id
    )
}

/// The sessions of a terminal.
pub async fn sessions_of_terminal(conn: &mut Conn, terminal: i64) -> Result<Vec<Session>> {
    all!(
        conn,
        Session,
        "SELECT token_hash, user_id, device_id, terminal, binding, expires_at, client_id, scope, certificate, unused \
         FROM sessions WHERE terminal = $1",
        terminal
    )
}

/// The devices of a user that have a session: (device, when the log-in or its last refresh was, terminal, OAuth client).
pub async fn logged_in(
    conn: &mut Conn,
    user_id: &str,
) -> Result<Vec<(String, i64, Option<i64>, Option<String>)>> {
    all!(
        conn,
        (String, i64, Option<i64>, Option<String>),
        "SELECT device_id, created_at, terminal, client_id FROM sessions WHERE user_id = $1 AND NOT unused \
         ORDER BY created_at DESC",
        user_id
    )
}

/// Forgets one access token of a session.
pub async fn delete_token(conn: &mut Conn, token_hash: &str) -> Result<()> {
    run!(conn, "DELETE FROM sessions WHERE token_hash = $1", token_hash)?;
    Ok(())
}

/// The access token that came by a refresh is in use now.
pub async fn token_is_used(conn: &mut Conn, token_hash: &str) -> Result<()> {
    run!(conn, "UPDATE sessions SET unused = FALSE WHERE token_hash = $1", token_hash)?;
    Ok(())
}

/// Ends the session of a device, with all of its tokens; the device stays.
pub async fn delete_session(conn: &mut Conn, user_id: &str, device_id: &str) -> Result<()> {
    run!(conn, "DELETE FROM sessions WHERE user_id = $1 AND device_id = $2", user_id, device_id)?;
    run!(conn, "DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = $2", user_id, device_id)?;
    Ok(())
}
