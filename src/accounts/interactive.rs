//! User-interactive authentications under way (client-server API, "User-Interactive Authentication API"). Each is for one
//! user and one operation with its target and body, lasts ten minutes and is used up by the operation. No password is ever
//! kept: whoever gives one gives it with the operation itself.

use std::collections::HashMap;

use ruma::{OwnedUserId, UserId};

use crate::rooms::live::parking::Mutex;

/// How long one lasts: ten minutes.
const LIFE_MS: i64 = 600_000;
/// Under way at once, in all and for one user; the oldest give way.
const ALL_MAX: usize = 10_000;
const USER_MAX: usize = 20;

struct Pending {
    user_id: OwnedUserId,
    operation: String,
    device: Option<String>,
    at: i64,
    approved: bool,
}

/// One that waits for its user on the account page.
#[derive(Debug)]
pub struct Waiting {
    /// Its id.
    pub session: String,
    /// The device that asks.
    pub device: String,
    /// What for.
    pub operation: String,
}

/// All of them.
#[derive(Default)]
pub struct Interactive(Mutex<HashMap<String, Pending>>);

impl Interactive {
    /// Begins one; `device` is the device that asks, where its user answers on the account page.
    pub fn begin(&self, user_id: &UserId, operation: &str, device: Option<&str>, now: i64) -> String {
        let mut all = self.0.lock();
        if all.len() >= ALL_MAX {
            all.retain(|_, one| now - one.at < LIFE_MS);
        }
        let mut own: Vec<(i64, String)> = all
            .iter()
            .filter(|(_, one)| one.user_id == user_id)
            .map(|(id, one)| (one.at, id.clone()))
            .collect();
        if own.len() >= USER_MAX {
            own.sort_unstable();
            for (_, id) in own.drain(..=own.len() - USER_MAX) {
                all.remove(&id);
            }
        }
        if all.len() >= ALL_MAX
            && let Some(oldest) = all.iter().min_by_key(|(_, one)| one.at).map(|(id, _)| id.clone())
        {
            all.remove(&oldest);
        }
        let id = crate::clock::random_token(24);
        let pending = Pending {
            user_id: user_id.to_owned(),
            operation: operation.to_owned(),
            device: device.map(ToOwned::to_owned),
            at: now,
            approved: false,
        };
        all.insert(id.clone(), pending);
        id
    }

    /// Whether one was begun by this user for this operation.
    pub fn is_for(&self, session: &str, user_id: &UserId, operation: &str, now: i64) -> bool {
        self.0
            .lock()
            .get(session)
            .is_some_and(|one| one.user_id == user_id && one.operation == operation && now - one.at < LIFE_MS)
    }

    /// Uses one up.
    pub fn end(&self, session: &str) {
        self.0.lock().remove(session);
    }

    /// Uses one up that its user approved on the account page; false where they have not.
    pub fn take_approved(&self, session: &str, user_id: &UserId, operation: &str, now: i64) -> bool {
        let mut all = self.0.lock();
        let approved = all.get(session).is_some_and(|one| {
            one.approved && one.user_id == user_id && one.operation == operation && now - one.at < LIFE_MS
        });
        if approved {
            all.remove(session);
        }
        approved
    }

    /// Those that wait for a user on the account page, oldest first.
    pub fn waiting(&self, user_id: &UserId, now: i64) -> Vec<Waiting> {
        let all = self.0.lock();
        let mut found: Vec<(i64, Waiting)> = all
            .iter()
            .filter(|(_, one)| one.user_id == user_id && !one.approved && now - one.at < LIFE_MS)
            .filter_map(|(id, one)| {
                let device = one.device.clone()?;
                Some((one.at, Waiting { session: id.clone(), device, operation: one.operation.clone() }))
            })
            .collect();
        found.sort_by_key(|(at, _)| *at);
        found.into_iter().map(|(_, waiting)| waiting).collect()
    }

    /// The user approves one on the account page; false where there is none.
    pub fn approve(&self, session: &str, user_id: &UserId, now: i64) -> bool {
        let mut all = self.0.lock();
        let found = all.get_mut(session).filter(|one| {
            one.user_id == user_id && one.device.is_some() && !one.approved && now - one.at < LIFE_MS
        });
        found.is_some_and(|one| {
            one.approved = true;
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn one_is_good_for_one_user_one_operation_ten_minutes_once() {
        let (all, a, b) = (Interactive::default(), user_id!("@a:x"), user_id!("@b:x"));
        let id = all.begin(a, "delete devices [\"D\"]", Some("E"), 1_000);
        assert!(all.is_for(&id, a, "delete devices [\"D\"]", 1_001));
        assert!(!all.is_for(&id, b, "delete devices [\"D\"]", 1_001));
        assert!(!all.is_for(&id, a, "delete devices [\"E\"]", 1_001));
        assert!(!all.is_for(&id, a, "delete devices [\"D\"]", 1_000 + LIFE_MS));
        assert!(!all.take_approved(&id, a, "delete devices [\"D\"]", 1_001), "nobody approved it");
        assert!(!all.approve(&id, b, 1_001), "another user approved it");
        assert!(all.approve(&id, a, 1_001));
        assert!(!all.take_approved(&id, a, "deactivate", 1_001), "approved for something else");
        assert!(all.take_approved(&id, a, "delete devices [\"D\"]", 1_001));
        assert!(!all.take_approved(&id, a, "delete devices [\"D\"]", 1_001), "used twice");
    }

    #[test]
    fn there_are_only_so_many() {
        let (all, a) = (Interactive::default(), user_id!("@a:x"));
        let first = all.begin(a, "x", None, 0);
        for at in 1..100 {
            all.begin(a, "x", None, at);
        }
        assert_eq!(all.0.lock().len(), USER_MAX);
        assert!(!all.is_for(&first, a, "x", 100));
    }
}
