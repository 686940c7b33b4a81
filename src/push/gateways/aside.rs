//! Notifications that a gateway does not take now, put aside by pushkey until it does.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use ruma::OwnedUserId;
use serde_json::Value;
use tokio::time::Instant;

use super::super::Pusher;

/// How long notifications for a pushkey are put aside that a gateway does not take; twice as long each time, up to the
/// ceiling.
const REST: Duration = Duration::from_secs(5);
const REST_MAX: Duration = Duration::from_secs(120);
/// Notifications put aside for one gateway; beyond it the oldest are dropped.
const ASIDE_MAX: usize = 2_000;

/// A notification on its way to one pusher.
pub(super) struct Letter {
    pub(super) user: OwnedUserId,
    pub(super) pusher: Pusher,
    pub(super) body: Value,
    /// When it is too old.
    pub(super) until: Instant,
    /// Where its event stands; none of a count, which is made anew instead of being tried again for long.
    pub(super) position: Option<i64>,
}

/// Notifications that the gateway answers for with "not now", and those behind them for the same pushkey: mostly the app's
/// trouble and not the gateway's. They must not hold up what is for everybody else, so they are tried apart; the durable
/// cursor waits before the oldest.
#[derive(Default)]
pub(super) struct Aside {
    letters: VecDeque<Letter>,
    /// By app and pushkey: when to try again, and how long it was waited.
    keys: HashMap<(String, String), (Instant, Duration)>,
}

impl Aside {
    fn key(pusher: &Pusher) -> (String, String) {
        (pusher.app_id.clone(), pusher.pushkey.clone())
    }

    pub(super) fn holds(&self, pusher: &Pusher) -> bool {
        self.keys.contains_key(&Self::key(pusher))
    }

    /// Puts a notification aside, behind the others of its pushkey.
    pub(super) fn put(&mut self, letter: Letter) {
        self.keys.entry(Self::key(&letter.pusher)).or_insert_with(|| (Instant::now() + REST, REST));
        self.letters.push_back(letter);
        if self.letters.len() > ASIDE_MAX {
            self.letters.pop_front();
        }
    }

    /// The notifications of the pushkeys whose time has come, oldest first; what is too old goes.
    pub(super) fn take_due(&mut self) -> Vec<Vec<Letter>> {
        let now = Instant::now();
        self.letters.retain(|letter| letter.until > now);
        let letters = &self.letters;
        self.keys.retain(|key, _| letters.iter().any(|letter| Self::key(&letter.pusher) == *key));
        let due: Vec<_> =
            self.keys.iter().filter(|(_, (at, _))| *at <= now).map(|(key, _)| key.clone()).collect();
        due.into_iter()
            .map(|key| {
                let (mine, others): (Vec<_>, Vec<_>) =
                    self.letters.drain(..).partition(|letter| Self::key(&letter.pusher) == key);
                self.letters = others.into();
                mine
            })
            .collect()
    }

    /// What was taken and still is not wanted goes back to its place, for a longer while; with nothing left the pushkey is
    /// as every other.
    pub(super) fn put_back(&mut self, pusher: &Pusher, left: Vec<Letter>) {
        let key = Self::key(pusher);
        if left.is_empty() {
            self.keys.remove(&key);
            return;
        }
        let time = self.keys.get(&key).map_or(REST, |(_, time)| (*time * 2).min(REST_MAX));
        self.keys.insert(key, (Instant::now() + time, time));
        for letter in left.into_iter().rev() {
            self.letters.push_front(letter);
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.keys.values().map(|(at, _)| *at).min()
    }

    /// The position before which everything was told.
    pub(super) fn oldest(&self) -> Option<i64> {
        self.letters.iter().filter_map(|letter| letter.position).min()
    }
}
