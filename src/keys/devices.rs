//! Devices' keys: uploaded, looked up, and one-time keys handed out. What a device uploads is checked in its shape, so that
//! nobody's client stumbles over it; whether the signatures are right is for clients to judge.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use super::{
    counts,
    counts::Counts,
    cross_signing::{canonical, to_sign},
    devices_changed, may_reach,
};
use crate::{
    config::Encryption,
    error::{Code, Result, invalid, refuse},
    rooms::{batch::Batch, committer::Hint},
    server::Server,
    store,
};

/// One-time keys in one upload, and kept of one device.
const KEYS_MAX: usize = 200;
const KEYS_OF_DEVICE_MAX: i64 = 1_000;
/// Handed-out keys that are remembered of one device, so that none is put back.
const CLAIMED_KEPT: i64 = 1_000;
/// Algorithms with a fallback key.
const FALLBACKS_MAX: usize = 10;
/// Bytes of a device's keys and of a one-time key, as JSON.
const DEVICE_KEYS_BYTES_MAX: usize = 16_384;
const KEY_BYTES_MAX: usize = 4_096;
/// Users in one query, devices in one claim.
const USERS_MAX: usize = 500;
const CLAIMS_MAX: usize = 1_000;
/// Characters of a key's name, and names in one map.
const NAME_MAX: usize = 255;
const NAMES_MAX: usize = 100;

/// What a device uploads, checked.
#[derive(Debug, Default)]
pub struct Upload {
    device_keys: Option<Value>,
    /// (algorithm, key id, key as JSON text).
    one_time: Vec<(String, String, String)>,
    fallback: Vec<(String, String, String)>,
}

impl Upload {
    /// Checks what a device sent.
    pub fn check(
        user_id: &UserId,
        device_id: &str,
        device_keys: Option<Value>,
        one_time_keys: Map<String, Value>,
        fallback_keys: Map<String, Value>,
    ) -> Result<Self> {
        if one_time_keys.len() > KEYS_MAX || fallback_keys.len() > FALLBACKS_MAX {
            return Err(invalid("Too many keys at once."));
        }
        let device_keys =
            device_keys.filter(|keys| !keys.is_null()).map(|keys| device_keys_of(user_id, device_id, keys));
        let fallback = fallback_keys.into_iter().map(key).collect::<Result<Vec<_>>>()?;
        let algorithms: BTreeSet<&str> = fallback.iter().map(|(algorithm, ..)| algorithm.as_str()).collect();
        if algorithms.len() < fallback.len() {
            return Err(invalid("There is one fallback key for each algorithm."));
        }
        Ok(Self {
            device_keys: device_keys.transpose()?,
            one_time: one_time_keys.into_iter().map(key).collect::<Result<_>>()?,
            fallback,
        })
    }
}

/// A device's keys, if they are its own and well shaped.
fn device_keys_of(user_id: &UserId, device_id: &str, mut keys: Value) -> Result<Value> {
    let wrong = || invalid("device_keys are not well-formed keys of this device.");
    let object = keys.as_object_mut().ok_or_else(wrong)?;
    // What servers add is not the device's to say.
    object.remove("unsigned");
    let own = object.get("user_id").and_then(Value::as_str) == Some(user_id.as_str())
        && object.get("device_id").and_then(Value::as_str) == Some(device_id);
    let algorithms = object.get("algorithms").and_then(Value::as_array).is_some_and(|list| {
        list.len() <= NAMES_MAX
            && list.iter().all(|one| one.as_str().is_some_and(|one| one.len() <= NAME_MAX))
    });
    let public = object.get("keys").is_some_and(|map| {
        texts(map) && map.as_object().is_some_and(|map| map.keys().all(|name| is_key_name(name)))
    });
    let signed = object.get("signatures").is_some_and(is_signatures);
    if !own || !algorithms || !public || !signed || !is_canonical(&keys) {
        return Err(wrong());
    }
    if keys.to_string().len() > DEVICE_KEYS_BYTES_MAX {
        return Err(refuse(Code::TooLarge, "device_keys are too large."));
    }
    Ok(keys)
}

/// Whether it is a map of texts, not too many.
fn texts(value: &Value) -> bool {
    value.as_object().is_some_and(|map| map.len() <= NAMES_MAX && map.values().all(Value::is_string))
}

/// Whether it is `<algorithm>:<id>` in printable ASCII.
fn is_key_name(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name.bytes().all(|byte| byte.is_ascii_graphic())
        && name.split_once(':').is_some_and(|(algorithm, id)| !algorithm.is_empty() && !id.is_empty())
}

