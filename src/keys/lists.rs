//! Whose devices changed, and who came into or went from encrypted rooms, in the order of the one sequence: a sync asks
//! for what lies between two positions, so its cost grows with what changed and not with rooms or members.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::atomic::{AtomicI64, Ordering},
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};

use crate::{
    error::Result,
    rooms::live::parking::RwLock,
    store::{self, Conn},
};

/// Comings and goings kept; a sync from before them is told of everybody in its encrypted rooms.
const MOVES_MAX: usize = 50_000;

/// In memory, beside the rooms.
#[derive(Debug, Default)]
pub struct Lists {
    newest: AtomicI64,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// When each user's devices or cross-signing keys last changed, and the same in order.
    at: HashMap<OwnedUserId, i64>,
    changes: BTreeMap<i64, OwnedUserId>,
    /// Whom a user has signed, and when: news for the signer's own devices only.
    signed: HashMap<OwnedUserId, BTreeMap<i64, OwnedUserId>>,
    /// Rooms with an `m.room.encryption`.
    encrypted: HashSet<OwnedRoomId>,
    /// By position.
    moves: BTreeMap<i64, Move>,
    /// The moves up to here are not known.
    moves_after: i64,
}

/// Somebody came into or went from an encrypted room.
#[derive(Clone, Debug)]
pub struct Move {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Who; nobody where the room became an encrypted one.
    pub user_id: Option<OwnedUserId>,
    /// Whether the user is a member, or was one until then. Whoever was only invited has not seen who is in the room.
    pub member: bool,
}

/// What lies between two positions.
#[derive(Debug, Default)]
pub struct Between {
    /// Whose devices or keys changed, whoever they are.
    pub changed: Vec<OwnedUserId>,
    /// Whom the asking user signed.
    pub signed: Vec<OwnedUserId>,
    /// Comings and goings in encrypted rooms; none where they are not known any more.
    pub moves: Option<Vec<Move>>,
}

/// Whether a membership means that others encrypt for its user.
pub fn is_present(membership: &str) -> bool {
    matches!(membership, "join" | "invite")
}

impl Lists {
    /// Reads what must be known from the start. The moves come with the memberships, by [`Lists::moved`].
    pub async fn load(conn: &mut Conn) -> Result<Self> {
        let lists = Self::default();
        for (user_id, position) in store::keys::device_lists(conn).await? {
            if let Ok(user_id) = OwnedUserId::try_from(user_id) {
                lists.changed(&user_id, position);
            }
        }
        for (signer, target, position) in store::keys::signings(conn).await? {
            if let (Ok(signer), Ok(target)) = (OwnedUserId::try_from(signer), OwnedUserId::try_from(target)) {
                lists.signed(&signer, &target, position);
            }
        }
        for (room_id, position) in store::keys::encrypted_rooms(conn).await? {
            if let Ok(room_id) = OwnedRoomId::try_from(room_id) {
                lists.became_encrypted(&room_id, position);
            }
        }
        Ok(lists)
    }

    /// Position of the newest change of any kind: a sync that is not behind it need not look.
    pub fn newest(&self) -> i64 {
        self.newest.load(Ordering::Acquire)
    }

    /// A user's devices or cross-signing keys changed.
    pub fn changed(&self, user_id: &UserId, position: i64) {
        let mut inner = self.inner.write();
        if let Some(before) = inner.at.insert(user_id.to_owned(), position) {
            inner.changes.remove(&before);
        }
        inner.changes.insert(position, user_id.to_owned());
        self.newest.fetch_max(position, Ordering::AcqRel);
    }

    /// A user signed another's master key.
    pub fn signed(&self, signer: &UserId, target: &UserId, position: i64) {
        let mut inner = self.inner.write();
        let of = inner.signed.entry(signer.to_owned()).or_default();
        of.retain(|_, whom| whom != target);
        of.insert(position, target.to_owned());
        self.newest.fetch_max(position, Ordering::AcqRel);
    }

    /// A room got its `m.room.encryption`.
    pub fn became_encrypted(&self, room_id: &RoomId, position: i64) {
        let mut inner = self.inner.write();
        if inner.encrypted.insert(room_id.to_owned()) {
            inner.put(position, Move { room_id: room_id.to_owned(), user_id: None, member: false });
            self.newest.fetch_max(position, Ordering::AcqRel);
        }
    }

    /// Somebody came into a room or went from it; only encrypted rooms count.
    pub fn moved(&self, room_id: &RoomId, user_id: &UserId, position: i64, member: bool) {
        if !self.is_encrypted(room_id) {
            return;
        }
        let one = Move { room_id: room_id.to_owned(), user_id: Some(user_id.to_owned()), member };
        self.inner.write().put(position, one);
        self.newest.fetch_max(position, Ordering::AcqRel);
    }

    /// A room is gone.
    pub fn forget_room(&self, room_id: &RoomId) {
        self.inner.write().encrypted.remove(room_id);
    }

    /// Whether a room has an `m.room.encryption`.
    pub fn is_encrypted(&self, room_id: &RoomId) -> bool {
        self.inner.read().encrypted.contains(room_id)
    }

    /// How many rooms are encrypted.
    pub fn encrypted_rooms(&self) -> usize {
        self.inner.read().encrypted.len()
    }

    /// Of some rooms, those that are encrypted.
    pub fn encrypted_among<'a>(&self, rooms: impl Iterator<Item = &'a OwnedRoomId>) -> Vec<OwnedRoomId> {
        let inner = self.inner.read();
        if inner.encrypted.is_empty() {
            return Vec::new();
        }
        rooms.filter(|room_id| inner.encrypted.contains(*room_id)).cloned().collect()
    }

    /// What happened after a position and up to one.
    pub fn between(&self, user_id: &UserId, after: i64, upto: i64) -> Between {
        if self.newest() <= after || upto <= after {
            return Between { moves: Some(Vec::new()), ..Between::default() };
        }
        let range = after + 1..=upto;
        let inner = self.inner.read();
        Between {
            changed: inner.changes.range(range.clone()).map(|(_, id)| id.clone()).collect(),
            signed: inner
                .signed
                .get(user_id)
                .map(|of| of.range(range.clone()).map(|(_, id)| id.clone()).collect())
                .unwrap_or_default(),
            moves: (after >= inner.moves_after)
                .then(|| inner.moves.range(range).map(|(_, of)| of.clone()).collect()),
        }
    }
}

impl Inner {
    fn put(&mut self, position: i64, one: Move) {
        self.moves.insert(position, one);
        while self.moves.len() > MOVES_MAX {
            if let Some((gone, _)) = self.moves.pop_first() {
                self.moves_after = self.moves_after.max(gone);
            }
        }
    }
}
