//! A user in memory: memberships, and what is known until it changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use tokio::sync::Notify;

use super::parking::{Mutex, RwLock};

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
    pub presence: Mutex<Option<crate::rooms::presence::Presence>>,
    /// Ignored users as last read, with the generation they belong to.
    pub ignored: Mutex<Option<(u64, crate::rooms::ignored::Ignored)>>,
    /// Unread counts by room: counted up to a position, for a receipt position.
    pub unread: Mutex<HashMap<OwnedRoomId, crate::push::counts::Counted>>,
    /// What waits for the user's devices, and what keys they have left.
    pub of_devices: crate::keys::counts::Known,
}

impl LiveUser {
    pub(super) fn new(user_id: OwnedUserId, position: i64) -> Self {
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
