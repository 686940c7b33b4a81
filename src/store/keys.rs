//! Devices' keys and messages to devices.

use super::{Conn, all, one, run};
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

/// The keys of a user's devices, with the devices' names.
pub async fn device_keys(conn: &mut Conn, user_id: &str) -> Result<Vec<(String, String, Option<String>)>> {
    all!(
        conn,
        (String, String, Option<String>),
        "SELECT k.device_id, k.keys, d.display_name FROM device_keys k \
         JOIN devices d ON d.user_id = k.user_id AND d.device_id = k.device_id WHERE k.user_id = $1",
        user_id
    )
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

/// Stores a one-time key; the first upload of a key id stands.
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
        "INSERT INTO one_time_keys (user_id, device_id, key_id, algorithm, key, position) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        user_id,
        device_id,
        key_id,
        algorithm,
        key,
        position
    )?;
    Ok(())
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
        "SELECT algorithm, COUNT(*) FROM one_time_keys WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm",
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
        "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND key_id = (SELECT key_id FROM one_time_keys \
         WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 ORDER BY position, key_id LIMIT 1) \
         RETURNING key_id, key",
        user_id,
        device_id,
        algorithm
    )
}

/// Stores a fallback key.
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
         DO UPDATE SET key_id = excluded.key_id, key = excluded.key, used = FALSE",
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

/// Whether a message waits for any device of a user.
pub async fn any_to_device(conn: &mut Conn, user_id: &str) -> Result<bool> {
    Ok(one!(conn, (i64,), "SELECT position FROM to_device WHERE user_id = $1 LIMIT 1", user_id)?.is_some())
}

/// Bytes of messages that wait for a device.
pub async fn to_device_bytes(conn: &mut Conn, user_id: &str, device_id: &str) -> Result<i64> {
    Ok(one!(
        conn,
        (i64,),
        "SELECT CAST(COALESCE(SUM(LENGTH(event)), 0) AS BIGINT) FROM to_device WHERE user_id = $1 AND device_id = $2",
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
