//! Bundled aggregations (client-server API, "Aggregations of child events"): what `unsigned` tells beside an event about
//! those that relate to it. Edits, threads and references are bundled; reactions are not.
//!
//! Whatever relates to an event comes after it. So of an event that stands in a room's timeline in memory, memory has all
//! that relates to it; only of older events the database is asked, with one query for a page.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    sync::Arc,
};

use ruma::{OwnedEventId, RoomId, UserId, events::TimelineEventType};

use super::render;
use crate::{
    error::Result,
    http::caller::Requester,
    rooms::{
        history::Sight,
        ignored::{self, Ignored},
        live::LiveRoom,
        pdu::Event,
    },
    server::Server,
    store::{self, relations::Tally},
};

/// References told of one event.
const REFERENCES_MAX: usize = 100;
/// Stretches of a room that somebody sees, with hidden ones between them, looked at: the newest.
const STRETCHES_MAX: usize = 16;
/// Relations looked through for a valid edit, where the newest is none.
const EDITS_TRIED_MAX: usize = 50;

/// What is told beside each event: the JSON of `m.relations`, and what the reader may see of what it replaced.
#[derive(Debug, Default)]
pub struct Bundles {
    relations: HashMap<OwnedEventId, String>,
    sight: Option<Sight>,
}

impl Bundles {
    /// What is told beside an event; none where nothing relates to it.
    pub fn of(&self, event: &Event) -> Option<&str> {
        self.relations.get(&event.event_id).map(String::as_str)
    }

    /// Whether the reader may see an event (of the same room).
    pub fn sees(&self, event: &Event) -> bool {
        self.sight.as_ref().is_some_and(|sight| sight.sees(event.position))
    }
}

/// What relates to one event.
#[derive(Default)]
struct Found {
    edit: Option<Arc<Event>>,
    /// The newest reply in the thread.
    latest: Option<Arc<Event>>,
    replies: u64,
    took_part: bool,
    references: Vec<String>,
}

/// What is looked for, the same for all events of a page.
struct Search<'a> {
    server: &'a Server,
    who: &'a UserId,
    room: &'a LiveRoom,
    room_id: &'a RoomId,
    sight: &'a Sight,
    ignored: &'a Ignored,
}

/// What is told beside these events of a room to a reader who sees so much of it. What ignored users wrote does not
/// count.
pub async fn bundle<'e>(
    server: &Server,
    who: &Requester,
    room: &LiveRoom,
    sight: &Sight,
    events: impl IntoIterator<Item = &'e Arc<Event>>,
) -> Result<Bundles> {
    let targets: Vec<&Arc<Event>> = events.into_iter().filter(|event| may_have(event)).collect();
    let Some(room_id) = targets.first().map(|event| event.room_id.clone()) else {
        return Ok(Bundles { relations: HashMap::new(), sight: Some(sight.clone()) });
    };
    let ignored = ignored::by(server, &who.user_id).await?;
    let search = Search { server, who: &who.user_id, room, room_id: &room_id, sight, ignored: &ignored };
    let found = search.all(&targets).await?;
    // A thread's newest reply is told as it was last edited.
    let latest: Vec<Arc<Event>> = found.values().filter_map(|found| found.latest.clone()).collect();
    let latest: Vec<&Arc<Event>> = latest.iter().filter(|event| may_have(event)).collect();
    let edits = if latest.is_empty() { HashMap::new() } else { search.all(&latest).await? };
    let now = server.now();
    let mut bundles = HashMap::with_capacity(found.len());
    for (event_id, found) in &found {
        if let Some(text) = written(found, &edits, who, now) {
            bundles.insert(event_id.clone(), text);
        }
    }
    Ok(Bundles { relations: bundles, sight: Some(sight.clone()) })
}

/// Whether anything that relates to the event is told: nothing of state, of edits and of reactions.
fn may_have(event: &Event) -> bool {
    !event.is_state()
        && event.kind != TimelineEventType::RoomRedaction
        && event.relation().is_none_or(|r| r.rel_type != "m.replace" && r.rel_type != "m.annotation")
}

