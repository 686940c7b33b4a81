//! Sessions: access tokens, in memory by their hash. A token is 43 random letters and digits (256 bits) and is
//! stored hashed; whoever reads the database learns none.
//!
//! A session that can be refreshed has access tokens that run out and a refresh token, which every refresh replaces. The
//! one before stays good until a newer token is used, since the answer may have been lost (client-server API,
//! `POST /refresh`); after that its use ends the session, since two know it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use ruma::{OwnedUserId, UserId};
use sha2::{Digest as _, Sha256};

use super::terminals::Known;
use crate::{
    audit,
    error::{Error, Result},
    keys,
    push::Pushers,
    rooms::{
        batch::Batch,
        committer::Hint,
        live::parking::{Mutex, RwLock},
    },
    server::Server,
    store::{self, Db, sessions::Session},
};

/// What a session is bound to, fixed at the log-in (DESIGN 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Every request comes on a connection of its terminal.
    Connection,
    /// The certificate was shown at the log-in; requests may come without one. OAuth grants only.
    Login,
    /// No certificate was asked for.
    None,
}

impl Binding {
    /// As it is stored.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Login => "login",
            Self::None => "none",
        }
    }

    fn of(word: &str) -> Result<Self> {
        match word {
            "connection" => Ok(Self::Connection),
            "login" => Ok(Self::Login),
            "none" => Ok(Self::None),
            _ => Err(Error::internal("a session has an unknown binding")),
        }
    }
}

/// A session in memory, by one of its access tokens.
#[derive(Debug)]
pub struct LiveSession {
    /// Whose.
    pub user_id: OwnedUserId,
    /// The Matrix device.
    pub device_id: String,
    /// The terminal that it is bound to.
    pub terminal: Option<i64>,
    /// What it is bound to.
    pub binding: Binding,
    /// The serial number (hex) of the certificate shown at the log-in.
    pub certificate: Option<String>,
    /// When the access token runs out (ms).
    pub expires_at: Option<i64>,
    /// The OAuth client.
    pub client_id: Option<String>,
    /// The token's hash.
    pub token_hash: String,
    /// The token came by a refresh and was not used yet.
    pub unused: AtomicBool,
    /// When it was last used (ms).
    pub last_seen: AtomicI64,
    /// As far as that is stored.
    seen_saved: AtomicI64,
    /// From where it was last used.
    pub last_address: Mutex<Option<std::net::IpAddr>>,
    /// Requests that may still come at once, in thousandths; see `http::caller`.
    pub allowance: AtomicI64,
    /// When the allowance was last counted (ms).
    pub counted_at: AtomicI64,
    /// Wakes the session's long polls when it ends. One for all tokens of a session: a poll under the token before ends
    /// with it.
    pub ended: Arc<tokio::sync::watch::Sender<bool>>,
}

/// All sessions.
#[derive(Default)]
pub struct Sessions {
    by_hash: RwLock<HashMap<String, Arc<LiveSession>>>,
    /// What devices set goes with them (C19).
    pushers: Arc<Pushers>,
    /// How often all of a user's sessions were ended in this run.
    endings: Mutex<HashMap<OwnedUserId, u64>>,
}

/// SHA-256, in hex: how tokens and codes are stored.
pub fn hash_of(secret: &str) -> String {
    crate::audit::hex(&Sha256::digest(secret.as_bytes()))
}

impl Sessions {
    /// Reads them all.
    pub async fn load(db: &Db, pushers: Arc<Pushers>) -> Result<Self> {
        let mut conn = db.read().await?;
        let all = Self { pushers, ..Self::default() };
        for session in store::sessions::all_sessions(&mut conn).await? {
            all.insert(&session)?;
        }
        Ok(all)
    }

