//! Events: written in batches, read by id, by room order and by position.

use std::{collections::HashMap, sync::Arc};

use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId};

use super::{
    Conn, all, all_in, one, run,
    script::{Script, queue, queue_many},
};
use crate::{
    audit::Origin,
    error::Result,
    rooms::{
        batch::{Pending, Redacted},
        pdu::{Event, Transaction},
    },
};

/// The columns of an event, in the order of [`Row`].
type Row = (i64, String, String, String, Option<String>, Option<String>, Option<String>);

fn event((position, event_id, room_id, pdu, redacted_by, device_id, txn_id): Row) -> Result<Arc<Event>> {
    let mut event =
        Event::from_pdu(&pdu, OwnedEventId::try_from(event_id)?, OwnedRoomId::try_from(room_id)?, position)?;
    event.redacted_by = redacted_by.map(OwnedEventId::try_from).transpose()?;
    if let (Some(device_id), Some(txn_id)) = (device_id, txn_id) {
        event.txn = Some(Transaction { device_id, txn_id });
    }
    Ok(Arc::new(event))
}

fn events(rows: Vec<Row>) -> Result<Vec<Arc<Event>>> {
    rows.into_iter().map(event).collect()
}

/// Keeps from where an event was sent.
pub async fn keep_origin(conn: &mut Conn, event_id: &EventId, origin: &Origin) -> Result<()> {
    run!(
        conn,
        "INSERT INTO event_origins (event_id, terminal, certificate, address) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (event_id) DO NOTHING",
        event_id.as_str(),
        origin.terminal,
        origin.certificate.as_deref(),
        origin.address.as_deref().unwrap_or_default()
    )?;
    Ok(())
}

/// From where an event was sent, if that was kept.
pub async fn origin(conn: &mut Conn, event_id: &EventId, sender: &str) -> Result<Option<Origin>> {
    let row = one!(
        conn,
        (Option<i64>, Option<String>, String),
        "SELECT terminal, certificate, address FROM event_origins WHERE event_id = $1",
        event_id.as_str()
    )?;
    Ok(row.map(|(terminal, certificate, address)| Origin {
        actor: sender.to_owned(),
        terminal,
        certificate,
        address: Some(address),
    }))
}

/// Writes a batch's events, their edges, the state intervals they begin and end, and their transaction ids.
pub(crate) fn insert(script: &mut Script, pending: &Pending) {
    if pending.events.is_empty() && pending.txns.is_empty() {
        return;
    }
    queue_many!(
        script,
        "INSERT INTO events (position, event_id, room_id, room_order, depth, type, state_key, sender, pdu, \
         outlier, rejected, soft_failed, state_id, redacted_by, device_id, txn_id) ",
        &pending.events,
        |b, e| {
            b.push_bind(e.position)
                .push_bind(e.event_id.as_str())
                .push_bind(e.room_id.as_str())
                .push_bind(e.position)
                .push_bind(e.depth)
                .push_bind(e.kind.to_string())
                .push_bind(e.state_key.as_deref())
                .push_bind(e.sender.as_str())
                .push_bind(&*e.pdu)
                .push("FALSE")
                .push("FALSE")
                .push("FALSE")
                .push("NULL")
                .push("NULL")
                .push_bind(e.txn.as_ref().map(|t| t.device_id.as_str()))
                .push_bind(e.txn.as_ref().map(|t| t.txn_id.as_str()));
        },
        ""
    );
    // An event on the line follows the one before it in the room; only a join of several heads says more than that. A row
    // for every event would be one more index page to write for each.
    let edges: Vec<_> = pending
        .events
        .iter()
        .filter(|e| e.prev_events().len() > 1)
        .flat_map(|e| e.prev_events().iter().map(move |prev| (e, prev)))
        .collect();
    queue_many!(
        script,
        "INSERT INTO event_edges (event_id, prev_id) ",
        &edges,
        |b, edge| {
            b.push_bind(edge.0.event_id.as_str()).push_bind(edge.1.as_str());
        },
        ""
    );
    let auth: Vec<_> = pending
        .events
        .iter()
        .filter(|e| e.is_state())
        .flat_map(|e| e.auth_events().iter().map(move |auth| (e, auth)))
        .collect();
    queue_many!(
        script,
        "INSERT INTO event_auth (event_id, auth_id) ",
        &auth,
        |b, edge| {
            b.push_bind(edge.0.event_id.as_str()).push_bind(edge.1.as_str());
        },
        ""
    );
    for (room_id, kind, state_key, to) in &pending.ends {
        queue!(
            script,
            "UPDATE room_state SET to_order = ",
            *to,
            " WHERE room_id = ",
            room_id.as_str(),
            " AND type = ",
            kind,
            " AND state_key = ",
            state_key,
            " AND to_order IS NULL"
        );
    }
    queue_many!(
        script,
        "INSERT INTO room_state (room_id, type, state_key, event_id, from_order, to_order) ",
        &pending.state,
        |b, row| {
            b.push_bind(row.room_id.as_str())
                .push_bind(&row.kind)
                .push_bind(&row.state_key)
                .push_bind(row.event_id.as_str())
                .push_bind(row.from)
                .push_bind(row.to);
        },
        ""
    );
    queue_many!(
        script,
        "INSERT INTO transactions (user_id, device_id, scope, txn_id, event_id, at) ",
        &pending.txns,
        |b, row| {
            b.push_bind(row.0.user_id.as_str())
                .push_bind(&row.0.device_id)
                .push_bind(&row.0.scope)
                .push_bind(&row.0.txn_id)
                .push_bind(row.1.as_str())
                .push_bind(row.2);
        },
        ""
    );
    let related: Vec<_> = pending.events.iter().filter_map(|e| e.relation().map(|r| (e, r))).collect();
    queue_many!(
        script,
        "INSERT INTO relations (target_id, event_id, room_id, rel_type, type, sender, key, position) ",
        &related,
        |b, row| {
            b.push_bind(&row.1.event_id)
                .push_bind(row.0.event_id.as_str())
                .push_bind(row.0.room_id.as_str())
                .push_bind(&row.1.rel_type)
                .push_bind(row.0.kind.to_string())
                .push_bind(row.0.sender.as_str())
                .push_bind(&row.1.key)
                .push_bind(row.0.position);
        },
        ""
    );
}

