//! Facilities and accounts.

use super::{Conn, all, one, run};
use crate::error::Result;

/// A facility (事業所).
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Facility {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: String,
    /// Whether it takes part.
    pub active: bool,
}

/// An account.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Account {
    /// The Matrix id.
    pub user_id: String,
    /// `facility` (施設ID), `personal` (個人ID), `open` or `appservice`.
    pub kind: String,
    /// The primary facility.
    pub facility: Option<i64>,
    /// The person's name; empty for a facility ID.
    pub name: String,
    /// The profession.
    pub profession: String,
    /// The display name.
    pub display_name: Option<String>,
    /// argon2id, PHC string.
    pub password_hash: Option<String>,
    /// Whether the password is the person's own; otherwise only enrolment takes it.
    pub password_own: bool,
    /// `issued`, `active` or `ended`.
    pub status: String,
}

/// Makes a facility.
pub async fn insert_facility(conn: &mut Conn, facility: &Facility, now: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO facilities (id, name, kind, active, pledged_at, created_at) VALUES ($1, $2, $3, $4, $5, $5)",
        facility.id,
        &facility.name,
        &facility.kind,
        facility.active,
        now
    )?;
    Ok(())
}

/// All facilities with their number of accounts.
pub async fn facilities(conn: &mut Conn) -> Result<Vec<(i64, String, String, bool, i64)>> {
    all!(
        conn,
        (i64, String, String, bool, i64),
        "SELECT f.id, f.name, f.kind, f.active, \
         (SELECT COUNT(*) FROM accounts a WHERE a.facility = f.id AND a.status <> 'ended') \
         FROM facilities f ORDER BY f.id"
    )
}

/// A facility by its number.
pub async fn facility(conn: &mut Conn, id: i64) -> Result<Option<Facility>> {
    one!(conn, Facility, "SELECT id, name, kind, active FROM facilities WHERE id = $1", id)
}

/// A facility by its name.
pub async fn facility_named(conn: &mut Conn, name: &str) -> Result<Option<Facility>> {
    one!(conn, Facility, "SELECT id, name, kind, active FROM facilities WHERE name = $1", name)
}

/// Makes an account.
pub async fn insert_account(conn: &mut Conn, account: &Account, search_key: &str, now: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO accounts (user_id, kind, facility, name, profession, display_name, password_hash, password_own, \
         status, search_key, pledged_at, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)",
        &account.user_id,
        &account.kind,
        account.facility,
        &account.name,
        &account.profession,
        &account.display_name,
        &account.password_hash,
        account.password_own,
        &account.status,
        search_key,
        now
    )?;
    if let Some(facility) = account.facility {
        run!(
            conn,
            "INSERT INTO account_facilities (user_id, facility) VALUES ($1, $2)",
            &account.user_id,
            facility
        )?;
    }
    Ok(())
}

/// An account by its Matrix id.
pub async fn account(conn: &mut Conn, user_id: &str) -> Result<Option<Account>> {
    one!(
        conn,
        Account,
        "SELECT user_id, kind, facility, name, profession, display_name, password_hash, password_own, status \
         FROM accounts WHERE user_id = $1",
        user_id
    )
}

/// All accounts of people and facilities with their search keys; the register is small (hundreds of facilities).
pub async fn register(
    conn: &mut Conn,
) -> Result<Vec<(String, String, Option<i64>, String, String, Option<String>, String, String)>> {
    all!(
        conn,
        (String, String, Option<i64>, String, String, Option<String>, String, String),
        "SELECT user_id, kind, facility, name, profession, display_name, status, search_key FROM accounts \
         WHERE kind IN ('facility', 'personal', 'open') ORDER BY user_id"
    )
}

/// The facility ID of a facility.
pub async fn facility_account(conn: &mut Conn, facility: i64) -> Result<Option<String>> {
    Ok(one!(
        conn,
        (String,),
        "SELECT user_id FROM accounts WHERE facility = $1 AND kind = 'facility' AND status <> 'ended'",
        facility
    )?
    .map(|(id,)| id))
}

/// The accounts of a facility that are not ended.
pub async fn of_facility(conn: &mut Conn, facility: i64) -> Result<Vec<String>> {
    Ok(all!(
        conn,
        (String,),
        "SELECT user_id FROM accounts WHERE facility = $1 AND status <> 'ended' ORDER BY user_id",
        facility
    )?
    .into_iter()
    .map(|(id,)| id)
    .collect())
}

/// Everybody who belongs to a facility that this account belongs to.
pub async fn colleagues(conn: &mut Conn, user_id: &str) -> Result<std::collections::BTreeSet<String>> {
    Ok(all!(
        conn,
        (String,),
        "SELECT DISTINCT user_id FROM account_facilities WHERE facility IN \
         (SELECT facility FROM account_facilities WHERE user_id = $1)",
        user_id
    )?
    .into_iter()
    .map(|(id,)| id)
    .collect())
}

/// The facilities that an account belongs to.
pub async fn facilities_of(conn: &mut Conn, user_id: &str) -> Result<Vec<i64>> {
    Ok(all!(conn, (i64,), "SELECT facility FROM account_facilities WHERE user_id = $1", user_id)?
        .into_iter()
        .map(|(id,)| id)
        .collect())
}

/// Sets a password; the old hash goes to the history.
pub async fn set_password(conn: &mut Conn, user_id: &str, hash: &str, own: bool, now: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO password_history (user_id, changed_at, password_hash) \
         SELECT user_id, $2, password_hash FROM accounts WHERE user_id = $1 AND password_hash IS NOT NULL \
         ON CONFLICT DO NOTHING",
        user_id,
        now
    )?;
    run!(
        conn,
        "UPDATE accounts SET password_hash = $2, password_own = $3 WHERE user_id = $1",
        user_id,
        hash,
        own
    )?;
    Ok(())
}

/// The newest former password hashes.
pub async fn password_history(conn: &mut Conn, user_id: &str, limit: i64) -> Result<Vec<String>> {
    Ok(all!(
        conn,
        (String,),
        "SELECT password_hash FROM password_history WHERE user_id = $1 ORDER BY changed_at DESC LIMIT $2",
        user_id,
        limit
    )?
    .into_iter()
    .map(|(hash,)| hash)
    .collect())
}

/// Whether an account of the open profile was registered as an administrator's.
pub async fn is_admin(conn: &mut Conn, user_id: &str) -> Result<bool> {
    Ok(one!(
        conn,
        (String,),
        "SELECT user_id FROM accounts WHERE user_id = $1 AND admin = TRUE AND status <> 'ended'",
        user_id
    )?
    .is_some())
}

/// Makes an account of the open profile an administrator's, or no longer.
pub async fn set_admin(conn: &mut Conn, user_id: &str, admin: bool) -> Result<()> {
    run!(conn, "UPDATE accounts SET admin = $2 WHERE user_id = $1", user_id, admin)?;
    Ok(())
}

/// Sets an account's status.
pub async fn set_status(conn: &mut Conn, user_id: &str, status: &str, now: i64) -> Result<()> {
    run!(
        conn,
        "UPDATE accounts SET status = $2, ended_at = CASE WHEN $2 = 'ended' THEN $3 ELSE ended_at END \
         WHERE user_id = $1",
        user_id,
        status,
        now
    )?;
    Ok(())
}
