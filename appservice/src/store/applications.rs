//! E-applications (電子申請): the files they come in, which were taken, and which were set aside.

use std::collections::BTreeSet;

use sqlx::{Row, SqliteConnection};

use super::Store;
use crate::Error;
use crate::applications::Application;
use crate::clock::now_ms;

/// How long a row that could not be taken is shown: the applicant is asked, and applies again.
const ASIDE_MS: i64 = 30 * 24 * 3600 * 1000;
/// How many of them are shown.
const ASIDE_MAX: i64 = 50;
/// How many files one purge takes along: the oldest; the next purge goes on.
const FILES_FORGOTTEN_MAX: i64 = 100;
/// So long a file is of use; then it goes with the next purge, whomever it names.
pub(crate) const FILE_OF_USE_MS: i64 = 30 * 24 * 3600 * 1000;

/// A row that could not be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetAside {
    pub line: i64,
    pub receipt: Option<String>,
    pub reason: String,
}

impl Store {
    /// Address and name of the file that a post has; nothing when it was taken back.
    pub(crate) async fn application_file(&self, event_id: &str) -> Result<Option<(String, String)>, Error> {
        let file = sqlx::query_as(
            "SELECT mxc, name FROM application_files WHERE event_id = $1 AND taken_back_at IS NULL",
        )
        .bind(event_id);
        Ok(file.fetch_optional(&self.pool).await?)
    }
}

/// Remembers a post that has a file of applications.
pub(crate) async fn remember_application_file(
    db: &mut SqliteConnection,
    event_id: &str,
    (mxc, name): (&str, &str),
    by: &str,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO application_files (event_id, mxc, name, posted_by, posted_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT DO NOTHING",
    )
    .bind(event_id)
    .bind(mxc)
    .bind(name)
    .bind(by)
    .bind(now_ms())
    .execute(db)
    .await?;
    Ok(())
}

/// A post was taken back: its file cannot be taken any more. The row stays, so that a purge finds the original.
pub(crate) async fn take_back_application_file(
    db: &mut SqliteConnection,
    event_id: &str,
) -> Result<(), Error> {
    sqlx::query("DELETE FROM application_messages WHERE file = $1").bind(event_id).execute(&mut *db).await?;
    sqlx::query(
        "UPDATE application_files SET taken_back_at = $2 WHERE event_id = $1 AND taken_back_at IS NULL",
    )
    .bind(event_id)
    .bind(now_ms())
    .execute(db)
    .await?;
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
        "SELECT event_id FROM application_files WHERE taken_back_at IS NULL AND (event_id = $1 \
         OR event_id = (SELECT file FROM application_messages WHERE event_id = $1)) LIMIT 1",
    )
    .bind(event_id);
    Ok(file.fetch_optional(db).await?)
}

/// Whether an application was taken before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    No,
    /// With this content; empty where it is not known any more.
    As(String),
}

pub(crate) async fn taken(db: &mut SqliteConnection, receipt: &str) -> Result<Taken, Error> {
    let content: Option<String> = sqlx::query_scalar("SELECT content FROM applications WHERE receipt = $1")
        .bind(receipt)
        .fetch_optional(db)
        .await?;
    Ok(content.map_or(Taken::No, Taken::As))
}

/// Records that an application was taken, and became a case or a record of consent.
pub(crate) async fn take_application(
    db: &mut SqliteConnection,
    application: &Application,
    case: Option<i64>,
    by: &str,
) -> Result<(), Error> {
    let receipt = &application.receipt;
    sqlx::query(
        "INSERT INTO applications (receipt, content, case_number, taken_by, taken_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(receipt)
    .bind(&application.content)
    .bind(case)
    .bind(by)
    .bind(now_ms())
    .execute(&mut *db)
    .await?;
    sqlx::query("DELETE FROM applications_aside WHERE receipt = $1").bind(receipt).execute(db).await?;
    Ok(())
}

/// Gives a receipt number back whose case could not be taken: the application may be mended, or what it needs be there
/// later. The case stays, and stands in the way of no other.
pub(crate) async fn give_back_application(
    db: &mut SqliteConnection,
    receipt: &str,
    case: i64,
) -> Result<(), Error> {
    sqlx::query("DELETE FROM applications WHERE receipt = $1").bind(receipt).execute(&mut *db).await?;
    sqlx::query("UPDATE cases SET fingerprint = fingerprint || '|given back' WHERE number = $1")
        .bind(case)
        .execute(db)
        .await?;
    Ok(())
}

/// Remembers which subjects a file names, for the purge of their records.
pub(crate) async fn remember_subjects(
    db: &mut SqliteConnection,
    file: &str,
    subjects: &BTreeSet<String>,
) -> Result<(), Error> {
    for subject in subjects {
        sqlx::query(
            "INSERT INTO application_subjects (file, subject_key) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(file)
        .bind(subject)
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// The posts with files that go with a purged subject: those that name it, first, and those that were posted before a time.
/// Files are on their way only, and of one that could not be read nobody knows whom it names.
pub(super) async fn files_to_forget(
    db: &mut SqliteConnection,
    subject_key: &str,
    before: i64,
) -> Result<Vec<String>, Error> {
    let files = sqlx::query_scalar(
        "SELECT event_id FROM (SELECT event_id, posted_at, EXISTS (SELECT 1 FROM application_subjects s \
             WHERE s.file = f.event_id AND s.subject_key IN ($2, $3)) AS names_it FROM application_files f) \
         WHERE names_it OR posted_at < $1 ORDER BY names_it DESC, posted_at, event_id LIMIT $4",
    )
    .bind(before)
    .bind(subject_key)
    .bind(name_alone(subject_key))
    .bind(FILES_FORGOTTEN_MAX);
    Ok(files.fetch_all(db).await?)
}

/// Forgets those files, and what was taken by them.
pub(super) async fn forget_files(
    db: &mut SqliteConnection,
    subject_key: &str,
    before: i64,
) -> Result<(), Error> {
    for file in files_to_forget(db, subject_key, before).await? {
        for statement in [
            "DELETE FROM application_subjects WHERE file = $1",
            "DELETE FROM application_messages WHERE file = $1",
            "DELETE FROM applications_aside WHERE file = $1",
            "DELETE FROM application_files WHERE event_id = $1",
        ] {
            sqlx::query(statement).bind(&file).execute(&mut *db).await?;
        }
    }
    // Nobody takes those rows again: the hash of what they said is of no more use.
    sqlx::query("UPDATE applications SET content = '' WHERE taken_at < $1").bind(before).execute(db).await?;
    Ok(())
}

/// The key of a row that names the subject without a birth date.
fn name_alone(subject_key: &str) -> String {
    format!("{}|", subject_key.split('|').next().unwrap_or_default())
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
