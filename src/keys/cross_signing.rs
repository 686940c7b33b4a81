//! Cross-signing: a user's master, self-signing and user-signing key, and the signatures that connect devices and users.
//! Here the server does check signatures: a wrong one would make clients distrust somebody who did nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use ruma::{CanonicalJsonObject, OwnedUserId, UserId, signatures::SigningKeyAlgorithm};
use serde_json::Value;

use super::{devices, devices_changed, may_reach};
use crate::{
    error::{Code, Error, Refusal, Result, forbidden, invalid, not_found, refuse},
    rooms::{batch::Batch, committer::Hint},
    server::Server,
    store::{self, keys::CrossSigningKey, keys::Signature},
};

/// Bytes of a key with its signatures, as JSON.
const KEY_BYTES_MAX: usize = 16_384;
/// Signed objects in one upload, and signatures looked at in one object.
const SIGNED_MAX: usize = 500;
const SIGNATURES_MAX: usize = 300;

/// What is said of a key that is not there, or not there any more.
const UNKNOWN: &str = "No such key.";

/// Base64 as in keys and signatures: without padding, which is not insisted on.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What `/keys/device_signing/upload` brings.
#[derive(Debug)]
pub struct Identity {
    master: Option<Key>,
    self_signing: Option<Key>,
    user_signing: Option<Key>,
}

/// A cross-signing key, checked in its shape.
#[derive(Debug)]
struct Key {
    usage: &'static str,
    /// In unpadded base64.
    public: String,
    object: CanonicalJsonObject,
}

impl Key {
    fn check(user_id: &UserId, usage: &'static str, value: Option<Value>) -> Result<Option<Self>> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
        let wrong = || invalid(format!("The {usage} key is not well formed."));
        let usages = value["usage"].as_array().ok_or_else(wrong)?;
        let keys = value["keys"].as_object().ok_or_else(wrong)?;
        let (name, public) = keys.iter().next().ok_or_else(wrong)?;
        let public = public.as_str().ok_or_else(wrong)?.to_owned();
        let shaped = value["user_id"] == user_id.as_str()
            && usages.len() == 1
            && usages[0] == usage
            && keys.len() == 1
            && name.strip_prefix("ed25519:") == Some(&public)
            && bytes_of(&public).is_some_and(|bytes| bytes.len() == 32)
            && value.get("signatures").is_none_or(devices::is_signatures);
        if !shaped {
            return Err(wrong());
        }
        if value.to_string().len() > KEY_BYTES_MAX {
            return Err(refuse(Code::TooLarge, format!("The {usage} key is too large.")));
        }
        let mut object = canonical(&value).ok_or_else(wrong)?;
        object.remove("unsigned");
        // Others' signatures come from the others.
        if let Some(ruma::CanonicalJsonValue::Object(signatures)) = object.get_mut("signatures") {
            signatures.retain(|signer, _| signer == user_id.as_str());
        }
        Ok(Some(Self { usage, public, object }))
    }

    fn row(&self, user_id: &UserId) -> Result<CrossSigningKey> {
        Ok(CrossSigningKey {
            user_id: user_id.to_string(),
            usage: self.usage.to_owned(),
            public_key: self.public.clone(),
            content: serde_json::to_string(&self.object)?,
        })
    }
}

impl Identity {
    /// Checks what a user sent.
    pub fn check(
        user_id: &UserId,
        master: Option<Value>,
        self_signing: Option<Value>,
        user_signing: Option<Value>,
    ) -> Result<Self> {
        Ok(Self {
            master: Key::check(user_id, "master", master)?,
            self_signing: Key::check(user_id, "self_signing", self_signing)?,
            user_signing: Key::check(user_id, "user_signing", user_signing)?,
        })
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        [&self.master, &self.self_signing, &self.user_signing].into_iter().flatten()
    }

    /// Whether it brings a key that is not the stored one.
    fn brings_new(&self, stored: &[CrossSigningKey]) -> bool {
        self.keys().any(|key| !stored.iter().any(|s| s.usage == key.usage && s.public_key == key.public))
    }
}

/// Whether the user has to authenticate for this: where an identity exists and this is not just the same again
/// (client-server API, `/keys/device_signing/upload`; MSC3967).
pub async fn needs_authentication(server: &Server, user_id: &UserId, identity: &Identity) -> Result<bool> {
    let stored =
        store::keys::cross_signing_keys(&mut server.db.read().await?, &[user_id.to_string()]).await?;
    Ok(stored.iter().any(|key| key.usage == "master") && identity.brings_new(&stored))
}