/// Whether it has the shape of signatures: user ids, key names, texts.
pub(super) fn is_signatures(value: &Value) -> bool {
    value.as_object().is_some_and(|users| {
        users.len() <= NAMES_MAX
            && users.iter().all(|(user_id, of)| {
                <&UserId>::try_from(user_id.as_str()).is_ok()
                    && texts(of)
                    && of.as_object().is_some_and(|of| of.keys().all(|name| is_key_name(name)))
            })
    })
}

/// Whether it can be signed at all: without fractions and numbers beyond 2^53.
pub(super) fn is_canonical(value: &Value) -> bool {
    ruma::CanonicalJsonValue::try_from(value.clone()).is_ok()
}

fn key((name, key): (String, Value)) -> Result<(String, String, String)> {
    if !is_key_name(&name) {
        return Err(invalid("A key is named <algorithm>:<key id>."));
    }
    let shaped = match &key {
        Value::String(_) => true,
        Value::Object(object) => {
            object.get("key").is_some_and(Value::is_string)
                && object.get("signatures").is_some_and(is_signatures)
                && object.get("fallback").is_none_or(Value::is_boolean)
                && is_canonical(&key)
        }
        _ => false,
    };
    if !shaped {
        return Err(invalid("A one-time key is a text, or an object with a key and its signatures."));
    }
    let text = key.to_string();
    if text.len() > KEY_BYTES_MAX {
        return Err(refuse(Code::TooLarge, "A one-time key is too large."));
    }
    let (algorithm, id) = name.split_once(':').unwrap_or_default();
    Ok((algorithm.to_owned(), id.to_owned(), text))
}

/// Stores what a device uploads, in one unit, and tells what it has then.
pub async fn upload(server: &Server, user_id: &UserId, device_id: &str, upload: Upload) -> Result<Counts> {
    let (user_id, device_id) = (user_id.to_owned(), device_id.to_owned());
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move { store_upload(batch, &user_id, &device_id, upload).await })
        })
        .await
}

/// As [`upload`], as part of a unit.
pub(super) async fn store_upload(
    batch: &mut Batch,
    user_id: &UserId,
    device_id: &str,
    upload: Upload,
) -> Result<Counts> {
    let user = user_id.as_str();
    // The device may have been ended since the request came in: its keys would outlive it.
    if !store::personal::devices(batch.reading(), user).await?.iter().any(|one| one.device_id == device_id) {
        return Err(refuse(Code::UnknownToken { soft_logout: false }, "This device has been logged out."));
    }
    if let Some(keys) = upload.device_keys {
        put_device_keys(batch, user_id, device_id, &keys).await?;
    }
    let conn = batch.reading();
    let have: i64 =
        store::keys::one_time_key_counts(conn, user, device_id).await?.iter().map(|(_, n)| n).sum();
    if !upload.one_time.is_empty() && have > KEYS_OF_DEVICE_MAX {
        return Err(refuse(Code::TooLarge, "This device has enough one-time keys."));
    }
    let changes = !upload.one_time.is_empty() || !upload.fallback.is_empty();
    for (algorithm, id, key) in upload.one_time {
        let name = (algorithm.as_str(), id.as_str());
        match store::keys::one_time_key(batch.reading(), user, device_id, name).await? {
            // Sent again, as its answer was lost; it may have been handed out meanwhile.
            Some(known) if same(&known, &key) => {}
            Some(_) => {
                return Err(invalid(
                    "One of the one-time keys has the id of another that was uploaded before.",
                ));
            }
            None => {
                let position = batch.next_position();
                let conn = batch.sql().await?;
                store::keys::put_one_time_key(conn, user, device_id, name, &key, position).await?;
            }
        }
    }
    for (algorithm, id, key) in upload.fallback {
        let conn = batch.sql().await?;
        store::keys::put_fallback_key(conn, user, device_id, (&algorithm, &id), &key).await?;
    }
    if changes {
        store::keys::forget_claimed(batch.sql().await?, user, device_id, CLAIMED_KEPT).await?;
        counts::changed(batch, user_id, device_id);
    }
    counts::read(batch.reading(), user_id, device_id).await
}

/// Whether two texts are the same JSON.
fn same(a: &str, b: &str) -> bool {
    a == b
        || matches!((serde_json::from_str::<Value>(a), serde_json::from_str::<Value>(b)), (Ok(a), Ok(b)) if a == b)
}

async fn put_device_keys(batch: &mut Batch, user_id: &UserId, device_id: &str, keys: &Value) -> Result<()> {
    let (user, text) = (user_id.as_str(), keys.to_string());
    let before = store::keys::keys_of_device(batch.reading(), user, device_id).await?;
    if before.as_ref() == Some(&text) {
        return Ok(());
    }
    let mut text = text;
    match before.as_deref().and_then(|before| with_signatures_of(before, keys)) {
        // The same keys again: whoever signed them has signed these. A client that begins its identity sends them twice beside
        // each other, and the one without the identity's signature may come last.
        Some(merged) if before.as_ref() == Some(&merged) => return Ok(()),
        Some(merged) => text = merged,
        None if before.is_some() => {
            // What was signed is not what stands here now.
            store::keys::drop_signatures_on(batch.sql().await?, user, device_id).await?;
        }
        None => {}
    }
    let position = devices_changed(batch, user_id).await?;
    store::keys::put_device_keys(batch.sql().await?, user, device_id, &text, position).await
}

