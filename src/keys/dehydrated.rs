//! The dehydrated device (MSC3814): takes messages while nobody of the account is logged in. It is a device without a
//! session, whose private keys lie with the server encrypted.

use std::sync::Arc;

use ruma::UserId;
use serde_json::{Map, Value};

use super::devices;
use crate::{
    accounts::sessions,
    error::{Code, Result, forbidden, invalid, not_found, refuse},
    rooms::committer::Hint,
    server::Server,
    store,
};

/// Bytes of the encrypted private keys, as JSON.
const DATA_BYTES_MAX: usize = 262_144;
/// Messages told at once.
const EVENTS_MAX: i64 = 100;

/// A dehydrated device as a client gives it, checked.
#[derive(Debug)]
pub struct NewDevice {
    device_id: String,
    name: Option<String>,
    data: String,
    keys: devices::Upload,
}

impl NewDevice {
    /// Checks what a client sent. The id and name are those of a device already.
    pub fn check(
        user_id: &UserId,
        device_id: String,
        name: Option<String>,
        data: &Map<String, Value>,
        device_keys: Value,
        one_time_keys: Map<String, Value>,
        fallback_keys: Map<String, Value>,
    ) -> Result<Self> {
        if !data.get("algorithm").is_some_and(Value::is_string) {
            return Err(invalid("device_data names no algorithm."));
        }
        let data = serde_json::to_string(data)?;
        if data.len() > DATA_BYTES_MAX {
            return Err(refuse(Code::TooLarge, "device_data is too large."));
        }
        if device_keys.is_null() {
            return Err(refuse(Code::MissingParam, "device_keys are missing."));
        }
        let keys =
            devices::Upload::check(user_id, &device_id, Some(device_keys), one_time_keys, fallback_keys)?;
        Ok(Self { device_id, name, data, keys })
    }
}

/// Puts a dehydrated device in the place of the one before, with its keys, in one unit.
pub async fn put(server: &Server, user_id: &UserId, device: NewDevice) -> Result<String> {
    let (user_id, sessions) = (user_id.to_owned(), Arc::clone(&server.sessions));
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let user = user_id.as_str();
                let before = store::keys::dehydrated_device(batch.reading(), user).await?;
                if let Some((old, _)) = before {
                    sessions::end_devices(batch, &sessions, &user_id, vec![old]).await?;
                }
                let all = store::personal::devices(batch.reading(), user).await?;
                if all.iter().any(|one| one.device_id == device.device_id) {
                    return Err(forbidden("A device that is logged in has this id."));
                }
                sessions::check_room_for_device(batch, &user_id, &device.device_id).await?;
                let now = batch.now;
                let conn = batch.sql().await?;
                store::personal::put_device(conn, user, &device.device_id, device.name.as_deref(), now)
                    .await?;
                store::keys::put_dehydrated_device(conn, user, &device.device_id, &device.data).await?;
                devices::store_upload(batch, &user_id, &device.device_id, device.keys).await?;
                Ok(device.device_id)
            })
        })
        .await
}

/// The dehydrated device: its id and data.
pub async fn get(server: &Server, user_id: &UserId) -> Result<(String, Value)> {
    let (device_id, data) = current(server, user_id).await?;
    Ok((device_id, serde_json::from_str(&data)?))
}

async fn current(server: &Server, user_id: &UserId) -> Result<(String, String)> {
    store::keys::dehydrated_device(&mut server.db.read().await?, user_id.as_str())
        .await?
        .ok_or_else(|| not_found("There is no dehydrated device."))
}

/// Deletes the dehydrated device, with its keys and messages, and answers its id.
pub async fn delete(server: &Server, user_id: &UserId) -> Result<String> {
    let (user_id, sessions) = (user_id.to_owned(), Arc::clone(&server.sessions));
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                let (device_id, _) = store::keys::dehydrated_device(batch.reading(), user_id.as_str())
                    .await?
                    .ok_or_else(|| not_found("There is no dehydrated device."))?;
                sessions::end_devices(batch, &sessions, &user_id, vec![device_id.clone()]).await?;
                Ok(device_id)
            })
        })
        .await
}

/// Messages to the dehydrated device after a place, and the place after them. They stay until the device is replaced, so
/// that a client that breaks off can begin again.
pub async fn events(
    server: &Server,
    user_id: &UserId,
    device_id: &str,
    after: i64,
) -> Result<(Vec<String>, i64)> {
    let dehydrated = store::keys::dehydrated_device(&mut server.db.read().await?, user_id.as_str()).await?;
    if dehydrated.is_none_or(|(current, _)| current != device_id) {
        return Err(forbidden("That is not your dehydrated device."));
    }
    let upto = server.live.position();
    let mut conn = server.db.read().await?;
    let rows =
        store::keys::to_device(&mut conn, user_id.as_str(), device_id, after, upto, EVENTS_MAX).await?;
    let next = rows.last().map_or(after, |(position, _)| *position);
    Ok((rows.into_iter().map(|(_, event)| event).collect(), next))
}
