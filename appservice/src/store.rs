//! All SQL of the bot: one SQLite file, written only in `BEGIN IMMEDIATE` transactions with a sync at each
//! commit.

mod applications;
mod consents;
mod scans;

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Row, Sqlite, SqliteConnection, SqlitePool, Transaction};

use crate::Error;
use crate::cases::{Action, Case, State};
use crate::clock::now_ms;
use crate::japanese::fold;
use crate::outbox::{NewTask, Task};

pub(crate) use applications::{
    FILE_OF_USE_MS, SetAside, Taken, application_file_of_message, give_back_application,
    remember_application_file, remember_application_message, remember_subjects, set_aside, still_aside,
    take_application, take_back_application_file, taken,
};
pub(crate) use consents::{
    Report, add_consent, consent_withdrawn_at, events_to_forget, forget_subject, has_consent,
    remember_subject_post, reports_of_consent, withdraw_consent,
};
pub(crate) use scans::{
    Reported, attach_scan, consent_of_message, consent_of_subject, detach_scan, remember_consent_message,
    scans_of_subject,
};

/// Every version of the schema, oldest first. Each ends by setting `PRAGMA user_version` to its number,
/// which is written with the rest of the transaction.
const MIGRATIONS: [&str; 5] = [
    include_str!("schema.sql"),
    include_str!("schema-2.sql"),
    include_str!("schema-3.sql"),
    include_str!("schema-4.sql"),
    include_str!("schema-5.sql"),
];

/// How long a taken transaction's id is remembered. The server repeats a transaction only until it is
/// acknowledged.
const REMEMBER_MS: i64 = 30 * 24 * 3600 * 1000;

/// The bot's database.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: SqlitePool,
}

/// A write transaction.
pub(crate) type Tx = Transaction<'static, Sqlite>;

/// A row of the outbox that is due.
#[derive(Debug)]
pub(crate) struct Due {
    pub id: i64,
    pub lane: String,
    pub key: String,
    pub task: Task,
    pub attempts: i64,
}

/// What `file_case` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filed {
    New(i64),
    /// The same request is already open in this room.
    Open(i64),
    /// The same event had filed it before.
    Known(i64),
}

/// Where a case comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub room_id: &'a str,
    pub event_id: &'a str,
    pub sender: &'a str,
    pub by_staff: bool,
}

/// What the bot asked somebody.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub event_id: String,
    pub actions: Vec<Action>,
    pub asked_at: i64,
}