/// Replaces redacted events' JSON and keeps the originals for the auditor; their relations, search entries and links to
/// media go.
pub(crate) fn write_redacted(script: &mut Script, list: &[Redacted]) {
    for redacted in list {
        let (id, by) = (redacted.event.event_id.as_str(), redacted.event.redacted_by.as_deref());
        if let Some(original) = &redacted.original {
            queue!(
                script,
                "INSERT INTO event_originals (event_id, pdu, redacted_at) VALUES (",
                id,
                ", ",
                &**original,
                ", ",
                redacted.at,
                ") ON CONFLICT DO NOTHING"
            );
        }
        queue!(
            script,
            "UPDATE events SET pdu = ",
            &*redacted.event.pdu,
            ", redacted_by = ",
            by.map(EventId::as_str),
            " WHERE event_id = ",
            id,
            ""
        );
        queue!(script, "DELETE FROM relations WHERE event_id = ", id, "");
        for term in &redacted.terms {
            queue!(
                script,
                "DELETE FROM search_terms WHERE room = ",
                redacted.room,
                " AND term = ",
                term,
                " AND position = ",
                redacted.event.position,
                ""
            );
        }
        queue!(script, "DELETE FROM media_links WHERE event_id = ", id, "");
    }
}

/// Drops the originals of redacted events: of what was redacted because its subject's record was purged.
pub async fn forget_originals(conn: &mut Conn, ids: &[String]) -> Result<()> {
    super::run_in!(conn, "DELETE FROM event_originals WHERE event_id IN ", ids);
    Ok(())
}

/// The originals of a room's redacted events, as events.
pub async fn originals(conn: &mut Conn, room_id: &RoomId) -> Result<Vec<Arc<Event>>> {
    events(all!(
        conn,
        Row,
        "SELECT e.position, e.event_id, e.room_id, o.pdu, e.redacted_by, e.device_id, e.txn_id \
         FROM event_originals o JOIN events e ON e.event_id = o.event_id WHERE e.room_id = $1",
        room_id.as_str()
    )?)
}

/// The edits of a room that were not redacted, as events, oldest first.
pub async fn edits(conn: &mut Conn, room_id: &RoomId) -> Result<Vec<Arc<Event>>> {
    events(all!(
        conn,
        Row,
        "SELECT e.position, e.event_id, e.room_id, e.pdu, e.redacted_by, e.device_id, e.txn_id \
         FROM relations r JOIN events e ON e.event_id = r.event_id \
         WHERE r.room_id = $1 AND r.rel_type = 'm.replace' ORDER BY e.position",
        room_id.as_str()
    )?)
}

