//! Devices' keys and messages to devices.

use super::{Conn, all, all_in, one, run};
use crate::error::Result;

/// Stores a device's keys.
pub async fn put_device_keys(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    keys: &str,
    position: i64,
) -> Result<()> {
    run!(
        conn,
        "INSERT INTO device_keys (user_id, device_id, keys, position) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys, position = excluded.position",
        user_id,
        device_id,
        keys,
        position
    )?;
    Ok(())
}

/// A device's keys as uploaded.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct DeviceKeys {
    /// Whose.
    pub user_id: String,
    /// The device.
    pub device_id: String,
    /// JSON text.
    pub keys: String,
    /// The device's name.
    pub display_name: Option<String>,
}

/// The keys of some users' devices.
pub async fn device_keys(conn: &mut Conn, users: &[String]) -> Result<Vec<DeviceKeys>> {
    Ok(all_in!(
        conn,
        DeviceKeys,
        "SELECT k.user_id, k.device_id, k.keys, d.display_name FROM device_keys k \
         JOIN devices d ON d.user_id = k.user_id AND d.device_id = k.device_id WHERE k.user_id IN ",
        users
    ))
}

/// The keys of one device.
pub async fn keys_of_device(conn: &mut Conn, user_id: &str, device_id: &str) -> Result<Option<String>> {
    Ok(one!(
        conn,
        (String,),
        "SELECT keys FROM device_keys WHERE user_id = $1 AND device_id = $2",
        user_id,
        device_id
    )?
    .map(|(keys,)| keys))
}

/// Stores when a user's devices, their keys or cross-signing keys changed.
pub async fn put_device_list(conn: &mut Conn, user_id: &str, position: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO device_lists (user_id, position) VALUES ($1, $2) \
         ON CONFLICT (user_id) DO UPDATE SET position = excluded.position",
        user_id,
        position
    )?;
    Ok(())
}

/// When each user's devices last changed.
pub async fn device_lists(conn: &mut Conn) -> Result<Vec<(String, i64)>> {
    all!(conn, (String, i64), "SELECT user_id, position FROM device_lists")
}

/// Who signed whose master key, and when.
pub async fn signings(conn: &mut Conn) -> Result<Vec<(String, String, i64)>> {
    all!(
        conn,
        (String, String, i64),
        "SELECT signer, target_user, MAX(position) FROM key_signatures WHERE signer <> target_user \
         GROUP BY signer, target_user"
    )
}

/// Rooms with an `m.room.encryption`, and where it stands in the one sequence.
pub async fn encrypted_rooms(conn: &mut Conn) -> Result<Vec<(String, i64)>> {
    all!(
        conn,
        (String, i64),
        "SELECT s.room_id, e.position FROM room_state s JOIN events e ON e.event_id = s.event_id \
         WHERE s.type = 'm.room.encryption' AND s.state_key = '' AND s.to_order IS NULL"
    )
}

/// Stores a one-time key.
pub async fn put_one_time_key(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    (algorithm, key_id): (&str, &str),
    key: &str,
    position: i64,
) -> Result<()> {
    run!(
        conn,
        "INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, key, position, claimed) \
         VALUES ($1, $2, $3, $4, $5, $6, FALSE)",
        user_id,
        device_id,
        algorithm,
        key_id,
        key,
        position
    )?;
    Ok(())
}

/// A one-time key that was uploaded, handed out already or not.
pub async fn one_time_key(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    (algorithm, key_id): (&str, &str),
) -> Result<Option<String>> {
    Ok(one!(
        conn,
        (String,),
        "SELECT key FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = $4",
        user_id,
        device_id,
        algorithm,
        key_id
    )?
    .map(|(key,)| key))
}

/// How many one-time keys a device has, by algorithm.
pub async fn one_time_key_counts(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
) -> Result<Vec<(String, i64)>> {
    all!(
        conn,
        (String, i64),
        "SELECT algorithm, COUNT(*) FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND claimed = FALSE \
         GROUP BY algorithm",
        user_id,
        device_id
    )
}