impl Store {
    /// Opens or makes the file and brings it to the newest schema.
    pub(crate) async fn open(path: &Path) -> Result<Self, Error> {
        make_private(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10))
            // What is forgotten is overwritten, not left in free pages.
            .pragma("secure_delete", "ON")
            .foreign_keys(true);
        // One connection: handler and worker take turns, so none ever waits for a lock inside SQLite.
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        let store = Self { pool };
        store.migrate().await?;
        Ok(store)
    }

    /// Opens what the bot of this version has made, to read it while the bot runs.
    pub(crate) async fn open_existing(path: &Path) -> Result<Self, Error> {
        // SQLite would say only that it cannot be opened.
        std::fs::metadata(path).map_err(Error::File)?;
        let options =
            SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&pool).await?;
        let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
        if found != known {
            return Err(Error::OtherDatabase { found, known });
        }
        Ok(Self { pool })
    }

    /// All cases there are, oldest first.
    pub(crate) async fn all_cases(&self) -> Result<Vec<Case>, Error> {
        let rows = sqlx::query("SELECT * FROM cases ORDER BY number").fetch_all(&self.pool).await?;
        rows.iter().map(read_case).collect()
    }

    /// Gives its connection back to the system.
    pub(crate) async fn close(self) {
        self.pool.close().await;
    }

    async fn migrate(&self) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *tx).await?;
        let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
        if found > known {
            return Err(Error::NewerDatabase { found, known });
        }
        let done = usize::try_from(found).unwrap_or(0);
        for migration in MIGRATIONS.into_iter().skip(done) {
            sqlx::raw_sql(migration).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Empties the write-ahead log, which has pages as they were before something was forgotten.
    pub(crate) async fn settle(&self) -> Result<(), Error> {
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.pool).await?;
        Ok(())
    }

    /// Begins a write. A plain `BEGIN` that reads and then writes can fail under WAL; an immediate one
    /// never does.
    pub(crate) async fn begin(&self) -> Result<Tx, Error> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    pub(crate) async fn setting(&self, name: &str) -> Result<Option<String>, Error> {
        let value = sqlx::query_scalar("SELECT value FROM settings WHERE name = $1");
        Ok(value.bind(name).fetch_optional(&self.pool).await?)
    }

    pub(crate) async fn set_setting(&self, name: &str, value: &str) -> Result<(), Error> {
        sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value")
            .bind(name)
            .bind(value)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// A task that is due and has no older one before it in its lane: of the lane that was served longest ago, by
    /// `served` (a number that grows), so that one room's long list holds up no other room.
    pub(crate) async fn due(&self, now: i64, served: &HashMap<String, u64>) -> Result<Option<Due>, Error> {
        let heads: Vec<(i64, String)> = sqlx::query_as(
            "SELECT id, lane FROM outbox AS o WHERE not_before <= $1
             AND NOT EXISTS (SELECT 1 FROM outbox AS older WHERE older.lane = o.lane AND older.id < o.id)
             ORDER BY id LIMIT 500",
        )
        .bind(now)
        .fetch_all(&self.pool)
        .await?;
        let next = heads.into_iter().min_by_key(|(id, lane)| (served.get(lane).copied().unwrap_or(0), *id));
        let Some((id, lane)) = next else { return Ok(None) };
        let row = sqlx::query("SELECT key, task, attempts FROM outbox WHERE id = $1").bind(id);
        let row = row.fetch_one(&self.pool).await?;
        let task: String = row.try_get("task")?;
        Ok(Some(Due {
            id,
            lane,
            key: row.try_get("key")?,
            task: serde_json::from_str(&task)?,
            attempts: row.try_get("attempts")?,
        }))
    }

    /// When the next task that waits for its time is due.
    pub(crate) async fn next_due(&self) -> Result<Option<i64>, Error> {
        let next = sqlx::query_scalar(
            "SELECT min(not_before) FROM outbox AS o
             WHERE NOT EXISTS (SELECT 1 FROM outbox AS older WHERE older.lane = o.lane AND older.id < o.id)",
        );
        Ok(next.fetch_one(&self.pool).await?)
    }

    pub(crate) async fn postpone(&self, id: i64, until: i64) -> Result<(), Error> {
        sqlx::query("UPDATE outbox SET attempts = attempts + 1, not_before = $2 WHERE id = $1")
            .bind(id)
            .bind(until)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(crate) async fn case(&self, number: i64) -> Result<Option<Case>, Error> {
        let mut connection = self.pool.acquire().await?;
        case(&mut connection, number).await
    }
}

/// Makes the file readable by its owner only: it names subjects. SQLite gives its side files the same mode.
fn make_private(path: &Path) -> Result<(), Error> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(Error::File)?;
    Ok(())
}

