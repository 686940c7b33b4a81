//! Sessions: access tokens, in memory by their hash. A token is 43 random letters and digits (256 bits) and is
//! stored hashed; whoever reads the database learns none.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use ruma::{OwnedUserId, UserId};
use sha2::{Digest as _, Sha256};

use crate::{
    error::Result,
    keys,
    push::Pushers,
    rooms::{
        batch::Batch,
        live::parking::{Mutex, RwLock},
    },
    store::{self, Db, accounts::Session},
};

/// A session in memory.
#[derive(Debug)]
pub struct LiveSession {
    /// Whose.
    pub user_id: OwnedUserId,
    /// The Matrix device.
    pub device_id: String,
    /// The terminal that it is bound to.
    pub terminal: Option<i64>,
    /// The token's hash.
    pub token_hash: String,
    /// When it was last used (ms).
    pub last_seen: AtomicI64,
    /// From where it was last used.
    pub last_address: Mutex<Option<std::net::IpAddr>>,
    /// Requests that may still come at once, in thousandths; see `http::caller`.
    pub allowance: AtomicI64,
    /// When the allowance was last counted (ms).
    pub counted_at: AtomicI64,
    /// Wakes the session's long polls when it ends.
    pub ended: tokio::sync::watch::Sender<bool>,
}

/// All sessions.
#[derive(Default)]
pub struct Sessions {
    by_hash: RwLock<HashMap<String, Arc<LiveSession>>>,
    /// What devices set goes with them (C19).
    pushers: Arc<Pushers>,
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
        for session in
            store::all!(&mut conn, Session, "SELECT token_hash, user_id, device_id, terminal FROM sessions")?
        {
            all.insert(&session)?;
        }
        Ok(all)
    }

    fn insert(&self, session: &Session) -> Result<()> {
        let live = LiveSession {
            user_id: OwnedUserId::try_from(session.user_id.as_str())?,
            device_id: session.device_id.clone(),
            terminal: session.terminal,
            token_hash: session.token_hash.clone(),
            last_seen: AtomicI64::new(0),
            last_address: Mutex::new(None),
            allowance: AtomicI64::new(i64::MAX),
            counted_at: AtomicI64::new(0),
            ended: tokio::sync::watch::Sender::new(false),
        };
        self.by_hash.write().insert(session.token_hash.clone(), Arc::new(live));
        Ok(())
    }

    /// The session of a token.
    pub fn of_token(&self, token: &str) -> Option<Arc<LiveSession>> {
        self.by_hash.read().get(&hash_of(token)).cloned()
    }

    /// The sessions that a test of ours picks.
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
            .filter(|s| s.user_id == user_id && s.device_id == device_id)
            .map(|s| s.last_seen.load(Ordering::Relaxed))
            .max()
            .filter(|at| *at > 0)
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

/// Devices of one ID: a facility ID is shared by many staff, each with several logins.
const DEVICES_MAX: usize = 250;

/// Makes a session for a device, ending the device's former one, and returns its access token.
pub async fn begin(
    batch: &mut Batch,
    sessions: &Arc<Sessions>,
    user_id: &UserId,
    device_id: &str,
    device_name: Option<&str>,
    terminal: Option<i64>,
) -> Result<String> {
    let now = batch.now;
    let token = crate::clock::random_token(43);
    let session = Session {
        token_hash: hash_of(&token),
        user_id: user_id.to_string(),
        device_id: device_id.to_owned(),
        terminal,
    };
    check_room_for_device(batch, user_id, device_id).await?;
    let conn = batch.sql().await?;
    let former = store::accounts::sessions_of(conn, user_id.as_str(), Some(device_id)).await?;
    for old in &former {
        store::accounts::delete_session(conn, &old.token_hash).await?;
    }
    store::personal::put_device(conn, user_id.as_str(), device_id, device_name, now).await?;
    let binding = if terminal.is_some() { "connection" } else { "none" };
    store::accounts::insert_session(conn, &session, binding, now).await?;
    let sessions = Arc::clone(sessions);
    batch.after_commit(move || {
        sessions.drop_where(|s| former.iter().any(|old| old.token_hash == s.token_hash));
        if let Err(error) = sessions.insert(&session) {
            tracing::error!(%error, "a new session could not be put in memory");
        }
    });
    Ok(token)
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

/// Ends a device: its session, keys and messages; `list` names the devices.
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

/// Ends all sessions of a user, but for one device; returns how many.
pub async fn end_all(
    batch: &mut Batch,
    sessions: &Arc<Sessions>,
    user_id: &UserId,
    but: Option<&str>,
) -> Result<usize> {
    let all = store::accounts::sessions_of(batch.reading(), user_id.as_str(), None).await?;
    let devices: Vec<String> =
        all.into_iter().map(|s| s.device_id).filter(|device| Some(device.as_str()) != but).collect();
    let n = devices.len();
    end_devices(batch, sessions, user_id, devices).await?;
    Ok(n)
}

/// Ends all sessions of a terminal, and the devices: whoever has the terminal must not be encrypted for any more. Returns
/// how many.
pub async fn end_of_terminal(batch: &mut Batch, sessions: &Arc<Sessions>, terminal: i64) -> Result<usize> {
    let all = store::accounts::sessions_of_terminal(batch.reading(), terminal).await?;
    let n = all.len();
    let mut devices: BTreeMap<OwnedUserId, Vec<String>> = BTreeMap::new();
    for session in all {
        devices.entry(OwnedUserId::try_from(session.user_id)?).or_default().push(session.device_id);
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
