//! The reports of consent (同意の報告): who reported what, when, and whether it was withdrawn.

use sqlx::{Row, SqliteConnection};

use crate::Error;
use crate::cases::{Action, Subject};
use crate::clock::now_ms;
use crate::forms::Consent;
use crate::japanese::fold;

/// How many reports about one subject the staff are shown: the newest ones.
const REPORTS_MAX: i64 = 5;

/// A report of consent that is not withdrawn, as far as the staff judge by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub reported_by: String,
    pub reported_at: i64,
    pub explained_by: String,
    pub role: String,
    pub explained_on: String,
}

/// Stores a complete report of consent; one per event.
pub(crate) async fn add_consent(
    db: &mut SqliteConnection,
    consent: &Consent,
    sender: &str,
    event_id: &str,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO consents (subject_key, name, birth_date, address, explained_by, explainer_role, explained_on,
            shares_information, city_obtains, reported_by, reported_at, event_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, TRUE, TRUE, $8, $9, $10) ON CONFLICT (event_id) DO NOTHING",
    )
    .bind(consent.key())
    .bind(&consent.name)
    .bind(&consent.birth_date)
    .bind(&consent.address)
    .bind(&consent.explained_by)
    .bind(&consent.role)
    .bind(&consent.explained_on)
    .bind(sender)
    .bind(now_ms())
    .bind(event_id)
    .execute(db)
    .await?;
    Ok(())
}

/// Whether the subject's consent is stored, complete and not withdrawn; with `reporter`, whether that person
/// reported it.
pub(crate) async fn has_consent(
    db: &mut SqliteConnection,
    subject_key: &str,
    reporter: Option<&str>,
) -> Result<bool, Error> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT id FROM consents WHERE subject_key = $1 AND withdrawn_at IS NULL AND shares_information AND city_obtains
         AND ($2 IS NULL OR reported_by = $2) LIMIT 1",
    )
    .bind(subject_key)
    .bind(reporter)
    .fetch_optional(db)
    .await?;
    Ok(found.is_some())
}

/// The newest reports of the subject's consent that are not withdrawn, newest first.
pub(crate) async fn reports_of_consent(
    db: &mut SqliteConnection,
    subject_key: &str,
) -> Result<Vec<Report>, Error> {
    let rows = sqlx::query(
        "SELECT reported_by, reported_at, explained_by, explainer_role, explained_on FROM consents
         WHERE subject_key = $1 AND withdrawn_at IS NULL ORDER BY id DESC LIMIT $2",
    )
    .bind(subject_key)
    .bind(REPORTS_MAX)
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Report {
                reported_by: row.try_get("reported_by")?,
                reported_at: row.try_get("reported_at")?,
                explained_by: row.try_get("explained_by")?,
                role: row.try_get("explainer_role")?,
                explained_on: row.try_get("explained_on")?,
            })
        })
        .collect()
}

/// The name by which the subject of a room is forgotten everywhere: of the case that opened it. Nothing where another
/// subject whose room is not purged has the same name: their cases would be emptied too.
pub(crate) async fn name_to_forget(
    db: &mut SqliteConnection,
    opened_by: i64,
) -> Result<Option<String>, Error> {
    let Some(case) = super::case(db, opened_by).await? else { return Ok(None) };
    let Action::OpenSubject { subject, .. } = &case.action else { return Ok(None) };
    let wanted = fold(&subject.name);
    let rows: Vec<(i64, String)> =
        sqlx::query_as("SELECT number, action FROM cases WHERE instr(action, '\"open_subject\"') > 0")
            .fetch_all(&mut *db)
            .await?;
    let shared = rows.iter().filter(|(number, _)| *number != opened_by).any(|(_, action)| {
        matches!(serde_json::from_str::<Action>(action), Ok(Action::OpenSubject { subject, .. }) if fold(&subject.name) == wanted)
    });
    Ok((!shared && wanted.chars().count() > 1).then(|| subject.name.clone()))
}

/// Forgets the subject of a purged room: in the case that opened it, in the cases about it, and in the reports of
/// consent. Numbers, dates and who decided stay.
pub(crate) async fn forget_subject(
    db: &mut SqliteConnection,
    room_id: &str,
    opened_by: Option<i64>,
) -> Result<(), Error> {
    let rows: Vec<(i64, String)> =
        sqlx::query_as("SELECT number, action FROM cases WHERE instr(action, $1) > 0")
            .bind(room_id)
            .fetch_all(&mut *db)
            .await?;
    for (number, action) in rows {
        let mut action: Action = serde_json::from_str(&action)?;
        if let Some(place) = action.place_mut().filter(|place| place.room_id.as_deref() == Some(room_id)) {
            place.name = None;
            set_action(db, number, &action).await?;
        }
    }
    let Some(opened_by) = opened_by else { return Ok(()) };
    let Some(case) = super::case(db, opened_by).await? else { return Ok(()) };
    let Action::OpenSubject { subject, people, confirm_second } = case.action else { return Ok(()) };
    let key = subject.key();
    let gone = "（消去済み）".to_owned();
    let nameless = Subject {
        name: gone.clone(),
        birth_date: "0000-00-00".to_owned(),
        address: gone,
        eligibility: subject.eligibility,
        approval_note: None,
    };
    set_action(db, opened_by, &Action::OpenSubject { subject: nameless, people, confirm_second }).await?;
    sqlx::query("UPDATE cases SET fingerprint = $1 WHERE number = $2")
        .bind(format!("open|purged-{opened_by}"))
        .bind(opened_by)
        .execute(&mut *db)
        .await?;
    // Another room of the same subject still rests on the reports.
    let others: Option<i64> = sqlx::query_scalar("SELECT number FROM cases WHERE fingerprint = $1 LIMIT 1")
        .bind(format!("open|{key}"))
        .fetch_optional(&mut *db)
        .await?;
    if others.is_none() {
        sqlx::query("DELETE FROM consents WHERE subject_key = $1").bind(key).execute(db).await?;
    }
    Ok(())
}

async fn set_action(db: &mut SqliteConnection, number: i64, action: &Action) -> Result<(), Error> {
    sqlx::query("UPDATE cases SET action = $2 WHERE number = $1")
        .bind(number)
        .bind(serde_json::to_string(action)?)
        .execute(db)
        .await?;
    Ok(())
}

/// Marks every consent of the subject as withdrawn; how many there were.
pub(crate) async fn withdraw_consent(
    db: &mut SqliteConnection,
    subject_key: &str,
    by: &str,
) -> Result<u64, Error> {
    let marked = sqlx::query(
        "UPDATE consents SET withdrawn_by = $2, withdrawn_at = $3 WHERE subject_key = $1 AND withdrawn_at IS NULL",
    )
    .bind(subject_key)
    .bind(by)
    .bind(now_ms())
    .execute(db)
    .await?;
    Ok(marked.rows_affected())
}