    fn insert(&self, session: &Session) -> Result<()> {
        let user_id = OwnedUserId::try_from(session.user_id.as_str())?;
        let binding = Binding::of(&session.binding)?;
        let mut all = self.by_hash.write();
        // A further token of a session that is known.
        let known = match session.expires_at {
            Some(_) => all.values().find(|known| known.is_of(&user_id, &session.device_id)),
            None => None,
        };
        let ended = known.map(|known| Arc::clone(&known.ended)).unwrap_or_default();
        let live = LiveSession {
            user_id,
            device_id: session.device_id.clone(),
            terminal: session.terminal,
            binding,
            certificate: session.certificate.clone(),
            expires_at: session.expires_at,
            client_id: session.client_id.clone(),
            token_hash: session.token_hash.clone(),
            unused: AtomicBool::new(session.unused),
            last_seen: AtomicI64::new(0),
            seen_saved: AtomicI64::new(0),
            last_address: Mutex::new(None),
            allowance: AtomicI64::new(i64::MAX),
            counted_at: AtomicI64::new(0),
            ended,
        };
        all.insert(session.token_hash.clone(), Arc::new(live));
        Ok(())
    }

    /// The session of a token.
    pub fn of_token(&self, token: &str) -> Option<Arc<LiveSession>> {
        self.by_hash.read().get(&hash_of(token)).cloned()
    }

    /// How often all of a user's sessions were ended in this run.
    pub fn endings(&self, user_id: &UserId) -> u64 {
        self.endings.lock().get(user_id).copied().unwrap_or_default()
    }

    /// Ends the sessions that are picked; returns how many.
    fn drop_where(&self, pick: impl Fn(&LiveSession) -> bool) -> usize {
        let mut all = self.by_hash.write();
        let before = all.len();
        all.retain(|_, session| {
            let goes = pick(session);
            if goes {
                session.ended.send_replace(true);
            }
            !goes
        });
        before - all.len()
    }

    /// Forgets tokens whose session goes on under another.
    fn forget_tokens(&self, hashes: &[String]) {
        let mut all = self.by_hash.write();
        for hash in hashes {
            all.remove(hash);
        }
    }

    fn is_used(&self, hash: Option<&str>) {
        if let Some(session) = hash.and_then(|hash| self.by_hash.read().get(hash).cloned()) {
            session.unused.store(false, Ordering::Release);
        }
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.by_hash.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_hash.read().is_empty()
    }

    /// When a device was last seen, as far as memory knows.
    pub fn last_seen(&self, user_id: &UserId, device_id: &str) -> Option<i64> {
        self.by_hash
            .read()
            .values()
            .filter(|s| s.is_of(user_id, device_id))
            .map(|s| s.last_seen.load(Ordering::Relaxed))
            .max()
            .filter(|at| *at > 0)
    }

    /// Those that were used since their last use was stored, by a while.
    fn seen_since(&self, a_while: i64) -> Vec<Arc<LiveSession>> {
        let moved = |s: &&Arc<LiveSession>| {
            s.last_seen.load(Ordering::Relaxed) > s.seen_saved.load(Ordering::Relaxed).saturating_add(a_while)
        };
        self.by_hash.read().values().filter(moved).take(SEEN_MAX).cloned().collect()
    }

    /// From where a device was last seen since the start.
    pub fn last_address(&self, user_id: &UserId, device_id: &str) -> Option<std::net::IpAddr> {
        self.by_hash
            .read()
            .values()
            .filter(|s| s.user_id == user_id && s.device_id == device_id)
            .max_by_key(|s| s.last_seen.load(Ordering::Relaxed))
            .and_then(|s| *s.last_address.lock())
    }
}

impl LiveSession {
    fn is_of(&self, user_id: &UserId, device_id: &str) -> bool {
        self.user_id == user_id && self.device_id == device_id
    }

