//! Terminals (端末), their certificates, and the enrolment codes that bring new ones.

use super::{Conn, all, one, run};
use crate::error::Result;

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

/// Forgets codes that ran out before a time, spent or not.
pub async fn forget_codes(conn: &mut Conn, before: i64) -> Result<u64> {
    run!(conn, "DELETE FROM enrolment_codes WHERE expires_at < $1", before)
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
