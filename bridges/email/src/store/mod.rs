//! The bridge's own database: all SQL is here, and nothing about HTTP or SMTP. What is answered or told to anyone is committed
//! before (WAL, `synchronous=FULL`, `BEGIN IMMEDIATE`).

mod mails;
mod notices;
mod reports;

pub(crate) use mails::{Mail, MailKind, NewOwed, NoticeRow};
pub(crate) use notices::NewNotice;

use sqlx::{
    Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{path::Path, time::Duration};

/// The open database.
#[derive(Debug)]
pub(crate) struct Store {
    pool: SqlitePool,
    /// Random, made once per database: Message-IDs are made from it, so that two databases never make the same one.
    message_id_base: String,
}

/// The language of a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lang {
    Ja,
    En,
}

/// Why the server notified (`jp.heya.scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Highlight,
    Invite,
    Opening,
    Direct,
    Message,
}

/// 重要度.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Importance {
    None,
    Important,
    Urgent,
}

/// How long settled mails are remembered, so that a repeat of the server's is recognised.
const REMEMBERED_MS: i64 = 14 * 24 * 60 * 60 * 1000;

impl Store {
    /// Opens the database, brings it up to date, and puts mails that were being sent when the last process ended back into
    /// the queue. `keep_names` false removes names that another template had needed.
    pub(crate) async fn open(path: &Path, keep_names: bool) -> Result<Self, sqlx::Error> {
        make_private_file(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10))
            // Addresses and single-use links are overwritten when they are removed.
            .pragma("secure_delete", "ON");
        // Two connections: one writes, one may look at the same time.
        let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await?;
        sqlx::migrate!().run(&pool).await?;

        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT INTO meta (key, value) VALUES ('message_id_base', $1) ON CONFLICT DO NOTHING")
            .bind(format!("{:032x}", rand::random::<u128>()))
            .execute(&mut *tx)
            .await?;
        let (message_id_base,) =
            sqlx::query_as::<_, (String,)>("SELECT value FROM meta WHERE key = 'message_id_base'")
                .fetch_one(&mut *tx)
                .await?;
        // Nobody knows how far these came: the receiver recognises a second one by its Message-ID.
        sqlx::query("UPDATE mails SET state = 'waiting', ambiguous = TRUE WHERE state = 'sending'")
            .execute(&mut *tx)
            .await?;
        if !keep_names {
            sqlx::query("UPDATE notices SET room_name = NULL, sender = NULL WHERE room_name IS NOT NULL OR sender IS NOT NULL")
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(Self { pool, message_id_base })
    }

    /// The Message-ID of a mail, the same at every attempt. No name, address or account goes into it.
    pub(crate) fn message_id(&self, mail: &Mail, domain: &str) -> String {
        match &mail.server_id {
            Some(id) => format!("<heya.{}.s{id}@{domain}>", self.message_id_base),
            None => format!("<heya.{}.m{}@{domain}>", self.message_id_base, mail.id),
        }
    }

    /// Forgets what was settled long ago.
    pub(crate) async fn clean_up(&self, now_ms: i64) -> Result<(), sqlx::Error> {
        let mut tx = self.write().await?;
        for statement in
            ["DELETE FROM mails WHERE settled_ms < $1", "DELETE FROM refusals WHERE refused_ms < $1"]
        {
            sqlx::query(statement).bind(now_ms - REMEMBERED_MS).execute(&mut *tx).await?;
        }
        tx.commit().await
    }

    async fn write(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.pool.begin_with("BEGIN IMMEDIATE").await
    }
}

impl Lang {
    /// Japanese unless English is asked for.
    pub(crate) fn of(code: &str) -> Self {
        if code == "en" || code.starts_with("en-") { Self::En } else { Self::Ja }
    }

    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Ja => "ja",
            Self::En => "en",
        }
    }
}

impl Scope {
    /// An unknown scope is a plain message.
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "highlight" => Self::Highlight,
            "invite" => Self::Invite,
            "opening" => Self::Opening,
            "direct" => Self::Direct,
            _ => Self::Message,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Highlight => "highlight",
            Self::Invite => "invite",
            Self::Opening => "opening",
            Self::Direct => "direct",
            Self::Message => "message",
        }
    }
}

impl Importance {
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "important" => Self::Important,
            "urgent" => Self::Urgent,
            _ => Self::None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Important => "important",
            Self::Urgent => "urgent",
        }
    }
}

/// Addresses are personal data: only the owner of the process reads the file (SQLite gives its side files the same mode).
fn make_private_file(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}