    /// Whether the access token has run out.
    pub fn has_expired(&self, now: i64) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// Devices of one ID: a facility ID is shared by many staff, each with several logins.
const DEVICES_MAX: usize = 250;
/// When a device was last used is stored once it has moved by so much, of so many at once.
const SEEN_EVERY_MS: i64 = 600_000;
const SEEN_MAX: usize = 1_000;
/// A refresh token that nobody used for so long is no longer good: 90 days.
const IDLE_MS: i64 = 90 * 86_400_000;

/// A session to begin.
pub struct New {
    /// Whose.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: String,
    /// Its name, where it is a new one.
    pub device_name: Option<String>,
    /// The terminal of the log-in.
    pub terminal: Option<i64>,
    /// The serial number (hex) of its certificate.
    pub certificate: Option<String>,
    /// What it is bound to.
    pub binding: Binding,
    /// The OAuth client and the scope it was given.
    pub client: Option<(String, String)>,
    /// How long an access token is good (ms), where there is a refresh token.
    pub refreshed_after: Option<i64>,
}

impl New {
    /// A session of a log-in on a connection of this terminal.
    pub fn here(user_id: OwnedUserId, device_id: String, known: Option<&Known>) -> Self {
        Self {
            user_id,
            device_id,
            device_name: None,
            terminal: known.map(|known| known.terminal),
            certificate: known.map(|known| known.serial.clone()),
            binding: if known.is_some() { Binding::Connection } else { Binding::None },
            client: None,
            refreshed_after: None,
        }
    }
}

/// The tokens of a session, as its client gets them.
#[derive(Debug)]
pub struct Tokens {
    /// The access token.
    pub access: String,
    /// The refresh token.
    pub refresh: Option<String>,
    /// How long the access token is good (ms).
    pub expires_in_ms: Option<i64>,
    /// What an OAuth client was given.
    pub scope: Option<String>,
}

/// Makes a session for a device, ending the device's former one, and returns its tokens.
pub async fn begin(batch: &mut Batch, sessions: &Arc<Sessions>, new: New) -> Result<Tokens> {
    let now = batch.now;
    let (user_id, device_id) = (new.user_id.as_str(), new.device_id.as_str());
    let access = crate::clock::random_token(43);
    let (client_id, scope) = new.client.unzip();
    let session = Session {
        token_hash: hash_of(&access),
        user_id: user_id.to_owned(),
        device_id: device_id.to_owned(),
        terminal: new.terminal,
        binding: new.binding.word().to_owned(),
        expires_at: new.refreshed_after.map(|ms| now + ms),
        client_id,
        scope: scope.clone(),
        certificate: new.certificate,
        unused: false,
    };
    check_room_for_device(batch, &new.user_id, device_id).await?;
    let dehydrated = store::keys::dehydrated_device(batch.reading(), user_id).await?;
    if dehydrated.is_some_and(|(dehydrated, _)| dehydrated == device_id) {
        return Err(crate::error::forbidden(
            "Nobody logs in as a dehydrated device (この端末IDは使えません).",
        ));
    }
    let conn = batch.sql().await?;
    store::sessions::delete_session(conn, user_id, device_id).await?;
    // What the session before it set goes with it.
    store::push::delete_of_device(conn, user_id, device_id).await?;
    store::personal::put_device(conn, user_id, device_id, new.device_name.as_deref(), now).await?;
    store::sessions::insert_session(conn, &session, now).await?;
    let refresh = match new.refreshed_after {
        Some(_) => Some(put_refresh_token(batch, user_id, device_id).await?),
        None => None,
    };
    let (sessions, user_id) = (Arc::clone(sessions), new.user_id);
    batch.after_commit(move || {
        sessions.drop_where(|s| s.is_of(&user_id, &session.device_id));
        sessions.pushers.remove_of_devices(&user_id, std::slice::from_ref(&session.device_id));
        if let Err(error) = sessions.insert(&session) {
            tracing::error!(%error, "a new session could not be put in memory");
        }
    });
    Ok(Tokens { access, refresh, expires_in_ms: new.refreshed_after, scope })
}

async fn put_refresh_token(batch: &mut Batch, user_id: &str, device_id: &str) -> Result<String> {
    let (token, now) = (crate::clock::random_token(43), batch.now);
    store::oauth::put_refresh_token(batch.sql().await?, &hash_of(&token), user_id, device_id, now).await?;
    Ok(token)
}

/// Who asks for a refresh.
#[derive(Clone, Debug)]
pub struct Refreshing {
    /// The refresh token.
    pub token: String,
    /// The OAuth client; none for `POST /refresh`.
    pub client_id: Option<String>,
    /// The terminal of the connection.
    pub terminal: Option<Known>,
    /// Where from.
    pub address: std::net::IpAddr,
}

/// What became of a refresh.
#[derive(Debug)]
pub enum Refreshed {
    /// New tokens.
    Tokens(Tokens),
    /// The token is not known, is another client's, or is bound to another terminal.
    Refused,
    /// The token was used before: whoever has it or the session's owner is a thief, and the session has ended.
    Reused,
}

/// Gives a session new tokens: durable before they are told, as every write is.
pub async fn refresh(server: &Arc<Server>, asked: Refreshing) -> Result<Refreshed> {
    let sessions = Arc::clone(&server.sessions);
    let lifetime = i64::from(server.config.limits.access_token_seconds) * 1000;
    let (terminals, login_allowed) = (Arc::clone(&server.terminals), server.allows_login_binding());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let (now, hash) = (batch.now, hash_of(&asked.token));
                let Some(token) = store::oauth::refresh_token(batch.reading(), &hash).await? else {
                    return Ok(Refreshed::Refused);
                };
                let (user, device) = (token.user_id.as_str(), token.device_id.as_str());
                let rows = store::sessions::sessions_of(batch.reading(), user, Some(device)).await?;
                // The newest access token: the unused one, where there is one.
                let Some(newest) = rows.iter().max_by_key(|row| row.unused) else {
                    return Ok(Refreshed::Refused);
                };
                let here = match Binding::of(&newest.binding)? {
                    Binding::Login => {
                        let same = asked
                            .terminal
                            .as_ref()
                            .is_none_or(|known| newest.terminal == Some(known.terminal));
                        let good = newest
                            .certificate
                            .as_deref()
                            .is_some_and(|serial| terminals.of_serial(serial, now).is_some());
                        login_allowed && same && good
                    }
                    Binding::Connection | Binding::None => {
                        newest.terminal == asked.terminal.as_ref().map(|known| known.terminal)
                    }
                };
                if !here || newest.client_id != asked.client_id || now - token.created_at > IDLE_MS {
                    return Ok(Refreshed::Refused);
                }
                let renewed = match token.state.as_str() {
                    "current" => true,
                    "previous" => newest.unused,
                    _ => false,
                };
                if !renewed {
                    end_session(batch, &sessions, user, device).await?;
                    batch.audit(reused(newest, &asked, now));
                    return Ok(Refreshed::Reused);
                }
                let (gone, used) = make_room(batch, &rows, &token).await?;
                let access = crate::clock::random_token(43);
                let session = Session {
                    token_hash: hash_of(&access),
                    expires_at: Some(now + lifetime),
                    unused: true,
                    ..newest.clone()
                };
                store::sessions::insert_session(batch.sql().await?, &session, now).await?;
                let refresh = put_refresh_token(batch, user, device).await?;
                let scope = session.scope.clone();
                batch.after_commit(move || {
                    if let Err(error) = sessions.insert(&session) {
                        tracing::error!(%error, "a new token could not be put in memory");
                    }
                    sessions.is_used(used.as_deref());
                    sessions.forget_tokens(&gone);
                });
                Ok(Refreshed::Tokens(Tokens {
                    access,
                    refresh: Some(refresh),
                    expires_in_ms: Some(lifetime),
                    scope,
                }))
            })
        })
        .await
}

