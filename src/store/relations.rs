//! Relations between events: what is counted of them, and who relates to whom.

use std::collections::BTreeSet;

use ruma::{OwnedUserId, RoomId, UserId};

use super::{Conn, on};
use crate::error::{Error, Result};

/// How many of one sender's events of one type relate to an event in one way, and where the newest of them stands.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Tally {
    /// The event related to.
    pub target_id: String,
    /// How.
    pub rel_type: String,
    /// The type of the events that relate.
    #[sqlx(rename = "type")]
    pub kind: String,
    /// Their sender.
    pub sender: String,
    /// How many there are.
    pub count: i64,
    /// Position of the newest.
    pub newest: i64,
}

/// One relation.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Related {
    /// The event related to.
    pub target_id: String,
    /// The event that relates.
    pub event_id: String,
    /// How.
    pub rel_type: String,
    /// Its type.
    #[sqlx(rename = "type")]
    pub kind: String,
    /// Its sender.
    pub sender: String,
    /// Its position.
    pub position: i64,
}

/// Counts the edits, replies in threads and references of several events of a room, between two orders (both
/// included).
pub async fn tallies(
    conn: &mut Conn,
    room_id: &RoomId,
    targets: &[String],
    (from, upto): (i64, i64),
) -> Result<Vec<Tally>> {
    let mut rows: Vec<Tally> = Vec::new();
    on!(conn, c => {
        for chunk in targets.chunks(500) {
            let mut query = sqlx::QueryBuilder::new(
                "SELECT target_id, rel_type, type, sender, COUNT(*) AS count, MAX(position) AS newest FROM relations \
                 WHERE rel_type IN ('m.replace', 'm.thread', 'm.reference') AND room_id = ",
            );
            query.push_bind(room_id.as_str());
            query.push(" AND position >= ").push_bind(from);
            query.push(" AND position <= ").push_bind(upto);
            query.push(" AND target_id IN (");
            let mut separated = query.separated(", ");
            for id in chunk {
                separated.push_bind(id.as_str());
            }
            query.push(") GROUP BY target_id, rel_type, type, sender");
            rows.extend(query.build_query_as::<Tally>().fetch_all(&mut *c).await.map_err(Error::from)?);
        }
    });
    Ok(rows)
}

/// What relates to several events of a room, in any way or in one, oldest first, at most `limit`.
pub async fn relating(
    conn: &mut Conn,
    room_id: &RoomId,
    targets: &[String],
    rel_type: Option<&str>,
    limit: usize,
) -> Result<Vec<Related>> {
    let mut rows: Vec<Related> = Vec::new();
    on!(conn, c => {
        for chunk in targets.chunks(500) {
            if rows.len() >= limit {
                break;
            }
            let mut query = sqlx::QueryBuilder::new(
                "SELECT target_id, event_id, rel_type, type, sender, position FROM relations WHERE room_id = ",
            );
            query.push_bind(room_id.as_str());
            if let Some(rel_type) = rel_type {
                query.push(" AND rel_type = ").push_bind(rel_type);
            }
            query.push(" AND target_id IN (");
            let mut separated = query.separated(", ");
            for id in chunk {
                separated.push_bind(id.as_str());
            }
            query.push(") ORDER BY position LIMIT ");
            query.push_bind(i64::try_from(limit - rows.len()).unwrap_or(i64::MAX));
            rows.extend(query.build_query_as::<Related>().fetch_all(&mut *c).await.map_err(Error::from)?);
        }
    });
    Ok(rows)
}

/// Which threads of a room are asked for.
pub struct Threads<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// Only those that this user began or wrote in.
    pub participant: Option<&'a UserId>,
    /// Whose replies do not count.
    pub ignored: &'a BTreeSet<OwnedUserId>,
    /// Replies from this order on, up to this one.
    pub between: (i64, i64),
    /// Threads whose newest reply stands before this order.
    pub before: i64,
    /// How many at most.
    pub limit: usize,
}

/// The roots of a room's threads with the position of the newest reply of each, newest first.
pub async fn threads(conn: &mut Conn, wanted: &Threads<'_>) -> Result<Vec<(String, i64)>> {
    let room_id = wanted.room_id.as_str();
    let mut rows: Vec<(String, i64)> = Vec::new();
    on!(conn, c => {
        let mut query = sqlx::QueryBuilder::new(
            "SELECT r.target_id, MAX(r.position) AS newest FROM relations r WHERE r.rel_type = 'm.thread' AND r.room_id = ",
        );
        query.push_bind(room_id);
        query.push(" AND r.position >= ").push_bind(wanted.between.0);
        query.push(" AND r.position <= ").push_bind(wanted.between.1);
        if !wanted.ignored.is_empty() {
            query.push(" AND r.sender NOT IN (");
            let mut separated = query.separated(", ");
            for user_id in wanted.ignored {
                separated.push_bind(user_id.as_str());
            }
            query.push(")");
        }
        if let Some(user_id) = wanted.participant {
            query.push(
                " AND (EXISTS (SELECT 1 FROM relations p WHERE p.target_id = r.target_id AND p.rel_type = 'm.thread' \
                 AND p.room_id = r.room_id AND p.sender = ",
            );
            query.push_bind(user_id.as_str());
            query.push(") OR EXISTS (SELECT 1 FROM events e WHERE e.event_id = r.target_id AND e.sender = ");
            query.push_bind(user_id.as_str());
            query.push("))");
        }
        query.push(" GROUP BY r.target_id HAVING MAX(r.position) < ").push_bind(wanted.before);
        query.push(" ORDER BY newest DESC LIMIT ");
        query.push_bind(i64::try_from(wanted.limit).unwrap_or(i64::MAX));
        rows.extend(query.build_query_as::<(String, i64)>().fetch_all(c).await.map_err(Error::from)?);
    });
    Ok(rows)
}
