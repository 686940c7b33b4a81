//! Logging in: password right **and** certificate valid and of one of the account's facilities. Whatever was wrong,
//! the answer is one identical 403 that cost exactly one hash run (DESIGN 1, C11).

use std::{collections::HashMap, sync::Arc};

use ruma::{OwnedUserId, UserId};
use unicode_normalization::UnicodeNormalization as _;

use super::{
    addresses::owe_mail,
    passwords::PASSWORD_BYTES_MAX,
    sessions::{self, Tokens},
    terminals::{self, Known},
};
use crate::{
    audit,
    error::{Code, Error, Result, forbidden, refuse},
    rooms::{city, committer::Hint, live::parking::Mutex},
    server::Server,
    store,
};

/// Pairs of ID and terminal remembered.
const REMEMBERED_MAX: usize = 50_000;
/// Tries that wait for their turn at once.
const TURNS_MAX: usize = 200;
/// An ID is locked everywhere after so many times the failures of one terminal.
const ANYWHERE_FACTOR: u32 = 6;

/// What failures are counted for: an ID on a terminal (0: none), or an ID anywhere.
type Counted = (String, Option<i64>);

/// Failed logins by (ID as typed, terminal) and, with a higher ceiling, by ID.
pub struct Lockout {
    failures_max: u32,
    lock_ms: i64,
    failures: Mutex<HashMap<Counted, (u32, i64)>>,
    /// Lines in which the tries of IDs wait for each other; several IDs may share one.
    turns: [tokio::sync::Mutex<()>; 64],
    /// Places in all lines together.
    places: tokio::sync::Semaphore,
}

/// The turn of a try; the next one begins when it is dropped.
pub struct Turn<'a> {
    _line: tokio::sync::MutexGuard<'a, ()>,
    _place: tokio::sync::SemaphorePermit<'a>,
}

impl Lockout {
    /// Locks after `failures_max` for `minutes`.
    pub fn new(failures_max: u32, minutes: u32) -> Self {
        Self {
            failures_max: failures_max.max(1),
            lock_ms: i64::from(minutes) * 60_000,
            failures: Mutex::default(),
            turns: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            places: tokio::sync::Semaphore::new(TURNS_MAX),
        }
    }

    fn ceilings(&self, id: &str, terminal: Option<i64>) -> [(Counted, u32); 2] {
        [
            ((id.to_owned(), terminal.or(Some(0))), self.failures_max),
            ((id.to_owned(), None), self.failures_max * ANYWHERE_FACTOR),
        ]
    }

    /// Whether the ID is locked on this terminal.
    pub fn is_locked(&self, id: &str, terminal: Option<i64>, now: i64) -> bool {
        let failures = self.failures.lock();
        self.ceilings(id, terminal)
            .iter()
            .any(|(key, max)| failures.get(key).is_some_and(|(n, at)| n >= max && now - at < self.lock_ms))
    }

    /// Counts a failure; true where it is the one that locks.
    pub fn failed(&self, id: &str, terminal: Option<i64>, now: i64) -> bool {
        let mut failures = self.failures.lock();
        if failures.len() >= REMEMBERED_MAX {
            failures.retain(|_, (_, at)| now - *at < self.lock_ms);
        }
        let mut locks = false;
        let here = self.ceilings(id, terminal);
        let is_full = |(key, max): &(Counted, u32)| {
            failures.get(key).is_some_and(|(n, at)| n >= max && now - at < self.lock_ms)
        };
        if is_full(&here[0]) {
            // No guess of this terminal is looked at: it must not lock the ID for others.
            return false;
        }
        for (key, max) in here {
            let (n, at) = failures.entry(key).or_insert((0, now));
            if now - *at >= self.lock_ms {
                *n = 0;
            }
            if *n >= max {
                // Locked already: trying on does not make it longer.
                continue;
            }
            *n += 1;
            *at = now;
            locks |= *n == max;
        }
        locks
    }

    /// Waits until the tries of an ID before this one are counted, so that none of many at once is looked at beyond the
    /// ceiling. Held from the look at the lock to the count.
    pub async fn turn(&self, id: &str) -> Result<Turn<'_>> {
        let place = self.places.try_acquire().map_err(|_| {
            refuse(
                Code::LimitExceeded { retry_after_ms: 2_000 },
                "Too many people are logging in at this moment: please try again.",
            )
        })?;
        use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(id);
        let line = usize::try_from(hash % self.turns.len() as u64).unwrap_or_default();
        Ok(Turn { _line: self.turns[line].lock().await, _place: place })
    }

    /// Forgets the failures of an ID on a terminal after a success.
    pub fn succeeded(&self, id: &str, terminal: Option<i64>) {
        self.failures.lock().remove(&(id.to_owned(), terminal.or(Some(0))));
    }
}

