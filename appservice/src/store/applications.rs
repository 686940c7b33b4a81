//! E-applications (電子申請): the files they come in, which were taken, and which were set aside.

use sqlx::{Row, SqliteConnection};

use super::Store;
use crate::Error;
use crate::clock::now_ms;

/// How long a row that could not be taken is shown: the applicant is asked, and applies again.
const ASIDE_MS: i64 = 30 * 24 * 3600 * 1000;
/// How many of them are shown.
const ASIDE_MAX: i64 = 50;

/// A row that could not be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetAside {
    pub line: i64,
    pub receipt: Option<String>,
    pub reason: String,
}

impl Store {
    /// The address of the file that a post has; nothing when it was taken back.
    pub(crate) async fn application_file(&self, event_id: &str) -> Result<Option<String>, Error> {
        let mxc = sqlx::query_scalar("SELECT mxc FROM application_files WHERE event_id = $1").bind(event_id);
        Ok(mxc.fetch_optional(&self.pool).await?)
    }
}

/// Remembers a post that has a file of applications.
pub(crate) async fn remember_application_file(
    db: &mut SqliteConnection,
    event_id: &str,
    mxc: &str,
    by: &str,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO application_files (event_id, mxc, posted_by, posted_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT DO NOTHING",
    )
    .bind(event_id)
    .bind(mxc)
    .bind(by)
    .bind(now_ms())
    .execute(db)
    .await?;
    Ok(())
}

/// A post was taken back: its file cannot be taken any more.
pub(crate) async fn forget_application_file(db: &mut SqliteConnection, event_id: &str) -> Result<(), Error> {
    sqlx::query("DELETE FROM application_messages WHERE file = $1").bind(event_id).execute(&mut *db).await?;
    sqlx::query("DELETE FROM application_files WHERE event_id = $1").bind(event_id).execute(db).await?;
    Ok(())
}

/// Remembers a message of the bot that follows from a post with a file; one that follows from something else is none.
pub(crate) async fn remember_application_message(
    db: &mut SqliteConnection,
    event_id: &str,
    origin: &str,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO application_messages (event_id, file) SELECT $1, event_id FROM application_files \
         WHERE event_id = $2 ON CONFLICT DO NOTHING",
    )
    .bind(event_id)
    .bind(origin)
    .execute(db)
    .await?;
    Ok(())
}

/// The post with a file of applications that a message is, or is about.
pub(crate) async fn application_file_of_message(
    db: &mut SqliteConnection,
    event_id: &str,
) -> Result<Option<String>, Error> {
    let file = sqlx::query_scalar(
        "SELECT event_id FROM application_files WHERE event_id = $1 \
         OR event_id = (SELECT file FROM application_messages WHERE event_id = $1) LIMIT 1",
    )
    .bind(event_id);
    Ok(file.fetch_optional(db).await?)
}

/// Whether an application was taken before.
pub(crate) async fn is_taken(db: &mut SqliteConnection, receipt: &str) -> Result<bool, Error> {
    let taken: Option<i64> = sqlx::query_scalar("SELECT 1 FROM applications WHERE receipt = $1")
        .bind(receipt)
        .fetch_optional(db)
        .await?;
    Ok(taken.is_some())
}

/// Records that an application was taken, and became a case or a record of consent.
pub(crate) async fn take_application(
    db: &mut SqliteConnection,
    receipt: &str,
    case: Option<i64>,
    by: &str,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO applications (receipt, case_number, taken_by, taken_at) VALUES ($1, $2, $3, $4)",
    )
    .bind(receipt)
    .bind(case)
    .bind(by)
    .bind(now_ms())
    .execute(&mut *db)
    .await?;
    sqlx::query("DELETE FROM applications_aside WHERE receipt = $1").bind(receipt).execute(db).await?;
    Ok(())
}

/// Sets rows of a file aside, in the place of what was set aside of them before.
pub(crate) async fn set_aside(db: &mut SqliteConnection, file: &str, rows: &[SetAside]) -> Result<(), Error> {
    let now = now_ms();
    sqlx::query("DELETE FROM applications_aside WHERE file = $1 OR set_aside_at < $2")
        .bind(file)
        .bind(now - ASIDE_MS)
        .execute(&mut *db)
        .await?;
    for row in rows {
        // The same application in a newer file takes the place of the older.
        sqlx::query("DELETE FROM applications_aside WHERE receipt = $1")
            .bind(&row.receipt)
            .execute(&mut *db)
            .await?;
        sqlx::query(
            "INSERT INTO applications_aside (file, line, receipt, reason, set_aside_at) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT DO NOTHING",
        )
        .bind(file)
        .bind(row.line)
        .bind(&row.receipt)
        .bind(&row.reason)
        .bind(now)
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// The rows that were set aside and still wait, oldest first.
pub(crate) async fn still_aside(db: &mut SqliteConnection) -> Result<Vec<SetAside>, Error> {
    let rows = sqlx::query(
        "SELECT line, receipt, reason FROM applications_aside WHERE set_aside_at >= $1 \
         ORDER BY set_aside_at, file, line LIMIT $2",
    )
    .bind(now_ms() - ASIDE_MS)
    .bind(ASIDE_MAX)
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(SetAside {
                line: row.try_get("line")?,
                receipt: row.try_get("receipt")?,
                reason: row.try_get("reason")?,
            })
        })
        .collect()
}
