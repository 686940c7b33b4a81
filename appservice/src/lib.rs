//! The city's bot (市の窓口): an application service that files requests as cases, lets city staff approve
//! them in the control room, and carries out what was approved.
//!
//! It knows the homeserver only over HTTP, by `docs/internal-api.md`. Where to start reading:
//!
//! * [`run`] serves the Application Service API and drives the outbox.
//! * `transactions` turns a transaction of events into rows, in one database transaction.
//! * `commands` (control room) and `requests` (every other room) understand Japanese; they do no input or output.
//! * `applications` reads the CSV files of the city's e-application service; `receive` takes what is in one.
//! * `cases` says what a case is and which changes of state are legal.
//! * `outbox` carries tasks to the server, one at a time per room, until each is answered; `examine` looks up who and
//!   what is meant, `execute` does what was approved.
//! * `register` reads all cases, for whoever writes them out.
//! * `texts` holds every sentence that a person reads.
//!
//! Invariants: nothing is sent to the server but from the outbox; a row leaves the outbox in the same
//! database transaction that stores what its answer meant; every changing call carries a key made from the
//! case or from the event, so that a repeated call changes nothing.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop where it is")
)]

mod applications;
mod cases;
mod clock;
mod commands;
mod control;
mod events;
mod examine;
mod execute;
mod forms;
mod japanese;
mod lookup;
mod outbox;
mod people;
mod receive;
pub mod register;
mod requests;
mod server;
mod store;
mod tails;
mod texts;
mod transactions;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;

pub use texts::Language;

/// How long open connections may finish after the shutdown signal.
const DRAIN: Duration = Duration::from_secs(5);

/// What the bot must be told to start.
#[derive(Clone)]
pub struct Config {
    /// Base URL of the homeserver's internal listener, e.g. `http://127.0.0.1:8009`.
    pub server_url: String,
    /// The token with which the bot calls the server.
    pub as_token: String,
    /// The token with which the server calls the bot.
    pub hs_token: String,
    /// The bot's own SQLite file; made when absent.
    pub database: PathBuf,
    /// The name of the city as people read it.
    pub city_name: String,
    /// Whom people may phone or write to, as they read it.
    pub contact: String,
    /// The language of everything the bot writes.
    pub language: Language,
    /// How the city's e-application service calls columns, and which of the bot's names each means (電子申請).
    pub application_columns: BTreeMap<String, String>,
    /// How it calls procedures (手続き), likewise.
    pub application_procedures: BTreeMap<String, String>,
}

impl fmt::Debug for Config {
    /// Leaves the tokens out: a config may end up in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("server_url", &self.server_url)
            .field("database", &self.database)
            .field("city_name", &self.city_name)
            .field("contact", &self.contact)
            .field("language", &self.language)
            .finish_non_exhaustive()
    }
}

/// Why the bot could not start or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bot's database failed.
    #[error("the bot's database failed")]
    Database(#[from] sqlx::Error),
    /// The bot's database file cannot be made or opened.
    #[error("the bot's database file cannot be opened")]
    File(#[source] std::io::Error),
    /// The database was written by a newer version of the bot.
    #[error("the bot's database has schema {found}, this version knows up to {known}")]
    NewerDatabase {
        /// The version found in the file.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
    /// The database is of another version, and this is not the program that brings it up to date.
    #[error(
        "the bot's database has schema {found}, this version reads {known}: start the bot of this version first"
    )]
    OtherDatabase {
        /// The version found in the file.
        found: i64,
        /// The version this program reads.
        known: i64,
    },
    /// A stored row is not what this program writes.
    #[error("a stored row cannot be read")]
    Row(#[from] serde_json::Error),
    /// A stored case is in a state this program does not know, or was asked to change in a way that is not
    /// legal.
    #[error("case {case}: illegal change of state")]
    IllegalChange {
        /// The case's number.
        case: i64,
    },
    /// The config cannot be used.
    #[error("config: {0}")]
    Config(&'static str),
    /// A word of `application_columns` or `application_procedures` is none that the bot knows.
    #[error("電子申請: 「{0}」という項目や手続きはありません (no such column or procedure)")]
    Heading(String),
    /// The HTTP client could not be made.
    #[error("the HTTP client could not be made")]
    Client(#[source] reqwest::Error),
    /// The listener failed.
    #[error("the listener failed")]
    Listener(#[from] std::io::Error),
}

impl Error {
    /// Whether it would come again with the same event: a rule of the tables or of a case, not trouble of the database.
    fn is_of_the_event(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => {
                error.is_unique_violation() || error.is_foreign_key_violation() || error.is_check_violation()
            }
            Self::Row(_) | Self::IllegalChange { .. } => true,
            _ => false,
        }
    }

    /// What a log may say beyond the error itself: the database's own words about its trouble. They name
    /// tables and columns, while a row that cannot be read would be quoted with its content, so nothing is
    /// told of that.
    fn detail(&self) -> String {
        match self {
            Self::Database(sqlx::Error::Database(error)) => error.message().to_owned(),
            Self::Database(sqlx::Error::Io(error)) | Self::File(error) | Self::Listener(error) => {
                error.to_string()
            }
            Self::Database(sqlx::Error::PoolTimedOut) => "no free connection".to_owned(),
            _ => String::new(),
        }
    }
}

/// Serves the Application Service API on `listener` and drives the outbox until `shutdown` completes.
///
/// Dropping the future at any moment is safe: what was acknowledged is in the database, and the next start
/// goes on where this one stopped.
///
/// # Errors
/// When the database cannot be opened or fails for good, the config is unusable, or the listener breaks.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    if config.as_token.is_empty() || config.hs_token.is_empty() {
        return Err(Error::Config("as_token and hs_token must not be empty"));
    }
    let headings = applications::Headings::new(&config.application_columns, &config.application_procedures)?;
    let store = store::Store::open(&config.database).await?;
    let server = server::Server::new(&config.server_url, &config.as_token)?;
    let texts = texts::Texts::new(&config);
    let wake = Arc::new(Notify::new());
    let control = Arc::new(control::Control::load(&store).await?);

    let bot = Arc::new(outbox::Bot { store, server, texts, headings, control, wake });
    let router = transactions::router(Arc::clone(&bot), &config.hs_token);
    let stopping = Arc::new(Notify::new());
    let told = Arc::clone(&stopping);
    let served = axum::serve(listener, router).with_graceful_shutdown(async move {
        shutdown.await;
        told.notify_one();
    });
    tokio::select! {
        result = served.into_future() => result.map_err(Error::from),
        result = bot.drain() => result,
        () = bot.control.keep_fresh(&bot.server, &bot.store) => Ok(()),
        () = async { stopping.notified().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}
