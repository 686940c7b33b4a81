//! All SQL. One text per query for SQLite and PostgreSQL; [`Conn`] has a variant for each and the macros here
//! hold the only `match` on it.
//!
//! Reading takes a connection from [`Db::read`]. Writing happens in one place, the committer
//! (`rooms::committer`), on the one connection that [`Db::writer`] hands out; SQLite's other connections are
//! read-only, so a write elsewhere fails at once.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection as _, PgConnection, PgPool, Postgres, Sqlite, SqliteConnection, SqlitePool,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::error::{Error, Result};

pub mod accounts;
pub mod addresses;
pub mod admin;
pub mod appservices;
pub mod audit;
pub mod deletions;
pub mod events;
pub mod key_backups;
pub mod keys;
pub mod life;
pub mod media;
pub mod meta;
pub mod moderation;
pub mod oauth;
pub mod personal;
pub mod push;
pub mod registers;
pub mod relations;
pub mod reports;
pub mod rooms;
pub mod script;
pub mod search;
pub mod sessions;
pub mod terminals;

/// The database: a pool to read from, and how to make the one connection that writes.
pub enum Db {
    /// A SQLite file.
    Sqlite(SqlitePool, SqliteConnectOptions),
    /// A PostgreSQL database.
    Postgres(PgPool, PgConnectOptions),
}

/// A connection to either database, from the reading pool or the writer's own.
pub enum Conn {
    /// SQLite.
    Sqlite(Held<PoolConnection<Sqlite>, SqliteConnection>),
    /// PostgreSQL.
    Postgres(Held<PoolConnection<Postgres>, PgConnection>),
}

/// A connection borrowed from a pool, or one's own.
pub enum Held<P, C> {
    /// Goes back to its pool.
    Pooled(P),
    /// Closed at the end.
    Own(Box<C>),
}

impl<P: std::ops::DerefMut<Target = C>, C> Held<P, C> {
    /// The sqlx connection.
    pub fn inner(&mut self) -> &mut C {
        match self {
            Self::Pooled(c) => c,
            Self::Own(c) => c,
        }
    }
}

/// Expands the body once for each database, with `$c` the sqlx connection.
macro_rules! on {
    ($conn:expr, $c:ident => $body:expr) => {
        match $conn {
            $crate::store::Conn::Sqlite(held) => {
                let $c = held.inner();
                $body
            }
            $crate::store::Conn::Postgres(held) => {
                let $c = held.inner();
                $body
            }
        }
    };
}

/// All rows of a query, as tuples or `FromRow` structs.
macro_rules! all {
    ($conn:expr, $row:ty, $sql:literal $(, $arg:expr)* $(,)?) => {
        $crate::store::on!($conn, c => sqlx::query_as::<_, $row>($sql)$(.bind($arg))*.fetch_all(c).await
            .map_err($crate::error::Error::from))
    };
}

/// The first row of a query, if any.
macro_rules! one {
    ($conn:expr, $row:ty, $sql:literal $(, $arg:expr)* $(,)?) => {
        $crate::store::on!($conn, c => sqlx::query_as::<_, $row>($sql)$(.bind($arg))*.fetch_optional(c).await
            .map_err($crate::error::Error::from))
    };
}

/// Runs a statement and returns the number of rows it touched.
macro_rules! run {
    ($conn:expr, $sql:literal $(, $arg:expr)* $(,)?) => {
        $crate::store::on!($conn, c => sqlx::query($sql)$(.bind($arg))*.execute(c).await
            .map(|done| done.rows_affected()).map_err($crate::error::Error::from))
    };
}

/// Inserts many rows with as few statements as the databases' parameter limits allow.
/// `$b` is a `Separated` and `$row` a reference to the row; `$tail` is the `ON CONFLICT` clause or "".
macro_rules! insert_many {
    ($conn:expr, $sql:literal, $rows:expr, |$b:ident, $row:ident| $push:block, $tail:literal) => {{
        let rows = $rows;
        $crate::store::on!($conn, c => {
            // 400 rows × 16 columns stays far below SQLite's 32,766 and PostgreSQL's 65,535 parameters.
            for chunk in rows.chunks(400) {
                let mut query = sqlx::QueryBuilder::new($sql);
                query.push_values(chunk, |mut $b, $row| $push);
                query.push($tail);
                query.build().execute(&mut *c).await.map_err($crate::error::Error::from)?;
            }
        });
    }};
}

