//! Tokens that are exchanged for others: refresh tokens, OAuth clients and codes, OpenID tokens.

use super::{Conn, all, one, run};
use crate::error::Result;

/// A refresh token.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct RefreshToken {
    /// Whose.
    pub user_id: String,
    /// The device whose session it renews.
    pub device_id: String,
    /// `current`, `previous` or `spent`.
    pub state: String,
    /// When it was given (ms).
    pub created_at: i64,
}

/// Records a refresh token as the session's current one.
pub async fn put_refresh_token(
    conn: &mut Conn,
    token_hash: &str,
    user_id: &str,
    device_id: &str,
    now: i64,
) -> Result<()> {
    run!(
        conn,
        "INSERT INTO refresh_tokens (token_hash, user_id, device_id, state, created_at) \
         VALUES ($1, $2, $3, 'current', $4)",
        token_hash,
        user_id,
        device_id,
        now
    )?;
    Ok(())
}

/// A refresh token by its hash.
pub async fn refresh_token(conn: &mut Conn, token_hash: &str) -> Result<Option<RefreshToken>> {
    one!(
        conn,
        RefreshToken,
        "SELECT user_id, device_id, state, created_at FROM refresh_tokens WHERE token_hash = $1",
        token_hash
    )
}

/// Moves a session's refresh tokens from one state to another.
pub async fn move_refresh_tokens(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    from: &str,
    to: &str,
) -> Result<()> {
    run!(
        conn,
        "UPDATE refresh_tokens SET state = $4 WHERE user_id = $1 AND device_id = $2 AND state = $3",
        user_id,
        device_id,
        from,
        to
    )?;
    Ok(())
}

/// A client that registered itself.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Client {
    /// Its id.
    pub client_id: String,
    /// Its metadata, as JSON.
    pub metadata: String,
}

/// A client by its id.
pub async fn client(conn: &mut Conn, client_id: &str) -> Result<Option<Client>> {
    one!(conn, Client, "SELECT client_id, metadata FROM oauth_clients WHERE client_id = $1", client_id)
}

/// Records a client; one of the same id is the same client.
pub async fn put_client(conn: &mut Conn, client: &Client, now: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO oauth_clients (client_id, metadata, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        &client.client_id,
        &client.metadata,
        now
    )?;
    Ok(())
}

/// How many clients there are.
pub async fn clients(conn: &mut Conn) -> Result<i64> {
    Ok(one!(conn, (i64,), "SELECT COUNT(*) FROM oauth_clients")?.map_or(0, |(n,)| n))
}

/// Forgets clients that were registered before a time and that nobody has ever logged in with.
pub async fn forget_clients(conn: &mut Conn, before: i64) -> Result<u64> {
    run!(conn, "DELETE FROM oauth_clients WHERE used_at IS NULL AND created_at < $1", before)
}

/// Somebody logs in with a client.
pub async fn client_is_used(conn: &mut Conn, client_id: &str, now: i64) -> Result<()> {
    run!(conn, "UPDATE oauth_clients SET used_at = $2 WHERE client_id = $1", client_id, now)?;
    Ok(())
}

/// An authorization code.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct CodeRow {
    /// SHA-256 of the code, in hex.
    pub code_hash: String,
    /// The client that it was given to.
    pub client_id: String,
    /// Where it was sent.
    pub redirect_uri: String,
    /// The PKCE challenge, by S256.
    pub challenge: String,
    /// Who logged in.
    pub user_id: String,
    /// The device that they log in as.
    pub device_id: String,
    /// The scope.
    pub scope: String,
    /// The terminal of the authorize page.
    pub terminal: Option<i64>,
    /// Its certificate (hex).
    pub certificate: Option<String>,
    /// Valid until (ms).
    pub expires_at: i64,
    /// When it was exchanged (ms).
    pub used_at: Option<i64>,
}

/// Records a code.
pub async fn put_code(conn: &mut Conn, code: &CodeRow) -> Result<()> {
    run!(
        conn,
        "INSERT INTO oauth_codes (code_hash, client_id, redirect_uri, challenge, user_id, device_id, scope, terminal, \
         certificate, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &code.code_hash,
        &code.client_id,
        &code.redirect_uri,
        &code.challenge,
        &code.user_id,
        &code.device_id,
        &code.scope,
        code.terminal,
        &code.certificate,
        code.expires_at
    )?;
    Ok(())
}

/// A code by its hash.
pub async fn code(conn: &mut Conn, code_hash: &str) -> Result<Option<CodeRow>> {
    one!(
        conn,
        CodeRow,
        "SELECT code_hash, client_id, redirect_uri, challenge, user_id, device_id, scope, terminal, certificate, \
         expires_at, used_at FROM oauth_codes WHERE code_hash = $1",
        code_hash
    )
}

/// Uses a code up.
pub async fn spend_code(conn: &mut Conn, code_hash: &str, now: i64) -> Result<()> {
    run!(
        conn,
        "UPDATE oauth_codes SET used_at = $2 WHERE code_hash = $1 AND used_at IS NULL",
        code_hash,
        now
    )?;
    Ok(())
}

/// Forgets the codes of a user that wait to be exchanged.
pub async fn forget_codes_of(conn: &mut Conn, user_id: &str) -> Result<()> {
    run!(conn, "DELETE FROM oauth_codes WHERE user_id = $1 AND used_at IS NULL", user_id)?;
    Ok(())
}

/// OpenID tokens kept of one user: the newest.
const OPENID_MAX: usize = 20;

/// Records an OpenID token; the oldest of the user's give way.
pub async fn put_openid(conn: &mut Conn, token_hash: &str, user_id: &str, expires_at: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO openid_tokens (token_hash, user_id, expires_at) VALUES ($1, $2, $3)",
        token_hash,
        user_id,
        expires_at
    )?;
    let kept = all!(
        conn,
        (String,),
        "SELECT token_hash FROM openid_tokens WHERE user_id = $1 ORDER BY expires_at DESC, token_hash LIMIT 1000",
        user_id
    )?;
    for (old,) in kept.into_iter().skip(OPENID_MAX) {
        run!(conn, "DELETE FROM openid_tokens WHERE token_hash = $1", old)?;
    }
    Ok(())
}

/// Whose an OpenID token is.
pub async fn openid(conn: &mut Conn, token_hash: &str, now: i64) -> Result<Option<String>> {
    Ok(one!(
        conn,
        (String,),
        "SELECT user_id FROM openid_tokens WHERE token_hash = $1 AND expires_at > $2",
        token_hash,
        now
    )?
    .map(|(user_id,)| user_id))
}

/// Forgets what has run out: codes, OpenID tokens and checks of addresses an hour ago, spent refresh tokens a week ago.
pub async fn forget_old(conn: &mut Conn, now: i64) -> Result<()> {
    let (hour, week) = (now - 3_600_000, now - 7 * 86_400_000);
    run!(conn, "DELETE FROM oauth_codes WHERE expires_at < $1", hour)?;
    run!(conn, "DELETE FROM openid_tokens WHERE expires_at < $1", now)?;
    run!(conn, "DELETE FROM threepid_checks WHERE expires_at < $1", hour)?;
    run!(conn, "DELETE FROM refresh_tokens WHERE state = 'spent' AND created_at < $1", week)?;
    Ok(())
}
