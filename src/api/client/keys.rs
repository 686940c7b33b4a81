//! Devices' keys and messages to devices. With encryption forbidden devices still publish keys (clients insist), but no
//! identity is ever cross-signed and no backup exists, so no client shows a key screen (DESIGN 13, STACK).

use std::{collections::BTreeMap, sync::Arc};

use http::Method;
use ruma::{OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    config::Encryption,
    error::{Code, Result, forbidden, invalid, not_found, refuse},
    http::{
        caller,
        route::{Answer, Call, Routes},
    },
    rooms::{committer::Hint, send::txn_key},
    server::Server,
    store::{self, Conn},
    sync::token::SyncToken,
};

/// Keys in one upload, users in one query, devices written to at once.
const KEYS_MAX: usize = 200;
const USERS_MAX: usize = 500;
const DEVICES_MAX: usize = 1_000;
/// One-time keys of one device, and bytes of messages that wait for one.
const KEYS_OF_DEVICE_MAX: i64 = 1_000;
const WAITING_BYTES_MAX: i64 = 5 << 20;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    let mut routes = routes
        .at(Method::POST, "/_matrix/client/v3/keys/upload", upload)
        .at(Method::POST, "/_matrix/client/v3/keys/query", query)
        .at(Method::POST, "/_matrix/client/v3/keys/claim", claim)
        .at(Method::GET, "/_matrix/client/v3/keys/changes", changes)
        .at(Method::PUT, "/_matrix/client/v3/sendToDevice/{eventType}/{txnId}", send_to_device)
        .at(Method::GET, "/_matrix/client/v3/room_keys/version", |server, call| async move {
            caller::requester(&server, &call.parts).await?;
            Err(not_found("There is no key backup."))
        });
    for (method, path) in [
        (Method::POST, "/_matrix/client/v3/keys/device_signing/upload"),
        (Method::POST, "/_matrix/client/v3/keys/signatures/upload"),
        (Method::POST, "/_matrix/client/v3/room_keys/version"),
    ] {
        routes = routes.at(method, path, |server, call| async move {
            caller::requester(&server, &call.parts).await?;
            Err(if server.config.policy.encryption == Encryption::Forbidden {
                forbidden("Encryption between users is switched off on this server.")
            } else {
                refuse(Code::Unrecognized, "Cross-signing and key backup are not offered yet.")
            })
        });
    }
    routes
}

#[derive(Deserialize)]
struct Upload {
    device_keys: Option<Value>,
    #[serde(default)]
    one_time_keys: Map<String, Value>,
    #[serde(default, alias = "org.matrix.msc2732.fallback_keys")]
    fallback_keys: Map<String, Value>,
}

