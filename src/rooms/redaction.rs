//! Redaction: an event is emptied wherever it stands, in one unit, and the edits of it with it. An edit holds the whole new
//! text; were it left, what somebody took back could be found, read and written out by it.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
};

use super::{
    append::{Intent, rules_of},
    batch::{Batch, Redacted},
    committer::TxnKey,
    pdu::{Event, Extra},
};
use crate::{
    error::{Error, Result},
    store,
};

/// Edits of one event that are redacted with it; nobody edits a post so often.
const EDITS_MAX: usize = 1_000;

/// A redaction that was allowed.
pub struct Redaction<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// Who redacts.
    pub sender: &'a UserId,
    /// What is redacted.
    pub event: &'a Arc<Event>,
    /// The redaction's content: a reason.
    pub content: CanonicalJsonObject,
    /// The client's transaction.
    pub txn: Option<TxnKey>,
    /// Also in a room that is not open.
    pub through_closed: bool,
    /// The original stays for the auditor (C26). Not where its subject's record is purged.
    pub keeps_original: bool,
}

/// Redacts an event and the edits of it; answers the id of the redaction of the event itself.
pub async fn redact(batch: &mut Batch, what: Redaction<'_>) -> Result<OwnedEventId> {
    let done = one(batch, &what, what.event, what.txn.clone()).await?;
    for edit in edits_of(batch, what.room_id, what.event).await? {
        one(batch, &what, &edit, None).await?;
    }
    Ok(done)
}

async fn one(
    batch: &mut Batch,
    what: &Redaction<'_>,
    event: &Arc<Event>,
    txn: Option<TxnKey>,
) -> Result<OwnedEventId> {
    let redaction = batch
        .append(Intent {
            room_id: what.room_id,
            sender: what.sender,
            kind: TimelineEventType::RoomRedaction,
            state_key: None,
            content: what.content.clone(),
            redacts: Some(&event.event_id),
            ts: None,
            txn,
            through_closed: what.through_closed,
        })
        .await?;
    if event.redacted_by.is_none() {
        empty(batch, event, &redaction, what.keeps_original).await?;
    }
    Ok(redaction.event_id.clone())
}

/// The edits of an event that were not redacted: by its own sender, for others' are none (client-server API, "Event
/// replacements").
pub(super) async fn edits_of(
    batch: &mut Batch,
    room_id: &RoomId,
    event: &Arc<Event>,
) -> Result<Vec<Arc<Event>>> {
    if event.is_state() {
        return Ok(Vec::new());
    }
    let target = [event.event_id.to_string()];
    let rows =
        store::relations::relating(batch.reading(), room_id, &target, Some("m.replace"), EDITS_MAX).await?;
    let mut edits: Vec<Arc<Event>> = Vec::new();
    for row in rows.iter().filter(|row| row.sender == event.sender.as_str()) {
        edits.extend(batch.event(&OwnedEventId::try_from(row.event_id.as_str())?).await?);
    }
    // What this very batch brings is in no table yet.
    let edits_it = |edit: &&Arc<Event>| {
        edit.room_id == *room_id
            && edit.sender == event.sender
            && edit.relation().is_some_and(|r| r.rel_type == "m.replace" && r.event_id == target[0])
    };
    edits.extend(batch.pending.events.iter().filter(edits_it).cloned());
    edits.retain(|edit| edit.redacted_by.is_none());
    Ok(edits)
}

/// Empties an event: in the tables, in the room's state, and in memory after the commit.
async fn empty(batch: &mut Batch, target: &Event, by: &Arc<Event>, keeps_original: bool) -> Result<()> {
    let rules = rules_of(&batch.room(&target.room_id).await?.row.version)?;
    let CanonicalJsonValue::Object(mut object) = serde_json::from_str::<CanonicalJsonValue>(&target.pdu)?
    else {
        return Err(Error::internal("a stored event is not an object"));
    };
    ruma::canonical_json::redact_in_place(&mut object, &rules.redaction, None)
        .map_err(|error| Error::internal(error.to_string()))?;
    let pdu = serde_json::to_string(&object)?;
    let mut event = Event::from_pdu(&pdu, target.event_id.clone(), target.room_id.clone(), target.position)?;
    event.redacted_by = Some(by.event_id.clone());
    let _ = event.extra.set(Extra { replaces: None, because: Some(Arc::clone(by)) });
    let event = Arc::new(event);
    if let Some(state_key) = &event.state_key {
        let kind = StateEventType::from(event.kind.to_string());
        let room = batch.room_mut(&event.room_id).await?;
        let later: Vec<_> = room.state.events().filter_map(|e| e.with_former(&event)).collect();
        for copy in later {
            room.state.set(copy);
        }
        if room.state.event(&kind, state_key).is_some_and(|e| e.event_id == event.event_id) {
            room.state.set(Arc::clone(&event));
        }
    }
    let original = keeps_original.then(|| target.pdu.clone());
    let create = batch.room(&target.room_id).await?.state.event(&StateEventType::RoomCreate, "");
    let room = create.map_or(0, |create| create.position);
    let terms = crate::search::terms_of(target);
    batch.pending.redacted.push(Redacted { event, original, room, terms, at: batch.now });
    Ok(())
}