/// Stores a user's cross-signing keys. `authenticated` says that the user authenticated for it.
pub async fn upload(
    server: &Server,
    user_id: &UserId,
    identity: Identity,
    authenticated: bool,
) -> Result<()> {
    let user_id = user_id.to_owned();
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move { store_identity(batch, &user_id, &identity, authenticated).await })
        })
        .await
}

async fn store_identity(
    batch: &mut Batch,
    user_id: &UserId,
    identity: &Identity,
    authenticated: bool,
) -> Result<()> {
    let stored = store::keys::cross_signing_keys(batch.reading(), &[user_id.to_string()]).await?;
    let of_usage = |usage: &str| stored.iter().find(|key| key.usage == usage);
    if of_usage("master").is_some() && identity.brings_new(&stored) && !authenticated {
        // Somebody was quicker between the question and the unit.
        return Err(forbidden("Your identity was set up elsewhere meanwhile: please try again."));
    }
    let master = match (&identity.master, of_usage("master")) {
        (Some(key), _) => key.public.clone(),
        (None, Some(key)) => key.public_key.clone(),
        (None, None) => return Err(refuse(Code::MissingParam, "There is no master signing key.")),
    };
    for key in [&identity.self_signing, &identity.user_signing].into_iter().flatten() {
        let signature = signature_of(&key.object, user_id, &master);
        if !signature.is_some_and(|signature| is_signed(&key.object, &master, &signature)) {
            return Err(refuse(
                Code::InvalidSignature,
                format!("The {} key is not signed by the master key.", key.usage),
            ));
        }
    }
    let devices = store::personal::devices(batch.reading(), user_id.as_str()).await?;
    if identity.keys().any(|key| devices.iter().any(|device| device.device_id == key.public)) {
        return Err(forbidden("A device has the id of one of these keys."));
    }
    if !identity.brings_new(&stored) {
        return Ok(());
    }
    let master_changes = of_usage("master").is_some_and(|key| key.public_key != master);
    for old in &stored {
        let replaced = identity.keys().any(|key| key.usage == old.usage && key.public != old.public_key);
        // What the old master key signed is worth nothing under a new one.
        if replaced || master_changes {
            let conn = batch.sql().await?;
            store::keys::drop_cross_signing_key(conn, user_id.as_str(), &old.public_key).await?;
        }
    }
    for key in identity.keys() {
        store::keys::put_cross_signing_key(batch.sql().await?, &key.row(user_id)?).await?;
    }
    devices_changed(batch, user_id).await?;
    Ok(())
}

/// A signature that was not taken.
#[derive(Debug)]
pub struct Failure {
    /// Whose key was to be signed.
    pub user_id: String,
    /// The device id or public key.
    pub target: String,
    /// Why not.
    pub refusal: Refusal,
}

/// Takes signatures: user → device id or public key → the signed object. Answers those that were not taken.
pub async fn add_signatures(
    server: &Server,
    user_id: &UserId,
    signed: BTreeMap<String, BTreeMap<String, Value>>,
) -> Result<Vec<Failure>> {
    if signed.len().max(signed.values().map(BTreeMap::len).sum()) > SIGNED_MAX {
        return Err(invalid("Too many signed objects at once."));
    }
    let (mut failures, mut good) = (Vec::new(), Vec::new());
    let keys = Keys::read(&mut server.db.read().await?, user_id, signed.keys().cloned()).await?;
    for (target_user, objects) in signed {
        for (target, object) in objects {
            match check_signed(server, &keys, &target_user, &target, &object) {
                Ok(checked) => good.push(checked),
                Err(Error::Refused(refusal)) => {
                    failures.push(Failure { user_id: target_user.clone(), target, refusal: *refusal });
                }
                Err(error) => return Err(error),
            }
        }
    }
    if !good.is_empty() {
        let user_id = user_id.to_owned();
        let gone = server
            .commit(Hint::default(), move |batch| {
                Box::pin(async move { store_signatures(batch, &user_id, good).await })
            })
            .await?;
        failures.extend(gone);
    }
    Ok(failures)
}

