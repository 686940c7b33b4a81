//! Facilities, accounts, sessions, terminals and their certificates, enrolment codes, addresses.

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

// ── Sessions ────────────────────────────────────────────────────────────────────────────────

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

// ── Terminals and certificates ──────────────────────────────────────────────────────────────

/// A terminal (端末).
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Terminal {
    /// Its number.
    pub id: i64,
    /// Whose it is.
    pub facility: i64,
    /// What people call it.
    pub label: String,
    /// `facility` or `private`.
    pub ownership: String,
    /// Who enrolled it.
    pub enrolled_by: String,
    /// When it was last seen.
    pub last_seen: Option<i64>,
}

/// A certificate of a terminal.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Certificate {
    /// The serial number, in hex.
    pub serial: String,
    /// The terminal.
    pub terminal: i64,
    /// Valid from (ms).
    pub not_before: i64,
    /// Valid until (ms).
    pub not_after: i64,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
    /// Why.
    pub reason: Option<String>,
    /// SHA-256 of the certificate, in hex; none where it was issued before this was kept.
    pub fingerprint: Option<String>,
}

/// Makes a terminal.
pub async fn insert_terminal(conn: &mut Conn, terminal: &Terminal, now: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO terminals (id, facility, label, ownership, enrolled_by, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
        terminal.id,
        terminal.facility,
        &terminal.label,
        &terminal.ownership,
        &terminal.enrolled_by,
        now
    )?;
    Ok(())
}

/// A terminal was used.
pub async fn terminal_seen(conn: &mut Conn, id: i64, at: i64) -> Result<()> {
    run!(
        conn,
        "UPDATE terminals SET last_seen = $2 WHERE id = $1 AND (last_seen IS NULL OR last_seen < $2)",
        id,
        at
    )?;
    Ok(())
}

/// A terminal by its number.
pub async fn terminal(conn: &mut Conn, id: i64) -> Result<Option<Terminal>> {
    one!(
        conn,
        Terminal,
        "SELECT id, facility, label, ownership, enrolled_by, last_seen FROM terminals WHERE id = $1",
        id
    )
}

/// All terminals.
pub async fn terminals(conn: &mut Conn) -> Result<Vec<Terminal>> {
    all!(
        conn,
        Terminal,
        "SELECT id, facility, label, ownership, enrolled_by, last_seen FROM terminals ORDER BY id"
    )
}

/// The terminals that an account enrolled or has a session on.
pub async fn terminals_of(conn: &mut Conn, user_id: &str) -> Result<Vec<Terminal>> {
    all!(
        conn,
        Terminal,
        "SELECT id, facility, label, ownership, enrolled_by, last_seen FROM terminals WHERE enrolled_by = $1 \
         OR id IN (SELECT terminal FROM sessions WHERE user_id = $1 AND terminal IS NOT NULL) ORDER BY id",
        user_id
    )
}

/// The terminals of a facility, not those of its people.
pub async fn terminals_of_facility(conn: &mut Conn, facility: i64, limit: i64) -> Result<Vec<Terminal>> {
    all!(
        conn,
        Terminal,
        "SELECT id, facility, label, ownership, enrolled_by, last_seen FROM terminals \
         WHERE facility = $1 AND ownership = 'facility' ORDER BY id LIMIT $2",
        facility,
        limit
    )
}

/// A certificate by its serial number.
pub async fn certificate(conn: &mut Conn, serial: &str) -> Result<Option<Certificate>> {
    one!(
        conn,
        Certificate,
        "SELECT serial, terminal, not_before, not_after, revoked_at, reason, fingerprint FROM certificates \
         WHERE serial = $1",
        serial
    )
}

/// Whether an account other than this one has a session on the terminal.
pub async fn terminal_is_shared(conn: &mut Conn, terminal: i64, user_id: &str) -> Result<bool> {
    Ok(one!(
        conn,
        (String,),
        "SELECT user_id FROM sessions WHERE terminal = $1 AND user_id <> $2 LIMIT 1",
        terminal,
        user_id
    )?
    .is_some())
}

/// Records a certificate.
pub async fn insert_certificate(conn: &mut Conn, certificate: &Certificate, now: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO certificates (serial, terminal, not_before, not_after, issued_at, fingerprint) \
         VALUES ($1, $2, $3, $4, $5, $6)",
        &certificate.serial,
        certificate.terminal,
        certificate.not_before,
        certificate.not_after,
        now,
        &certificate.fingerprint
    )?;
    Ok(())
}

/// All certificates, newest last.
pub async fn certificates(conn: &mut Conn) -> Result<Vec<Certificate>> {
    all!(
        conn,
        Certificate,
        "SELECT serial, terminal, not_before, not_after, revoked_at, reason, fingerprint FROM certificates ORDER BY issued_at, serial"
    )
}

/// The certificates of a terminal, newest last.
pub async fn certificates_of(conn: &mut Conn, terminal: i64) -> Result<Vec<Certificate>> {
    all!(
        conn,
        Certificate,
        "SELECT serial, terminal, not_before, not_after, revoked_at, reason, fingerprint FROM certificates \
         WHERE terminal = $1 ORDER BY issued_at, serial",
        terminal
    )
}

/// Revokes the certificates of a terminal and returns their serial numbers.
pub async fn revoke_certificates(
    conn: &mut Conn,
    terminal: i64,
    reason: &str,
    now: i64,
) -> Result<Vec<String>> {
    Ok(all!(
        conn,
        (String,),
        "UPDATE certificates SET revoked_at = $2, reason = $3 WHERE terminal = $1 AND revoked_at IS NULL \
         RETURNING serial",
        terminal,
        now,
        reason
    )?
    .into_iter()
    .map(|(serial,)| serial)
    .collect())
}

// ── Enrolment codes ─────────────────────────────────────────────────────────────────────────

/// A code from the second handover sheet.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Code {
    /// SHA-256 of the code, in hex.
    pub code_hash: String,
    /// Whose.
    pub user_id: String,
    /// For a further terminal.
    pub further: bool,
    /// A private terminal was approved.
    pub private_ok: bool,
    /// Valid until (ms).
    pub expires_at: i64,
    /// When it was used up.
    pub spent_at: Option<i64>,
}

/// Records a code.
pub async fn insert_code(conn: &mut Conn, code: &Code) -> Result<()> {
    run!(
        conn,
        "INSERT INTO enrolment_codes (code_hash, user_id, further, private_ok, expires_at) VALUES ($1, $2, $3, $4, $5)",
        &code.code_hash,
        &code.user_id,
        code.further,
        code.private_ok,
        code.expires_at
    )?;
    Ok(())
}

/// A code by its hash.
pub async fn code(conn: &mut Conn, code_hash: &str) -> Result<Option<Code>> {
    one!(
        conn,
        Code,
        "SELECT code_hash, user_id, further, private_ok, expires_at, spent_at FROM enrolment_codes WHERE code_hash = $1",
        code_hash
    )
}

/// Uses a code up; false where it was used before.
pub async fn spend_code(conn: &mut Conn, code_hash: &str, now: i64) -> Result<bool> {
    Ok(run!(
        conn,
        "UPDATE enrolment_codes SET spent_at = $2 WHERE code_hash = $1 AND spent_at IS NULL",
        code_hash,
        now
    )? == 1)
}

// ── Addresses ───────────────────────────────────────────────────────────────────────────────

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
