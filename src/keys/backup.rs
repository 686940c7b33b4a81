//! Key backup (client-server API, "Server-side key backups"): encrypted room keys that a user's devices leave with the
//! server, in versions. The newest version that was not deleted is the current one; only it takes keys.

use std::collections::BTreeMap;

use ruma::{RoomId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    error::{Code, Result, invalid, not_found, refuse},
    rooms::{batch::Batch, committer::Hint},
    server::Server,
    store::{
        self,
        key_backups::{Backup, Session},
    },
};

/// Versions of a user.
const VERSIONS_MAX: i64 = 50;
/// Bytes of a version's data and of one key, as JSON.
const AUTH_DATA_BYTES_MAX: usize = 65_536;
const SESSION_BYTES_MAX: usize = 16_384;
/// Keys in one request, and in one version with their bytes.
const SESSIONS_AT_ONCE_MAX: usize = 2_000;
const SESSIONS_MAX: i64 = 100_000;
const BYTES_MAX: i64 = 100 << 20;

/// What a version is made of.
#[derive(Debug, Deserialize)]
pub struct Described {
    /// The algorithm.
    pub algorithm: String,
    /// What the algorithm needs.
    pub auth_data: Map<String, Value>,
    /// In an update: the version, where the client repeats it.
    pub version: Option<String>,
}

/// The key of a session as a client gives it.
#[derive(Debug, Deserialize)]
pub struct KeyData {
    first_message_index: i64,
    forwarded_count: i64,
    is_verified: bool,
    session_data: Map<String, Value>,
}

/// The keys of a room.
#[derive(Debug, Deserialize)]
pub struct RoomKeys {
    /// By session id.
    pub sessions: BTreeMap<String, KeyData>,
}

/// Which keys: of all rooms, of one, or of one session.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// The room.
    pub room_id: Option<String>,
    /// The session.
    pub session_id: Option<String>,
}

fn number(version: &str) -> Result<i64> {
    version
        .parse()
        .ok()
        .filter(|number: &i64| number.to_string() == version)
        .ok_or_else(|| not_found("There is no such key backup."))
}

/// The one algorithm of key backups (client-server API, "Server-side key backups").
const ALGORITHM: &str = "m.megolm_backup.v1.curve25519-aes-sha2";

fn check_auth_data(described: &Described) -> Result<String> {
    if described.algorithm != ALGORITHM {
        return Err(invalid("This algorithm of key backups is not known."));
    }
    let text = serde_json::to_string(&described.auth_data)?;
    if text.len() > AUTH_DATA_BYTES_MAX {
        return Err(refuse(Code::TooLarge, "auth_data is too large."));
    }
    Ok(text)
}

/// Makes a new version, which is the current one from then on.
pub async fn create(server: &Server, user_id: &UserId, described: Described) -> Result<String> {
    let auth_data = check_auth_data(&described)?;
    let user_id = user_id.to_string();
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let (highest, count) = store::key_backups::numbers(batch.reading(), &user_id).await?;
                if count >= VERSIONS_MAX {
                    return Err(refuse(Code::TooLarge, "There are too many key backups: delete old ones."));
                }
                let now = batch.now;
                let backup = Backup {
                    version: highest + 1,
                    algorithm: described.algorithm,
                    auth_data,
                    etag: 0,
                    sessions: 0,
                    bytes: 0,
                };
                store::key_backups::insert(batch.sql().await?, &user_id, &backup, now).await?;
                Ok(backup.version.to_string())
            })
        })
        .await
}

/// A version, or the current one.
pub async fn describe(server: &Server, user_id: &UserId, version: Option<&str>) -> Result<Value> {
    let mut conn = server.db.read().await?;
    let found = match version {
        Some(version) => store::key_backups::version(&mut conn, user_id.as_str(), number(version)?).await?,
        None => store::key_backups::current(&mut conn, user_id.as_str()).await?,
    };
    let backup = found.ok_or_else(|| not_found("There is no such key backup."))?;
    Ok(json!({
        "version": backup.version.to_string(),
        "algorithm": backup.algorithm,
        "auth_data": serde_json::from_str::<Value>(&backup.auth_data)?,
        "count": backup.sessions,
        "etag": backup.etag.to_string(),
    }))
}