/// An event by its id.
pub async fn by_id(conn: &mut Conn, event_id: &EventId) -> Result<Option<Arc<Event>>> {
    one!(
        conn,
        Row,
        "SELECT position, event_id, room_id, pdu, redacted_by, device_id, txn_id FROM events WHERE event_id = $1",
        event_id.as_str()
    )?
    .map(event)
    .transpose()
}

/// Events by their ids, in no order.
pub async fn by_ids(conn: &mut Conn, ids: &[String]) -> Result<Vec<Arc<Event>>> {
    events(all_in!(
        conn,
        Row,
        "SELECT position, event_id, room_id, pdu, redacted_by, device_id, txn_id FROM events WHERE event_id IN ",
        ids
    ))
}

/// Events by their positions, in no order.
pub async fn at(conn: &mut Conn, positions: &[i64]) -> Result<Vec<Arc<Event>>> {
    let mut rows: Vec<Row> = Vec::new();
    super::on!(conn, c => {
        for chunk in positions.chunks(500) {
            let mut query = sqlx::QueryBuilder::new(
                "SELECT position, event_id, room_id, pdu, redacted_by, device_id, txn_id FROM events WHERE position IN (",
            );
            let mut separated = query.separated(", ");
            for position in chunk {
                separated.push_bind(*position);
            }
            query.push(")");
            rows.extend(
                query.build_query_as::<Row>().fetch_all(&mut *c).await.map_err(crate::error::Error::from)?,
            );
        }
    });
    events(rows)
}

/// The newest events of a room at or below an order, oldest first.
pub async fn newest(conn: &mut Conn, room_id: &RoomId, upto: i64, limit: usize) -> Result<Vec<Arc<Event>>> {
    let mut found = before(conn, room_id, upto + 1, limit).await?;
    found.reverse();
    Ok(found)
}

/// Events as the database has them. Parsing many takes longer than reading them, and is not for the threads that answer.
pub struct Unparsed(Vec<Row>);

/// Of several rooms, in no order.
pub struct Parsed {
    /// The present state.
    pub state: Vec<Arc<Event>>,
    /// The newest events.
    pub newest: Vec<Arc<Event>>,
}

/// Parses the state of several rooms and their newest events; what is both is one event in memory.
pub fn parse_together(state: super::rooms::UnparsedState, newest: Unparsed) -> Result<Parsed> {
    let newest = events(newest.0)?;
    let known: HashMap<&str, &Arc<Event>> = newest
        .iter()
        .filter(|event| event.is_state())
        .map(|event| (event.event_id.as_str(), event))
        .collect();
    let state = state.parse(|event_id| known.get(event_id).map(|event| Arc::clone(event)))?;
    Ok(Parsed { state, newest })
}

/// The newest events of several rooms, in each at or below an order and at most so many, in no order.
pub async fn newest_of(conn: &mut Conn, rooms: &[(OwnedRoomId, i64)], limit: usize) -> Result<Unparsed> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows: Vec<Row> = Vec::new();
    super::on!(conn, c => {
        // SQLite takes at most 500 parts of a UNION.
        for chunk in rooms.chunks(50) {
            let mut query = sqlx::QueryBuilder::new("");
            for (i, (room_id, upto)) in chunk.iter().enumerate() {
                query.push(if i == 0 { "" } else { " UNION ALL " });
                query.push(
                    "SELECT * FROM (SELECT position, event_id, room_id, pdu, redacted_by, device_id, txn_id FROM events \
                     WHERE room_id = ",
                );
                query.push_bind(room_id.as_str());
                query.push(" AND room_order <= ").push_bind(*upto);
                query.push(" ORDER BY room_order DESC LIMIT ").push_bind(limit);
                query.push(") AS part");
            }
            rows.extend(
                query.build_query_as::<Row>().fetch_all(&mut *c).await.map_err(crate::error::Error::from)?,
            );
        }
    });
    Ok(Unparsed(rows))
}

