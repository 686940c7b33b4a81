//! What the server knows without asking the database: the rooms in use, everybody's memberships, receipts,
//! who waits for news. Merged from commits by the committer, after the commit (DESIGN 9). A room is loaded when first
//! needed.

pub mod parking;
mod room;
mod user;
mod volatile;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use parking::{Mutex, RwLock};
pub use room::{Change, LiveRoom, Receipt, RoomRow, RoomView, Timeline};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use tokio::sync::Notify;
pub use user::{LiveUser, Membership};

use super::pdu::Event;
use crate::{
    error::Result,
    keys::lists::{Lists, is_present},
    store::{self, Db},
};

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
        let read = room::read_many(db, &unread).await;
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
        let room_id = view.row.room_id.clone();
        self.rooms.write().insert(room_id, Arc::new(LiveRoom::made(view, events)));
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

    /// Every user in memory.
    pub(super) fn all_users(&self) -> Vec<(OwnedUserId, Arc<LiveUser>)> {
        self.users.read().iter().map(|(user_id, user)| (user_id.clone(), Arc::clone(user))).collect()
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
