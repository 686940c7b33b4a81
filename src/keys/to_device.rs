//! Messages from device to device (client-server API, "Send-to-Device messaging").

use std::collections::BTreeMap;

use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use super::may_reach;
use crate::{
    config::Encryption,
    error::{Code, Result, forbidden, invalid, refuse},
    rooms::committer::{Hint, TxnKey},
    server::Server,
    store,
};

/// Devices written to at once.
const DEVICES_MAX: usize = 1_000;
/// Bytes of one message, and of those that wait for a device.
const MESSAGE_BYTES_MAX: usize = 65_536;
const WAITING_BYTES_MAX: i64 = 8 << 20;

/// What is sent: user → device or `*` → content.
pub type Messages = BTreeMap<String, BTreeMap<String, Map<String, Value>>>;

/// Sends messages to devices, all in one unit; the same transaction again sends nothing. Whom the sender may not reach, and
/// devices that are not there, are passed over. A device that fetches nothing gets no more once too much waits for it: it
/// must not make everybody else's sending fail.
pub async fn send(
    server: &Server,
    sender: &UserId,
    kind: String,
    key: TxnKey,
    messages: Messages,
) -> Result<()> {
    if messages.values().map(BTreeMap::len).sum::<usize>() > DEVICES_MAX {
        return Err(invalid("Too many devices at once."));
    }
    if kind == "m.room.encrypted" && server.config.policy.encryption == Encryption::Forbidden {
        // What is sent so is neither searched nor audited nor exported, in a room or beside it (DESIGN 13).
        return Err(forbidden(
            "Encryption between users is switched off on this server (メッセージの暗号化はできません).",
        ));
    }
    if kind.is_empty() || kind.len() > 255 {
        return Err(invalid("An event's type has 1 to 255 characters."));
    }
    let mut reached: Vec<(OwnedUserId, Vec<(String, String)>)> = Vec::new();
    for (name, devices) in messages {
        let Ok(target) = OwnedUserId::try_from(name) else { continue };
        let mut events = Vec::new();
        for (device_id, content) in devices {
            let event = json!({"type": kind, "sender": sender, "content": content}).to_string();
            if event.len() > MESSAGE_BYTES_MAX {
                return Err(refuse(Code::TooLarge, "A message to a device has at most 65536 bytes."));
            }
            events.push((device_id, event));
        }
        if may_reach(server, sender, &target) {
            reached.push((target, events));
        }
    }
    let hint = Hint { rooms: Vec::new(), txn: Some(key.clone()) };
    server
        .commit(hint, move |batch| {
            Box::pin(async move {
                if batch.known_txn(&key).is_some() {
                    return Ok(());
                }
                // `*` is as many as there are; counted before anything is kept.
                let mut devices = Vec::new();
                for (target, events) in &reached {
                    let all = store::personal::devices(batch.reading(), target.as_str()).await?;
                    for (device_id, event) in events {
                        let named = all.iter().filter(|d| device_id == "*" || d.device_id == *device_id);
                        devices.extend(named.map(|device| (target, device.device_id.clone(), event)));
                        if devices.len() > DEVICES_MAX {
                            return Err(invalid("Too many devices at once."));
                        }
                    }
                }
                for (target, device_id, event) in devices {
                    let (user, known) = (target.as_str(), batch.live.user(target));
                    let waiting = match known.of_devices.waiting(&device_id) {
                        Some(bytes) => bytes,
                        None => store::keys::to_device_bytes(batch.reading(), user, &device_id).await?,
                    };
                    let bytes = i64::try_from(event.len()).unwrap_or(i64::MAX);
                    let fits = waiting <= WAITING_BYTES_MAX;
                    known.of_devices.set_waiting(&device_id, if fits { waiting + bytes } else { waiting });
                    if !fits {
                        continue;
                    }
                    let position = batch.personal_change(target);
                    let conn = batch.sql().await?;
                    store::keys::put_to_device(conn, user, &device_id, position, event).await?;
                }
                batch.remember_txn(key);
                Ok(())
            })
        })
        .await
}