/// Events of a room before an order, newest first.
pub async fn before(conn: &mut Conn, room_id: &RoomId, order: i64, limit: usize) -> Result<Vec<Arc<Event>>> {
    events(all!(
        conn,
        Row,
        "SELECT position, event_id, room_id, pdu, redacted_by, device_id, txn_id FROM events \
         WHERE room_id = $1 AND room_order < $2 ORDER BY room_order DESC LIMIT $3",
        room_id.as_str(),
        order,
        i64::try_from(limit).unwrap_or(i64::MAX)
    )?)
}

/// Events in threads of a room between two positions, newest first.
pub async fn in_threads(
    conn: &mut Conn,
    room_id: &RoomId,
    (after, before): (i64, i64),
    limit: usize,
) -> Result<Vec<Arc<Event>>> {
    events(all!(
        conn,
        Row,
        "SELECT e.position, e.event_id, e.room_id, e.pdu, e.redacted_by, e.device_id, e.txn_id \
         FROM relations r JOIN events e ON e.event_id = r.event_id \
         WHERE r.room_id = $1 AND r.rel_type = 'm.thread' AND r.position > $2 AND r.position < $3 \
         ORDER BY r.position DESC LIMIT $4",
        room_id.as_str(),
        after,
        before,
        i64::try_from(limit).unwrap_or(i64::MAX)
    )?)
}

/// The newest event of a room of one of the types that say that people are at work in it; 0 where there is none.
pub async fn newest_activity(conn: &mut Conn, room_id: &RoomId) -> Result<i64> {
    let found = one!(
        conn,
        (i64,),
        "SELECT room_order FROM events WHERE room_id = $1 AND type IN ('m.room.create', 'm.room.message', \
         'm.room.encrypted', 'm.sticker', 'm.call.invite', 'm.poll.start', 'm.beacon_info') \
         ORDER BY room_order DESC LIMIT 1",
        room_id.as_str()
    )?;
    Ok(found.map_or(0, |(at,)| at))
}

/// Events of a room after an order, oldest first.
pub async fn after(conn: &mut Conn, room_id: &RoomId, order: i64, limit: usize) -> Result<Vec<Arc<Event>>> {
    events(all!(
        conn,
        Row,
        "SELECT position, event_id, room_id, pdu, redacted_by, device_id, txn_id FROM events \
         WHERE room_id = $1 AND room_order > $2 ORDER BY room_order ASC LIMIT $3",
        room_id.as_str(),
        order,
        i64::try_from(limit).unwrap_or(i64::MAX)
    )?)
}

/// Events of all rooms in arrival order, after a position and up to one.
pub async fn arrived(conn: &mut Conn, after: i64, upto: i64, limit: usize) -> Result<Vec<Arc<Event>>> {
    events(all!(
        conn,
        Row,
        "SELECT position, event_id, room_id, pdu, redacted_by, device_id, txn_id FROM events \
         WHERE position > $1 AND position <= $2 ORDER BY position ASC LIMIT $3",
        after,
        upto,
        i64::try_from(limit).unwrap_or(i64::MAX)
    )?)
}

/// Events of the same room that relate to one.
pub async fn related(
    conn: &mut Conn,
    room_id: &RoomId,
    target: &EventId,
    before: i64,
    after: i64,
    newest_first: bool,
    limit: usize,
) -> Result<Vec<Arc<Event>>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = if newest_first {
        all!(
            conn,
            Row,
            "SELECT e.position, e.event_id, e.room_id, e.pdu, e.redacted_by, e.device_id, e.txn_id \
             FROM relations r JOIN events e ON e.event_id = r.event_id \
             WHERE r.target_id = $1 AND r.room_id = $5 AND r.position < $2 AND r.position > $3 ORDER BY r.position DESC LIMIT $4",
            target.as_str(),
            before,
            after,
            limit,
            room_id.as_str()
        )?
    } else {
        all!(
            conn,
            Row,
            "SELECT e.position, e.event_id, e.room_id, e.pdu, e.redacted_by, e.device_id, e.txn_id \
             FROM relations r JOIN events e ON e.event_id = r.event_id \
             WHERE r.target_id = $1 AND r.room_id = $5 AND r.position < $2 AND r.position > $3 ORDER BY r.position ASC LIMIT $4",
            target.as_str(),
            before,
            after,
            limit,
            room_id.as_str()
        )?
    };
    events(rows)
}

/// Drops transaction ids older than a time.
pub async fn forget_txns(conn: &mut Conn, before_ms: i64) -> Result<u64> {
    run!(conn, "DELETE FROM transactions WHERE at < $1", before_ms)
}