/// Remembers a transaction; false when it was taken before.
pub(crate) async fn take_transaction(db: &mut SqliteConnection, id: &str) -> Result<bool, Error> {
    let now = now_ms();
    let taken =
        sqlx::query("INSERT INTO transactions (id, received_at) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(id)
            .bind(now)
            .execute(&mut *db)
            .await?;
    if taken.rows_affected() == 0 {
        return Ok(false);
    }
    let old = sqlx::query("DELETE FROM transactions WHERE received_at < $1").bind(now - REMEMBER_MS);
    old.execute(&mut *db).await?;
    Ok(true)
}

pub(crate) async fn enqueue(db: &mut SqliteConnection, task: NewTask) -> Result<(), Error> {
    sqlx::query("INSERT INTO outbox (lane, key, task) VALUES ($1, $2, $3) ON CONFLICT (key) DO NOTHING")
        .bind(task.lane)
        .bind(task.key)
        .bind(serde_json::to_string(&task.task)?)
        .execute(db)
        .await?;
    Ok(())
}

pub(crate) async fn finish_task(db: &mut SqliteConnection, id: i64) -> Result<(), Error> {
    sqlx::query("DELETE FROM outbox WHERE id = $1").bind(id).execute(db).await?;
    Ok(())
}

/// The case that asks for the same in this room and is open.
pub(crate) async fn open_case(
    db: &mut SqliteConnection,
    origin: Origin<'_>,
    action: &Action,
) -> Result<Option<i64>, Error> {
    open_twin(db, origin.room_id, &fingerprint(origin, action), 0).await
}

fn fingerprint(origin: Origin<'_>, action: &Action) -> String {
    let fingerprint = action.fingerprint();
    if !origin.by_staff && action.consent_key().is_some() {
        // Who is a subject is for the city alone: nobody is told that somebody else asked about one.
        return format!("{fingerprint}|{}", origin.sender);
    }
    fingerprint
}

async fn open_twin(
    db: &mut SqliteConnection,
    room_id: &str,
    fingerprint: &str,
    but: i64,
) -> Result<Option<i64>, Error> {
    let open = sqlx::query_scalar(
        "SELECT number FROM cases WHERE room_id = $1 AND fingerprint = $2 AND number <> $3
         AND state IN ('filed', 'approved', 'executing')",
    );
    Ok(open.bind(room_id).bind(fingerprint).bind(but).fetch_optional(db).await?)
}

/// Another case that asks for the same as this one in its room and is open.
pub(crate) async fn twin(db: &mut SqliteConnection, case: i64) -> Result<Option<i64>, Error> {
    let row: Option<(String, String)> =
        sqlx::query_as("SELECT room_id, fingerprint FROM cases WHERE number = $1")
            .bind(case)
            .fetch_optional(&mut *db)
            .await?;
    match row {
        Some((room_id, fingerprint)) => open_twin(db, &room_id, &fingerprint, case).await,
        None => Ok(None),
    }
}

/// Files a case, unless the same event filed it or the same request is open in the room.
pub(crate) async fn file_case(
    db: &mut SqliteConnection,
    origin: Origin<'_>,
    action: &Action,
) -> Result<Filed, Error> {
    let fingerprint = fingerprint(origin, action);
    let known: Option<i64> =
        sqlx::query_scalar("SELECT number FROM cases WHERE event_id = $1 AND fingerprint = $2")
            .bind(origin.event_id)
            .bind(&fingerprint)
            .fetch_optional(&mut *db)
            .await?;
    if let Some(number) = known {
        return Ok(Filed::Known(number));
    }
    let open = open_twin(db, origin.room_id, &fingerprint, 0).await?;
    if let Some(number) = open {
        return Ok(Filed::Open(number));
    }
    let now = now_ms();
    let number: i64 = sqlx::query_scalar(
        "INSERT INTO cases (action, fingerprint, state, ready, revision, attempts, room_id, event_id, requester, by_staff, filed_at)
         VALUES ($1, $2, 'filed', FALSE, 0, 0, $3, $4, $5, $6, $7) RETURNING number",
    )
    .bind(serde_json::to_string(action)?)
    .bind(&fingerprint)
    .bind(origin.room_id)
    .bind(origin.event_id)
    .bind(origin.sender)
    .bind(origin.by_staff)
    .bind(now)
    .fetch_one(&mut *db)
    .await?;
    record(db, number, State::Filed, origin.sender, now).await?;
    Ok(Filed::New(number))
}

/// Changes a case's state and keeps who did it and when.
///
/// # Errors
/// `IllegalChange` when the case is not in a state that may become `next`.
pub(crate) async fn change_case(
    db: &mut SqliteConnection,
    number: i64,
    next: State,
    by: &str,
    reason: Option<&str>,
) -> Result<(), Error> {
    let state: Option<String> = sqlx::query_scalar("SELECT state FROM cases WHERE number = $1")
        .bind(number)
        .fetch_optional(&mut *db)
        .await?;
    let legal = state.as_deref().and_then(State::parse).is_some_and(|state| state.may_become(next));
    if !legal {
        return Err(Error::IllegalChange { case: number });
    }
    let now = now_ms();
    sqlx::query("UPDATE cases SET state = $2 WHERE number = $1")
        .bind(number)
        .bind(next.as_str())
        .execute(&mut *db)
        .await?;
    match next {
        State::Approved | State::Refused => {
            let approved = i64::from(next == State::Approved);
            sqlx::query(
                "UPDATE cases SET decided_by = $2, decided_at = $3, reason = $4, attempts = attempts + $5 WHERE number = $1",
            )
            .bind(number)
            .bind(by)
            .bind(now)
            .bind(reason)
            .bind(approved)
            .execute(&mut *db)
            .await?;
        }
        State::Done | State::Failed => {
            sqlx::query("UPDATE cases SET finished_at = $2, reason = $3 WHERE number = $1")
                .bind(number)
                .bind(now)
                .bind(reason)
                .execute(&mut *db)
                .await?;
        }
        State::Filed | State::Executing => {}
    }
    record(db, number, next, by, now).await
}

/// Keeps by which event a case was approved or refused: the word or reaction of `decided_by`.
pub(crate) async fn remember_decision(
    db: &mut SqliteConnection,
    number: i64,
    event_id: &str,
) -> Result<(), Error> {
    sqlx::query("UPDATE cases SET decided_event = $2 WHERE number = $1")
        .bind(number)
        .bind(event_id)
        .execute(db)
        .await?;
    Ok(())
}

async fn record(
    db: &mut SqliteConnection,
    number: i64,
    state: State,
    by: &str,
    at: i64,
) -> Result<(), Error> {
    sqlx::query("INSERT INTO case_history (number, state, changed_by, changed_at) VALUES ($1, $2, $3, $4)")
        .bind(number)
        .bind(state.as_str())
        .bind(by)
        .bind(at)
        .execute(db)
        .await?;
    Ok(())
}

/// Keeps what an examination or a word of the staff changed about a case that is not decided yet.
pub(crate) async fn update_action(
    db: &mut SqliteConnection,
    number: i64,
    action: &Action,
    ready: bool,
) -> Result<(), Error> {
    sqlx::query("UPDATE cases SET action = $2, ready = $3, revision = revision + 1 WHERE number = $1")
        .bind(number)
        .bind(serde_json::to_string(action)?)
        .bind(ready)
        .execute(db)
        .await?;
    Ok(())
}

pub(crate) async fn case(db: &mut SqliteConnection, number: i64) -> Result<Option<Case>, Error> {
    let row = sqlx::query("SELECT * FROM cases WHERE number = $1").bind(number).fetch_optional(db).await?;
    row.map(|row| read_case(&row)).transpose()
}

/// The cases of applications that wait for a facility to be registered.
pub(crate) async fn waiting_for_facility(
    db: &mut SqliteConnection,
    facility: &str,
) -> Result<Vec<Case>, Error> {
    let rows =
        sqlx::query("SELECT * FROM cases WHERE state = 'filed' AND NOT ready ORDER BY number").fetch_all(db);
    let mut cases = rows.await?.iter().map(read_case).collect::<Result<Vec<Case>, Error>>()?;
    cases.retain(|case| {
        let wanted = match &case.action {
            Action::IssueFacilityId { facility } | Action::IssuePersonalId { facility, .. } => &facility.said,
            _ => return false,
        };
        case.receipt().is_some() && fold(wanted) == fold(facility)
    });
    Ok(cases)
}

/// The cases that came by these events.
pub(crate) async fn cases_of_events(
    db: &mut SqliteConnection,
    events: &[String],
) -> Result<Vec<Case>, Error> {
    let mut cases = Vec::new();
    for event_id in events {
        let rows = sqlx::query("SELECT * FROM cases WHERE event_id = $1 ORDER BY number").bind(event_id);
        for row in rows.fetch_all(&mut *db).await? {
            cases.push(read_case(&row)?);
        }
    }
    Ok(cases)
}

/// The cases that are not finished, oldest first.
pub(crate) async fn open_cases(db: &mut SqliteConnection) -> Result<Vec<Case>, Error> {
    let rows = sqlx::query(
        "SELECT * FROM cases WHERE state IN ('filed', 'approved', 'executing', 'failed') ORDER BY number LIMIT 100",
    )
    .fetch_all(db)
    .await?;
    rows.iter().map(read_case).collect()
}

fn read_case(row: &SqliteRow) -> Result<Case, Error> {
    let number = row.try_get("number")?;
    let action: String = row.try_get("action")?;
    let state: String = row.try_get("state")?;
    Ok(Case {
        number,
        action: serde_json::from_str(&action)?,
        state: State::parse(&state).ok_or(Error::IllegalChange { case: number })?,
        ready: row.try_get("ready")?,
        revision: row.try_get("revision")?,
        attempts: row.try_get("attempts")?,
        room_id: row.try_get("room_id")?,
        event_id: row.try_get("event_id")?,
        requester: row.try_get("requester")?,
        by_staff: row.try_get("by_staff")?,
        filed_at: row.try_get("filed_at")?,
        decided_by: row.try_get("decided_by")?,
        decided_at: row.try_get("decided_at")?,
        decided_event: row.try_get("decided_event")?,
        reason: row.try_get("reason")?,
    })
}

pub(crate) async fn remember_message(
    db: &mut SqliteConnection,
    event_id: &str,
    number: i64,
) -> Result<(), Error> {
    sqlx::query("INSERT INTO case_messages (event_id, number) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(event_id)
        .bind(number)
        .execute(db)
        .await?;
    Ok(())
}

/// The case that a message in the control room is about.
pub(crate) async fn case_of_message(db: &mut SqliteConnection, event_id: &str) -> Result<Option<i64>, Error> {
    let number = sqlx::query_scalar("SELECT number FROM case_messages WHERE event_id = $1").bind(event_id);
    Ok(number.fetch_optional(db).await?)
}

/// How many requests and reports of consent were taken from somebody since a time; not what staff typed or took from a file
/// in their name ([`crate::cases::origin_in_file`]).
pub(crate) async fn asked_since(db: &mut SqliteConnection, sender: &str, since: i64) -> Result<i64, Error> {
    let count = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM cases WHERE requester = $1 AND filed_at >= $2 AND NOT by_staff) \
         + (SELECT count(*) FROM consents WHERE reported_by = $1 AND reported_at >= $2 AND event_id NOT LIKE '%#%')",
    )
    .bind(sender)
    .bind(since);
    Ok(count.fetch_one(db).await?)
}

