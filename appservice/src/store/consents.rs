//! The reports of consent (同意の報告): who reported what, when, and whether it was withdrawn.

use std::collections::BTreeSet;

use sqlx::{Row, SqliteConnection};

use crate::Error;
use crate::cases::{Action, State, Subject, event_of};
use crate::clock::now_ms;
use crate::forms::Consent;

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

/// The cases that opened a room for a subject, or were to: number, state, subject.
async fn openings(db: &mut SqliteConnection) -> Result<Vec<(i64, State, Action)>, Error> {
    let rows: Vec<(i64, String, String)> =
        sqlx::query_as("SELECT number, state, action FROM cases WHERE instr(action, '\"open_subject\"') > 0")
            .fetch_all(db)
            .await?;
    rows.into_iter()
        .filter_map(|(number, state, action)| Some((number, State::parse(&state)?, action)))
        .map(|(number, state, action)| Ok((number, state, serde_json::from_str(&action)?)))
        .collect()
}

/// How many events one purge names.
const FORGOTTEN_MAX: usize = 500;
/// Of these, posts that are neither case nor report.
const POSTS_MAX: i64 = 100;

/// The events by which the subject of a room came to the city: of the cases about the room, of the case that opened it,
/// of earlier tries, of reports and withdrawals of consent, and the files of e-applications that name them or are older
/// than `files_before`. Where the subject has another room, only the cases about this one.
pub(crate) async fn events_to_forget(
    db: &mut SqliteConnection,
    room_id: &str,
    opened_by: Option<i64>,
    files_before: i64,
) -> Result<Vec<String>, Error> {
    let (mut files, mut posts) = (Vec::new(), Vec::new());
    let mut events: Vec<String> =
        sqlx::query_scalar("SELECT event_id FROM cases WHERE instr(action, $1) > 0")
            .bind(room_id)
            .fetch_all(&mut *db)
            .await?;
    if let Some(opened_by) = opened_by
        && let Some(case) = super::case(db, opened_by).await?
        && let Some(key) = case.action.consent_key()
    {
        events.push(case.event_id);
        let of_subject: Vec<(i64, State, Action)> = openings(db)
            .await?
            .into_iter()
            .filter(|(number, _, action)| *number != opened_by && action.consent_key().as_ref() == Some(&key))
            .collect();
        let has_another = of_subject.iter().any(|(_, state, _)| !over(*state));
        let mut numbers: Vec<i64> =
            of_subject.iter().filter(|(_, state, _)| over(*state)).map(|(number, ..)| *number).collect();
        if !has_another {
            numbers.extend(withdrawals(db, &key).await?);
            let reports: Vec<String> =
                sqlx::query_scalar("SELECT event_id FROM consents WHERE subject_key = $1")
                    .bind(&key)
                    .fetch_all(&mut *db)
                    .await?;
            events.extend(reports);
            posts = subject_posts(db, &key).await?;
            events.extend(super::scans::scan_events(db, &key).await?);
            files = super::applications::files_to_forget(db, &key, files_before).await?;
        }
        for number in numbers {
            events.extend(super::case(db, number).await?.map(|case| case.event_id));
        }
    }
    // What came by a file is in the file, too; its other rows were taken from it long ago.
    let mut all: BTreeSet<String> = events.iter().map(|origin| event_of(origin).to_owned()).collect();
    all.extend(files);
    all.extend(events);
    let mut events: Vec<String> = all.into_iter().collect();
    // Anybody may write many posts that are neither case nor report: they take no other's place.
    events.truncate(FORGOTTEN_MAX - posts.len());
    events.extend(posts);
    Ok(events)
}