/// Before further tokens: of those there are, keeps the ones that the client surely has. Returns the hashes of access
/// tokens that are no longer good, and of the one that counts as used now.
async fn make_room(
    batch: &mut Batch,
    rows: &[Session],
    token: &store::oauth::RefreshToken,
) -> Result<(Vec<String>, Option<String>)> {
    let (user, device) = (token.user_id.as_str(), token.device_id.as_str());
    let pending = rows.iter().any(|row| row.unused);
    let (mut gone, mut used) = (Vec::new(), None);
    let conn = batch.sql().await?;
    if token.state == "current" {
        // The client has what came by the last refresh, since it uses it now.
        store::oauth::move_refresh_tokens(conn, user, device, "previous", "spent").await?;
        store::oauth::move_refresh_tokens(conn, user, device, "current", "previous").await?;
    } else {
        // The answer before was lost: what was in it is nobody's.
        store::oauth::move_refresh_tokens(conn, user, device, "current", "spent").await?;
    }
    for row in rows.iter().filter(|_| pending) {
        let kept = row.unused == (token.state == "current");
        if !kept {
            store::sessions::delete_token(conn, &row.token_hash).await?;
            gone.push(row.token_hash.clone());
        } else if row.unused {
            store::sessions::token_is_used(conn, &row.token_hash).await?;
            used = Some(row.token_hash.clone());
        }
    }
    Ok((gone, used))
}