/// Keys with the signatures that they had before as well; none where they are other keys, or would become too large.
fn with_signatures_of(before: &str, keys: &Value) -> Option<String> {
    let before: Value = serde_json::from_str(before).ok()?;
    let signed = |keys: &Value| canonical(keys).as_ref().and_then(to_sign);
    if signed(&before)? != signed(keys)? {
        return None;
    }
    let mut merged = keys.clone();
    let of_users = merged.get_mut("signatures")?.as_object_mut()?;
    for (user_id, of_user) in before.get("signatures")?.as_object()? {
        let of =
            of_users.entry(user_id.clone()).or_insert_with(|| Value::Object(Map::new())).as_object_mut()?;
        for (name, signature) in of_user.as_object()? {
            of.entry(name.clone()).or_insert_with(|| signature.clone());
        }
    }
    let fits = merged.get("signatures").is_some_and(is_signatures);
    let text = merged.to_string();
    (fits && text.len() <= DEVICE_KEYS_BYTES_MAX).then_some(text)
}

/// The answer of `/keys/query`: keys of the users whom the asking one may reach. Others are missing, as unknown ones are.
/// With encryption forbidden nobody has an identity.
pub async fn query(
    server: &Server,
    user_id: &UserId,
    asked: &BTreeMap<String, Vec<String>>,
) -> Result<Map<String, Value>> {
    if asked.len() > USERS_MAX {
        return Err(invalid("Too many users at once."));
    }
    let mut users = Vec::new();
    for name in asked.keys() {
        let Ok(id) = <&UserId>::try_from(name.as_str()) else {
            return Err(invalid("device_keys has a name that is no user id."));
        };
        if may_reach(server, user_id, id) {
            users.push(name.clone());
        }
    }
    let allowed = server.config.policy.encryption == Encryption::Allowed;
    let mut conn = server.db.read().await?;
    let devices = store::keys::device_keys(&mut conn, &users).await?;
    let (identities, signatures) = if allowed {
        let identities = store::keys::cross_signing_keys(&mut conn, &users).await?;
        (identities, store::keys::signatures(&mut conn, &users).await?)
    } else {
        (Vec::new(), Vec::new())
    };
    drop(conn);
    // A user's own signatures are everybody's to see, others' the signer's only.
    let mut on: HashMap<(String, String), Vec<store::keys::Signature>> = HashMap::new();
    for signature in signatures {
        if signature.signer == signature.target_user || signature.signer == user_id.as_str() {
            on.entry((signature.target_user.clone(), signature.target.clone())).or_default().push(signature);
        }
    }
    let mut of_devices: Map<String, Value> =
        users.iter().map(|user| (user.clone(), Value::Object(Map::new()))).collect();
    for device in devices {
        let wanted = asked
            .get(&device.user_id)
            .is_some_and(|some| some.is_empty() || some.contains(&device.device_id));
        if !wanted {
            continue;
        }
        let mut keys: Value = serde_json::from_str(&device.keys)?;
        add_signatures(&mut keys, on.get(&(device.user_id.clone(), device.device_id.clone())));
        if let Some(object) = keys.as_object_mut() {
            let unsigned = match device.display_name {
                Some(name) => json!({"device_display_name": name}),
                None => json!({}),
            };
            object.insert("unsigned".to_owned(), unsigned);
        }
        if let Some(Value::Object(of_user)) = of_devices.get_mut(&device.user_id) {
            of_user.insert(device.device_id, keys);
        }
    }
    let mut answer = Map::new();
    for identity in identities {
        let field = match identity.usage.as_str() {
            "master" => "master_keys",
            "self_signing" => "self_signing_keys",
            _ if identity.user_id == user_id.as_str() => "user_signing_keys",
            _ => continue,
        };
        let mut key: Value = serde_json::from_str(&identity.content)?;
        add_signatures(&mut key, on.get(&(identity.user_id.clone(), identity.public_key.clone())));
        let of = answer.entry(field).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(of) = of {
            of.insert(identity.user_id, key);
        }
    }
    answer.insert("device_keys".to_owned(), Value::Object(of_devices));
    answer.insert("failures".to_owned(), json!({}));
    Ok(answer)
}