/// A query with a list: `$sql` ends in ` IN `, the list is expanded in chunks and the rows are joined.
macro_rules! all_in {
    ($conn:expr, $row:ty, $sql:literal, $list:expr) => {{
        let list = $list;
        let mut rows: Vec<$row> = Vec::new();
        $crate::store::on!($conn, c => {
            for chunk in list.chunks(500) {
                let mut query = sqlx::QueryBuilder::new($sql);
                query.push("(");
                let mut separated = query.separated(", ");
                for item in chunk {
                    separated.push_bind(item.as_str());
                }
                query.push(")");
                rows.extend(
                    query.build_query_as::<$row>().fetch_all(&mut *c).await
                        .map_err($crate::error::Error::from)?,
                );
            }
        });
        rows
    }};
}

/// Runs a statement with a list: `$sql` ends in ` IN `, the list of `String`s is expanded in chunks.
macro_rules! run_in {
    ($conn:expr, $sql:literal, $list:expr) => {{
        let list: &[String] = $list;
        $crate::store::on!($conn, c => {
            for chunk in list.chunks(500) {
                let mut query = sqlx::QueryBuilder::new($sql);
                query.push("(");
                let mut separated = query.separated(", ");
                for item in chunk {
                    separated.push_bind(item.as_str());
                }
                query.push(")");
                query.build().execute(&mut *c).await.map_err($crate::error::Error::from)?;
            }
        });
    }};
}

pub(crate) use {all, all_in, insert_many, on, one, run, run_in};

/// Whether a write-ahead log with what was purged waits to be emptied. One server has one database.
static SETTLING_OWED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Migrations go forward only; a schema newer than the binary's is refused by sqlx ("VersionMissing").
static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// The migrations as SQLite takes them. One text is for both databases; what only SQLite has stands in it as
/// `/*! SQLite: … */`, which is a comment to PostgreSQL.
fn migrations_for_sqlite() -> sqlx::migrate::Migrator {
    let migrations = MIGRATIONS.iter().map(|migration| {
        let mut sql = String::new();
        let mut rest = migration.sql.as_str();
        while let Some((before, after)) = rest.split_once("/*! SQLite: ") {
            let (own, after) = after.split_once(" */").unwrap_or((after, ""));
            sql.push_str(before);
            sql.push_str(own);
            rest = after;
        }
        sql.push_str(rest);
        // The checksum stays that of the file.
        sqlx::migrate::Migration {
            sql: sqlx::SqlSafeStr::into_sql_str(sqlx::AssertSqlSafe(sql)),
            ..migration.clone()
        }
    });
    sqlx::migrate::Migrator::with_migrations(migrations.collect())
}

impl Db {
    /// Opens the database, migrating it if need be. `url` is `sqlite:` (the file `heya.sqlite` in the data
    /// folder), `sqlite:PATH`, or a `postgres://…` URL.
    pub async fn open(url: &str, data_dir: &Path) -> Result<Self> {
        Self::connect(url, data_dir, true).await
    }

    async fn connect(url: &str, data_dir: &Path, migrate: bool) -> Result<Self> {
        if let Some(path) = Self::sqlite_file(url, data_dir) {
            let options = SqliteConnectOptions::new()
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                // FULL: a COMMIT that has been answered survives a power cut (DESIGN 7).
                .synchronous(SqliteSynchronous::Full)
                .foreign_keys(true)
                .pragma("cache_size", "-16000")
                .busy_timeout(Duration::from_secs(10))
                .log_statements(tracing::log::LevelFilter::Off)
                .log_slow_statements(tracing::log::LevelFilter::Off, Duration::ZERO);
            let mut writer = options.clone().connect().await?;
            if migrate {
                migrations_for_sqlite().run(&mut writer).await?;
            }
            writer.close().await?;
            let pool = SqlitePoolOptions::new()
                .max_connections(8)
                .min_connections(1)
                .connect_with(options.clone().read_only(true))
                .await?;
            Ok(Self::Sqlite(pool, options))
        } else {
            let options = PgConnectOptions::from_str(url)?
                .log_statements(tracing::log::LevelFilter::Off)
                .log_slow_statements(tracing::log::LevelFilter::Off, Duration::ZERO);
            let pool = PgPoolOptions::new()
                .max_connections(16)
                .acquire_timeout(Duration::from_secs(10))
                .connect_with(options.clone())
                .await?;
            let (collation,): (String,) =
                sqlx::query_as("SELECT datcollate FROM pg_database WHERE datname = current_database()")
                    .fetch_one(&pool)
                    .await?;
            if collation != "C" && collation != "POSIX" {
                return Err(Error::internal(format!(
                    "the PostgreSQL database has the collation {collation}; create it with \
                     TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C', so that both databases sort alike"
                )));
            }
            if migrate {
                MIGRATIONS.run(&pool).await?;
            }
            Ok(Self::Postgres(pool, options))
        }
    }