/// Hands out the oldest one-time key of an algorithm, once.
pub async fn claim_one_time_key(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    algorithm: &str,
) -> Result<Option<(String, String)>> {
    one!(
        conn,
        (String, String),
        "UPDATE one_time_keys SET claimed = TRUE WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 \
         AND key_id = (SELECT key_id FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 \
         AND claimed = FALSE ORDER BY position, key_id LIMIT 1) RETURNING key_id, key",
        user_id,
        device_id,
        algorithm
    )
}

/// Forgets which keys were handed out long ago; the newest `keep` stay.
pub async fn forget_claimed(conn: &mut Conn, user_id: &str, device_id: &str, keep: i64) -> Result<()> {
    run!(
        conn,
        "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND claimed = TRUE AND position <= \
         (SELECT position FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND claimed = TRUE \
         ORDER BY position DESC LIMIT 1 OFFSET $3)",
        user_id,
        device_id,
        keep
    )?;
    Ok(())
}

/// Stores a fallback key. One that is uploaded again stays as used as it was.
pub async fn put_fallback_key(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    (algorithm, key_id): (&str, &str),
    key: &str,
) -> Result<()> {
    run!(
        conn,
        "INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, key, used) VALUES ($1, $2, $3, $4, $5, FALSE) \
         ON CONFLICT (user_id, device_id, algorithm) \
         DO UPDATE SET used = (fallback_keys.used AND fallback_keys.key_id = excluded.key_id \
         AND fallback_keys.key = excluded.key), key_id = excluded.key_id, key = excluded.key",
        user_id,
        device_id,
        algorithm,
        key_id,
        key
    )?;
    Ok(())
}

/// Hands out the fallback key of an algorithm.
pub async fn use_fallback_key(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    algorithm: &str,
) -> Result<Option<(String, String)>> {
    one!(
        conn,
        (String, String),
        "UPDATE fallback_keys SET used = TRUE WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 \
         RETURNING key_id, key",
        user_id,
        device_id,
        algorithm
    )
}

/// Algorithms with a fallback key that was not used.
pub async fn unused_fallbacks(conn: &mut Conn, user_id: &str, device_id: &str) -> Result<Vec<String>> {
    Ok(all!(
        conn,
        (String,),
        "SELECT algorithm FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND used = FALSE",
        user_id,
        device_id
    )?
    .into_iter()
    .map(|(algorithm,)| algorithm)
    .collect())
}

/// Queues a message to a device.
pub async fn put_to_device(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    position: i64,
    event: &str,
) -> Result<()> {
    run!(
        conn,
        "INSERT INTO to_device (user_id, device_id, position, event) VALUES ($1, $2, $3, $4)",
        user_id,
        device_id,
        position,
        event
    )?;
    Ok(())
}

/// Bytes of messages that wait for a device.
pub async fn to_device_bytes(conn: &mut Conn, user_id: &str, device_id: &str) -> Result<i64> {
    Ok(one!(
        conn,
        (i64,),
        "SELECT CAST(COALESCE(SUM(OCTET_LENGTH(event)), 0) AS BIGINT) FROM to_device WHERE user_id = $1 AND device_id = $2",
        user_id,
        device_id
    )?
    .map_or(0, |(n,)| n))
}

/// Messages to a device after a position.
pub async fn to_device(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    after: i64,
    upto: i64,
    limit: i64,
) -> Result<Vec<(i64, String)>> {
    all!(
        conn,
        (i64, String),
        "SELECT position, event FROM to_device WHERE user_id = $1 AND device_id = $2 \
         AND position > $3 AND position <= $4 ORDER BY position LIMIT $5",
        user_id,
        device_id,
        after,
        upto,
        limit
    )
}

/// Drops the messages that a device has acknowledged by syncing past them.
pub async fn acknowledge_to_device(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    upto: i64,
) -> Result<u64> {
    run!(
        conn,
        "DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND position <= $3",
        user_id,
        device_id,
        upto
    )
}

/// A cross-signing key.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct CrossSigningKey {
    /// Whose.
    pub user_id: String,
    /// `master`, `self_signing` or `user_signing`.
    pub usage: String,
    /// The public key in unpadded base64.
    pub public_key: String,
    /// JSON text, as uploaded.
    pub content: String,
}

/// Some users' cross-signing keys.
pub async fn cross_signing_keys(conn: &mut Conn, users: &[String]) -> Result<Vec<CrossSigningKey>> {
    Ok(all_in!(
        conn,
        CrossSigningKey,
        "SELECT user_id, usage, public_key, content FROM cross_signing_keys WHERE user_id IN ",
        users
    ))
}

