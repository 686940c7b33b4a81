//! Scans of the consent form (同意書, form 4): which posts in the control room have them, by report of consent.

use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use crate::Error;
use crate::clock::now_ms;

/// Scans of one report; a form has a few pages.
const SCANS_MAX: i64 = 20;

/// A report of consent that a scan may belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reported {
    id: i64,
    /// The event that reported it.
    pub event_id: String,
    pub name: String,
    pub birth_date: String,
}

fn reported(row: &SqliteRow) -> Result<Reported, Error> {
    Ok(Reported {
        id: row.try_get("id")?,
        event_id: row.try_get("event_id")?,
        name: row.try_get("name")?,
        birth_date: row.try_get("birth_date")?,
    })
}

/// The newest report of a subject's consent that is not withdrawn.
pub(crate) async fn consent_of_subject(
    db: &mut SqliteConnection,
    subject_key: &str,
) -> Result<Option<Reported>, Error> {
    let row = sqlx::query(
        "SELECT id, event_id, name, birth_date FROM consents WHERE subject_key = $1 AND withdrawn_at IS NULL \
         ORDER BY id DESC LIMIT 1",
    )
    .bind(subject_key)
    .fetch_optional(db)
    .await?;
    row.as_ref().map(reported).transpose()
}

/// The report of consent that a post in the control room is, or that a message of the bot there is about.
pub(crate) async fn consent_of_message(
    db: &mut SqliteConnection,
    event_id: &str,
) -> Result<Option<Reported>, Error> {
    let row = sqlx::query(
        "SELECT id, event_id, name, birth_date FROM consents WHERE withdrawn_at IS NULL AND \
         (event_id = $1 OR id = (SELECT consent FROM consent_messages WHERE event_id = $1)) LIMIT 1",
    )
    .bind(event_id)
    .fetch_optional(db)
    .await?;
    row.as_ref().map(reported).transpose()
}

/// Remembers a message of the bot that follows from a report of consent; one that follows from something else is none.
pub(crate) async fn remember_consent_message(
    db: &mut SqliteConnection,
    event_id: &str,
    origin: &str,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO consent_messages (event_id, consent) SELECT $1, id FROM consents WHERE event_id = $2 \
         ON CONFLICT DO NOTHING",
    )
    .bind(event_id)
    .bind(origin)
    .execute(db)
    .await?;
    Ok(())
}

/// Records a scan; how many the report has now, or nothing where it has too many. The same post counts once.
pub(crate) async fn attach_scan(
    db: &mut SqliteConnection,
    to: &Reported,
    event_id: &str,
    by: &str,
) -> Result<Option<i64>, Error> {
    let others: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM consent_scans WHERE consent = $1 AND event_id <> $2 AND taken_back_at IS NULL",
    )
    .bind(to.id)
    .bind(event_id)
    .fetch_one(&mut *db)
    .await?;
    if others >= SCANS_MAX {
        return Ok(None);
    }
    sqlx::query(
        "INSERT INTO consent_scans (event_id, consent, attached_by, attached_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (event_id) DO NOTHING",
    )
    .bind(event_id)
    .bind(to.id)
    .bind(by)
    .bind(now_ms())
    .execute(db)
    .await?;
    Ok(Some(others + 1))
}

/// A post was taken back: what it had attached is attached no more.
pub(crate) async fn detach_scan(db: &mut SqliteConnection, event_id: &str) -> Result<(), Error> {
    sqlx::query("UPDATE consent_scans SET taken_back_at = $2 WHERE event_id = $1 AND taken_back_at IS NULL")
        .bind(event_id)
        .bind(now_ms())
        .execute(db)
        .await?;
    Ok(())
}

/// The scans of all reports of a subject's consent that are not withdrawn.
pub(crate) async fn scans_of_subject(db: &mut SqliteConnection, subject_key: &str) -> Result<i64, Error> {
    let count = sqlx::query_scalar(
        "SELECT count(*) FROM consent_scans s JOIN consents c ON c.id = s.consent \
         WHERE c.subject_key = $1 AND c.withdrawn_at IS NULL AND s.taken_back_at IS NULL",
    );
    Ok(count.bind(subject_key).fetch_one(db).await?)
}

/// The posts that have, or had, scans of a subject's consent.
pub(super) async fn scan_events(db: &mut SqliteConnection, subject_key: &str) -> Result<Vec<String>, Error> {
    let events = sqlx::query_scalar(
        "SELECT s.event_id FROM consent_scans s JOIN consents c ON c.id = s.consent WHERE c.subject_key = $1",
    );
    Ok(events.bind(subject_key).fetch_all(db).await?)
}

/// Forgets the scans of a purged subject, and the messages about its reports.
pub(super) async fn forget_scans(db: &mut SqliteConnection, subject_key: &str) -> Result<(), Error> {
    sqlx::query(
        "DELETE FROM consent_scans WHERE consent IN (SELECT id FROM consents WHERE subject_key = $1)",
    )
    .bind(subject_key)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "DELETE FROM consent_messages WHERE consent IN (SELECT id FROM consents WHERE subject_key = $1)",
    )
    .bind(subject_key)
    .execute(db)
    .await?;
    Ok(())
}
