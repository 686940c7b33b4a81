//! What the server knows without asking the database: the rooms in use, everybody's memberships, receipts,
//! who waits for news. Merged from commits by the committer, after the commit (DESIGN 9).
//!
//! A room is loaded when first needed. While its rows are being read, commits that touch it are kept aside and
//! merged when the reading is done, so a room in memory never misses or repeats an event.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use parking::{Mutex, RwLock};
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
};
use tokio::sync::Notify;

use super::{pdu::Event, state::RoomState};
use crate::{
    error::{Error, Result, not_found},
    keys::lists::{Lists, is_present},
    store::{self, Db},
};

/// Locks whose poisoning is not an error for us: every critical section here is a few moves of data.
pub mod parking {
    pub use std::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// A mutex without poisoning.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(std::sync::Mutex<T>);
    /// A read-write lock without poisoning.
    #[derive(Debug, Default)]
    pub struct RwLock<T>(std::sync::RwLock<T>);

    impl<T> Mutex<T> {
        /// A new mutex.
        pub fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }
        /// Locks.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }

    impl<T> RwLock<T> {
        /// A new lock.
        pub fn new(value: T) -> Self {
            Self(std::sync::RwLock::new(value))
        }
        /// Locks for reading.
        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner)
        }
        /// Locks for writing.
        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }
}

/// Events kept per room for sync; older ones come from the database.
const TIMELINE_EVENTS_MAX: usize = 128;
/// Rooms read together.
const READ_AT_ONCE: usize = 50;
/// Parts of somebody's rooms that are read at once, each on a connection.
const READERS: usize = 3;
/// Rooms kept in memory before idle ones are dropped.
const ROOMS_MAX: usize = 4_000;

/// All of it.
pub struct Live {
    position: AtomicI64,
    volatile: AtomicU64,
    /// The volatile counter at the start of this run, greater than any of an earlier run.
    began: u64,
    /// The rooms that somebody types in.
    typing_in: Mutex<BTreeSet<OwnedRoomId>>,
    /// Whose devices changed, and who came into or went from encrypted rooms.
    pub lists: Lists,
    /// Who is joined or invited, by room.
    present: RwLock<HashMap<OwnedRoomId, Vec<Arc<LiveUser>>>>,
    rooms: RwLock<HashMap<OwnedRoomId, Arc<LiveRoom>>>,
    users: RwLock<HashMap<OwnedUserId, Arc<LiveUser>>>,
    /// Told after every commit: the followers (push, appservices, search) wait on it.
    pub committed: Notify,
    /// Told when somebody begins or ceases to type.
    pub typed: Notify,
}

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
    load: tokio::sync::Mutex<()>,
    used: AtomicI64,
}

/// A membership of a user.
#[derive(Clone, Debug)]
pub struct Membership {
    /// `join`, `invite`, `leave`, `ban` or `knock`.
    pub membership: String,
    /// The member event.
    pub event_id: OwnedEventId,
    /// Position at which the membership became what it is.
    pub changed_at: i64,
    /// Position of the newest member event.
    pub position: i64,
    /// The user asked to forget the room.
    pub forgotten: bool,
}

/// A user in memory.
pub struct LiveUser {
    /// Who.
    pub user_id: OwnedUserId,
    /// Memberships by room.
    pub rooms: RwLock<BTreeMap<OwnedRoomId, Membership>>,
    /// Position of the newest thing this user can see.
    pub last_position: AtomicI64,
    /// Volatile counter of the newest typing this user can see.
    pub last_volatile: AtomicU64,
    /// Position of the newest change of the user's own account data, to-device messages or keys.
    pub personal_position: AtomicI64,
    /// Long polls wait here.
    pub wake: Notify,
    /// Counts how often account data changed; guards the cache of push rules.
    pub generation: AtomicU64,
    /// Push rules as last read, with the generation they belong to.
    pub rules: Mutex<Option<(u64, Arc<ruma::push::Ruleset>)>>,
    /// The rooms that the user calls direct, with the generation they belong to.
    pub direct: Mutex<Option<(u64, Arc<BTreeSet<String>>)>>,
    /// Who is there: as last set, where `policy.presence` is on.
    pub presence: Mutex<Option<super::presence::Presence>>,
    /// Ignored users as last read, with the generation they belong to.
    pub ignored: Mutex<Option<(u64, super::ignored::Ignored)>>,
    /// Unread counts by room: counted up to a position, for a receipt position.
    pub unread: Mutex<HashMap<OwnedRoomId, crate::push::counts::Counted>>,
    /// What waits for the user's devices, and what keys they have left.
    pub of_devices: crate::keys::counts::Known,
}