    /// The file of a SQLite database; none on PostgreSQL.
    pub fn sqlite_file(url: &str, data_dir: &Path) -> Option<PathBuf> {
        let path = url.strip_prefix("sqlite:")?;
        Some(if path.is_empty() { data_dir.join("heya.sqlite") } else { path.into() })
    }

    /// Opens a database that is there, beside a server that may be running: nothing is made where a name was mistyped, and
    /// no table is changed under the server by a newer binary.
    pub async fn open_existing(url: &str, data_dir: &Path) -> Result<Self> {
        if let Some(path) = Self::sqlite_file(url, data_dir)
            && !path.exists()
        {
            return Err(Error::internal(format!("there is no database {}", path.display())));
        }
        let db = Self::connect(url, data_dir, false).await?;
        let applied: Vec<(i64,)> = all!(
            &mut db.read().await?,
            (i64,),
            "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version"
        )?;
        let ours: Vec<(i64,)> = MIGRATIONS.iter().map(|migration| (migration.version,)).collect();
        if applied != ours {
            return Err(Error::internal(
                "the database is of another version of heya: start the server of this version first \
                 (先に heya serve をこの版で起動してください)",
            ));
        }
        Ok(db)
    }

    /// A connection to read with.
    pub async fn read(&self) -> Result<Conn> {
        // On the heap while it is waited for: it takes 4 KiB, which every future that ever reads would hold, waiting polls
        // among them.
        Ok(match self {
            Self::Sqlite(pool, _) => Conn::Sqlite(Held::Pooled(Box::pin(pool.acquire()).await?)),
            Self::Postgres(pool, _) => Conn::Postgres(Held::Pooled(Box::pin(pool.acquire()).await?)),
        })
    }

    /// A connection to write with: for the committer, which is the only one to ask for it.
    pub async fn writer(&self) -> Result<Conn> {
        Ok(match self {
            Self::Sqlite(_, options) => {
                let mut c = options.clone().connect().await?;
                // What is deleted or redacted is overwritten, not left in free pages.
                sqlx::query("PRAGMA secure_delete = ON").execute(&mut c).await?;
                // A checkpoint every 4,000 pages instead of 1,000: fewer syncs inside commits.
                sqlx::query("PRAGMA wal_autocheckpoint = 4000").execute(&mut c).await?;
                Conn::Sqlite(Held::Own(Box::new(c)))
            }
            Self::Postgres(_, options) => {
                let mut c = options.clone().connect().await?;
                // Two servers on one database would both commit; the lock ends with the connection.
                let (locked,): (bool,) =
                    sqlx::query_as("SELECT pg_try_advisory_lock(4719216)").fetch_one(&mut c).await?;
                if !locked {
                    return Err(Error::internal("another Heya is writing to this PostgreSQL database"));
                }
                sqlx::query("SET synchronous_commit = on").execute(&mut c).await?;
                Conn::Postgres(Held::Own(Box::new(c)))
            }
        })
    }

    /// Empties SQLite's write-ahead log, which has pages as they were before: after a purge, and at the end. A reader that
    /// is under way keeps it; then it is owed, and [`Db::settle_if_owed`] tries again. On PostgreSQL its own vacuum and
    /// checkpoints do that.
    pub async fn settle(&self) {
        SETTLING_OWED.store(true, std::sync::atomic::Ordering::Relaxed);
        self.settle_if_owed().await;
    }