async fn upload(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let device = who.device()?.to_owned();
    let (_, body) = call.json::<Upload>(&server).await?;
    if body.one_time_keys.len() > KEYS_MAX || body.fallback_keys.len() > 10 {
        return Err(invalid("Too many keys at once."));
    }
    if let Some(keys) = &body.device_keys {
        let shaped = keys["user_id"] == who.user_id.as_str()
            && keys["device_id"] == device.as_str()
            && keys["keys"].as_object().is_some_and(|keys| keys.values().all(Value::is_string))
            && keys["algorithms"].as_array().is_some_and(|names| names.iter().all(Value::is_string))
            && are_signatures(&keys["signatures"]);
        if !shaped {
            return Err(invalid("device_keys are not those of this device."));
        }
    }
    for key in body.one_time_keys.keys().chain(body.fallback_keys.keys()) {
        if key
            .split_once(':')
            .is_none_or(|(algorithm, id)| algorithm.is_empty() || id.is_empty() || key.len() > 255)
        {
            return Err(invalid("A key is named <algorithm>:<key id>."));
        }
    }
    if !body.one_time_keys.values().chain(body.fallback_keys.values()).all(is_key) {
        return Err(invalid("A key is a string, or an object with a key and its signatures."));
    }
    let counts = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let user_id = who.user_id.as_str();
                if let Some(keys) = body.device_keys {
                    let position = batch.personal_change(&who.user_id);
                    let text = keys.to_string();
                    store::keys::put_device_keys(batch.sql().await?, user_id, &device, &text, position)
                        .await?;
                    let live = Arc::clone(&batch.live);
                    batch.after_commit(move || {
                        live.device_keys_at.fetch_max(position, std::sync::atomic::Ordering::AcqRel);
                    });
                    // Everybody who shares a room hears of it with their next sync.
                    let others: Vec<OwnedUserId> = {
                        let rooms = batch.live.joined_rooms(&who.user_id);
                        rooms
                            .iter()
                            .filter_map(|room_id| batch.live.room_in_memory(room_id)?.view())
                            .flat_map(|view| view.state.members("join").map(|(id, _)| id).collect::<Vec<_>>())
                            .collect()
                    };
                    for user in others {
                        batch.touch(&user);
                    }
                }
                let have = store::keys::one_time_key_counts(batch.reading(), user_id, &device).await?;
                if have.iter().map(|(_, n)| n).sum::<i64>() > KEYS_OF_DEVICE_MAX {
                    return Err(refuse(Code::TooLarge, "This device has enough one-time keys."));
                }
                for (name, key) in &body.one_time_keys {
                    let (algorithm, id) = name.split_once(':').unwrap_or_default();
                    let position = batch.next_position();
                    let text = key.to_string();
                    store::keys::put_one_time_key(
                        batch.sql().await?,
                        user_id,
                        &device,
                        (algorithm, id),
                        &text,
                        position,
                    )
                    .await?;
                }
                for (name, key) in &body.fallback_keys {
                    let (algorithm, id) = name.split_once(':').unwrap_or_default();
                    let text = key.to_string();
                    store::keys::put_fallback_key(
                        batch.sql().await?,
                        user_id,
                        &device,
                        (algorithm, id),
                        &text,
                    )
                    .await?;
                }
                store::keys::one_time_key_counts(batch.sql().await?, user_id, &device).await
            })
        })
        .await?;
    let mut counts: BTreeMap<String, i64> = counts.into_iter().collect();
    counts.entry("signed_curve25519".to_owned()).or_insert(0);
    Ok(json!({"one_time_key_counts": counts}).into())
}

/// Other people's devices read what is uploaded: a key that is none would only fail there (client-server API,
/// `OneTimeKeys`).
fn is_key(key: &Value) -> bool {
    key.is_string() || key["key"].is_string() && are_signatures(&key["signatures"])
}

/// Signatures by user and key.
fn are_signatures(signatures: &Value) -> bool {
    signatures.as_object().is_some_and(|users| {
        users.values().all(|of_user| {
            of_user.as_object().is_some_and(|signatures| signatures.values().all(Value::is_string))
        })
    })
}

#[derive(Deserialize)]
struct Query {
    device_keys: BTreeMap<String, Vec<String>>,
}

async fn query(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let (_, body) = call.json::<Query>(&server).await?;
    if body.device_keys.len() > USERS_MAX {
        return Err(invalid("Too many users at once."));
    }
    let mut conn = server.db.read().await?;
    let mut answer = Map::new();
    for (user_id, devices) in &body.device_keys {
        let Ok(id) = <&UserId>::try_from(user_id.as_str()) else {
            return Err(invalid("device_keys has a name that is no user id."));
        };
        if server.live.share_a_room(&who.user_id, id) {
            answer.insert(user_id.clone(), Value::Object(keys_of(&mut conn, user_id, devices).await?));
        }
    }
    Ok(json!({"device_keys": answer, "failures": {}}).into())
}

async fn keys_of(conn: &mut Conn, user_id: &str, devices: &[String]) -> Result<Map<String, Value>> {
    let mut answer = Map::new();
    for (device_id, keys, name) in store::keys::device_keys(conn, user_id).await? {
        if !devices.is_empty() && !devices.contains(&device_id) {
            continue;
        }
        let mut keys: Value = serde_json::from_str(&keys)?;
        keys["unsigned"] = match name {
            Some(name) => json!({"device_display_name": name}),
            None => json!({}),
        };
        answer.insert(device_id, keys);
    }
    Ok(answer)
}

