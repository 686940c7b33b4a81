//! Rooms: their rows, current and past state, memberships, receipts.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId};

use super::{
    Conn, all, all_in, one, run,
    script::{Script, queue_many},
};
use crate::{
    error::{Error, Result},
    rooms::{
        live::{Membership, Receipt, RoomRow},
        pdu::Event,
    },
};

#[derive(sqlx::FromRow)]
pub(super) struct Stored {
    room_id: String,
    version: String,
    head: String,
    depth: i64,
    state_version: i64,
    last_position: i64,
    status: String,
    kind: String,
    room_number: Option<i64>,
    facility: Option<i64>,
    subject_key: Option<String>,
    created_at: i64,
    closed_at: Option<i64>,
    archived_at: Option<i64>,
    opened_by_case: Option<String>,
}

impl TryFrom<Stored> for RoomRow {
    type Error = Error;
    fn try_from(row: Stored) -> Result<Self> {
        Ok(Self {
            room_id: row.room_id.try_into()?,
            version: ruma::RoomVersionId::try_from(row.version)?,
            head: serde_json::from_str(&row.head)?,
            depth: row.depth,
            state_version: row.state_version,
            last_position: row.last_position,
            status: row.status,
            kind: row.kind,
            room_number: row.room_number,
            facility: row.facility,
            subject_key: row.subject_key,
            created_at: row.created_at,
            closed_at: row.closed_at,
            archived_at: row.archived_at,
            opened_by_case: row.opened_by_case,
        })
    }
}

/// A room's row.
pub async fn row(conn: &mut Conn, room_id: &RoomId) -> Result<Option<RoomRow>> {
    one!(
        conn,
        Stored,
        "SELECT room_id, version, head, depth, state_version, last_position, status, kind, room_number, facility, \
         subject_key, created_at, closed_at, archived_at, opened_by_case FROM rooms WHERE room_id = $1",
        room_id.as_str()
    )?
    .map(TryInto::try_into)
    .transpose()
}

