//! The search index: which term stands in which event.

use std::collections::HashMap;

use ruma::RoomId;

use super::{Conn, all_in, insert_many, one, run};
use crate::error::{Error, Result};

/// Adds (room's number, term, position) rows.
pub async fn insert(conn: &mut Conn, rows: &[(i64, String, i64)]) -> Result<()> {
    insert_many!(
        conn,
        "INSERT INTO search_terms (room, term, position) ",
        rows,
        |b, row| {
            b.push_bind(row.0).push_bind(&row.1).push_bind(row.2);
        },
        " ON CONFLICT DO NOTHING"
    );
    Ok(())
}

/// The numbers by which the index knows rooms: the positions of their create events.
pub async fn numbers(conn: &mut Conn, room_ids: &[&RoomId]) -> Result<HashMap<String, i64>> {
    let rows = all_in!(
        conn,
        (String, i64),
        "SELECT room_id, from_order FROM room_state WHERE type = 'm.room.create' AND state_key = '' AND room_id IN ",
        room_ids
    );
    Ok(rows.into_iter().collect())
}

/// Deletes entries of a room, about so many; whether none is left. Its state must still be there.
pub async fn delete_some(conn: &mut Conn, room_id: &RoomId, limit: i64) -> Result<bool> {
    let Some(room) = numbers(conn, &[room_id]).await?.remove(room_id.as_str()) else { return Ok(true) };
    let rest = one!(
        conn,
        (String, i64),
        "SELECT term, position FROM search_terms WHERE room = $1 ORDER BY term, position LIMIT 1 OFFSET $2",
        room,
        limit
    )?;
    match &rest {
        Some((term, position)) => run!(
            conn,
            "DELETE FROM search_terms WHERE room = $1 AND (term, position) < ($2, $3)",
            room,
            term.as_str(),
            *position
        )?,
        None => run!(conn, "DELETE FROM search_terms WHERE room = $1", room)?,
    };
    Ok(rest.is_none())
}

/// Hits of a term counted, to know which is the rarest.
const COUNTED_MAX: i64 = 1_000;

/// Positions in a room (by its number), newest first, of events that have all the terms. The hits of the rarest term are
/// gone through from the newest on, and the others looked up, until there are enough: words that stand everywhere do not
/// cost all their hits.
pub async fn find(conn: &mut Conn, room: i64, terms: &[String], before: i64, limit: i64) -> Result<Vec<i64>> {
    let Some(rarest) = rarest(conn, room, terms, before).await? else { return Ok(Vec::new()) };
    let mut rows: Vec<(i64,)> = Vec::new();
    super::on!(conn, c => {
        let mut query = sqlx::QueryBuilder::new("SELECT hit.position FROM search_terms hit WHERE hit.term = ");
        query.push_bind(terms[rarest].as_str());
        query.push(" AND hit.room = ").push_bind(room);
        query.push(" AND hit.position < ").push_bind(before);
        for (i, term) in terms.iter().enumerate() {
            if i != rarest {
                query.push(" AND EXISTS (SELECT 1 FROM search_terms o WHERE o.term = ").push_bind(term.as_str());
                query.push(" AND o.room = hit.room AND o.position = hit.position)");
            }
        }
        query.push(" ORDER BY hit.position DESC LIMIT ").push_bind(limit);
        rows.extend(query.build_query_as::<(i64,)>().fetch_all(c).await.map_err(Error::from)?);
    });
    Ok(rows.into_iter().map(|(position,)| position).collect())
}

/// Which of the terms has the fewest hits in a room, so far as they are counted; none where one of them has no hit.
async fn rarest(conn: &mut Conn, room: i64, terms: &[String], before: i64) -> Result<Option<usize>> {
    if terms.len() < 2 {
        return Ok((!terms.is_empty()).then_some(0));
    }
    let mut rows: Vec<(i64, i64)> = Vec::new();
    super::on!(conn, c => {
        let mut query = sqlx::QueryBuilder::new("");
        for (i, term) in (0_i64..).zip(terms) {
            query.push(if i == 0 { "SELECT " } else { " UNION ALL SELECT " }).push_bind(i);
            query.push(", COUNT(*) FROM (SELECT 1 AS hit FROM search_terms WHERE term = ").push_bind(term.as_str());
            query.push(" AND room = ").push_bind(room);
            query.push(" AND position < ").push_bind(before);
            query.push(" LIMIT ").push_bind(COUNTED_MAX).push(") AS counted");
        }
        rows.extend(query.build_query_as::<(i64, i64)>().fetch_all(c).await.map_err(Error::from)?);
    });
    let fewest = rows.into_iter().min_by_key(|(_, count)| *count);
    Ok(fewest.filter(|(_, count)| *count > 0).and_then(|(i, _)| usize::try_from(i).ok()))
}