impl LiveUser {
    fn new(user_id: OwnedUserId, position: i64) -> Self {
        Self {
            user_id,
            rooms: RwLock::default(),
            last_position: AtomicI64::new(position),
            last_volatile: AtomicU64::default(),
            personal_position: AtomicI64::new(position),
            wake: Notify::new(),
            generation: AtomicU64::default(),
            rules: Mutex::default(),
            direct: Mutex::default(),
            presence: Mutex::default(),
            ignored: Mutex::default(),
            unread: Mutex::default(),
            of_devices: crate::keys::counts::Known::default(),
        }
    }

    /// Wakes the user's long polls for something at `position`.
    pub fn touch(&self, position: i64) {
        self.last_position.fetch_max(position, Ordering::AcqRel);
    }
}

impl Live {
    /// Reads what must be in memory from the start: the position and everybody's memberships.
    pub async fn load(db: &Db, now_ms: i64) -> Result<Self> {
        let mut conn = db.read().await?;
        let position = store::meta::position(&mut conn).await?;
        let lists = Lists::load(&mut conn).await?;
        let mut users: HashMap<OwnedUserId, Arc<LiveUser>> = HashMap::new();
        let mut present: HashMap<OwnedRoomId, Vec<Arc<LiveUser>>> = HashMap::new();
        for (user_id, room_id, membership) in store::rooms::all_memberships(&mut conn).await? {
            let user = users
                .entry(user_id)
                .or_insert_with_key(|user_id| Arc::new(LiveUser::new(user_id.clone(), position)));
            if is_present(&membership.membership) {
                present.entry(room_id.clone()).or_default().push(Arc::clone(user));
            }
            // Whether somebody who is gone had been a member, or only invited, is not known here.
            let member = membership.membership == "join";
            lists.moved(&room_id, &user.user_id, membership.changed_at, member);
            user.rooms.write().insert(room_id, membership);
        }
        // Milliseconds times a thousand: nobody types a thousand times in a millisecond.
        let began = u64::try_from(now_ms).unwrap_or_default().saturating_mul(1_000);
        Ok(Self {
            position: AtomicI64::new(position),
            volatile: AtomicU64::new(began),
            began,
            typing_in: Mutex::default(),
            lists,
            present: RwLock::new(present),
            rooms: RwLock::default(),
            users: RwLock::new(users),
            committed: Notify::new(),
            typed: Notify::new(),
        })
    }

    /// The newest committed position whose effects are all in memory.
    pub fn position(&self) -> i64 {
        self.position.load(Ordering::Acquire)
    }

    /// The user, known or not.
    pub fn user(&self, user_id: &UserId) -> Arc<LiveUser> {
        if let Some(user) = self.users.read().get(user_id) {
            return Arc::clone(user);
        }
        let mut users = self.users.write();
        let position = self.position();
        Arc::clone(
            users
                .entry(user_id.to_owned())
                .or_insert_with_key(|user_id| Arc::new(LiveUser::new(user_id.clone(), position))),
        )
    }

    /// The membership of a user in a room, as of the last commit.
    pub fn membership(&self, user_id: &UserId, room_id: &RoomId) -> Option<Membership> {
        self.users.read().get(user_id)?.rooms.read().get(room_id).cloned()
    }

    /// Whether the user is joined.
    pub fn is_joined(&self, user_id: &UserId, room_id: &RoomId) -> bool {
        self.membership(user_id, room_id).is_some_and(|m| m.membership == "join")
    }

    /// The rooms a user is joined to.
    pub fn joined_rooms(&self, user_id: &UserId) -> BTreeSet<OwnedRoomId> {
        let users = self.users.read();
        let Some(user) = users.get(user_id) else { return BTreeSet::new() };
        let rooms = user.rooms.read();
        rooms.iter().filter(|(_, m)| m.membership == "join").map(|(room, _)| room.clone()).collect()
    }

    /// Whether two users are joined to a room together.
    pub fn share_a_room(&self, a: &UserId, b: &UserId) -> bool {
        a == b || self.any_room_of_both(a, b, |_, a, b| a == "join" && b == "join")
    }

    /// Whether a user is joined where another is joined or invited: such a member encrypts for the other, too. The one who
    /// is only invited learns nothing of the members.
    pub fn reaches(&self, user_id: &UserId, other: &UserId) -> bool {
        user_id == other || self.any_room_of_both(user_id, other, |_, a, b| a == "join" && is_present(b))
    }

    /// As [`Live::reaches`], in an encrypted room.
    pub fn reaches_encrypted(&self, user_id: &UserId, other: &UserId) -> bool {
        self.any_room_of_both(user_id, other, |room_id, a, b| {
            a == "join" && is_present(b) && self.lists.is_encrypted(room_id)
        })
    }

