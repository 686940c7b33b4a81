//! Suspended accounts, which read, leave and log out and do little else, and locked ones, which do nothing but log out
//! (client-server API, "Account suspension", "Account locking"). Set by city staff; in memory, asked on every request.

use std::{collections::HashMap, sync::Arc};

use http::Method;
use ruma::{OwnedUserId, UserId};

use super::register::is_city_staff;
use crate::{
    error::{Code, Error, Result, forbidden, invalid, not_found, refuse},
    rooms::{batch::Batch, live::parking::RwLock},
    server::Server,
    store::{self, Conn, Db, moderation::Row},
};

/// How an account stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It may read and little else.
    pub suspended: bool,
    /// It may do nothing but log out.
    pub locked: bool,
}

/// What is to change.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// Suspend, or end it.
    Suspended(bool),
    /// Lock, or end it.
    Locked(bool),
}

/// The accounts that are suspended or locked.
#[derive(Default)]
pub struct Moderation {
    by_user: RwLock<HashMap<OwnedUserId, Standing>>,
}

impl Moderation {
    /// Reads them all.
    pub async fn load(db: &Db) -> Result<Self> {
        let all = Self::default();
        for row in store::moderation::all(&mut db.read().await?).await? {
            let standing = Standing { suspended: row.suspended, locked: row.locked };
            all.by_user.write().insert(OwnedUserId::try_from(row.user_id)?, standing);
        }
        Ok(all)
    }

    /// How an account stands.
    pub fn of(&self, user_id: &UserId) -> Standing {
        self.by_user.read().get(user_id).copied().unwrap_or_default()
    }

    fn put(&self, user_id: OwnedUserId, standing: Standing) {
        let mut all = self.by_user.write();
        if standing == Standing::default() {
            all.remove(&user_id);
        } else {
            all.insert(user_id, standing);
        }
    }
}

/// Whether somebody administers the server: city staff, and in the open profile who was registered so.
pub async fn is_admin(server: &Server, conn: &mut Conn, user_id: &str) -> Result<bool> {
    if server.config.policy.open_profile {
        return store::accounts::is_admin(conn, user_id).await;
    }
    is_city_staff(conn, user_id).await
}

/// The account that an administrator names: of this server, active, not an administrator, not an appservice's.
pub async fn subject(server: &Server, conn: &mut Conn, user_id: &UserId) -> Result<()> {
    if !server.is_local(user_id) {
        return Err(invalid("The user does not belong to this server."));
    }
    let account = store::accounts::account(conn, user_id.as_str()).await?;
    let account = account
        .filter(|account| account.status != "ended")
        .ok_or_else(|| not_found("There is no such user."))?;
    if account.kind == "appservice" || is_admin(server, conn, user_id.as_str()).await? {
        return Err(forbidden(
            "Accounts of city staff and of appservices are neither suspended nor locked this way (市職員のIDは対象外です).",
        ));
    }
    Ok(())
}

/// Changes how an account stands; returns what it is now. Memory follows after the commit, and long polls wake.
pub async fn change(
    batch: &mut Batch,
    moderation: &Arc<Moderation>,
    user_id: &UserId,
    change: Change,
    by: &UserId,
) -> Result<Standing> {
    let rows = store::moderation::all(batch.reading()).await?;
    let mut row = rows.into_iter().find(|row| row.user_id == user_id.as_str()).unwrap_or_else(|| Row {
        user_id: user_id.to_string(),
        suspended: false,
        locked: false,
    });
    match change {
        Change::Suspended(to) => row.suspended = to,
        Change::Locked(to) => row.locked = to,
    }
    let now = batch.now;
    store::moderation::set(batch.sql().await?, &row, by.as_str(), now).await?;
    let standing = Standing { suspended: row.suspended, locked: row.locked };
    let (moderation, live, user_id) = (Arc::clone(moderation), Arc::clone(&batch.live), user_id.to_owned());
    batch.after_commit(move || {
        moderation.put(user_id.clone(), standing);
        live.user(&user_id).wake.notify_waiters();
    });
    Ok(standing)
}

/// Whether an account may make this request now.
pub fn check(server: &Server, user_id: &UserId, method: &Method, path: &str) -> Result<()> {
    let standing = server.moderation.of(user_id);
    if standing.locked && !logs_out(path) {
        return Err(locked());
    }
    if standing.suspended && !may_call(method, path) {
        return Err(suspended());
    }
    Ok(())
}

/// The refusal of a locked account. The client keeps what it has and tries again now and then.
pub fn locked() -> Error {
    refuse(
        Code::UserLocked,
        "This account has been locked: please ask the city desk (この利用者IDは利用を停止されています).",
    )
    .with("soft_logout", true)
}

