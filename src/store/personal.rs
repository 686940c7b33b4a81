//! What belongs to one user: account data, filters, devices, profile.

use super::{
    Conn, all, one, run,
    script::{Script, queue_many},
};
use crate::{error::Result, rooms::batch::AccountData};

/// Writes account data; of several for one type the last counts.
pub(crate) fn write_account_data(script: &mut Script, list: &[AccountData]) {
    let mut last: Vec<&AccountData> = Vec::with_capacity(list.len());
    let mut seen = std::collections::HashSet::new();
    for row in list.iter().rev() {
        if seen.insert((&row.user_id, &row.room_id, &row.kind)) {
            last.push(row);
        }
    }
    queue_many!(
        script,
        "INSERT INTO account_data (user_id, room_id, type, content, position) ",
        &last,
        |b, row| {
            b.push_bind(row.user_id.as_str())
                .push_bind(&row.room_id)
                .push_bind(&row.kind)
                .push_bind(&row.content)
                .push_bind(row.position);
        },
        " ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content, position = excluded.position"
    );
}

/// Account data of a user: (room or "", type, content) changed after a position.
pub async fn account_data_after(
    conn: &mut Conn,
    user_id: &str,
    after: i64,
    upto: i64,
) -> Result<Vec<(String, String, String)>> {
    all!(
        conn,
        (String, String, String),
        "SELECT room_id, type, content FROM account_data WHERE user_id = $1 AND position > $2 AND position <= $3",
        user_id,
        after,
        upto
    )
}

/// Account data of a user for one room, up to a position: (type, content).
pub async fn account_data_of_room(
    conn: &mut Conn,
    user_id: &str,
    room_id: &str,
    upto: i64,
) -> Result<Vec<(String, String)>> {
    all!(
        conn,
        (String, String),
        "SELECT type, content FROM account_data WHERE user_id = $1 AND room_id = $2 AND position <= $3",
        user_id,
        room_id,
        upto
    )
}

/// Account data of a user between two positions, with where each piece changed: (room or "", type, content, position).
pub async fn account_data_with_position(
    conn: &mut Conn,
    user_id: &str,
    (after, upto): (i64, i64),
) -> Result<Vec<(String, String, String, i64)>> {
    all!(
        conn,
        (String, String, String, i64),
        "SELECT room_id, type, content, position FROM account_data \
         WHERE user_id = $1 AND position > $2 AND position <= $3 ORDER BY room_id, type",
        user_id,
        after,
        upto
    )
}

/// Account data of one type, of all rooms that have it: (room, content).
pub async fn of_kind(conn: &mut Conn, user_id: &str, kind: &str) -> Result<Vec<(String, String)>> {
    all!(
        conn,
        (String, String),
        "SELECT room_id, content FROM account_data WHERE user_id = $1 AND type = $2",
        user_id,
        kind
    )
}

/// One piece of account data.
pub async fn account_data(
    conn: &mut Conn,
    user_id: &str,
    room_id: &str,
    kind: &str,
) -> Result<Option<String>> {
    Ok(one!(
        conn,
        (String,),
        "SELECT content FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = $3",
        user_id,
        room_id,
        kind
    )?
    .map(|(content,)| content))
}

/// How many pieces of account data a user has for a room, or globally ("").
pub async fn account_data_count(conn: &mut Conn, user_id: &str, room_id: &str) -> Result<i64> {
    let counted = one!(
        conn,
        (i64,),
        "SELECT COUNT(*) FROM account_data WHERE user_id = $1 AND room_id = $2",
        user_id,
        room_id
    )?;
    Ok(counted.map_or(0, |(n,)| n))
}

/// A filter by its id.
pub async fn filter(conn: &mut Conn, user_id: &str, id: &str) -> Result<Option<String>> {
    Ok(one!(conn, (String,), "SELECT filter FROM filters WHERE user_id = $1 AND id = $2", user_id, id)?
        .map(|(filter,)| filter))
}

/// Stores a filter; its id is a hash of its text, so the same filter is stored once.
pub async fn put_filter(conn: &mut Conn, user_id: &str, id: &str, filter: &str) -> Result<()> {
    run!(
        conn,
        "INSERT INTO filters (user_id, id, filter) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        user_id,
        id,
        filter
    )?;
    Ok(())
}

/// How many filters a user has.
pub async fn filters(conn: &mut Conn, user_id: &str) -> Result<i64> {
    Ok(one!(conn, (i64,), "SELECT COUNT(*) FROM filters WHERE user_id = $1", user_id)?.map_or(0, |(n,)| n))
}

/// A device.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Device {
    /// Its id.
    pub device_id: String,
    /// Its name.
    pub display_name: Option<String>,
    /// When it was last heard of.
    pub last_seen: Option<i64>,
}

/// A user's devices.
pub async fn devices(conn: &mut Conn, user_id: &str) -> Result<Vec<Device>> {
    all!(
        conn,
        Device,
        "SELECT device_id, display_name, last_seen FROM devices WHERE user_id = $1 ORDER BY device_id",
        user_id
    )
}