/// A login that was asked for.
pub struct Attempt {
    /// The ID as typed: a login id or a whole user id.
    pub id: String,
    /// The password.
    pub password: String,
    /// The terminal of the connection.
    pub terminal: Option<Known>,
    /// The device to log in as; a new one where none is named.
    pub device_id: Option<String>,
    /// The device's name.
    pub device_name: Option<String>,
    /// The client can refresh its access token.
    pub refreshes: bool,
    /// Where from.
    pub address: std::net::IpAddr,
}

impl Attempt {
    /// One of a page, which makes no session.
    pub fn on_page(id: &str, password: &str, terminal: Option<Known>, address: std::net::IpAddr) -> Self {
        Self {
            id: id.to_owned(),
            password: password.to_owned(),
            terminal,
            device_id: None,
            device_name: None,
            refreshes: false,
            address,
        }
    }
}

/// A login that succeeded.
pub struct LoggedIn {
    /// Who.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: String,
    /// The tokens.
    pub tokens: Tokens,
}

/// The one refusal.
pub fn refused() -> Error {
    forbidden(
        "The ID or the password is wrong, or this terminal may not be used with it \
         (利用者IDまたはパスワードが違うか、この端末では使えません).",
    )
}

/// Somebody who has given ID and password.
#[derive(Clone)]
pub struct Proven {
    /// Who.
    pub user_id: OwnedUserId,
    /// The password's hash, as it was when it was looked at.
    password_hash: String,
}

/// Without the hash, which is in no log.
impl std::fmt::Debug for Proven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proven").field("user_id", &self.user_id).finish_non_exhaustive()
    }
}

impl Proven {
    /// Whether the account is still as it was: active, with the same password. Hashing takes a while and may wait, and in
    /// that time the city may have ended the account or reset its password; so the unit that makes something of a proof
    /// asks again.
    pub fn holds(&self, account: Option<&store::accounts::Account>) -> bool {
        account.is_some_and(|account| {
            account.status == "active"
                && account.password_own
                && account.password_hash.as_deref() == Some(self.password_hash.as_str())
        })
    }
}

/// Checks ID and password with exactly one hash run; who it is, or none.
async fn who_is(server: &Server, attempt: &Attempt, id: &str) -> Result<Option<Proven>> {
    let user_id = user_id_of(server, id);
    let terminal = attempt.terminal.as_ref().map(|known| known.terminal);
    let locked = server.lockout.is_locked(id, terminal, server.now());
    let too_long = attempt.password.len() > PASSWORD_BYTES_MAX;
    let account = match &user_id {
        Some(user_id) if !locked && !too_long => {
            let mut conn = server.db.read().await?;
            let account = store::accounts::account(&mut conn, user_id.as_str()).await?;
            let here = match &attempt.terminal {
                Some(known) => terminals::belongs(&mut conn, user_id, known.facility).await?,
                None => true,
            };
            let locked = server.moderation.of(user_id).locked;
            account.filter(|a| {
                here && !locked && a.status == "active" && a.password_own && a.kind != "appservice"
            })
        }
        _ => None,
    };
    let hash = account.as_ref().and_then(|a| a.password_hash.as_deref());
    let password = if too_long { "" } else { attempt.password.as_str() };
    let right = server.passwords.verify(password, hash.unwrap_or(server.passwords.decoy())).await?;
    Ok(match (user_id, hash) {
        (Some(user_id), Some(hash)) if right => Some(Proven { user_id, password_hash: hash.to_owned() }),
        _ => None,
    })
}

/// The ID in one form, for counting failures: NFKC, lower case, without spaces; the localpart where it is a user id of
/// this server, so that every spelling of one ID counts together.
pub fn typed(server: &Server, id: &str) -> String {
    let id: String =
        id.nfkc().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).take(255).collect();
    user_id_of(server, &id).map_or(id, |user_id| user_id.localpart().to_owned())
}

/// The user id of a login id as typed.
pub fn user_id_of(server: &Server, id: &str) -> Option<OwnedUserId> {
    let user_id = if id.starts_with('@') {
        <&UserId>::try_from(id).ok()?.to_owned()
    } else {
        UserId::parse_with_server_name(id, &server.name).ok()?
    };
    server.is_local(&user_id).then_some(user_id)
}

/// Who it is that logs in, by ID, password and terminal; makes no session. Every way in goes through here: one hash run,
/// one refusal, the same counting.
pub async fn authenticate(server: &Arc<Server>, attempt: &Attempt) -> Result<Proven> {
    let id = typed(server, &attempt.id);
    let now = server.now();
    let terminal = attempt.terminal.as_ref().map(|known| known.terminal);
    let turn = server.lockout.turn(&id).await?;
    let Some(proven) = who_is(server, attempt, &id).await? else {
        let locks = server.lockout.failed(&id, terminal, now);
        drop(turn);
        record_failure(server, attempt, &id, locks).await?;
        return Err(refused());
    };
    server.lockout.succeeded(&id, terminal);
    Ok(proven)
}