/// Stores what was checked. Devices end and keys change while signatures are looked at: those that do not fit what is
/// stored now are returned.
async fn store_signatures(
    batch: &mut Batch,
    user_id: &UserId,
    checked: Vec<Checked>,
) -> Result<Vec<Failure>> {
    let users = checked.iter().map(|one| one.user_id.to_string()).collect::<BTreeSet<String>>();
    let now = Keys::read(batch.reading(), user_id, users).await?;
    let (mut signatures, mut gone) = (Vec::new(), Vec::new());
    for one in checked {
        if now.target(&one.user_id, &one.target)?.is_some_and(|target| one.fits(&target)) {
            signatures.extend(one.signatures.into_iter().map(|(signature, _)| signature));
        } else {
            let refusal =
                Refusal { code: Code::NotFound, message: UNKNOWN.to_owned(), extra: serde_json::Map::new() };
            gone.push(Failure { user_id: one.user_id.to_string(), target: one.target, refusal });
        }
    }
    let mut own = false;
    for signature in signatures {
        let target = OwnedUserId::try_from(signature.target_user.as_str())?;
        // Who signed another is news for one's own devices only, and nobody else's business.
        let position = if target == user_id { batch.next_position() } else { batch.personal_change(user_id) };
        store::keys::put_signature(batch.sql().await?, &signature, position).await?;
        if target == user_id {
            own = true;
        } else {
            let (live, user_id) = (Arc::clone(&batch.live), user_id.to_owned());
            batch.after_commit(move || live.lists.signed(&user_id, &target, position));
        }
    }
    if own {
        devices_changed(batch, user_id).await?;
    }
    Ok(gone)
}

/// A key as it is stored, and the keys of the signing user that may sign it: name → public key.
struct Target {
    key: CanonicalJsonObject,
    signers: BTreeMap<String, String>,
}

/// A signed key whose signatures are right.
struct Checked {
    /// Whose key it is.
    user_id: OwnedUserId,
    /// The device id or public key.
    target: String,
    /// What of it was signed.
    signed: Option<String>,
    /// The signatures, with the public key of each.
    signatures: Vec<(Signature, String)>,
}

impl Checked {
    /// Whether it is about this key, and its signers may sign it.
    fn fits(&self, target: &Target) -> bool {
        let may = |(signature, public): &(Signature, String)| {
            target.signers.get(&signature.key_id).is_some_and(|of| of == public)
        };
        to_sign(&target.key) == self.signed && self.signatures.iter().all(may)
    }
}

/// What is stored of whoever signs, and of those whose keys are signed.
struct Keys {
    user_id: OwnedUserId,
    /// The cross-signing keys of all of them.
    identities: Vec<CrossSigningKey>,
    /// The signing user's devices.
    devices: BTreeMap<String, CanonicalJsonObject>,
}

impl Keys {
    async fn read(
        conn: &mut store::Conn,
        user_id: &UserId,
        targets: impl IntoIterator<Item = String>,
    ) -> Result<Self> {
        let user = [user_id.to_string()];
        let users: Vec<String> = user.iter().cloned().chain(targets).collect();
        let identities = store::keys::cross_signing_keys(conn, &users).await?;
        let devices = store::keys::device_keys(conn, &user)
            .await?
            .into_iter()
            .filter_map(|device| Some((device.device_id, serde_json::from_str(&device.keys).ok()?)))
            .collect();
        Ok(Self { user_id: user_id.to_owned(), identities, devices })
    }

    fn key(&self, user_id: &UserId, usage: &str) -> Option<&CrossSigningKey> {
        self.identities.iter().find(|key| key.user_id == user_id.as_str() && key.usage == usage)
    }

    /// A key that the signing user may sign: of an own device, the own master key, another's master key.
    fn target(&self, user_id: &UserId, target: &str) -> Result<Option<Target>> {
        let signer = |usage: &str| {
            let key = self.key(&self.user_id, usage)?;
            Some(BTreeMap::from([(format!("ed25519:{}", key.public_key), key.public_key.clone())]))
        };
        let own = user_id == self.user_id;
        if let Some(key) = self.devices.get(target).filter(|_| own) {
            return Ok(signer("self_signing").map(|signers| Target { key: key.clone(), signers }));
        }
        let Some(master) = self.key(user_id, "master").filter(|key| key.public_key == target) else {
            return Ok(None);
        };
        let key = serde_json::from_str(&master.content)?;
        let signers = if own { Some(self.device_keys()) } else { signer("user_signing") };
        Ok(signers.map(|signers| Target { key, signers }))
    }

    /// The public keys of the signing user's devices, by name.
    fn device_keys(&self) -> BTreeMap<String, String> {
        let public = |device_id: &str, keys: &CanonicalJsonObject| {
            let name = format!("ed25519:{device_id}");
            let public = keys.get("keys")?.as_object()?.get(&name)?.as_str()?.to_owned();
            Some((name, public))
        };
        self.devices.iter().filter_map(|(device_id, keys)| public(device_id, keys)).collect()
    }
}