    /// Whether a room that both users have to do with fits, by its id and their memberships.
    fn any_room_of_both(&self, a: &UserId, b: &UserId, fits: impl Fn(&RoomId, &str, &str) -> bool) -> bool {
        let (a, b) = {
            let users = self.users.read();
            let (Some(a), Some(b)) = (users.get(a), users.get(b)) else { return false };
            (Arc::clone(a), Arc::clone(b))
        };
        if Arc::ptr_eq(&a, &b) {
            return a.rooms.read().iter().any(|(id, m)| fits(id, &m.membership, &m.membership));
        }
        let (a, b) = (a.rooms.read(), b.rooms.read());
        // The shorter list is gone through, the longer one looked up in.
        if a.len() <= b.len() {
            a.iter().any(|(id, of_a)| {
                is_present(&of_a.membership)
                    && b.get(id).is_some_and(|of_b| fits(id, &of_a.membership, &of_b.membership))
            })
        } else {
            b.iter().any(|(id, of_b)| {
                is_present(&of_b.membership)
                    && a.get(id).is_some_and(|of_a| fits(id, &of_a.membership, &of_b.membership))
            })
        }
    }

    /// Who is joined to a room or invited.
    pub fn present(&self, room_id: &RoomId) -> Vec<Arc<LiveUser>> {
        self.present.read().get(room_id).cloned().unwrap_or_default()
    }

    /// Everybody in the encrypted rooms that a user is in, each once.
    pub fn in_encrypted_rooms_of(&self, user_id: &UserId) -> Vec<Arc<LiveUser>> {
        let rooms = {
            let user = self.user(user_id);
            let rooms = user.rooms.read();
            self.lists
                .encrypted_among(rooms.iter().filter(|(_, m)| is_present(&m.membership)).map(|(id, _)| id))
        };
        self.in_rooms(&rooms)
    }

    fn in_rooms(&self, rooms: &[OwnedRoomId]) -> Vec<Arc<LiveUser>> {
        let mut all: Vec<Arc<LiveUser>> = {
            let present = self.present.read();
            rooms.iter().filter_map(|room_id| present.get(room_id)).flatten().cloned().collect()
        };
        all.sort_unstable_by_key(Arc::as_ptr);
        all.dedup_by(|a, b| Arc::ptr_eq(a, b));
        all
    }

    /// There is news at a position for everybody who shares a room with a user, but nobody is woken for it.
    pub fn touch_quietly(&self, user_id: &UserId, position: i64) {
        let rooms: Vec<OwnedRoomId> = {
            let user = self.user(user_id);
            let rooms = user.rooms.read();
            rooms.iter().filter(|(_, m)| is_present(&m.membership)).map(|(id, _)| id.clone()).collect()
        };
        for user in self.in_rooms(&rooms) {
            user.touch(position);
        }
    }

    /// Puts a membership that was committed into memory.
    pub fn set_membership(&self, user_id: &UserId, room_id: &RoomId, membership: Membership) {
        let user = self.user(user_id);
        let (now, at) = (membership.membership.clone(), membership.changed_at);
        let before = user.rooms.write().insert(room_id.to_owned(), membership);
        let before = before.map_or_else(String::new, |membership| membership.membership);
        if is_present(&now) != is_present(&before) {
            let mut present = self.present.write();
            let of_room = present.entry(room_id.to_owned()).or_default();
            if is_present(&now) {
                of_room.push(user);
            } else {
                of_room.retain(|one| !Arc::ptr_eq(one, &user));
            }
        }
        if now != before && (is_present(&now) || is_present(&before)) {
            self.lists.moved(room_id, user_id, at, now == "join" || before == "join");
        }
    }

    /// The room, read from the database if need be.
    pub async fn room(&self, db: &Db, room_id: &RoomId) -> Result<Arc<LiveRoom>> {
        let room = self.entry(room_id);
        room.used.store(self.position(), Ordering::Relaxed);
        if room.view().is_some() {
            return Ok(room);
        }
        let read = {
            let _one_reader = room.load.lock().await;
            if room.view().is_some() { Ok(()) } else { room.read_from(db, room_id).await }
        };
        if let Err(error) = read {
            self.rooms.write().remove(room_id);
            return Err(error);
        }
        Ok(room)
    }