/// Keeps what somebody was asked; a newer question takes the place of an older one.
pub(crate) async fn ask(
    db: &mut SqliteConnection,
    room_id: &str,
    sender: &str,
    event_id: &str,
    actions: &[Action],
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO questions (room_id, sender, event_id, actions, asked_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (room_id, sender) DO UPDATE SET event_id = excluded.event_id, actions = excluded.actions, asked_at = excluded.asked_at",
    )
    .bind(room_id)
    .bind(sender)
    .bind(event_id)
    .bind(serde_json::to_string(actions)?)
    .bind(now_ms())
    .execute(db)
    .await?;
    Ok(())
}

/// Takes the question that somebody was asked in this room: whatever they write next settles it.
pub(crate) async fn take_question(
    db: &mut SqliteConnection,
    room_id: &str,
    sender: &str,
) -> Result<Option<Question>, Error> {
    let row = sqlx::query(
        "DELETE FROM questions WHERE room_id = $1 AND sender = $2 RETURNING event_id, actions, asked_at",
    )
    .bind(room_id)
    .bind(sender)
    .fetch_optional(db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let actions: String = row.try_get("actions")?;
    Ok(Some(Question {
        event_id: row.try_get("event_id")?,
        actions: serde_json::from_str(&actions)?,
        asked_at: row.try_get("asked_at")?,
    }))
}

#[cfg(test)]
mod tests;