fn reused(session: &Session, asked: &Refreshing, now: i64) -> audit::Entry {
    audit::Entry {
        at: now,
        actor: session.user_id.clone(),
        terminal: asked.terminal.as_ref().map(|known| known.terminal),
        certificate: asked.terminal.as_ref().map(|known| known.serial.clone()),
        address: Some(asked.address.to_string()),
        action: "session.refresh_reused".to_owned(),
        result: "ended".to_owned(),
        ..audit::Entry::default()
    }
}

/// An access token that came by a refresh is used for the first time: what it replaces is no longer good, durably.
pub async fn settle(server: &Arc<Server>, session: &LiveSession) -> Result<()> {
    let sessions = Arc::clone(&server.sessions);
    let (user, device, hash) =
        (session.user_id.clone(), session.device_id.clone(), session.token_hash.clone());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let rows =
                    store::sessions::sessions_of(batch.reading(), user.as_str(), Some(&device)).await?;
                if !rows.iter().any(|row| row.token_hash == hash && row.unused) {
                    return Ok(());
                }
                let conn = batch.sql().await?;
                let mut gone = Vec::new();
                for row in rows {
                    if row.token_hash != hash {
                        store::sessions::delete_token(conn, &row.token_hash).await?;
                        gone.push(row.token_hash);
                    }
                }
                store::sessions::token_is_used(conn, &hash).await?;
                store::oauth::move_refresh_tokens(conn, user.as_str(), &device, "previous", "spent").await?;
                batch.after_commit(move || {
                    sessions.is_used(Some(&hash));
                    sessions.forget_tokens(&gone);
                });
                Ok(())
            })
        })
        .await
}

/// Ends the session of a device; the device stays, and its keys.
pub async fn end_session(
    batch: &mut Batch,
    sessions: &Arc<Sessions>,
    user_id: &str,
    device_id: &str,
) -> Result<()> {
    let conn = batch.sql().await?;
    store::sessions::delete_session(conn, user_id, device_id).await?;
    // Its apps are told nothing any more: whoever logs in again sets the pusher again.
    store::push::delete_of_device(conn, user_id, device_id).await?;
    let sessions = Arc::clone(sessions);
    let (user_id, device_id) = (OwnedUserId::try_from(user_id)?, device_id.to_owned());
    batch.after_commit(move || {
        sessions.drop_where(|s| s.user_id == user_id && s.device_id == device_id);
        sessions.pushers.remove_of_devices(&user_id, std::slice::from_ref(&device_id));
    });
    Ok(())
}

/// Stores when devices and terminals were last used, where that has moved by a while. To be called every minute, and with
/// `all` at the end.
pub async fn save_seen(server: &Arc<Server>, all: bool) -> Result<()> {
    let moved = server.sessions.seen_since(if all { 0 } else { SEEN_EVERY_MS });
    if moved.is_empty() {
        return Ok(());
    }
    let seen: Vec<(Arc<LiveSession>, i64)> = moved
        .into_iter()
        .map(|session| (Arc::clone(&session), session.last_seen.load(Ordering::Relaxed)))
        .collect();
    let saved = seen.clone();
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let conn = batch.sql().await?;
                for (session, at) in &seen {
                    store::personal::seen(conn, session.user_id.as_str(), &session.device_id, *at).await?;
                    if let Some(terminal) = session.terminal {
                        store::terminals::terminal_seen(conn, terminal, *at).await?;
                    }
                }
                Ok::<_, Error>(())
            })
        })
        .await?;
    for (session, at) in saved {
        session.seen_saved.fetch_max(at, Ordering::Relaxed);
    }
    Ok(())
}