/// Changes a version's `auth_data`.
pub async fn update(server: &Server, user_id: &UserId, version: &str, described: Described) -> Result<()> {
    let auth_data = check_auth_data(&described)?;
    if described.version.as_deref().is_some_and(|named| named != version) {
        return Err(invalid("The version in the body is another than that in the path."));
    }
    let (user_id, version) = (user_id.to_string(), number(version)?);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let mut backup = existing(batch, &user_id, version).await?;
                if backup.algorithm != described.algorithm {
                    return Err(invalid("The algorithm of a key backup does not change."));
                }
                backup.auth_data = auth_data;
                store::key_backups::update(batch.sql().await?, &user_id, &backup).await
            })
        })
        .await
}

/// Deletes a version with its keys. One that was deleted before is deleted again without a word.
pub async fn delete(server: &Server, user_id: &UserId, version: &str) -> Result<()> {
    let (user_id, version) = (user_id.to_string(), number(version)?);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let (highest, _) = store::key_backups::numbers(batch.reading(), &user_id).await?;
                if version < 1 || version > highest {
                    return Err(not_found("There is no such key backup."));
                }
                store::key_backups::delete(batch.sql().await?, &user_id, version).await
            })
        })
        .await
}

async fn existing(batch: &mut Batch, user_id: &str, version: i64) -> Result<Backup> {
    store::key_backups::version(batch.reading(), user_id, version)
        .await?
        .ok_or_else(|| not_found("There is no such key backup."))
}

/// Stores keys in the current version. Of two keys of one session the better one is kept.
pub async fn put(
    server: &Server,
    user_id: &UserId,
    version: &str,
    rooms: BTreeMap<String, RoomKeys>,
) -> Result<Value> {
    let sessions = check_sessions(rooms)?;
    let (user_id, version) = (user_id.to_string(), version.to_owned());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let mut backup = store::key_backups::current(batch.reading(), &user_id)
                    .await?
                    .ok_or_else(|| not_found("There is no key backup."))?;
                if backup.version.to_string() != version {
                    let known = match version.parse() {
                        Ok(number) => store::key_backups::version(batch.reading(), &user_id, number).await?,
                        Err(_) => None,
                    };
                    if known.is_none() {
                        return Err(not_found("There is no key backup of this version."));
                    }
                    return Err(refuse(Code::WrongRoomKeysVersion, "Another key backup is the current one.")
                        .with("current_version", backup.version.to_string()));
                }
                store_sessions(batch, &user_id, &mut backup, sessions).await?;
                Ok(state(&backup))
            })
        })
        .await
}

fn check_sessions(rooms: BTreeMap<String, RoomKeys>) -> Result<Vec<Session>> {
    let mut sessions = Vec::new();
    for (room_id, keys) in rooms {
        if <&RoomId>::try_from(room_id.as_str()).is_err() {
            return Err(invalid("rooms has a name that is no room id."));
        }
        for (session_id, key) in keys.sessions {
            if session_id.is_empty() || session_id.len() > 255 {
                return Err(invalid("A session id has 1 to 255 characters."));
            }
            if key.first_message_index < 0 || key.forwarded_count < 0 {
                return Err(invalid("Counts are not negative."));
            }
            let session_data = serde_json::to_string(&key.session_data)?;
            if session_data.len() > SESSION_BYTES_MAX {
                return Err(refuse(Code::TooLarge, "A key's session_data is too large."));
            }
            sessions.push(Session {
                room_id: room_id.clone(),
                session_id,
                first_message_index: key.first_message_index,
                forwarded_count: key.forwarded_count,
                is_verified: key.is_verified,
                session_data,
            });
        }
    }
    if sessions.len() > SESSIONS_AT_ONCE_MAX {
        return Err(refuse(Code::TooLarge, format!("At most {SESSIONS_AT_ONCE_MAX} keys at once.")));
    }
    Ok(sessions)
}

async fn store_sessions(
    batch: &mut Batch,
    user_id: &str,
    backup: &mut Backup,
    sessions: Vec<Session>,
) -> Result<()> {
    let mut better = Vec::new();
    for session in sessions {
        let (room_id, session_id) = (&session.room_id, &session.session_id);
        let conn = batch.reading();
        let known = store::key_backups::session(conn, user_id, backup.version, room_id, session_id).await?;
        let length = |session: &Session| i64::try_from(session.session_data.len()).unwrap_or(i64::MAX);
        match known {
            None => {
                backup.sessions += 1;
                backup.bytes += length(&session);
            }
            Some(known) if is_better(&session, &known) => backup.bytes += length(&session) - length(&known),
            Some(_) => continue,
        }
        better.push(session);
    }
    if better.is_empty() {
        return Ok(());
    }
    if backup.sessions > SESSIONS_MAX || backup.bytes > BYTES_MAX {
        return Err(refuse(Code::TooLarge, "The key backup is full."));
    }
    backup.etag += 1;
    let conn = batch.sql().await?;
    store::key_backups::put_sessions(conn, user_id, backup.version, &better).await?;
    store::key_backups::update(conn, user_id, backup).await
}