/// Stores a cross-signing key in the place of the one before.
pub async fn put_cross_signing_key(conn: &mut Conn, key: &CrossSigningKey) -> Result<()> {
    run!(
        conn,
        "INSERT INTO cross_signing_keys (user_id, usage, public_key, content) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (user_id, usage) DO UPDATE SET public_key = excluded.public_key, content = excluded.content",
        &key.user_id,
        &key.usage,
        &key.public_key,
        &key.content
    )?;
    Ok(())
}

/// Drops a cross-signing key with all that it signed and what was signed on it.
pub async fn drop_cross_signing_key(conn: &mut Conn, user_id: &str, public_key: &str) -> Result<()> {
    let key_id = format!("ed25519:{public_key}");
    run!(conn, "DELETE FROM cross_signing_keys WHERE user_id = $1 AND public_key = $2", user_id, public_key)?;
    run!(conn, "DELETE FROM key_signatures WHERE signer = $1 AND key_id = $2", user_id, &key_id)?;
    run!(conn, "DELETE FROM key_signatures WHERE target_user = $1 AND target = $2", user_id, public_key)?;
    Ok(())
}

/// A signature on a device's keys or a master key.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Signature {
    /// Who signed.
    pub signer: String,
    /// With which key: `ed25519:…`.
    pub key_id: String,
    /// Whose key was signed.
    pub target_user: String,
    /// The device, or the master key's public key.
    pub target: String,
    /// The signature in unpadded base64.
    pub signature: String,
}

/// Signatures on the keys of some users, whoever signed.
pub async fn signatures(conn: &mut Conn, users: &[String]) -> Result<Vec<Signature>> {
    Ok(all_in!(
        conn,
        Signature,
        "SELECT signer, key_id, target_user, target, signature FROM key_signatures WHERE target_user IN ",
        users
    ))
}

/// Stores a signature.
pub async fn put_signature(conn: &mut Conn, signature: &Signature, position: i64) -> Result<()> {
    run!(
        conn,
        "INSERT INTO key_signatures (signer, key_id, target_user, target, signature, position) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (signer, key_id, target_user, target) \
         DO UPDATE SET signature = excluded.signature, position = excluded.position",
        &signature.signer,
        &signature.key_id,
        &signature.target_user,
        &signature.target,
        &signature.signature,
        position
    )?;
    Ok(())
}

/// Drops the signatures on a device's keys, which have changed.
pub async fn drop_signatures_on(conn: &mut Conn, user_id: &str, target: &str) -> Result<()> {
    run!(conn, "DELETE FROM key_signatures WHERE target_user = $1 AND target = $2", user_id, target)?;
    Ok(())
}

/// Drops everything of a user but the devices: cross-signing keys, signatures, backups.
pub async fn forget_user(conn: &mut Conn, user_id: &str) -> Result<()> {
    run!(conn, "DELETE FROM cross_signing_keys WHERE user_id = $1", user_id)?;
    run!(conn, "DELETE FROM key_signatures WHERE signer = $1 OR target_user = $1", user_id)?;
    run!(conn, "DELETE FROM key_backup_sessions WHERE user_id = $1", user_id)?;
    run!(conn, "DELETE FROM key_backups WHERE user_id = $1", user_id)?;
    run!(conn, "DELETE FROM dehydrated_devices WHERE user_id = $1", user_id)?;
    Ok(())
}

/// A user's dehydrated device: its id and data.
pub async fn dehydrated_device(conn: &mut Conn, user_id: &str) -> Result<Option<(String, String)>> {
    one!(
        conn,
        (String, String),
        "SELECT device_id, device_data FROM dehydrated_devices WHERE user_id = $1",
        user_id
    )
}

/// Stores which device is a user's dehydrated one.
pub async fn put_dehydrated_device(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    data: &str,
) -> Result<()> {
    run!(
        conn,
        "INSERT INTO dehydrated_devices (user_id, device_id, device_data) VALUES ($1, $2, $3) \
         ON CONFLICT (user_id) DO UPDATE SET device_id = excluded.device_id, device_data = excluded.device_data",
        user_id,
        device_id,
        data
    )?;
    Ok(())
}