/// Makes a device or refreshes it.
pub async fn put_device(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    name: Option<&str>,
    now: i64,
) -> Result<()> {
    run!(
        conn,
        "INSERT INTO devices (user_id, device_id, display_name, last_seen, created_at) VALUES ($1, $2, $3, $4, $4) \
         ON CONFLICT (user_id, device_id) DO UPDATE SET last_seen = excluded.last_seen, \
         display_name = COALESCE(devices.display_name, excluded.display_name)",
        user_id,
        device_id,
        name,
        now
    )?;
    used(conn, user_id, now).await
}

/// An account was used: said of the account, too, since its sessions end.
async fn used(conn: &mut Conn, user_id: &str, at: i64) -> Result<()> {
    run!(
        conn,
        "UPDATE accounts SET last_used = $2 WHERE user_id = $1 AND (last_used IS NULL OR last_used < $2)",
        user_id,
        at
    )?;
    Ok(())
}

/// Renames a device; false where there is none.
pub async fn rename_device(
    conn: &mut Conn,
    user_id: &str,
    device_id: &str,
    name: Option<&str>,
) -> Result<bool> {
    Ok(run!(
        conn,
        "UPDATE devices SET display_name = $3 WHERE user_id = $1 AND device_id = $2",
        user_id,
        device_id,
        name
    )? > 0)
}

/// A device was used.
pub async fn seen(conn: &mut Conn, user_id: &str, device_id: &str, at: i64) -> Result<()> {
    run!(
        conn,
        "UPDATE devices SET last_seen = $3 WHERE user_id = $1 AND device_id = $2 AND (last_seen IS NULL OR last_seen < $3)",
        user_id,
        device_id,
        at
    )?;
    used(conn, user_id, at).await
}

/// Ends a device: its sessions, keys, messages and pushers go with it. Tells whether it had keys.
pub async fn delete_device(conn: &mut Conn, user_id: &str, device_id: &str) -> Result<bool> {
    super::sessions::delete_session(conn, user_id, device_id).await?;
    let had_keys =
        run!(conn, "DELETE FROM device_keys WHERE user_id = $1 AND device_id = $2", user_id, device_id)? > 0;
    run!(conn, "DELETE FROM key_signatures WHERE target_user = $1 AND target = $2", user_id, device_id)?;
    run!(
        conn,
        "DELETE FROM key_signatures WHERE signer = $1 AND key_id = $2",
        user_id,
        format!("ed25519:{device_id}")
    )?;
    run!(conn, "DELETE FROM dehydrated_devices WHERE user_id = $1 AND device_id = $2", user_id, device_id)?;
    run!(conn, "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2", user_id, device_id)?;
    run!(conn, "DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = $2", user_id, device_id)?;
    run!(conn, "DELETE FROM to_device WHERE user_id = $1 AND device_id = $2", user_id, device_id)?;
    run!(conn, "DELETE FROM devices WHERE user_id = $1 AND device_id = $2", user_id, device_id)?;
    super::push::delete_of_device(conn, user_id, device_id).await?;
    Ok(had_keys)
}

/// Display name and avatar.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
pub struct Profile {
    /// The display name.
    pub display_name: Option<String>,
    /// The avatar's mxc URI.
    pub avatar_url: Option<String>,
}

/// A user's profile.
pub async fn profile(conn: &mut Conn, user_id: &str) -> Result<Option<Profile>> {
    one!(conn, Profile, "SELECT display_name, avatar_url FROM accounts WHERE user_id = $1", user_id)
}

/// The profile's further fields: (key, JSON text).
pub async fn profile_fields(conn: &mut Conn, user_id: &str) -> Result<Vec<(String, String)>> {
    all!(
        conn,
        (String, String),
        "SELECT key, value FROM profile_fields WHERE user_id = $1 ORDER BY key",
        user_id
    )
}

/// Sets a further field of a profile.
pub async fn set_profile_field(conn: &mut Conn, user_id: &str, key: &str, value: &str) -> Result<()> {
    run!(
        conn,
        "INSERT INTO profile_fields (user_id, key, value) VALUES ($1, $2, $3) \
         ON CONFLICT (user_id, key) DO UPDATE SET value = excluded.value",
        user_id,
        key,
        value
    )?;
    Ok(())
}

/// Takes a further field out of a profile.
pub async fn delete_profile_field(conn: &mut Conn, user_id: &str, key: &str) -> Result<()> {
    run!(conn, "DELETE FROM profile_fields WHERE user_id = $1 AND key = $2", user_id, key)?;
    Ok(())
}

/// Takes all further fields out of a profile.
pub async fn delete_profile_fields(conn: &mut Conn, user_id: &str) -> Result<()> {
    run!(conn, "DELETE FROM profile_fields WHERE user_id = $1", user_id)?;
    Ok(())
}

/// Sets a user's profile.
pub async fn set_profile(conn: &mut Conn, user_id: &str, profile: &Profile) -> Result<()> {
    run!(
        conn,
        "UPDATE accounts SET display_name = $2, avatar_url = $3 WHERE user_id = $1",
        user_id,
        &profile.display_name,
        &profile.avatar_url
    )?;
    Ok(())
}
