//! A room in memory: its state, newest events and receipts. While it is being read, commits that touch it are kept aside and
//! merged when the reading is done, so that it never misses or repeats an event.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId,
    events::{StateEventType, TimelineEventType},
};

use super::parking::{Mutex, RwLock};
use crate::{
    error::{Error, Result, not_found},
    rooms::{pdu::Event, state::RoomState},
    store::{self, Db},
};

/// Events kept per room for sync; older ones come from the database.
const TIMELINE_EVENTS_MAX: usize = 128;

/// What the room row says, beside its state.
#[derive(Clone, Debug)]
pub struct RoomRow {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The room version.
    pub version: ruma::RoomVersionId,
    /// Forward extremities.
    pub head: Vec<OwnedEventId>,
    /// Depth of the newest event.
    pub depth: i64,
    /// Position of the newest state event.
    pub state_version: i64,
    /// Position of the newest event.
    pub last_position: i64,
    /// `open`, `closed`, `archived`, `purging` or `purged` (DESIGN 15).
    pub status: String,
    /// What the room is for; see the table's comment.
    pub kind: String,
    /// The room number (部屋番号).
    pub room_number: Option<i64>,
    /// The facility of a liaison room.
    pub facility: Option<i64>,
    /// Hash of the subject.
    pub subject_key: Option<String>,
    /// When it was made, in milliseconds.
    pub created_at: i64,
    /// When it was closed, in milliseconds: its retention runs from then.
    pub closed_at: Option<i64>,
    /// When it was archived, in milliseconds.
    pub archived_at: Option<i64>,
    /// The case that opened it.
    pub opened_by_case: Option<String>,
}

/// A room as the last commit left it.
#[derive(Clone, Debug)]
pub struct RoomView {
    /// The room's row.
    pub row: RoomRow,
    /// The current state.
    pub state: RoomState,
}

/// The newest events of a room, in order.
#[derive(Debug, Default)]
pub struct Timeline {
    /// The events.
    pub events: VecDeque<Arc<Event>>,
    /// Every event of the room with a position greater than this is in `events`.
    pub complete_after: i64,
}

/// A receipt.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Whose.
    pub user_id: OwnedUserId,
    /// `m.read` or `m.read.private`.
    pub kind: String,
    /// The thread, `main`, or "" for an unthreaded one.
    pub thread: String,
    /// The event read.
    pub event_id: OwnedEventId,
    /// Its order in the room.
    pub event_order: i64,
    /// When.
    pub ts: i64,
    /// Position in the one sequence.
    pub position: i64,
}

/// What a commit does to a room.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new event, and the row after it.
    Event(Arc<Event>),
    /// The room's row after the commit.
    Row(RoomRow),
    /// An event got new content (redaction).
    Replaced(Arc<Event>),
    /// A receipt moved.
    Receipt(Receipt),
}

enum Inner {
    /// Being read; commits meanwhile.
    Loading(Vec<Change>),
    /// In use.
    Ready(Arc<Ready>),
}

#[derive(Clone, Debug)]
struct Ready {
    view: Arc<RoomView>,
}

/// A room in memory.
pub struct LiveRoom {
    inner: Mutex<Inner>,
    /// The newest events.
    pub timeline: RwLock<Timeline>,
    /// Receipts by (user, kind, thread).
    pub receipts: RwLock<BTreeMap<(OwnedUserId, String, String), Receipt>>,
    /// Who types, and until when (ms).
    pub typing: Mutex<BTreeMap<OwnedUserId, i64>>,
    /// The volatile counter at which typing last changed.
    pub typing_at: AtomicU64,
    /// Position of the newest receipt.
    pub receipts_at: AtomicI64,
    /// Order of the newest event that says that people are at work in the room; 0 = not known yet.
    bumped_at: AtomicI64,
    /// The history visibility's event for which it is known whether the room was always open to its members.
    pub always_shared: Mutex<Option<(OwnedEventId, bool)>>,
    /// Held by whoever reads the room.
    pub(super) load: tokio::sync::Mutex<()>,
    /// When it was used last.
    pub(super) used: AtomicI64,
}

impl LiveRoom {
    /// A room that is still to be read.
    pub(super) fn loading() -> Self {
        Self {
            inner: Mutex::new(Inner::Loading(Vec::new())),
            timeline: RwLock::default(),
            receipts: RwLock::default(),
            typing: Mutex::default(),
            typing_at: AtomicU64::new(0),
            receipts_at: AtomicI64::new(0),
            bumped_at: AtomicI64::new(0),
            always_shared: Mutex::default(),
            load: tokio::sync::Mutex::new(()),
            used: AtomicI64::new(0),
        }
    }