    /// Reads those of some rooms that are not in memory, many with one query: whoever needs all of somebody's rooms asks for
    /// this first. A room that there is not is left to [`Live::room`], which says so.
    pub async fn prepare(self: &Arc<Self>, db: &Arc<Db>, mut room_ids: Vec<OwnedRoomId>) -> Result<()> {
        room_ids.retain(|room_id| self.room_in_memory(room_id).is_none());
        if room_ids.len() < 2 {
            return Ok(());
        }
        // In one order for everybody: nobody waits for a room of somebody who waits for one of theirs.
        room_ids.sort_unstable();
        room_ids.dedup();
        let mut reading = tokio::task::JoinSet::new();
        for chunk in room_ids.chunks(READ_AT_ONCE) {
            // While one part is parsed the next is read.
            if reading.len() >= READERS
                && let Some(read) = reading.join_next().await
            {
                read??;
            }
            let (live, db, chunk) = (Arc::clone(self), Arc::clone(db), chunk.to_vec());
            reading.spawn(async move { live.read_chunk(&db, &chunk).await });
        }
        while let Some(read) = reading.join_next().await {
            read??;
        }
        Ok(())
    }

    async fn read_chunk(&self, db: &Db, chunk: &[OwnedRoomId]) -> Result<()> {
        let rooms: Vec<(&OwnedRoomId, Arc<LiveRoom>)> =
            chunk.iter().map(|room_id| (room_id, self.entry(room_id))).collect();
        let mut one_reader = Vec::with_capacity(rooms.len());
        for (_, room) in &rooms {
            room.used.store(self.position(), Ordering::Relaxed);
            one_reader.push(room.load.lock().await);
        }
        let unread: HashMap<OwnedRoomId, &LiveRoom> = rooms
            .iter()
            .filter(|(_, room)| room.view().is_none())
            .map(|(room_id, room)| ((*room_id).clone(), &**room))
            .collect();
        let read = read_many(db, &unread).await;
        {
            let mut all = self.rooms.write();
            for room_id in unread.iter().filter(|(_, room)| room.view().is_none()).map(|(id, _)| id) {
                all.remove(room_id);
            }
        }
        read
    }

    /// The room if it is in memory and ready.
    pub fn room_in_memory(&self, room_id: &RoomId) -> Option<Arc<LiveRoom>> {
        self.rooms.read().get(room_id).filter(|room| room.view().is_some()).cloned()
    }

    fn entry(&self, room_id: &RoomId) -> Arc<LiveRoom> {
        if let Some(room) = self.rooms.read().get(room_id) {
            return Arc::clone(room);
        }
        let mut rooms = self.rooms.write();
        if rooms.len() >= ROOMS_MAX {
            drop_idle(&mut rooms);
        }
        Arc::clone(rooms.entry(room_id.to_owned()).or_insert_with(|| Arc::new(LiveRoom::loading())))
    }

    /// Puts a room that a commit has just made into memory.
    pub fn insert(&self, view: RoomView, events: Vec<Arc<Event>>) {
        let room = LiveRoom::loading();
        {
            let mut timeline = room.timeline.write();
            timeline.complete_after = 0;
            timeline.events.extend(events);
        }
        *room.inner.lock() = Inner::Ready(Arc::new(Ready { view: Arc::new(view.clone()) }));
        self.rooms.write().insert(view.row.room_id.clone(), Arc::new(room));
    }

    /// Drops a room that was purged: nobody is in it any more, the city neither.
    pub fn drop_room(&self, room_id: &RoomId) {
        self.rooms.write().remove(room_id);
        self.present.write().remove(room_id);
        self.lists.forget_room(room_id);
        for user in self.users.read().values() {
            user.unread.lock().remove(room_id);
            if let Some(membership) = user.rooms.write().get_mut(room_id) {
                membership.membership = "leave".to_owned();
            }
        }
    }

    /// Merges a commit's changes of one room.
    pub fn merge(&self, room_id: &RoomId, changes: Vec<Change>) {
        let room = self.rooms.read().get(room_id).cloned();
        if let Some(room) = room {
            room.merge(changes);
        }
    }

    /// Announces a commit: nothing at or below `position` is missing from memory any more.
    pub fn advance(&self, position: i64, touched: &BTreeMap<OwnedUserId, i64>) {
        let users: Vec<_> = touched.iter().map(|(user_id, at)| (self.user(user_id), *at)).collect();
        for (user, at) in &users {
            user.touch(*at);
        }
        self.position.fetch_max(position, Ordering::AcqRel);
        for (user, _) in &users {
            user.wake.notify_waiters();
        }
        self.committed.notify_waiters();
    }

    /// The present volatile counter (typing).
    pub fn volatile(&self) -> u64 {
        self.volatile.load(Ordering::Acquire)
    }