#[derive(Deserialize)]
struct Claim {
    one_time_keys: BTreeMap<String, BTreeMap<String, String>>,
}

async fn claim(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let (_, body) = call.json::<Claim>(&server).await?;
    if body.one_time_keys.values().map(BTreeMap::len).sum::<usize>() > DEVICES_MAX {
        return Err(invalid("Too many devices at once."));
    }
    let live = Arc::clone(&server.live);
    let answer = server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let mut answer = Map::new();
                for (user_id, devices) in body.one_time_keys {
                    let shared = <&UserId>::try_from(user_id.as_str())
                        .is_ok_and(|id| live.share_a_room(&who.user_id, id));
                    if !shared {
                        continue;
                    }
                    let mut of_user = Map::new();
                    for (device, algorithm) in devices {
                        let conn = batch.sql().await?;
                        let mut key =
                            store::keys::claim_one_time_key(conn, &user_id, &device, &algorithm).await?;
                        if key.is_none() {
                            key = store::keys::use_fallback_key(conn, &user_id, &device, &algorithm).await?;
                        }
                        if let Some((id, key)) = key {
                            let key: Value = serde_json::from_str(&key)?;
                            of_user.insert(device, json!({format!("{algorithm}:{id}"): key}));
                        }
                    }
                    answer.insert(user_id, Value::Object(of_user));
                }
                Ok(answer)
            })
        })
        .await?;
    Ok(json!({"one_time_keys": answer, "failures": {}}).into())
}

async fn changes(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let place = |name: &str| -> Result<i64> {
        let text = call
            .query(name)
            .ok_or_else(|| refuse(Code::MissingParam, format!("The query has no {name}.")))?;
        Ok(SyncToken::parse(&text, &server.epoch)?.map_or(0, |token| token.position))
    };
    let (from, to) = (place("from")?, place("to")?);
    let mut changed = store::keys::changed(&mut server.db.read().await?, from, to).await?;
    changed.retain(|id| {
        <&UserId>::try_from(id.as_str()).is_ok_and(|id| server.live.share_a_room(&who.user_id, id))
    });
    Ok(json!({"changed": changed, "left": []}).into())
}

#[derive(Deserialize)]
struct Messages {
    messages: BTreeMap<String, BTreeMap<String, Map<String, Value>>>,
}

async fn send_to_device(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let kind = call.arg(0).to_owned();
    let key = txn_key(&who.user_id, who.device_id.as_deref(), format!("to_device {kind}"), call.arg(1))?;
    let (_, body) = call.json::<Messages>(&server).await?;
    if body.messages.values().map(BTreeMap::len).sum::<usize>() > DEVICES_MAX || kind.len() > 255 {
        return Err(invalid("Too many devices at once."));
    }
    let live = Arc::clone(&server.live);
    let hint = Hint { rooms: Vec::new(), txn: Some(key.clone()) };
    server
        .commit(hint, move |batch| {
            Box::pin(async move {
                if batch.known_txn(&key).is_some() {
                    return Ok(());
                }
                for (user_id, devices) in body.messages {
                    let Ok(target) = OwnedUserId::try_from(user_id.as_str()) else { continue };
                    if !live.share_a_room(&who.user_id, &target) {
                        continue;
                    }
                    let all = store::personal::devices(batch.reading(), &user_id).await?;
                    for (device, content) in devices {
                        let event =
                            json!({"type": kind, "sender": who.user_id, "content": content}).to_string();
                        for known in all.iter().filter(|d| device == "*" || d.device_id == device) {
                            let waiting =
                                store::keys::to_device_bytes(batch.reading(), &user_id, &known.device_id)
                                    .await?;
                            if waiting > WAITING_BYTES_MAX {
                                return Err(refuse(
                                    Code::TooLarge,
                                    "Too much waits for this device already.",
                                ));
                            }
                            let position = batch.personal_change(&target);
                            store::keys::put_to_device(
                                batch.sql().await?,
                                &user_id,
                                &known.device_id,
                                position,
                                &event,
                            )
                            .await?;
                        }
                    }
                }
                batch.remember_txn(key);
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}