/// Logs in.
pub async fn log_in(server: &Arc<Server>, attempt: Attempt) -> Result<LoggedIn> {
    let proven = authenticate(server, &attempt).await?;
    let user_id = proven.user_id.clone();
    check_device(attempt.device_id.as_deref(), attempt.device_name.as_deref())?;
    let device_id = attempt.device_id.clone().unwrap_or_else(|| crate::clock::readable_code(10));
    let sessions = Arc::clone(&server.sessions);
    let new = sessions::New {
        device_name: attempt.device_name.clone(),
        refreshed_after: attempt
            .refreshes
            .then_some(i64::from(server.config.limits.access_token_seconds) * 1000),
        ..sessions::New::here(user_id.clone(), device_id.clone(), attempt.terminal.as_ref())
    };
    let entry = entry(&attempt, user_id.as_str(), server.now(), "login", "ok");
    let tokens = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let account = store::accounts::account(batch.reading(), proven.user_id.as_str()).await?;
                if !proven.holds(account.as_ref()) {
                    return Err(refused());
                }
                let tokens = sessions::begin(batch, &sessions, new).await?;
                batch.audit(entry);
                Ok(tokens)
            })
        })
        .await?;
    Ok(LoggedIn { user_id, device_id, tokens })
}

/// Bounds on what a client calls itself.
pub fn check_device(device_id: Option<&str>, name: Option<&str>) -> Result<()> {
    let long = device_id.is_some_and(|id| id.is_empty() || id.len() > 255)
        || name.is_some_and(|name| name.chars().count() > 100);
    if long {
        Err(crate::error::invalid("A device id has 1 to 255 bytes, its name at most 100 characters."))
    } else {
        Ok(())
    }
}

/// A line of the audit log about a log-in.
pub fn entry(attempt: &Attempt, actor: &str, now: i64, action: &str, result: &str) -> audit::Entry {
    audit::Entry {
        at: now,
        actor: actor.to_owned(),
        terminal: attempt.terminal.as_ref().map(|known| known.terminal),
        certificate: attempt.terminal.as_ref().map(|known| known.serial.clone()),
        address: Some(attempt.address.to_string()),
        action: action.to_owned(),
        result: result.to_owned(),
        ..audit::Entry::default()
    }
}

/// A failure goes to the audit log; the one that locks also to the city's control room (C10).
pub async fn record_failure(server: &Arc<Server>, attempt: &Attempt, id: &str, locks: bool) -> Result<()> {
    // What was typed may be a password in the wrong field: only something that looks like an ID is recorded.
    let shown = user_id_of(server, id).filter(|user_id| {
        let local = user_id.localpart();
        local.len() <= 8 && local.starts_with(['p', 'f'])
    });
    let actor = shown.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let entry = entry(attempt, &actor, server.now(), "login", if locks { "locked" } else { "refused" });
    let city = server.city_user.clone();
    let minutes = server.config.policy.lockout_minutes;
    let owed = Arc::clone(&server.mail_owed);
    let name = shown.as_ref().map_or_else(|| "不明なID".to_owned(), |user_id| user_id.localpart().to_owned());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                batch.audit(entry);
                if locks
                    && let Some(room) = store::meta::value(batch.reading(), "control_room").await?
                    && let Ok(room) = <&ruma::RoomId>::try_from(room.as_str())
                {
                    let text = format!(
                        "利用者ID「{name}」で続けてログインに失敗したため、{minutes}分間ロックしました。\
                         心当たりを本人・事業所に確認してください。"
                    );
                    city::say(batch, &city, room, &text).await?;
                }
                // And to whoever the ID belongs to, where they have an address: only they know whether it was them.
                if let (true, Some(user_id)) = (locks, &shown) {
                    let parameters = serde_json::json!({"login_id": user_id.localpart()});
                    owe_mail(batch, &owed, user_id.as_str(), "lockout", parameters).await?;
                }
                Ok(())
            })
        })
        .await
}

/// Checks a password of someone who is logged in (user-interactive authentication), with the same counting.
pub async fn confirm_password(
    server: &Arc<Server>,
    user_id: &UserId,
    password: &str,
    known: Option<&Known>,
    address: std::net::IpAddr,
) -> Result<bool> {
    let terminal = known.map(|known| known.terminal);
    let id = typed(server, user_id.localpart());
    let now = server.now();
    let turn = server.lockout.turn(&id).await?;
    let account = store::accounts::account(&mut server.db.read().await?, user_id.as_str()).await?;
    let usable = !server.lockout.is_locked(&id, terminal, now) && password.len() <= PASSWORD_BYTES_MAX;
    let hash = account.filter(|_| usable).and_then(|account| account.password_hash);
    let password = if usable { password } else { "" };
    let right =
        server.passwords.verify(password, hash.as_deref().unwrap_or(server.passwords.decoy())).await?
            && hash.is_some();
    if right {
        server.lockout.succeeded(&id, terminal);
        return Ok(true);
    }
    let locks = server.lockout.failed(&id, terminal, now);
    drop(turn);
    if locks {
        let attempt = Attempt::on_page(&id, "", known.cloned(), address);
        record_failure(server, &attempt, &id, true).await?;
    }
    Ok(right)
}