    /// Sets whether a user types in a room until a time, and wakes the room's members.
    pub fn set_typing(&self, room: &LiveRoom, user_id: &UserId, until_ms: Option<i64>) {
        let changed = {
            let mut typing = room.typing.lock();
            match until_ms {
                Some(until) => typing.insert(user_id.to_owned(), until).is_none(),
                None => typing.remove(user_id).is_some(),
            }
        };
        if changed {
            self.typing_changed(room);
        }
    }

    /// Drops typing that has run out.
    pub fn expire_typing(&self, now_ms: i64) {
        let rooms: Vec<_> = self.rooms.read().values().cloned().collect();
        for room in rooms {
            let gone = {
                let mut typing = room.typing.lock();
                let before = typing.len();
                typing.retain(|_, until| *until > now_ms);
                before != typing.len()
            };
            if gone {
                self.typing_changed(&room);
            }
        }
    }

    fn typing_changed(&self, room: &LiveRoom) {
        let Some(view) = room.view() else { return };
        {
            let mut typing_in = self.typing_in.lock();
            if room.typing.lock().is_empty() {
                typing_in.remove(&view.row.room_id);
            } else {
                typing_in.insert(view.row.room_id.clone());
            }
        }
        let at = self.volatile.fetch_add(1, Ordering::AcqRel) + 1;
        room.typing_at.store(at, Ordering::Release);
        for (user_id, _) in view.state.members("join") {
            let user = self.user(&user_id);
            user.last_volatile.fetch_max(at, Ordering::AcqRel);
            user.wake.notify_waiters();
        }
        self.typed.notify_waiters();
    }

    /// The volatile counter at the start of this run of the server.
    pub fn began(&self) -> u64 {
        self.began
    }

    /// Whether somebody types in one of a user's rooms.
    pub fn somebody_types(&self, user: &LiveUser) -> bool {
        let typing_in = self.typing_in.lock();
        if typing_in.is_empty() {
            return false;
        }
        let rooms = user.rooms.read();
        typing_in.iter().any(|room_id| rooms.get(room_id).is_some_and(|m| m.membership == "join"))
    }

    /// Moves the volatile counter for something about a user that everybody who shares a room with them can see; wakes
    /// them. `set` is told the counter before anybody is woken.
    pub(super) fn tell_sharers(&self, user_id: &UserId, set: impl FnOnce(u64)) {
        let at = self.volatile.fetch_add(1, Ordering::AcqRel) + 1;
        set(at);
        let mut sharers = BTreeSet::from([user_id.to_owned()]);
        for room_id in self.joined_rooms(user_id) {
            // Nobody waits for news of a room that is not in memory.
            let Some(view) = self.room_in_memory(&room_id).and_then(|room| room.view()) else { continue };
            sharers.extend(view.state.members("join").map(|(member, _)| member));
        }
        for sharer in sharers {
            let user = self.user(&sharer);
            user.last_volatile.fetch_max(at, Ordering::AcqRel);
            user.wake.notify_waiters();
        }
    }

    /// Every user in memory.
    pub(super) fn all_users(&self) -> Vec<(OwnedUserId, Arc<LiveUser>)> {
        self.users.read().iter().map(|(user_id, user)| (user_id.clone(), Arc::clone(user))).collect()
    }

    /// Rooms whose typing changed after a volatile counter, with who types in them now.
    pub fn typing_since(&self, since: u64) -> Vec<(OwnedRoomId, Vec<OwnedUserId>)> {
        if self.volatile() <= since {
            return Vec::new();
        }
        let rooms = self.rooms.read();
        rooms
            .iter()
            .filter(|(_, room)| room.typing_at.load(Ordering::Acquire) > since)
            .map(|(room_id, room)| (room_id.clone(), room.typing_users()))
            .collect()
    }
}

/// Drops the half of the rooms that was used longest ago and that nobody holds.
fn drop_idle(rooms: &mut HashMap<OwnedRoomId, Arc<LiveRoom>>) {
    let mut used: Vec<i64> = rooms.values().map(|room| room.used.load(Ordering::Relaxed)).collect();
    used.sort_unstable();
    let limit = used.get(used.len() / 2).copied().unwrap_or_default();
    rooms.retain(|_, room| {
        Arc::strong_count(room) > 1
            || room.used.load(Ordering::Relaxed) > limit
            || !room.typing.lock().is_empty()
    });
}

impl LiveRoom {
    fn loading() -> Self {
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

    async fn read_from(&self, db: &Db, room_id: &RoomId) -> Result<()> {
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

    fn merge(&self, changes: Vec<Change>) {
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
async fn read_many(db: &Db, rooms: &HashMap<OwnedRoomId, &LiveRoom>) -> Result<()> {
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