/// Whether one event replaces another (client-server API, "Validity of replacement events").
fn replaces(edit: &Event, original: &Event) -> bool {
    edit.sender == original.sender
        && edit.kind == original.kind
        && !edit.is_state()
        && edit.redacted_by.is_none()
        && edit
            .relation()
            .is_some_and(|r| r.rel_type == "m.replace" && r.event_id == original.event_id.as_str())
        && (edit.kind == TimelineEventType::RoomEncrypted
            || edit.content_field("m.new_content").is_some_and(|content| content.is_object()))
}

impl Search<'_> {
    async fn all(&self, targets: &[&Arc<Event>]) -> Result<HashMap<OwnedEventId, Found>> {
        let (mut found, older) = self.in_memory(targets);
        if !older.is_empty() {
            self.stored(&older, &mut found).await?;
        }
        Ok(found)
    }

    /// What memory has, and the events that are older than what it has.
    fn in_memory<'e>(
        &self,
        targets: &[&'e Arc<Event>],
    ) -> (HashMap<OwnedEventId, Found>, Vec<&'e Arc<Event>>) {
        let mut found: HashMap<OwnedEventId, Found> = HashMap::new();
        let timeline = self.room.timeline.read();
        let (newer, older): (Vec<_>, Vec<_>) =
            targets.iter().copied().partition(|event| event.position > timeline.complete_after);
        let Some(first) = newer.iter().map(|event| event.position).min() else { return (found, older) };
        let by_id: HashMap<&str, &Arc<Event>> =
            newer.iter().map(|event| (event.event_id.as_str(), *event)).collect();
        for event in timeline.events.iter().rev() {
            if event.position <= first {
                break;
            }
            let Some(relation) = event.relation() else { continue };
            let Some(target) = by_id.get(relation.event_id.as_str()) else { continue };
            if event.redacted_by.is_some() || !self.sight.sees(event.position) || self.ignored.hides(event) {
                continue;
            }
            let one = found.entry(target.event_id.clone()).or_default();
            match relation.rel_type.as_str() {
                "m.replace"
                    if one.edit.is_none() && target.redacted_by.is_none() && replaces(event, target) =>
                {
                    one.edit = Some(Arc::clone(event));
                }
                "m.thread" => {
                    one.latest.get_or_insert_with(|| Arc::clone(event));
                    one.replies += 1;
                    one.took_part |= event.sender == self.who || target.sender == self.who;
                }
                "m.reference" if target.redacted_by.is_none() => {
                    one.references.push(event.event_id.to_string());
                }
                _ => {}
            }
        }
        for one in found.values_mut() {
            // Found from the newest on; told oldest first.
            one.references.reverse();
            one.references.truncate(REFERENCES_MAX);
        }
        (found, older)
    }

    /// What the database has of events that memory does not reach back to.
    async fn stored(&self, older: &[&Arc<Event>], found: &mut HashMap<OwnedEventId, Found>) -> Result<()> {
        let by_id: HashMap<&str, &Arc<Event>> =
            older.iter().map(|event| (event.event_id.as_str(), *event)).collect();
        let ids: Vec<String> = by_id.keys().map(|id| (*id).to_owned()).collect();
        let mut conn = self.server.db.read().await?;
        let mut tallies = Vec::new();
        for (from, to) in self.sight.newest(STRETCHES_MAX) {
            let between = (*from, (*to).min(self.sight.upto()));
            tallies.extend(store::relations::tallies(&mut conn, self.room_id, &ids, between).await?);
        }
        let tallies: Vec<(&Arc<Event>, Tally)> = tallies
            .into_iter()
            .filter(|tally| !self.ignored.users().iter().any(|ignored| ignored.as_str() == tally.sender))
            .filter_map(|tally| Some((*by_id.get(tally.target_id.as_str())?, tally)))
            .collect();
        if tallies.is_empty() {
            return Ok(());
        }
        let mut edits: BTreeMap<&str, i64> = BTreeMap::new();
        let mut latest: BTreeMap<&str, i64> = BTreeMap::new();
        let mut referred: Vec<String> = Vec::new();
        for (target, tally) in &tallies {
            let id = target.event_id.as_str();
            let whole = target.redacted_by.is_none();
            match tally.rel_type.as_str() {
                "m.replace"
                    if whole
                        && tally.sender == target.sender.as_str()
                        && tally.kind == target.kind.to_string() =>
                {
                    let newest = edits.entry(id).or_insert(tally.newest);
                    *newest = tally.newest.max(*newest);
                }
                "m.thread" => {
                    let newest = latest.entry(id).or_insert(tally.newest);
                    *newest = tally.newest.max(*newest);
                    let one = found.entry(target.event_id.clone()).or_default();
                    one.replies += u64::try_from(tally.count).unwrap_or_default();
                    one.took_part |= tally.sender == self.who.as_str() || target.sender == self.who;
                }
                "m.reference" if whole => referred.push(id.to_owned()),
                _ => {}
            }
        }
        let positions: HashSet<i64> = edits.values().chain(latest.values()).copied().collect();
        let positions: Vec<i64> = positions.into_iter().collect();
        let loaded: HashMap<i64, Arc<Event>> = store::events::at(&mut conn, &positions)
            .await?
            .into_iter()
            .map(|event| (event.position, event))
            .collect();
        for (id, position) in &latest {
            if let (Some(target), Some(event)) = (by_id.get(id), loaded.get(position)) {
                found.entry(target.event_id.clone()).or_default().latest = Some(Arc::clone(event));
            }
        }
        for (id, position) in edits {
            let Some(target) = by_id.get(id) else { continue };
            let newest = loaded.get(&position).filter(|event| replaces(event, target)).cloned();
            let edit = match newest {
                Some(edit) => Some(edit),
                None => store::events::related(
                    &mut conn,
                    self.room_id,
                    &target.event_id,
                    position,
                    0,
                    true,
                    EDITS_TRIED_MAX,
                )
                .await?
                .into_iter()
                .find(|event| self.sight.sees(event.position) && replaces(event, target)),
            };
            if edit.is_some() {
                found.entry(target.event_id.clone()).or_default().edit = edit;
            }
        }
        if !referred.is_empty() {
            referred.sort_unstable();
            referred.dedup();
            let limit = REFERENCES_MAX * referred.len();
            let rows =
                store::relations::relating(&mut conn, self.room_id, &referred, Some("m.reference"), limit)
                    .await?;
            for row in rows {
                let hidden = self.ignored.users().iter().any(|ignored| ignored.as_str() == row.sender);
                let Some(target) = by_id.get(row.target_id.as_str()) else { continue };
                let one = found.entry(target.event_id.clone()).or_default();
                if !hidden && self.sight.sees(row.position) && one.references.len() < REFERENCES_MAX {
                    one.references.push(row.event_id);
                }
            }
        }
        Ok(())
    }
}

