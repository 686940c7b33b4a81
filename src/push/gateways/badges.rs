//! Badges that are told by themselves, when somebody has read: whose, when, and what was told last.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use ruma::{OwnedUserId, UserId};
use tokio::time::Instant;

/// A count goes out so long after the first reading: most people read several rooms in a row.
const SETTLE: Duration = Duration::from_secs(1);
/// Badges of one user go to a gateway so often at most.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// Users whose last count is remembered.
const REMEMBERED_MAX: usize = 50_000;

/// Whose count is to be told, and what was told last.
#[derive(Default)]
pub(super) struct Badges {
    due: BTreeMap<OwnedUserId, Instant>,
    told: HashMap<OwnedUserId, (Instant, u64)>,
}

impl Badges {
    pub(super) fn mark(&mut self, user: OwnedUserId) {
        let soon = Instant::now() + SETTLE;
        let at = self.told.get(&user).map_or(soon, |(last, _)| soon.max(*last + COUNT_EVERY));
        self.due.entry(user).or_insert(at);
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    pub(super) fn take_due(&mut self) -> Vec<OwnedUserId> {
        let now = Instant::now();
        let due: Vec<OwnedUserId> =
            self.due.iter().filter(|(_, at)| **at <= now).map(|(user, _)| user.clone()).collect();
        for user in &due {
            self.due.remove(user);
        }
        due
    }

    /// Whether this count was told last.
    pub(super) fn is_told(&self, user: &UserId, count: u64) -> bool {
        self.told.get(user).is_some_and(|(_, told)| *told == count)
    }

    /// Remembers what was told with an event (which is no reason to wait with the next count), or alone.
    pub(super) fn remember(&mut self, user: &UserId, count: u64, alone: bool) {
        let now = Instant::now();
        if self.told.len() >= REMEMBERED_MAX {
            self.told.retain(|_, (at, _)| now - *at < COUNT_EVERY);
        }
        let at = match self.told.get(user) {
            Some((at, _)) if !alone => *at,
            None if !alone => now.checked_sub(COUNT_EVERY).unwrap_or(now),
            _ => now,
        };
        self.told.insert(user.to_owned(), (at, count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_told_a_few_at_a_time() {
        let user = ruma::owned_user_id!("@a:example.jp");
        let mut badges = Badges::default();
        badges.mark(user.clone());
        let first = badges.next().unwrap();
        badges.mark(user.clone());
        assert_eq!(badges.next(), Some(first), "a second reading does not put it off");
        assert!(badges.take_due().is_empty());
        badges.due.clear();
        badges.remember(&user, 3, true);
        badges.mark(user.clone());
        assert!(badges.next().unwrap() > Instant::now() + COUNT_EVERY - SETTLE);
        badges.due.clear();
        badges.told.clear();
        badges.remember(&user, 3, false);
        badges.mark(user);
        assert!(badges.next().unwrap() <= Instant::now() + SETTLE);
    }
}