/// Whether a key takes another's place: a verified one first, then that which decrypts more, then the less forwarded.
fn is_better(new: &Session, old: &Session) -> bool {
    if new.is_verified != old.is_verified {
        return new.is_verified;
    }
    (new.first_message_index, new.forwarded_count) < (old.first_message_index, old.forwarded_count)
}

fn state(backup: &Backup) -> Value {
    json!({"count": backup.sessions, "etag": backup.etag.to_string()})
}

/// Keys of any version that was not deleted, in the shape that the request's path asks for.
pub async fn get(server: &Server, user_id: &UserId, version: &str, which: &Which) -> Result<String> {
    let user_id = user_id.as_str();
    let version = number(version)?;
    let mut conn = server.db.read().await?;
    if store::key_backups::version(&mut conn, user_id, version).await?.is_none() {
        return Err(not_found("There is no such key backup."));
    }
    match (&which.room_id, &which.session_id) {
        (Some(room_id), Some(session_id)) => {
            let found = store::key_backups::session(&mut conn, user_id, version, room_id, session_id).await?;
            let mut out = String::new();
            write_session(&mut out, &found.ok_or_else(|| not_found("The backup has no such key."))?);
            Ok(out)
        }
        (Some(room_id), None) => {
            let all = store::key_backups::sessions_of_room(&mut conn, user_id, version, room_id).await?;
            let mut out = String::new();
            write_room(&mut out, &all);
            Ok(out)
        }
        _ => {
            let all = store::key_backups::sessions(&mut conn, user_id, version).await?;
            let mut out = "{\"rooms\":{".to_owned();
            for (n, of_room) in all.chunk_by(|a, b| a.room_id == b.room_id).enumerate() {
                out.push_str(if n == 0 { "" } else { "," });
                out.push_str(&Value::from(of_room[0].room_id.as_str()).to_string());
                out.push(':');
                write_room(&mut out, of_room);
            }
            out.push_str("}}");
            Ok(out)
        }
    }
}

fn write_room(out: &mut String, sessions: &[Session]) {
    out.push_str("{\"sessions\":{");
    for (n, session) in sessions.iter().enumerate() {
        out.push_str(if n == 0 { "" } else { "," });
        out.push_str(&Value::from(session.session_id.as_str()).to_string());
        out.push(':');
        write_session(out, session);
    }
    out.push_str("}}");
}

fn write_session(out: &mut String, session: &Session) {
    use std::fmt::Write as _;
    let _ = write!(
        out,
        "{{\"first_message_index\":{},\"forwarded_count\":{},\"is_verified\":{},\"session_data\":{}}}",
        session.first_message_index, session.forwarded_count, session.is_verified, session.session_data
    );
}

/// Deletes keys of any version that was not deleted itself.
pub async fn delete_keys(server: &Server, user_id: &UserId, version: &str, which: Which) -> Result<Value> {
    let (user_id, version) = (user_id.to_string(), number(version)?);
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let mut backup = existing(batch, &user_id, version).await?;
                let (room_id, session_id) = (which.room_id.as_deref(), which.session_id.as_deref());
                let conn = batch.sql().await?;
                let gone =
                    store::key_backups::delete_sessions(conn, &user_id, version, room_id, session_id).await?;
                if gone > 0 {
                    (backup.sessions, backup.bytes) =
                        store::key_backups::size(conn, &user_id, version).await?;
                    backup.etag += 1;
                    store::key_backups::update(conn, &user_id, &backup).await?;
                }
                Ok(state(&backup))
            })
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_better_key_is_kept() {
        let key = |is_verified, first_message_index, forwarded_count| Session {
            room_id: String::new(),
            session_id: String::new(),
            first_message_index,
            forwarded_count,
            is_verified,
            session_data: String::new(),
        };
        let old = key(false, 5, 2);
        for better in [key(true, 9, 9), key(false, 4, 9), key(false, 5, 1)] {
            assert!(is_better(&better, &old), "{better:?}");
            assert!(!is_better(&old, &better), "{better:?}");
        }
        assert!(!is_better(&old, &old));
    }

    #[test]
    fn versions_are_numbers_as_they_were_given_out() {
        assert_eq!(number("1").unwrap(), 1);
        for bad in ["", "01", "+1", "x", "1.0", "99999999999999999999"] {
            assert!(number(bad).is_err(), "{bad}");
        }
    }
}