/// Refuses a further device where an ID has too many.
pub async fn check_room_for_device(batch: &mut Batch, user_id: &UserId, device_id: &str) -> Result<()> {
    let all = store::personal::devices(batch.reading(), user_id.as_str()).await?;
    if all.len() >= DEVICES_MAX && !all.iter().any(|device| device.device_id == device_id) {
        return Err(crate::error::forbidden(
            "This ID is logged in on too many devices: please log out somewhere (ログイン中の端末が多すぎます).",
        ));
    }
    Ok(())
}

/// Ends devices: their sessions, keys, messages and pushers.
pub async fn end_devices(
    batch: &mut Batch,
    sessions: &Arc<Sessions>,
    user_id: &UserId,
    devices: Vec<String>,
) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let mut had_keys = false;
    for device_id in &devices {
        had_keys |= store::personal::delete_device(batch.sql().await?, user_id.as_str(), device_id).await?;
        keys::counts::changed(batch, user_id, device_id);
    }
    if had_keys {
        keys::devices_changed(batch, user_id).await?;
    }
    let (sessions, user_id) = (Arc::clone(sessions), user_id.to_owned());
    batch.after_commit(move || {
        sessions.drop_where(|s| s.user_id == user_id && devices.contains(&s.device_id));
        sessions.pushers.remove_of_devices(&user_id, &devices);
    });
    Ok(())
}

/// Ends all sessions of a user, but for one device; returns how many. Codes that wait to be exchanged go too, and grants
/// that were approved give nothing any more.
pub async fn end_all(
    batch: &mut Batch,
    sessions: &Arc<Sessions>,
    user_id: &UserId,
    but: Option<&str>,
) -> Result<usize> {
    let all = store::sessions::sessions_of(batch.reading(), user_id.as_str(), None).await?;
    let mut devices: Vec<String> =
        all.into_iter().map(|s| s.device_id).filter(|device| Some(device.as_str()) != but).collect();
    devices.sort_unstable();
    devices.dedup();
    let n = devices.len();
    store::oauth::forget_codes_of(batch.sql().await?, user_id.as_str()).await?;
    end_devices(batch, sessions, user_id, devices).await?;
    // Whatever the database had: in memory too nothing of the user's is left.
    let (sessions, user_id, but) = (Arc::clone(sessions), user_id.to_owned(), but.map(str::to_owned));
    batch.after_commit(move || {
        sessions.drop_where(|s| s.user_id == user_id && but.as_deref() != Some(s.device_id.as_str()));
        *sessions.endings.lock().entry(user_id).or_default() += 1;
    });
    Ok(n)
}

/// Ends all sessions of a terminal, and the devices: whoever has the terminal must not be encrypted for any more. Returns
/// how many.
pub async fn end_of_terminal(batch: &mut Batch, sessions: &Arc<Sessions>, terminal: i64) -> Result<usize> {
    let mut all: Vec<_> = store::sessions::sessions_of_terminal(batch.reading(), terminal)
        .await?
        .into_iter()
        .map(|session| (session.user_id, session.device_id))
        .collect();
    all.sort_unstable();
    all.dedup();
    let n = all.len();
    let mut devices: BTreeMap<OwnedUserId, Vec<String>> = BTreeMap::new();
    for (user_id, device_id) in all {
        devices.entry(OwnedUserId::try_from(user_id)?).or_default().push(device_id);
    }
    for (user_id, devices) in devices {
        end_devices(batch, sessions, &user_id, devices).await?;
    }
    let sessions = Arc::clone(sessions);
    batch.after_commit(move || {
        sessions.drop_where(|s| s.terminal == Some(terminal));
    });
    Ok(n)
}