    /// A room that a commit has just made.
    pub(super) fn made(view: RoomView, events: Vec<Arc<Event>>) -> Self {
        let room = Self::loading();
        room.timeline.write().events.extend(events);
        *room.inner.lock() = Inner::Ready(Arc::new(Ready { view: Arc::new(view) }));
        room
    }

    /// The room as of the last commit; none while it is being read.
    pub fn view(&self) -> Option<Arc<RoomView>> {
        match &*self.inner.lock() {
            Inner::Ready(ready) => Some(Arc::clone(&ready.view)),
            Inner::Loading(_) => None,
        }
    }

    /// The room as of the last commit.
    pub fn current(&self) -> Result<Arc<RoomView>> {
        self.view().ok_or_else(|| Error::internal("a room was used before it was read"))
    }

    /// Reads the room.
    pub(super) async fn read_from(&self, db: &Db, room_id: &RoomId) -> Result<()> {
        // From here on commits are kept aside in `Inner::Loading`; what was committed before is read.
        let mut conn = db.read().await?;
        let row = store::rooms::row(&mut conn, room_id).await?.ok_or_else(|| not_found("No such room."))?;
        let upto = row.last_position;
        let state = store::rooms::current_state(&mut conn, room_id).await?;
        let events = store::events::newest(&mut conn, room_id, upto, TIMELINE_EVENTS_MAX / 2).await?;
        let receipts = store::rooms::receipts(&mut conn, room_id).await?;
        self.fill(row, state, events, receipts);
        Ok(())
    }

    /// Puts into memory what was read, and what was committed meanwhile.
    fn fill(&self, row: RoomRow, state: Vec<Arc<Event>>, events: Vec<Arc<Event>>, receipts: Vec<Receipt>) {
        let upto = row.last_position;
        let mut map = RoomState::default();
        for event in state {
            map.set(event);
        }
        {
            let mut timeline = self.timeline.write();
            timeline.complete_after = if events.len() < TIMELINE_EVENTS_MAX / 2 {
                0
            } else {
                events.first().map_or(upto, |first| first.position - 1)
            };
            timeline.events = events.into();
            let mut all = self.receipts.write();
            for receipt in receipts {
                self.receipts_at.fetch_max(receipt.position, Ordering::AcqRel);
                put_receipt(&mut all, receipt);
            }
        }
        let mut inner = self.inner.lock();
        let kept = match std::mem::replace(
            &mut *inner,
            Inner::Ready(Arc::new(Ready { view: Arc::new(RoomView { row, state: map }) })),
        ) {
            Inner::Loading(kept) => kept,
            Inner::Ready(_) => Vec::new(),
        };
        drop(inner);
        self.merge(kept);
    }

    /// Merges what a commit did.
    pub(super) fn merge(&self, changes: Vec<Change>) {
        let mut inner = self.inner.lock();
        let ready = match &mut *inner {
            Inner::Loading(kept) => {
                kept.extend(changes);
                return;
            }
            Inner::Ready(ready) => ready,
        };
        let mut view = RoomView::clone(&ready.view);
        let mut timeline = self.timeline.write();
        for change in changes {
            match change {
                Change::Event(event) => {
                    let newest = timeline.events.back().map_or(timeline.complete_after, |e| e.position);
                    if event.position > newest {
                        timeline.events.push_back(Arc::clone(&event));
                    }
                    if event.is_state() && event.position > view.row.state_version {
                        view.row.state_version = event.position;
                        view.state.set(event);
                    }
                }
                Change::Row(row) => {
                    if row.last_position >= view.row.last_position {
                        view.row = row;
                    }
                }
                Change::Replaced(event) => {
                    // What came after it told the old content as what it replaced.
                    for old in &mut timeline.events {
                        if let Some(copy) = old.with_former(&event) {
                            *old = copy;
                        }
                    }
                    let later: Vec<_> = view.state.events().filter_map(|e| e.with_former(&event)).collect();
                    for copy in later {
                        view.state.set(copy);
                    }
                    if let Some(old) = timeline.events.iter_mut().find(|e| e.event_id == event.event_id) {
                        *old = Arc::clone(&event);
                    }
                    if let Some(state_key) = &event.state_key {
                        let kind = StateEventType::from(event.kind.to_string());
                        if view.state.event(&kind, state_key).is_some_and(|e| e.event_id == event.event_id) {
                            view.state.set(event);
                        }
                    }
                }
                Change::Receipt(receipt) => {
                    self.receipts_at.fetch_max(receipt.position, Ordering::AcqRel);
                    put_receipt(&mut self.receipts.write(), receipt);
                }
            }
        }
        while timeline.events.len() > TIMELINE_EVENTS_MAX {
            if let Some(gone) = timeline.events.pop_front() {
                timeline.complete_after = gone.position;
            }
        }
        drop(timeline);
        *ready = Arc::new(Ready { view: Arc::new(view) });
    }