/// Remembers a post that names a subject and becomes neither a case nor a report.
pub(crate) async fn remember_subject_post(
    db: &mut SqliteConnection,
    event_id: &str,
    subject_key: &str,
) -> Result<(), Error> {
    sqlx::query("INSERT INTO subject_posts (event_id, subject_key) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(event_id)
        .bind(subject_key)
        .execute(db)
        .await?;
    Ok(())
}

/// Those posts about a subject; one without a birth date may be about another of the same name, and goes as well.
async fn subject_posts(db: &mut SqliteConnection, key: &str) -> Result<Vec<String>, Error> {
    Ok(sqlx::query_scalar(
        "SELECT event_id FROM subject_posts WHERE subject_key IN ($1, $2) ORDER BY event_id LIMIT $3",
    )
    .bind(key)
    .bind(without_birth_date(key))
    .bind(POSTS_MAX)
    .fetch_all(db)
    .await?)
}

/// The key of a form that does not say the birth date.
fn without_birth_date(key: &str) -> String {
    key.split_once('|').map_or(key.to_owned(), |(name, _)| format!("{name}|"))
}

/// Whether a case will never open a room.
fn over(state: State) -> bool {
    matches!(state, State::Refused | State::Failed)
}

/// The cases of withdrawal of a subject's consent.
async fn withdrawals(db: &mut SqliteConnection, key: &str) -> Result<Vec<i64>, Error> {
    let rows: Vec<(i64, String)> =
        sqlx::query_as("SELECT number, action FROM cases WHERE instr(action, '\"withdrawal\"') > 0")
            .fetch_all(db)
            .await?;
    let mut numbers = Vec::new();
    for (number, action) in rows {
        let action: Action = serde_json::from_str(&action)?;
        if matches!(action, Action::Withdrawal { .. }) && action.consent_key().as_deref() == Some(key) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// Forgets the subject of a purged room: in the case that opened it, in the cases about it, and in the reports of
/// consent. Numbers, dates and who decided stay.
pub(crate) async fn forget_subject(
    db: &mut SqliteConnection,
    room_id: &str,
    opened_by: Option<i64>,
    files_before: i64,
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
    let Action::OpenSubject { subject, .. } = &case.action else { return Ok(()) };
    let key = subject.key();
    // Another room of the same subject still rests on the reports and its own case.
    let mut has_another = false;
    for (number, state, action) in openings(db).await? {
        let Action::OpenSubject { subject, people, confirm_second } = action else { continue };
        if subject.key() != key {
            continue;
        }
        if number != opened_by && !over(state) {
            has_another = true;
            continue;
        }
        let nameless = Subject {
            name: GONE.to_owned(),
            birth_date: "0000-00-00".to_owned(),
            address: GONE.to_owned(),
            eligibility: subject.eligibility,
            approval_note: None,
        };
        set_action(db, number, &Action::OpenSubject { subject: nameless, people, confirm_second }).await?;
        set_fingerprint(db, number).await?;
    }
    if has_another {
        return Ok(());
    }
    super::scans::forget_scans(db, &key).await?;
    super::applications::forget_files(db, &key, files_before).await?;
    sqlx::query("DELETE FROM consents WHERE subject_key = $1").bind(&key).execute(&mut *db).await?;
    sqlx::query("DELETE FROM subject_posts WHERE subject_key IN ($1, $2)")
        .bind(&key)
        .bind(without_birth_date(&key))
        .execute(&mut *db)
        .await?;
    for number in withdrawals(db, &key).await? {
        let nameless = Action::Withdrawal { name: GONE.to_owned(), birth_date: "0000-00-00".to_owned() };
        set_action(db, number, &nameless).await?;
        set_fingerprint(db, number).await?;
    }
    // A question that was never answered may hold the name.
    sqlx::query("DELETE FROM questions WHERE asked_at < $1").bind(now_ms() - 86_400_000).execute(db).await?;
    Ok(())
}

/// What stands where a purged subject's name was.
const GONE: &str = "（消去済み）";

/// A fingerprint holds the name: it is replaced by one that is nobody's.
async fn set_fingerprint(db: &mut SqliteConnection, number: i64) -> Result<(), Error> {
    sqlx::query("UPDATE cases SET fingerprint = $1 WHERE number = $2")
        .bind(format!("purged|{number}"))
        .bind(number)
        .execute(db)
        .await?;
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

/// When a consent of the subject was withdrawn last.
pub(crate) async fn consent_withdrawn_at(
    db: &mut SqliteConnection,
    subject_key: &str,
) -> Result<Option<i64>, Error> {
    let at = sqlx::query_scalar("SELECT max(withdrawn_at) FROM consents WHERE subject_key = $1");
    Ok(at.bind(subject_key).fetch_one(db).await?)
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
