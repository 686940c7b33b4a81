//! News that is never written: who types, who is there. It has a counter of its own.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use ruma::{OwnedRoomId, OwnedUserId, UserId};

use super::{Live, LiveRoom, LiveUser};

impl Live {
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
    pub(in crate::rooms) fn tell_sharers(&self, user_id: &UserId, set: impl FnOnce(u64)) {
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