/// The refusal of a suspended account.
pub fn suspended() -> Error {
    refuse(
        Code::UserSuspended,
        "This account has been suspended: it may read, leave rooms and log out (この利用者IDは書き込みを停止されています).",
    )
}

fn logs_out(path: &str) -> bool {
    matches!(parts(path).as_deref(), Some(["logout"] | ["logout", "all"]))
}

/// The parts of a client-server path after its version.
fn parts(path: &str) -> Option<Vec<&str>> {
    let rest = path.strip_prefix("/_matrix/client/")?;
    let rest = rest.strip_prefix("unstable/").unwrap_or(rest);
    Some(rest.split_once('/')?.1.split('/').collect())
}

/// What a suspended account may call beside reading: the rest is refused, new endpoints too. A redaction of what somebody
/// else wrote is refused where it is made.
fn may_call(method: &Method, path: &str) -> bool {
    if matches!(*method, Method::GET | Method::HEAD) {
        return true;
    }
    matches!(
        parts(path).as_deref(),
        Some(
            ["logout"]
                | ["logout", "all"]
                | ["sync"]
                | ["search"]
                | ["publicRooms"]
                | ["user_directory", "search"]
                // One's own account, devices, settings and keys.
                | ["account", ..]
                | ["devices", _]
                | ["delete_devices"]
                | ["user", _, ..]
                | ["pushers", "set"]
                | ["pushrules", ..]
                | ["keys", ..]
                | ["room_keys", ..]
                | ["sendToDevice", _, _]
                | ["dehydrated_device", ..]
                // What was read, and going.
                | ["rooms", _, "receipt", _, _]
                | ["rooms", _, "read_markers"]
                | ["rooms", _, "leave"]
                | ["rooms", _, "forget"]
                | ["rooms", _, "redact", _, _]
                | ["rooms", _, "report"]
                | ["rooms", _, "report", _]
                | ["users", _, "report"]
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspended_account_reads_and_goes() {
        for (method, path) in [
            (Method::GET, "/_matrix/client/v3/sync"),
            (Method::POST, "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"),
            (Method::GET, "/_matrix/client/v1/media/download/a/b"),
            (Method::POST, "/_matrix/client/v3/logout"),
            (Method::POST, "/_matrix/client/v3/rooms/!a/leave"),
            (Method::PUT, "/_matrix/client/v3/rooms/!a/redact/$e/1"),
            (Method::POST, "/_matrix/client/v3/keys/upload"),
            (Method::PUT, "/_matrix/client/v3/user/@a/account_data/m.direct"),
            (Method::POST, "/_matrix/client/v3/account/deactivate"),
        ] {
            assert!(may_call(&method, path), "{path}");
        }
        for (method, path) in [
            (Method::PUT, "/_matrix/client/v3/rooms/!a/send/m.room.message/1"),
            (Method::PUT, "/_matrix/client/v3/rooms/!a/state/m.room.name/"),
            (Method::PUT, "/_matrix/client/v3/rooms/!a/state/leave"),
            (Method::POST, "/_matrix/client/v3/rooms/!a/join"),
            (Method::POST, "/_matrix/client/v3/join/!a"),
            (Method::POST, "/_matrix/client/v3/knock/!a"),
            (Method::POST, "/_matrix/client/v3/createRoom"),
            (Method::POST, "/_matrix/client/v3/rooms/!a/invite"),
            (Method::POST, "/_matrix/client/v3/rooms/!a/upgrade"),
            (Method::PUT, "/_matrix/client/v3/profile/@a/displayname"),
            (Method::PUT, "/_matrix/client/v3/rooms/!a/typing/@a"),
            (Method::PUT, "/_matrix/client/v3/presence/@a/status"),
            (Method::POST, "/_matrix/media/v3/upload"),
            (Method::PUT, "/_matrix/media/v3/upload/a/b"),
            (Method::POST, "/_matrix/media/v1/create"),
            (Method::PUT, "/_synapse/admin/v2/users/@a"),
            (Method::POST, "/_matrix/client/v1/login/get_token"),
        ] {
            assert!(!may_call(&method, path), "{path}");
        }
    }

    #[test]
    fn a_locked_account_logs_out_only() {
        assert!(logs_out("/_matrix/client/v3/logout") && logs_out("/_matrix/client/r0/logout/all"));
        for path in [
            "/_matrix/client/v3/sync",
            "/_matrix/client/v3/account/whoami",
            "/_matrix/media/v3/logout",
            "/logout",
        ] {
            assert!(!logs_out(path), "{path}");
        }
    }
}
