//! Pushers, and the mails that the server owes.

use super::{Conn, all, one, run};
use crate::error::Result;

/// A stored pusher.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Pusher {
    /// Whose.
    pub user_id: String,
    /// The app.
    pub app_id: String,
    /// The address or the app's key.
    pub pushkey: String,
    /// An opaque id of ours.
    pub id: String,
    /// The pusher as the client set it, as JSON.
    pub pusher: String,
    /// The device that set it and with which it goes; none for e-mail.
    pub device_id: Option<String>,
    /// When it was first set, in milliseconds.
    pub created_at: i64,
}

/// All pushers: few per account, kept in memory by the push follower.
pub async fn all_pushers(conn: &mut Conn) -> Result<Vec<Pusher>> {
    all!(conn, Pusher, "SELECT user_id, app_id, pushkey, id, pusher, device_id, created_at FROM pushers")
}

/// A user's pushers.
pub async fn pushers(conn: &mut Conn, user_id: &str) -> Result<Vec<Pusher>> {
    all!(
        conn,
        Pusher,
        "SELECT user_id, app_id, pushkey, id, pusher, device_id, created_at FROM pushers WHERE user_id = $1 \
         ORDER BY created_at",
        user_id
    )
}

/// Sets a pusher.
pub async fn put(conn: &mut Conn, pusher: &Pusher) -> Result<()> {
    run!(
        conn,
        "INSERT INTO pushers (user_id, app_id, pushkey, id, pusher, device_id, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (user_id, app_id, pushkey) \
         DO UPDATE SET pusher = excluded.pusher, device_id = excluded.device_id",
        &pusher.user_id,
        &pusher.app_id,
        &pusher.pushkey,
        &pusher.id,
        &pusher.pusher,
        &pusher.device_id,
        pusher.created_at
    )?;
    Ok(())
}

/// Removes a pusher. Tells whether there was one.
pub async fn delete(conn: &mut Conn, user_id: &str, app_id: &str, pushkey: &str) -> Result<bool> {
    let deleted = run!(
        conn,
        "DELETE FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3",
        user_id,
        app_id,
        pushkey
    )?;
    Ok(deleted > 0)
}

/// Removes the same app's pusher of other users, unless the client said `append`. Tells whether there was one.
pub async fn delete_of_others(conn: &mut Conn, user_id: &str, app_id: &str, pushkey: &str) -> Result<bool> {
    let deleted = run!(
        conn,
        "DELETE FROM pushers WHERE user_id <> $1 AND app_id = $2 AND pushkey = $3",
        user_id,
        app_id,
        pushkey
    )?;
    Ok(deleted > 0)
}

/// Removes the pushers that a device set.
pub async fn delete_of_device(conn: &mut Conn, user_id: &str, device_id: &str) -> Result<()> {
    run!(conn, "DELETE FROM pushers WHERE user_id = $1 AND device_id = $2", user_id, device_id)?;
    Ok(())
}

/// Joined rooms of a user in which something is newer than their newest receipt for the whole room.
pub async fn unread_rooms(conn: &mut Conn, user_id: &str) -> Result<Vec<String>> {
    Ok(all!(
        conn,
        (String,),
        "SELECT m.room_id FROM memberships m JOIN rooms r ON r.room_id = m.room_id \
         WHERE m.user_id = $1 AND m.membership = 'join' AND r.last_position > \
         COALESCE((SELECT MAX(c.event_order) FROM receipts c \
         WHERE c.room_id = m.room_id AND c.user_id = $1 AND c.thread = ''), 0)",
        user_id
    )?
    .into_iter()
    .map(|(id,)| id)
    .collect())
}

/// Removes all pushers of a user.
pub async fn delete_all(conn: &mut Conn, user_id: &str) -> Result<()> {
    run!(conn, "DELETE FROM pushers WHERE user_id = $1", user_id)?;
    Ok(())
}

/// A mail that the server owes.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Mail {
    /// Its number.
    pub id: i64,
    /// The template's name.
    pub template: String,
    /// The language.
    pub lang: String,
    /// To whom.
    pub address: String,
    /// The template's parameters, as JSON.
    pub parameters: String,
}

/// Owes a mail.
pub async fn owe_mail(conn: &mut Conn, mail: &Mail, now: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO mails (id, template, lang, address, parameters, created_at, leased_until) \
         VALUES ($1, $2, $3, $4, $5, $6, 0)",
        mail.id,
        &mail.template,
        &mail.lang,
        &mail.address,
        &mail.parameters,
        now
    )?;
    Ok(())
}

/// Forgets mails that were owed before a time and sent, or refused; and those whose link has long ended, where nobody took
/// them: no bridge runs, or its server was away.
pub async fn forget_mails(conn: &mut Conn, before: i64) -> Result<u64> {
    run!(
        conn,
        "DELETE FROM mails WHERE created_at < $1 AND \
         (outcome IS NOT NULL OR template IN ('verify_address', 'password_reset'))",
        before
    )
}

/// Leases mails until a time.
pub async fn lease_mails(conn: &mut Conn, max: i64, now: i64, until: i64) -> Result<Vec<Mail>> {
    let mut mails = all!(
        conn,
        Mail,
        "UPDATE mails SET leased_until = $1 WHERE id IN \
         (SELECT id FROM mails WHERE outcome IS NULL AND leased_until <= $2 ORDER BY id LIMIT $3) \
         RETURNING id, template, lang, address, parameters",
        until,
        now,
        max
    )?;
    mails.sort_by_key(|mail| mail.id);
    Ok(mails)
}

/// Whether a mail waits.
pub async fn mail_waits(conn: &mut Conn, now: i64) -> Result<bool> {
    Ok(one!(conn, (i64,), "SELECT id FROM mails WHERE outcome IS NULL AND leased_until <= $1 LIMIT 1", now)?
        .is_some())
}

/// A mail is done: its address and parameters (a link) are forgotten.
pub async fn mail_done(conn: &mut Conn, id: i64, outcome: &str) -> Result<bool> {
    Ok(run!(
        conn,
        "UPDATE mails SET outcome = $2, address = '', parameters = '{}' WHERE id = $1 AND outcome IS NULL",
        id,
        outcome
    )? == 1)
}
