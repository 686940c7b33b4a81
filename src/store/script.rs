//! Statements that are sent together. Each statement costs a trip to SQLite's thread and back, more than most of them
//! take to run; so what a batch writes is collected here and sent as one text, and so is what it begins with.
//! PostgreSQL's protocol takes no parameters for several statements at once: there each goes by itself.

use sqlx::{FromRow as _, Postgres, QueryBuilder, Row as _, Sqlite};

use super::{Conn, rooms::Stored};
use crate::{
    error::{Error, Result},
    rooms::{committer::TxnKey, live::RoomRow},
};

/// Texts up to this length are kept prepared: those of one event or two. Longer ones differ each time.
const KEPT_BYTES: usize = 4_000;

/// Statements collected for one database.
pub enum Script {
    /// One text, its statements divided by `;`.
    Sqlite(Box<QueryBuilder<Sqlite>>),
    /// A list.
    Postgres(Vec<QueryBuilder<Postgres>>),
}

impl Script {
    /// An empty one for the database of a connection.
    pub fn new(conn: &Conn) -> Self {
        match conn {
            Conn::Sqlite(_) => Self::Sqlite(Box::new(QueryBuilder::new(""))),
            Conn::Postgres(_) => Self::Postgres(Vec::new()),
        }
    }

    /// Runs all of it, in order. The first error ends it.
    pub async fn run(self, conn: &mut Conn) -> Result<()> {
        match (self, conn) {
            (Self::Sqlite(mut all), Conn::Sqlite(held)) => {
                let kept = all.sql().as_str().len() <= KEPT_BYTES;
                all.build().persistent(kept).execute(held.inner()).await?;
            }
            (Self::Postgres(all), Conn::Postgres(held)) => {
                for mut one in all {
                    one.build().execute(held.inner()).await?;
                }
            }
            _ => return Err(Error::internal("a script for another database")),
        }
        Ok(())
    }
}

/// Adds an `INSERT` of many rows to a script. `$b` is a `Separated` and `$row` a reference to the row; `$tail` is the
/// `ON CONFLICT` clause or "".
macro_rules! queue_many {
    ($script:expr, $sql:literal, $rows:expr, |$b:ident, $row:ident| $push:block, $tail:literal) => {{
        let rows = $rows;
        // 400 rows × 16 columns stays far below SQLite's 32,766 and PostgreSQL's 65,535 parameters.
        for chunk in rows.chunks(400) {
            match &mut *$script {
                $crate::store::script::Script::Sqlite(all) => {
                    all.push($sql);
                    all.push_values(chunk, |mut $b, $row| $push);
                    all.push($tail);
                    all.push(";");
                }
                $crate::store::script::Script::Postgres(all) => {
                    let mut query = sqlx::QueryBuilder::new($sql);
                    query.push_values(chunk, |mut $b, $row| $push);
                    query.push($tail);
                    all.push(query);
                }
            }
        }
    }};
}

/// Adds a statement to a script: text and arguments in turn.
macro_rules! queue {
    ($script:expr, $first:literal $(, $arg:expr, $text:literal)* $(,)?) => {
        match &mut *$script {
            $crate::store::script::Script::Sqlite(all) => {
                all.push($first);
                $(all.push_bind($arg); all.push($text);)*
                all.push(";");
            }
            $crate::store::script::Script::Postgres(all) => {
                #[allow(unused_mut, reason = "a statement may be without arguments")]
                let mut query = sqlx::QueryBuilder::new($first);
                $(query.push_bind($arg); query.push($text);)*
                all.push(query);
            }
        }
    };
}

pub(crate) use {queue, queue_many};

/// What a batch begins with.
pub struct Opening {
    /// The newest position; its row is locked until the transaction ends.
    pub position: i64,
    /// The client transactions that were done already, and what each made.
    pub txns: Vec<(TxnKey, ruma::OwnedEventId)>,
    /// The rooms asked for that exist.
    pub rooms: Vec<RoomRow>,
}

