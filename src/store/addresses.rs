//! E-mail addresses of accounts, and checks of them under way.

use super::{Conn, all, one, run};
use crate::error::Result;

/// An address check under way.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct AddressCheck {
    /// The session id that the client knows.
    pub sid: String,
    /// The secret that the client chose.
    pub client_secret: String,
    /// The address.
    pub address: String,
    /// SHA-256 of the token in the mailed link, in hex.
    pub token_hash: String,
    /// The client's attempt number: a repeated one sends no second mail.
    pub attempt: i64,
    /// Valid until (ms).
    pub expires_at: i64,
    /// When the person confirmed.
    pub validated_at: Option<i64>,
    /// `add` (to an account) or `reset` (a password).
    pub purpose: String,
}

/// Records a check.
pub async fn put_check(conn: &mut Conn, check: &AddressCheck) -> Result<()> {
    run!(
        conn,
        "INSERT INTO threepid_checks (sid, client_secret, address, token_hash, attempt, expires_at, validated_at, purpose) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &check.sid,
        &check.client_secret,
        &check.address,
        &check.token_hash,
        check.attempt,
        check.expires_at,
        check.validated_at,
        &check.purpose
    )?;
    Ok(())
}

/// The check of one client secret, address and purpose.
pub async fn check_of(
    conn: &mut Conn,
    client_secret: &str,
    address: &str,
    purpose: &str,
) -> Result<Option<AddressCheck>> {
    one!(
        conn,
        AddressCheck,
        "SELECT sid, client_secret, address, token_hash, attempt, expires_at, validated_at, purpose \
         FROM threepid_checks WHERE client_secret = $1 AND address = $2 AND purpose = $3 \
         ORDER BY attempt DESC LIMIT 1",
        client_secret,
        address,
        purpose
    )
}

/// How many checks of an address wait for somebody to open their link.
pub async fn checks_waiting(conn: &mut Conn, address: &str, purpose: &str, now: i64) -> Result<i64> {
    Ok(one!(
        conn,
        (i64,),
        "SELECT COUNT(*) FROM threepid_checks WHERE address = $1 AND purpose = $2 AND expires_at > $3 \
         AND validated_at IS NULL",
        address,
        purpose,
        now
    )?
    .map_or(0, |(n,)| n))
}

/// A check by its session id.
pub async fn check(conn: &mut Conn, sid: &str) -> Result<Option<AddressCheck>> {
    one!(
        conn,
        AddressCheck,
        "SELECT sid, client_secret, address, token_hash, attempt, expires_at, validated_at, purpose \
         FROM threepid_checks WHERE sid = $1",
        sid
    )
}

/// Marks the check with this token as confirmed; false where there is none that waits for it.
pub async fn confirm_check(conn: &mut Conn, token_hash: &str, purpose: &str, now: i64) -> Result<bool> {
    Ok(run!(
        conn,
        "UPDATE threepid_checks SET validated_at = $2 \
         WHERE token_hash = $1 AND purpose = $3 AND validated_at IS NULL AND expires_at > $2",
        token_hash,
        now,
        purpose
    )? == 1)
}

/// Forgets a check.
pub async fn delete_check(conn: &mut Conn, sid: &str) -> Result<()> {
    run!(conn, "DELETE FROM threepid_checks WHERE sid = $1", sid)?;
    Ok(())
}

/// The accounts that have an address and were not ended; two at most.
pub async fn users_of_address(conn: &mut Conn, address: &str) -> Result<Vec<String>> {
    let rows = all!(
        conn,
        (String,),
        "SELECT t.user_id FROM threepids t JOIN accounts a ON a.user_id = t.user_id \
         WHERE t.address = $1 AND a.status <> 'ended' LIMIT 2",
        address
    )?;
    Ok(rows.into_iter().map(|(user_id,)| user_id).collect())
}

/// The addresses of a user: (address, validated at, added at).
pub async fn addresses(conn: &mut Conn, user_id: &str) -> Result<Vec<(String, i64, i64)>> {
    all!(
        conn,
        (String, i64, i64),
        "SELECT address, validated_at, added_at FROM threepids WHERE user_id = $1 ORDER BY added_at",
        user_id
    )
}

/// Adds an address.
pub async fn add_address(
    conn: &mut Conn,
    user_id: &str,
    address: &str,
    validated_at: i64,
    now: i64,
) -> Result<()> {
    run!(
        conn,
        "INSERT INTO threepids (user_id, address, validated_at, added_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (user_id, address) DO UPDATE SET validated_at = excluded.validated_at",
        user_id,
        address,
        validated_at,
        now
    )?;
    Ok(())
}

/// Removes all addresses of a user.
pub async fn remove_addresses(conn: &mut Conn, user_id: &str) -> Result<()> {
    run!(conn, "DELETE FROM threepids WHERE user_id = $1", user_id)?;
    Ok(())
}

/// Removes an address and the pushers that mail to it.
pub async fn remove_address(conn: &mut Conn, user_id: &str, address: &str) -> Result<()> {
    run!(conn, "DELETE FROM threepids WHERE user_id = $1 AND address = $2", user_id, address)?;
    run!(
        conn,
        "DELETE FROM pushers WHERE user_id = $1 AND app_id = 'm.email' AND pushkey = $2",
        user_id,
        address
    )?;
    Ok(())
}