    /// Order of the newest event that says that people are at work in the room (MSC4186, `bump_stamp`).
    pub async fn bumped(&self, db: &Db, room_id: &RoomId) -> Result<i64> {
        let newest = {
            let timeline = self.timeline.read();
            timeline.events.iter().rev().find(|event| bumps(event)).map(|event| event.position)
        };
        if let Some(at) = newest {
            self.bumped_at.fetch_max(at, Ordering::AcqRel);
        } else if self.bumped_at.load(Ordering::Acquire) == 0 {
            let at = store::events::newest_activity(&mut db.read().await?, room_id).await?;
            self.bumped_at.fetch_max(at, Ordering::AcqRel);
        }
        Ok(self.bumped_at.load(Ordering::Acquire))
    }

    /// Who types now.
    pub fn typing_users(&self) -> Vec<OwnedUserId> {
        self.typing.lock().keys().cloned().collect()
    }
}

/// [`LiveRoom::read_from`] for several rooms, whose `load` the caller holds.
pub(super) async fn read_many(db: &Db, rooms: &HashMap<OwnedRoomId, &LiveRoom>) -> Result<()> {
    let room_ids: Vec<OwnedRoomId> = rooms.keys().cloned().collect();
    let mut conn = db.read().await?;
    let rows = store::rooms::rows(&mut conn, &room_ids).await?;
    let state = store::rooms::current_states(&mut conn, &room_ids).await?;
    // Asked for after the state: what changes in between is not in that state, and is found to have changed.
    let changed = store::rooms::visibility_changed(&mut conn, &room_ids).await?;
    let ends: Vec<_> = rows.iter().map(|row| (row.room_id.clone(), row.last_position)).collect();
    let newest = store::events::newest_of(&mut conn, &ends, TIMELINE_EVENTS_MAX / 2).await?;
    let mut receipts = by_room(store::rooms::receipts_of(&mut conn, &room_ids).await?, |r| &r.room_id);
    drop(conn);
    let parsed = tokio::task::spawn_blocking(move || store::events::parse_together(state, newest));
    let store::events::Parsed { state, newest } = parsed.await??;
    let mut states = by_room(state, |e| &e.room_id);
    let mut events = by_room(newest, |e| &e.room_id);
    for row in rows {
        let Some(room) = rooms.get(&row.room_id) else { continue };
        let room_id = row.room_id.clone();
        let state = states.remove(&room_id).unwrap_or_default();
        let only = state.iter().find(|e| e.kind == TimelineEventType::RoomHistoryVisibility);
        if let Some(only) = only.filter(|_| !changed.contains(&room_id)) {
            let hidden =
                matches!(only.content_str("history_visibility").as_deref(), Some("joined" | "invited"));
            *room.always_shared.lock() = Some((only.event_id.clone(), !hidden));
        }
        let mut events = events.remove(&room_id).unwrap_or_default();
        events.sort_unstable_by_key(|event| event.position);
        room.fill(row, state, events, receipts.remove(&room_id).unwrap_or_default());
    }
    Ok(())
}

fn by_room<T>(all: Vec<T>, room_of: impl Fn(&T) -> &OwnedRoomId) -> HashMap<OwnedRoomId, Vec<T>> {
    let mut sorted: HashMap<OwnedRoomId, Vec<T>> = HashMap::new();
    for one in all {
        sorted.entry(room_of(&one).clone()).or_default().push(one);
    }
    sorted
}

/// Whether an event is "proper activity" (MSC4186, `bump_stamp`).
fn bumps(event: &Event) -> bool {
    matches!(
        event.kind.to_string().as_str(),
        "m.room.create"
            | "m.room.message"
            | "m.room.encrypted"
            | "m.sticker"
            | "m.call.invite"
            | "m.poll.start"
            | "m.beacon_info"
    )
}

fn put_receipt(all: &mut BTreeMap<(OwnedUserId, String, String), Receipt>, receipt: Receipt) {
    let key = (receipt.user_id.clone(), receipt.kind.clone(), receipt.thread.clone());
    if all.get(&key).is_none_or(|old| old.position <= receipt.position) {
        all.insert(key, receipt);
    }
}