/// The rows of several rooms, in no order. A caller that writes holds the lock on the positions row, so no other process
/// writes to a room between this and its commit.
pub async fn rows(conn: &mut Conn, room_ids: &[OwnedRoomId]) -> Result<Vec<RoomRow>> {
    if room_ids.is_empty() {
        return Ok(Vec::new());
    }
    all_in!(
        conn,
        Stored,
        "SELECT room_id, version, head, depth, state_version, last_position, status, kind, room_number, facility, \
         subject_key, created_at, closed_at, archived_at, opened_by_case FROM rooms WHERE room_id IN ",
        room_ids
    )
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// Every room that the city made, by room number.
pub async fn city_rooms(conn: &mut Conn) -> Result<Vec<RoomRow>> {
    all!(
        conn,
        Stored,
        "SELECT room_id, version, head, depth, state_version, last_position, status, kind, room_number, facility, \
         subject_key, created_at, closed_at, archived_at, opened_by_case FROM rooms WHERE room_number IS NOT NULL ORDER BY room_number"
    )?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// How many facilities are in a room by their facility IDs.
pub async fn facilities_in(conn: &mut Conn, room_id: &RoomId) -> Result<i64> {
    let counted = one!(
        conn,
        (i64,),
        "SELECT COUNT(DISTINCT a.facility) FROM memberships m JOIN accounts a ON a.user_id = m.user_id \
         WHERE m.room_id = $1 AND m.membership = 'join' AND a.kind = 'facility'",
        room_id.as_str()
    )?;
    Ok(counted.map_or(0, |(count,)| count))
}

/// The room of the city with a number.
pub async fn by_number(conn: &mut Conn, number: i64) -> Result<Option<RoomRow>> {
    one!(
        conn,
        Stored,
        "SELECT room_id, version, head, depth, state_version, last_position, status, kind, room_number, facility, \
         subject_key, created_at, closed_at, archived_at, opened_by_case FROM rooms WHERE room_number = $1",
        number
    )?
    .map(TryInto::try_into)
    .transpose()
}

/// The open room of a subject.
pub async fn open_room_of_subject(conn: &mut Conn, subject_key: &str) -> Result<Option<i64>> {
    Ok(one!(
        conn,
        (Option<i64>,),
        "SELECT room_number FROM rooms WHERE subject_key = $1 AND status = 'open' ORDER BY room_number LIMIT 1",
        subject_key
    )?
    .and_then(|(number,)| number))
}

/// The liaison room of a facility.
pub async fn liaison_room(conn: &mut Conn, facility: i64) -> Result<Option<OwnedRoomId>> {
    one!(
        conn,
        (String,),
        "SELECT room_id FROM rooms WHERE kind = 'liaison' AND facility = $1 AND status = 'open'",
        facility
    )?
    .map(|(id,)| id.try_into().map_err(Into::into))
    .transpose()
}

/// The open rooms of two people in which nobody but the city is joined.
pub async fn direct_rooms_left(conn: &mut Conn, city: &str) -> Result<Vec<OwnedRoomId>> {
    all!(
        conn,
        (String,),
        "SELECT r.room_id FROM rooms r WHERE r.kind = 'direct' AND r.status = 'open' AND NOT EXISTS \
         (SELECT 1 FROM memberships m WHERE m.room_id = r.room_id AND m.membership = 'join' AND m.user_id <> $1) \
         ORDER BY r.room_id",
        city
    )?
    .into_iter()
    .map(|(id,)| id.try_into().map_err(Into::into))
    .collect()
}

/// Writes the rows of rooms, new or known, in as few statements as may be.
pub fn write_rows(script: &mut Script, rows: &[&RoomRow]) -> Result<()> {
    let heads = rows.iter().map(|row| serde_json::to_string(&row.head)).collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<(&RoomRow, String)> = rows.iter().copied().zip(heads).collect();
    queue_many!(
        script,
        "INSERT INTO rooms (room_id, version, head, depth, state_version, last_position, status, kind, \
         room_number, facility, subject_key, created_at, closed_at, archived_at, opened_by_case) ",
        &rows,
        |b, row| {
            b.push_bind(row.0.room_id.as_str())
                .push_bind(row.0.version.as_str())
                .push_bind(&row.1)
                .push_bind(row.0.depth)
                .push_bind(row.0.state_version)
                .push_bind(row.0.last_position)
                .push_bind(&row.0.status)
                .push_bind(&row.0.kind)
                .push_bind(row.0.room_number)
                .push_bind(row.0.facility)
                .push_bind(&row.0.subject_key)
                .push_bind(row.0.created_at)
                .push_bind(row.0.closed_at)
                .push_bind(row.0.archived_at)
                .push_bind(&row.0.opened_by_case);
        },
        " ON CONFLICT (room_id) DO UPDATE SET head = excluded.head, depth = excluded.depth, \
         state_version = excluded.state_version, last_position = excluded.last_position, \
         status = excluded.status, kind = excluded.kind, room_number = excluded.room_number, \
         facility = excluded.facility, subject_key = excluded.subject_key, closed_at = excluded.closed_at, \
         archived_at = excluded.archived_at, opened_by_case = excluded.opened_by_case"
    );
    Ok(())
}

type StateRow = (i64, String, String, String, Option<String>);

fn state_event((position, event_id, room_id, pdu, redacted_by): StateRow) -> Result<Arc<Event>> {
    let mut event =
        Event::from_pdu(&pdu, OwnedEventId::try_from(event_id)?, OwnedRoomId::try_from(room_id)?, position)?;
    event.redacted_by = redacted_by.map(OwnedEventId::try_from).transpose()?;
    Ok(Arc::new(event))
}

/// The current state of a room.
pub async fn current_state(conn: &mut Conn, room_id: &RoomId) -> Result<Vec<Arc<Event>>> {
    all!(
        conn,
        StateRow,
        "SELECT e.position, e.event_id, e.room_id, e.pdu, e.redacted_by FROM room_state s \
         JOIN events e ON e.event_id = s.event_id WHERE s.room_id = $1 AND s.to_order IS NULL",
        room_id.as_str()
    )?
    .into_iter()
    .map(state_event)
    .collect()
}

/// State as the database has it.
pub struct UnparsedState(Vec<StateRow>);

impl UnparsedState {
    /// Parses it, but for the events that are `known` already.
    pub fn parse(self, known: impl Fn(&str) -> Option<Arc<Event>>) -> Result<Vec<Arc<Event>>> {
        self.0.into_iter().map(|row| known(&row.1).map_or_else(|| state_event(row), Ok)).collect()
    }
}

/// The current state of several rooms, in no order.
pub async fn current_states(conn: &mut Conn, room_ids: &[OwnedRoomId]) -> Result<UnparsedState> {
    Ok(UnparsedState(all_in!(
        conn,
        StateRow,
        "SELECT e.position, e.event_id, e.room_id, e.pdu, e.redacted_by FROM room_state s \
         JOIN events e ON e.event_id = s.event_id WHERE s.to_order IS NULL AND s.room_id IN ",
        room_ids
    )))
}

/// Those of several rooms whose history visibility was another one before.
pub async fn visibility_changed(conn: &mut Conn, room_ids: &[OwnedRoomId]) -> Result<HashSet<OwnedRoomId>> {
    all_in!(
        conn,
        (String,),
        "SELECT room_id FROM room_state WHERE type = 'm.room.history_visibility' AND state_key = '' \
         AND to_order IS NOT NULL AND room_id IN ",
        room_ids
    )
    .into_iter()
    .map(|(room_id,)| room_id.try_into().map_err(Into::into))
    .collect()
}

/// The state that was in force just before an order in the room: one range query, whatever the room's length.
pub async fn state_before(conn: &mut Conn, room_id: &RoomId, order: i64) -> Result<Vec<Arc<Event>>> {
    all!(
        conn,
        StateRow,
        "SELECT e.position, e.event_id, e.room_id, e.pdu, e.redacted_by FROM room_state s \
         JOIN events e ON e.event_id = s.event_id \
         WHERE s.room_id = $1 AND s.from_order < $2 AND (s.to_order IS NULL OR s.to_order >= $2)",
        room_id.as_str(),
        order
    )?
    .into_iter()
    .map(state_event)
    .collect()
}

/// Whether an event stands off its room's line, with a state of its own.
pub async fn is_off_the_line(conn: &mut Conn, event: &Event) -> Result<bool> {
    let stored = one!(
        conn,
        (Option<i64>,),
        "SELECT state_id FROM events WHERE event_id = $1",
        event.event_id.as_str()
    )?;
    Ok(matches!(stored, Some((Some(_),))))
}

/// How many stored states one may rest on; a longer chain is damage.
const STORED_DEPTH_MAX: usize = 1_000;

/// The state just before an event, wherever it stands: on the line the room's interval state at its order, off the line
/// its own, a delta to a parent (DESIGN 6).
pub async fn state_at(conn: &mut Conn, event: &Event) -> Result<Vec<Arc<Event>>> {
    let stored = one!(
        conn,
        (Option<i64>,),
        "SELECT state_id FROM events WHERE event_id = $1",
        event.event_id.as_str()
    )?;
    let Some((Some(mut state_id),)) = stored else {
        return state_before(conn, &event.room_id, event.position).await;
    };
    let mut changes: HashMap<(String, String), String> = HashMap::new();
    for _ in 0..STORED_DEPTH_MAX {
        let rows: Vec<(String, String, String)> = all!(
            conn,
            (String, String, String),
            "SELECT type, state_key, event_id FROM stored_state_changes WHERE state_id = $1",
            state_id
        )?;
        // What is nearer to the event stands.
        for (kind, state_key, event_id) in rows {
            changes.entry((kind, state_key)).or_insert(event_id);
        }
        let row: Option<(Option<i64>, i64)> = one!(
            conn,
            (Option<i64>, i64),
            "SELECT parent, parent_order FROM stored_states WHERE id = $1",
            state_id
        )?;
        match row {
            Some((Some(parent), _)) => state_id = parent,
            Some((None, order)) => {
                let mut state = state_before(conn, &event.room_id, order).await?;
                state.retain(|e| {
                    let key = (e.kind.to_string(), e.state_key.clone().unwrap_or_default());
                    !changes.contains_key(&key)
                });
                let ids: Vec<String> = changes.into_values().collect();
                state.extend(super::events::by_ids(conn, &ids).await?);
                return Ok(state);
            }
            None => break,
        }
    }
    Err(Error::internal("the stored state of an event is damaged"))
}

/// One entry of the state just before an order.
pub async fn state_entry_before(
    conn: &mut Conn,
    room_id: &RoomId,
    kind: &str,
    state_key: &str,
    order: i64,
) -> Result<Option<Arc<Event>>> {
    one!(
        conn,
        StateRow,
        "SELECT e.position, e.event_id, e.room_id, e.pdu, e.redacted_by FROM room_state s \
         JOIN events e ON e.event_id = s.event_id \
         WHERE s.room_id = $1 AND s.type = $2 AND s.state_key = $3 AND s.from_order < $4 \
         ORDER BY s.from_order DESC LIMIT 1",
        room_id.as_str(),
        kind,
        state_key,
        order
    )?
    .map(state_event)
    .transpose()
}

/// All values that an entry of the state ever had, oldest first, with the order each began at.
pub async fn history_of_entry(
    conn: &mut Conn,
    room_id: &RoomId,
    kind: &str,
    state_key: &str,
) -> Result<Vec<Arc<Event>>> {
    all!(
        conn,
        StateRow,
        "SELECT e.position, e.event_id, e.room_id, e.pdu, e.redacted_by FROM room_state s \
         JOIN events e ON e.event_id = s.event_id \
         WHERE s.room_id = $1 AND s.type = $2 AND s.state_key = $3 ORDER BY s.from_order ASC",
        room_id.as_str(),
        kind,
        state_key
    )?
    .into_iter()
    .map(state_event)
    .collect()
}

/// The event that a state event replaced.
pub async fn replaced_by(conn: &mut Conn, event: &Event) -> Result<Option<Arc<Event>>> {
    let Some(state_key) = &event.state_key else { return Ok(None) };
    state_entry_before(conn, &event.room_id, &event.kind.to_string(), state_key, event.position).await
}

/// Everybody's memberships.
pub async fn all_memberships(conn: &mut Conn) -> Result<Vec<(OwnedUserId, OwnedRoomId, Membership)>> {
    all!(
        conn,
        (String, String, String, String, i64, i64, bool),
        "SELECT user_id, room_id, membership, event_id, changed_at, position, forgotten FROM memberships"
    )?
    .into_iter()
    .map(|(user_id, room_id, membership, event_id, changed_at, position, forgotten)| {
        Ok((
            user_id.try_into()?,
            room_id.try_into()?,
            Membership { membership, event_id: event_id.try_into()?, changed_at, position, forgotten },
        ))
    })
    .collect()
}

/// Writes memberships; of several for one user and room the last counts.
pub(crate) fn write_memberships(script: &mut Script, list: &[(OwnedUserId, OwnedRoomId, Membership)]) {
    let mut last: Vec<&(OwnedUserId, OwnedRoomId, Membership)> = Vec::with_capacity(list.len());
    let mut seen = std::collections::HashSet::new();
    for row in list.iter().rev() {
        if seen.insert((&row.0, &row.1)) {
            last.push(row);
        }
    }
    queue_many!(
        script,
        "INSERT INTO memberships (user_id, room_id, membership, event_id, changed_at, position, forgotten) ",
        &last,
        |b, row| {
            b.push_bind(row.0.as_str())
                .push_bind(row.1.as_str())
                .push_bind(&row.2.membership)
                .push_bind(row.2.event_id.as_str())
                .push_bind(row.2.changed_at)
                .push_bind(row.2.position)
                .push_bind(row.2.forgotten);
        },
        " ON CONFLICT (user_id, room_id) DO UPDATE SET membership = excluded.membership, \
         event_id = excluded.event_id, changed_at = excluded.changed_at, position = excluded.position, \
         forgotten = excluded.forgotten"
    );
}

/// Marks a room as forgotten by a user.
pub async fn forget(conn: &mut Conn, user_id: &str, room_id: &RoomId) -> Result<()> {
    run!(
        conn,
        "UPDATE memberships SET forgotten = TRUE WHERE user_id = $1 AND room_id = $2",
        user_id,
        room_id.as_str()
    )?;
    Ok(())
}

/// The columns of a receipt.
type StoredReceipt = (String, String, String, String, String, i64, i64, i64);

fn receipt(
    (room_id, user_id, kind, thread, event_id, event_order, ts, position): StoredReceipt,
) -> Result<Receipt> {
    Ok(Receipt {
        room_id: room_id.try_into()?,
        user_id: user_id.try_into()?,
        kind,
        thread,
        event_id: event_id.try_into()?,
        event_order,
        ts,
        position,
    })
}

/// The receipts of a room.
pub async fn receipts(conn: &mut Conn, room_id: &RoomId) -> Result<Vec<Receipt>> {
    all!(
        conn,
        StoredReceipt,
        "SELECT room_id, user_id, kind, thread, event_id, event_order, ts, position FROM receipts \
         WHERE room_id = $1",
        room_id.as_str()
    )?
    .into_iter()
    .map(receipt)
    .collect()
}

/// The receipts of several rooms, in no order.
pub async fn receipts_of(conn: &mut Conn, room_ids: &[OwnedRoomId]) -> Result<Vec<Receipt>> {
    all_in!(
        conn,
        StoredReceipt,
        "SELECT room_id, user_id, kind, thread, event_id, event_order, ts, position FROM receipts WHERE room_id IN ",
        room_ids
    )
    .into_iter()
    .map(receipt)
    .collect()
}

/// Receipts of all rooms that moved between two positions, in their order.
pub async fn receipts_between(conn: &mut Conn, after: i64, upto: i64, limit: usize) -> Result<Vec<Receipt>> {
    all!(
        conn,
        StoredReceipt,
        "SELECT room_id, user_id, kind, thread, event_id, event_order, ts, position FROM receipts \
         WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3",
        after,
        upto,
        i64::try_from(limit).unwrap_or(i64::MAX)
    )?
    .into_iter()
    .map(receipt)
    .collect()
}

/// The aliases of a room.
pub async fn aliases_of(conn: &mut Conn, room_id: &RoomId) -> Result<Vec<String>> {
    Ok(all!(
        conn,
        (String,),
        "SELECT alias FROM room_aliases WHERE room_id = $1 ORDER BY alias",
        room_id.as_str()
    )?
    .into_iter()
    .map(|(alias,)| alias)
    .collect())
}

/// The room of an alias, and who made the alias.
pub async fn of_alias(conn: &mut Conn, alias: &str) -> Result<Option<(OwnedRoomId, String)>> {
    one!(conn, (String, String), "SELECT room_id, creator FROM room_aliases WHERE alias = $1", alias)?
        .map(|(room_id, creator)| Ok((room_id.try_into()?, creator)))
        .transpose()
}

/// Makes an alias; false where it is taken.
pub async fn add_alias(
    conn: &mut Conn,
    alias: &str,
    room_id: &RoomId,
    creator: &str,
    now: i64,
) -> Result<bool> {
    Ok(run!(
        conn,
        "INSERT INTO room_aliases (alias, room_id, creator, created_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (alias) DO NOTHING",
        alias,
        room_id.as_str(),
        creator,
        now
    )? > 0)
}

/// Deletes an alias.
pub async fn remove_alias(conn: &mut Conn, alias: &str) -> Result<()> {
    run!(conn, "DELETE FROM room_aliases WHERE alias = $1", alias)?;
    Ok(())
}

/// Writes receipts; of several for one place the last counts.
pub(crate) fn write_receipts(script: &mut Script, list: &[Receipt]) {
    let mut last: Vec<&Receipt> = Vec::with_capacity(list.len());
    let mut seen = std::collections::HashSet::new();
    for row in list.iter().rev() {
        if seen.insert((&row.room_id, &row.user_id, &row.kind, &row.thread)) {
            last.push(row);
        }
    }
    queue_many!(
        script,
        "INSERT INTO receipts (room_id, user_id, kind, thread, event_id, event_order, ts, position) ",
        &last,
        |b, row| {
            b.push_bind(row.room_id.as_str())
                .push_bind(row.user_id.as_str())
                .push_bind(&row.kind)
                .push_bind(&row.thread)
                .push_bind(row.event_id.as_str())
                .push_bind(row.event_order)
                .push_bind(row.ts)
                .push_bind(row.position);
        },
        " ON CONFLICT (room_id, user_id, kind, thread) DO UPDATE SET event_id = excluded.event_id, \
         event_order = excluded.event_order, ts = excluded.ts, position = excluded.position"
    );
}

/// The room and order of an event.
pub async fn place_of(conn: &mut Conn, event_id: &EventId) -> Result<Option<(OwnedRoomId, i64)>> {
    one!(
        conn,
        (String, i64),
        "SELECT room_id, room_order FROM events WHERE event_id = $1",
        event_id.as_str()
    )?
    .map(|(room_id, order)| Ok((room_id.try_into()?, order)))
    .transpose()
}

/// Puts a room into the directory of public rooms, or takes it out.
pub async fn set_public(conn: &mut Conn, room_id: &RoomId, public: bool, now: i64) -> Result<()> {
    if public {
        run!(
            conn,
            "INSERT INTO public_rooms (room_id, listed_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            room_id.as_str(),
            now
        )?;
    } else {
        run!(conn, "DELETE FROM public_rooms WHERE room_id = $1", room_id.as_str())?;
    }
    Ok(())
}

/// Whether a room is in the directory.
pub async fn is_public(conn: &mut Conn, room_id: &RoomId) -> Result<bool> {
    let found =
        one!(conn, (String,), "SELECT room_id FROM public_rooms WHERE room_id = $1", room_id.as_str())?;
    Ok(found.is_some())
}

/// Puts a room into the directory of an appservice's network, or takes it out.
pub async fn set_in_network(
    conn: &mut Conn,
    network: &str,
    room_id: &RoomId,
    public: bool,
    now: i64,
) -> Result<()> {
    if public {
        run!(
            conn,
            "INSERT INTO network_rooms (network, room_id, listed_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            network,
            room_id.as_str(),
            now
        )?;
    } else {
        run!(
            conn,
            "DELETE FROM network_rooms WHERE network = $1 AND room_id = $2",
            network,
            room_id.as_str()
        )?;
    }
    Ok(())
}

/// The rooms in the directories of networks: of one, or of all.
pub async fn network_rooms(conn: &mut Conn, network: Option<&str>) -> Result<Vec<OwnedRoomId>> {
    all!(
        conn,
        (String,),
        "SELECT DISTINCT room_id FROM network_rooms WHERE $1 IS NULL OR network = $1 ORDER BY room_id",
        network.map(ToOwned::to_owned)
    )?
    .into_iter()
    .map(|(id,)| id.try_into().map_err(Into::into))
    .collect()
}

/// Moves a room's aliases and its places in directories to the room that replaces it.
pub async fn move_aliases(conn: &mut Conn, from: &RoomId, to: &RoomId) -> Result<()> {
    let (from, to) = (from.as_str(), to.as_str());
    run!(conn, "UPDATE room_aliases SET room_id = $2 WHERE room_id = $1", from, to)?;
    run!(conn, "UPDATE public_rooms SET room_id = $2 WHERE room_id = $1", from, to)?;
    run!(conn, "UPDATE network_rooms SET room_id = $2 WHERE room_id = $1", from, to)?;
    Ok(())
}

/// The rooms in the directory.
pub async fn public_rooms(conn: &mut Conn) -> Result<Vec<OwnedRoomId>> {
    all!(conn, (String,), "SELECT room_id FROM public_rooms ORDER BY room_id")?
        .into_iter()
        .map(|(id,)| id.try_into().map_err(Into::into))
        .collect()
}