/// The signatures of an object that are right and that its signer may give.
fn check_signed(
    server: &Server,
    own: &Keys,
    target_user: &str,
    target: &str,
    object: &Value,
) -> Result<Checked> {
    let user_id = OwnedUserId::try_from(target_user).map_err(|_| invalid("That is no user id."))?;
    let object = canonical(object).ok_or_else(|| invalid("That is no object that can be signed."))?;
    if user_id != own.user_id && !may_reach(server, &own.user_id, &user_id) {
        return Err(not_found(UNKNOWN));
    }
    let stored = own.target(&user_id, target)?.ok_or_else(|| not_found(UNKNOWN))?;
    let signed = to_sign(&object);
    if to_sign(&stored.key) != signed {
        return Err(invalid("The signed object is not the key that was uploaded."));
    }
    let by = names_of_signatures(&object, &own.user_id).into_iter();
    let by = by.filter_map(|name| Some((stored.signers.get(&name)?.clone(), name)));
    let mut signatures = Vec::new();
    for (public, key_id) in by.take(SIGNATURES_MAX) {
        let Some(signature) = signature_by(&object, &own.user_id, &key_id) else { continue };
        if !is_signed(&object, &public, &signature) {
            return Err(refuse(Code::InvalidSignature, "The signature is not right."));
        }
        let signature = Signature {
            signer: own.user_id.to_string(),
            key_id,
            target_user: target_user.to_owned(),
            target: target.to_owned(),
            signature,
        };
        signatures.push((signature, public));
    }
    if signatures.is_empty() {
        return Err(refuse(Code::InvalidSignature, "There is no signature by a key that may sign this."));
    }
    Ok(Checked { user_id, target: target.to_owned(), signed, signatures })
}

pub(super) fn canonical(value: &Value) -> Option<CanonicalJsonObject> {
    match ruma::CanonicalJsonValue::try_from(value.clone()) {
        Ok(ruma::CanonicalJsonValue::Object(object)) => Some(object),
        _ => None,
    }
}

fn bytes_of(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

/// What of an object is signed.
pub(super) fn to_sign(object: &CanonicalJsonObject) -> Option<String> {
    ruma::signatures::to_canonical_json_string_for_signing(object).ok()
}

fn signatures_of<'a>(object: &'a CanonicalJsonObject, user_id: &UserId) -> Option<&'a CanonicalJsonObject> {
    object.get("signatures")?.as_object()?.get(user_id.as_str())?.as_object()
}

fn names_of_signatures(object: &CanonicalJsonObject, user_id: &UserId) -> Vec<String> {
    signatures_of(object, user_id).map(|of| of.keys().cloned().collect()).unwrap_or_default()
}

fn signature_by(object: &CanonicalJsonObject, user_id: &UserId, key_id: &str) -> Option<String> {
    Some(signatures_of(object, user_id)?.get(key_id)?.as_str()?.to_owned())
}

fn signature_of(object: &CanonicalJsonObject, user_id: &UserId, public: &str) -> Option<String> {
    signature_by(object, user_id, &format!("ed25519:{public}"))
}

/// Whether a signature by an ed25519 key stands on an object (appendices, "Checking for a signature").
fn is_signed(object: &CanonicalJsonObject, public: &str, signature: &str) -> bool {
    let (Some(text), Some(public), Some(signature)) =
        (to_sign(object), bytes_of(public), bytes_of(signature))
    else {
        return false;
    };
    ruma::signatures::verify_canonical_json_bytes(
        &SigningKeyAlgorithm::Ed25519,
        &public,
        &signature,
        text.as_bytes(),
    )
    .is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_the_users_and_well_shaped() {
        let user = OwnedUserId::try_from("@a:x.jp").unwrap();
        let public = "A".repeat(43);
        let good = json!({"user_id": "@a:x.jp", "usage": ["master"], "keys": {format!("ed25519:{public}"): public},
            "signatures": {"@a:x.jp": {"ed25519:D": "x"}, "@b:x.jp": {"ed25519:D": "x"}}});
        let key = Key::check(&user, "master", Some(good.clone())).unwrap().unwrap();
        assert_eq!(names_of_signatures(&key.object, &user), ["ed25519:D"]);
        assert!(!serde_json::to_string(&key.object).unwrap().contains("@b:x.jp"));
        assert!(Key::check(&user, "self_signing", Some(good.clone())).is_err());
        for (field, bad) in [
            ("user_id", json!("@b:x.jp")),
            ("usage", json!(["master", "self_signing"])),
            ("usage", json!("master")),
            ("keys", json!({})),
            ("keys", json!({"ed25519:x": "x"})),
            ("keys", json!({format!("ed25519:{public}"): "x"})),
            ("keys", json!({format!("ed25519:{public}"): public, "ed25519:y": "y"})),
            ("signatures", json!([])),
        ] {
            let mut key = good.clone();
            key[field] = bad.clone();
            assert!(Key::check(&user, "master", Some(key)).is_err(), "{field} {bad}");
        }
        for bad in [json!(1), json!([]), json!("x"), json!({})] {
            assert!(Key::check(&user, "master", Some(bad)).is_err());
        }
    }
}