    /// Tries again what [`Db::settle`] could not do.
    pub async fn settle_if_owed(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        let Self::Sqlite(_, options) = self else { return };
        if !SETTLING_OWED.load(Relaxed) {
            return;
        }
        // Writers wait while it waits for readers: not long, therefore.
        let options = options.clone().busy_timeout(Duration::from_millis(100));
        let emptied = async {
            let mut c = options.connect().await?;
            let (busy,): (i64,) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut c).await?;
            c.close().await?;
            Ok::<_, sqlx::Error>(busy == 0)
        };
        match emptied.await {
            Ok(true) => SETTLING_OWED.store(false, Relaxed),
            Ok(false) => tracing::info!("the write-ahead log is in use and will be emptied later"),
            Err(error) => tracing::warn!(%error, "the write-ahead log could not be emptied"),
        }
    }

    /// Whether this is PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(..))
    }

    /// Closes the reading connections.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(pool, _) => pool.close().await,
            Self::Postgres(pool, _) => pool.close().await,
        }
    }

    /// Writes a consistent copy of a SQLite database to `path` while the server runs; false on PostgreSQL,
    /// where `pg_dump` does it.
    pub async fn snapshot(&self, path: &Path) -> Result<bool> {
        let Self::Sqlite(_, options) = self else { return Ok(false) };
        let mut c = options.clone().connect().await?;
        sqlx::query("VACUUM INTO $1").bind(path.to_string_lossy().into_owned()).execute(&mut c).await?;
        c.close().await?;
        Ok(true)
    }
}

impl Db {
    /// Copies another part's SQLite file, consistently, while it is in use.
    pub async fn copy_sqlite(from: &Path, to: &Path) -> Result<bool> {
        let mut c = SqliteConnectOptions::new().filename(from).connect().await?;
        sqlx::query("VACUUM INTO $1").bind(to.to_string_lossy().into_owned()).execute(&mut c).await?;
        c.close().await?;
        Ok(true)
    }
}

/// Whether a PostgreSQL database has no table.
pub async fn is_empty_postgres(url: &str) -> Result<bool> {
    let mut c = PgConnectOptions::from_str(url)?.connect().await?;
    let (tables,): (i64,) = sqlx::query_as(
        "SELECT count(*) FROM information_schema.tables WHERE table_schema NOT IN ('pg_catalog', 'information_schema')",
    )
    .fetch_one(&mut c)
    .await?;
    c.close().await?;
    Ok(tables == 0)
}

/// A PostgreSQL database's address as PostgreSQL's own tools take it from their environment.
pub fn libpq(url: &str) -> Result<Vec<(&'static str, String)>> {
    let options = PgConnectOptions::from_str(url)?;
    let host = options.get_socket().map(|socket| socket.to_string_lossy().into_owned());
    let mode = match options.get_ssl_mode() {
        PgSslMode::Disable => "disable",
        PgSslMode::Allow => "allow",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require => "require",
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
    };
    let mut found = vec![
        ("PGHOST", host.unwrap_or_else(|| options.get_host().to_owned())),
        ("PGPORT", options.get_port().to_string()),
        ("PGUSER", options.get_username().to_owned()),
        ("PGDATABASE", options.get_database().unwrap_or(options.get_username()).to_owned()),
        ("PGSSLMODE", mode.to_owned()),
    ];
    let (front, query) = url.split_once('?').unwrap_or((url, ""));
    let authority =
        front.split_once("://").map_or(front, |(_, rest)| rest).split('/').next().unwrap_or_default();
    if let Some((_, password)) = authority.rsplit_once('@').and_then(|(user, _)| user.split_once(':')) {
        let decoded = percent_encoding::percent_decode_str(password).decode_utf8_lossy();
        found.push(("PGPASSWORD", decoded.into_owned()));
    }
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let name = match &*key {
            "password" => "PGPASSWORD",
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => "PGSSLROOTCERT",
            "sslcert" | "ssl-cert" => "PGSSLCERT",
            "sslkey" | "ssl-key" => "PGSSLKEY",
            _ => continue,
        };
        found.push((name, value.into_owned()));
    }
    Ok(found)
}

impl Conn {
    /// Begins a reading transaction on PostgreSQL whose view another connection can take up; its name there.
    pub async fn export_snapshot(&mut self) -> Result<String> {
        run!(self, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        one!(self, (String,), "SELECT pg_export_snapshot()")?
            .map(|(name,)| name)
            .ok_or_else(|| Error::internal("PostgreSQL exported no snapshot"))
    }

    /// Begins a transaction where no server runs (a restore). The committer begins its own with `script::open`.
    pub async fn begin(&mut self) -> Result<()> {
        match self {
            Self::Sqlite(_) => run!(self, "BEGIN IMMEDIATE")?,
            Self::Postgres(_) => run!(self, "BEGIN")?,
        };
        Ok(())
    }
}