/// `m.relations` of one event; none where nothing is told.
fn written(found: &Found, edits: &HashMap<OwnedEventId, Found>, who: &Requester, now: i64) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    if let Some(edit) = &found.edit {
        parts.push(format!("\"m.replace\":{}", render::event(edit, Some(who), now)));
    }
    if let Some(latest) = &found.latest {
        let edit = edits.get(&latest.event_id).and_then(|found| found.edit.as_ref());
        let mut own = Bundles::default();
        if let Some(edit) = edit {
            let text = format!("{{\"m.replace\":{}}}", render::event(edit, Some(who), now));
            own.relations.insert(latest.event_id.clone(), text);
        }
        parts.push(format!(
            "\"m.thread\":{{\"latest_event\":{},\"count\":{},\"current_user_participated\":{}}}",
            render::bundled(latest, &own, who, now),
            found.replies,
            found.took_part
        ));
    }
    if !found.references.is_empty() {
        let mut text = "\"m.reference\":{\"chunk\":".to_owned();
        render::write_list(&mut text, &found.references, |out, id| {
            let _ = write!(out, "{{\"event_id\":{}}}", serde_json::Value::from(id.as_str()));
        });
        text.push('}');
        parts.push(text);
    }
    (!parts.is_empty()).then(|| format!("{{{}}}", parts.join(",")))
}
