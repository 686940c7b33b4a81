//! The search index: which term stands in which event.

use ruma::RoomId;

use super::{Conn, insert_many, run};
use crate::error::{Error, Result};

/// Adds (term, room, position) rows.
pub async fn insert(conn: &mut Conn, rows: &[(String, String, i64)]) -> Result<()> {
    insert_many!(
        conn,
        "INSERT INTO search_terms (term, room_id, position) ",
        rows,
        |b, row| {
            b.push_bind(&row.0).push_bind(&row.1).push_bind(row.2);
        },
        " ON CONFLICT DO NOTHING"
    );
    Ok(())
}

/// Removes what was indexed of an event.
pub async fn remove(conn: &mut Conn, position: i64) -> Result<()> {
    run!(conn, "DELETE FROM search_terms WHERE position = $1", position)?;
    Ok(())
}

/// Positions in a room, newest first, of events that have all the terms.
pub async fn find(
    conn: &mut Conn,
    room_id: &RoomId,
    terms: &[String],
    before: i64,
    limit: i64,
) -> Result<Vec<i64>> {
    let mut rows: Vec<(i64,)> = Vec::new();
    super::on!(conn, c => {
        let mut query = sqlx::QueryBuilder::new("SELECT position FROM search_terms WHERE room_id = ");
        query.push_bind(room_id.as_str());
        query.push(" AND position < ").push_bind(before);
        query.push(" AND term IN (");
        let mut separated = query.separated(", ");
        for term in terms {
            separated.push_bind(term.as_str());
        }
        query.push(") GROUP BY position HAVING COUNT(*) = ");
        query.push_bind(i64::try_from(terms.len()).unwrap_or(i64::MAX));
        query.push(" ORDER BY position DESC LIMIT ").push_bind(limit);
        rows.extend(query.build_query_as::<(i64,)>().fetch_all(c).await.map_err(Error::from)?);
    });
    Ok(rows.into_iter().map(|(position,)| position).collect())
}