fn add_signatures(to: &mut Value, signatures: Option<&Vec<store::keys::Signature>>) {
    let (Some(object), Some(signatures)) = (to.as_object_mut(), signatures) else { return };
    let all = object.entry("signatures").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(all) = all else { return };
    for signature in signatures {
        let of = all.entry(signature.signer.clone()).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(of) = of {
            of.insert(signature.key_id.clone(), signature.signature.clone().into());
        }
    }
}

/// Hands out one-time keys: (user, device) → algorithm. One unit, so that no key is given twice.
pub async fn claim(
    server: &Server,
    user_id: &UserId,
    wanted: BTreeMap<String, BTreeMap<String, String>>,
) -> Result<Map<String, Value>> {
    if wanted.values().map(BTreeMap::len).sum::<usize>() > CLAIMS_MAX || wanted.len() > USERS_MAX {
        return Err(invalid("Too many devices at once."));
    }
    let mut reached: Vec<(OwnedUserId, BTreeMap<String, String>)> = Vec::new();
    for (name, devices) in wanted {
        if let Ok(id) = OwnedUserId::try_from(name)
            && may_reach(server, user_id, &id)
        {
            reached.push((id, devices));
        }
    }
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let mut answer = Map::new();
                for (user_id, devices) in reached {
                    let mut of_user = Map::new();
                    for (device_id, algorithm) in devices {
                        if let Some((id, key)) = hand_out(batch, &user_id, &device_id, &algorithm).await? {
                            let key: Value = serde_json::from_str(&key)?;
                            of_user.insert(device_id, json!({format!("{algorithm}:{id}"): key}));
                        }
                    }
                    answer.insert(user_id.to_string(), Value::Object(of_user));
                }
                Ok(answer)
            })
        })
        .await
}

async fn hand_out(
    batch: &mut Batch,
    user_id: &UserId,
    device_id: &str,
    algorithm: &str,
) -> Result<Option<(String, String)>> {
    let user = user_id.as_str();
    let conn = batch.sql().await?;
    let mut key = store::keys::claim_one_time_key(conn, user, device_id, algorithm).await?;
    if key.is_none() {
        key = store::keys::use_fallback_key(conn, user, device_id, algorithm).await?;
    }
    if key.is_some() {
        counts::changed(batch, user_id, device_id);
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> OwnedUserId {
        OwnedUserId::try_from("@a:x.jp").unwrap()
    }

    fn good() -> Value {
        json!({"user_id": "@a:x.jp", "device_id": "D", "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": {"ed25519:D": "abc"}, "signatures": {"@a:x.jp": {"ed25519:D": "def"}}, "unsigned": {"x": 1}})
    }

    #[test]
    fn device_keys_are_of_the_device_and_well_shaped() {
        let kept = device_keys_of(&user(), "D", good()).unwrap();
        assert!(kept.get("unsigned").is_none());
        for (pointer, bad) in [
            ("/user_id", json!("@b:x.jp")),
            ("/device_id", json!("E")),
            ("/algorithms", json!("x")),
            ("/algorithms", json!([1])),
            ("/keys", json!([])),
            ("/keys", json!({"ed25519:D": 1})),
            ("/keys", json!({"ed25519": "x"})),
            ("/signatures", json!({"a": {}})),
            ("/signatures", json!({"@a:x.jp": {"ed25519:D": []}})),
            ("/signatures", json!(null)),
        ] {
            let mut keys = good();
            *keys.pointer_mut(pointer).unwrap() = bad.clone();
            assert!(device_keys_of(&user(), "D", keys).is_err(), "{pointer} {bad}");
        }
        let mut large = good();
        large["keys"]["ed25519:D"] = "x".repeat(DEVICE_KEYS_BYTES_MAX).into();
        assert!(device_keys_of(&user(), "D", large).is_err());
        let mut fraction = good();
        fraction["x"] = json!(1.5);
        assert!(device_keys_of(&user(), "D", fraction).is_err());
    }

    #[test]
    fn keys_have_a_name_and_a_shape() {
        for name in ["", ":", "a:", ":b", "a", "a:ん", "a: b"] {
            assert!(key((name.to_owned(), json!("x"))).is_err(), "{name}");
        }
        for bad in [
            json!(1),
            json!(null),
            json!([]),
            json!({}),
            json!({"key": 1}),
            json!({"key": "x", "signatures": 1}),
        ] {
            assert!(key(("a:b".to_owned(), bad.clone())).is_err(), "{bad}");
        }
        assert!(key(("a:b".to_owned(), json!({"key": "x", "fallback": true, "signatures": {}}))).is_ok());
        assert!(key(("a:b".to_owned(), json!({"key": "x"}))).is_err(), "a signed key has its signatures");
        let two: Map<String, Value> =
            [("a:1".to_owned(), json!("x")), ("a:2".to_owned(), json!("x"))].into_iter().collect();
        assert!(Upload::check(&user(), "D", None, Map::new(), two).is_err());
    }
}