/// The client transactions among `$keys` that are stored. Joined, so that each is found by the primary key, however many
/// there are.
macro_rules! push_txns {
    ($query:expr, $keys:expr) => {{
        $query.push("WITH asked (u, d, s, t) AS (");
        $query.push_values($keys, |mut b, key: &&TxnKey| {
            b.push_bind(key.user_id.as_str())
                .push_bind(&key.device_id)
                .push_bind(&key.scope)
                .push_bind(&key.txn_id);
        });
        $query.push(
            ") SELECT x.user_id, x.device_id, x.scope, x.txn_id, x.event_id FROM asked JOIN transactions x \
             ON x.user_id = u AND x.device_id = d AND x.scope = s AND x.txn_id = t",
        );
    }};
}

macro_rules! push_rooms {
    ($query:expr, $rooms:expr) => {{
        $query.push(
            "SELECT room_id, version, head, depth, state_version, last_position, status, kind, room_number, \
             facility, subject_key, created_at, closed_at, archived_at, opened_by_case FROM rooms \
             WHERE room_id IN (",
        );
        let mut separated = $query.separated(", ");
        for room_id in $rooms {
            separated.push_bind(room_id.as_str());
        }
        $query.push(")");
    }};
}

type StoredTxn = (String, String, String, String, String);

fn txn((user_id, device_id, scope, txn_id, event_id): StoredTxn) -> Result<(TxnKey, ruma::OwnedEventId)> {
    Ok((TxnKey { user_id: user_id.try_into()?, device_id, scope, txn_id }, event_id.try_into()?))
}

/// Begins the committer's transaction and reads ahead what its units have hinted at. The position's row is locked first:
/// there is one writer (ARCHITECTURE.md).
///
/// `IMMEDIATE` takes SQLite's write lock at once: a plain `BEGIN` that reads and then writes fails under load.
pub async fn open(conn: &mut Conn, keys: &[&TxnKey], room_ids: &[ruma::OwnedRoomId]) -> Result<Opening> {
    let (mut position, mut txns, mut rooms) = (None, Vec::new(), Vec::new());
    match conn {
        Conn::Sqlite(held) => {
            let mut query =
                QueryBuilder::<Sqlite>::new("BEGIN IMMEDIATE;SELECT n FROM positions WHERE id = 1;");
            for chunk in keys.chunks(200) {
                push_txns!(query, chunk);
                query.push(";");
            }
            for chunk in room_ids.chunks(500) {
                push_rooms!(query, chunk);
                query.push(";");
            }
            let kept = query.sql().as_str().len() <= KEPT_BYTES;
            // The rows of three statements, told apart by their number of columns.
            for row in query.build().persistent(kept).fetch_all(held.inner()).await? {
                match row.len() {
                    1 => position = Some(row.try_get(0)?),
                    5 => txns.push(txn(StoredTxn::from_row(&row)?)?),
                    _ => rooms.push(Stored::from_row(&row)?.try_into()?),
                }
            }
        }
        Conn::Postgres(held) => {
            let conn = held.inner();
            sqlx::query("BEGIN").execute(&mut *conn).await?;
            let row: Option<(i64,)> = sqlx::query_as("UPDATE positions SET n = n WHERE id = 1 RETURNING n")
                .fetch_optional(&mut *conn)
                .await?;
            position = row.map(|(n,)| n);
            for chunk in keys.chunks(200) {
                let mut query = QueryBuilder::<Postgres>::new("");
                push_txns!(query, chunk);
                for row in query.build_query_as().fetch_all(&mut *conn).await? {
                    txns.push(txn(row)?);
                }
            }
            for chunk in room_ids.chunks(500) {
                let mut query = QueryBuilder::<Postgres>::new("");
                push_rooms!(query, chunk);
                for row in query.build_query_as::<Stored>().fetch_all(&mut *conn).await? {
                    rooms.push(row.try_into()?);
                }
            }
        }
    }
    let position = position.ok_or_else(|| Error::internal("the row of positions is missing"))?;
    Ok(Opening { position, txns, rooms })
}
