//! `/devices`.

use std::sync::Arc;

use http::StatusCode;
use ruma::api::client::device::{
    delete_device::v3 as delete, delete_devices::v3 as delete_many, get_device::v3 as one,
    get_devices::v3 as all, update_device::v3 as update,
};
use serde_json::{Value, json};

use super::uia;
use crate::{
    accounts::{login::check_device, sessions},
    error::{Result, invalid, not_found},
    http::{
        caller::Requester,
        reply,
        route::{Answer, Routes},
    },
    keys,
    rooms::{batch::Batch, committer::Hint},
    server::Server,
    store,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<all::Request, Requester, _, _>(|server, who, _| async move {
            Ok(json!({"devices": devices(&server, &who).await?}).into())
        })
        .raw::<one::Request, Requester, _, _>(|server, who, request| async move {
            let found = devices(&server, &who)
                .await?
                .into_iter()
                .find(|d| d["device_id"] == request.device_id.as_str());
            found.map(Into::into).ok_or_else(|| not_found("No such device."))
        })
        .raw::<update::Request, Requester, _, _>(|server, who, request| async move {
            if request.display_name.as_ref().is_some_and(|name| name.chars().count() > 100) {
                return Err(invalid("A device's name has at most 100 characters."));
            }
            let (device_id, name) = (request.device_id.to_string(), request.display_name);
            if who.appservice.is_some() {
                check_device(Some(&device_id), name.as_deref())?;
            }
            let changed = server
                .commit(Hint::default(), move |batch| {
                    Box::pin(async move { put(batch, &who, &device_id, name.as_deref()).await })
                })
                .await?;
            match changed {
                Put::Renamed => Ok(json!({}).into()),
                Put::Made => Ok(Answer::Response(reply::json(StatusCode::CREATED, "{}"))),
                Put::Unknown => Err(not_found("No such device.")),
            }
        })
        .raw::<delete::Request, Requester, _, _>(|server, who, request| async move {
            let devices = vec![request.device_id.to_string()];
            uia::password(&server, &who, request.auth, &deletion(&server, &devices)).await?;
            end(&server, who, devices).await
        })
        .raw::<delete_many::Request, Requester, _, _>(|server, who, request| async move {
            if request.devices.len() > 500 {
                return Err(invalid("At most 500 devices at once."));
            }
            let devices: Vec<String> = request.devices.iter().map(ToString::to_string).collect();
            uia::password(&server, &who, request.auth, &deletion(&server, &devices)).await?;
            end(&server, who, devices).await
        })
}

/// The operation of deleting these devices, for user-interactive authentication.
fn deletion(server: &Server, devices: &[String]) -> String {
    format!("delete devices {}", uia::bound(server, &json!(devices)))
}

/// What `PUT /devices/{deviceId}` did.
enum Put {
    Renamed,
    Made,
    Unknown,
}

/// Renames a device. Appservices make theirs this way: their users have no log-in to make one.
async fn put(batch: &mut Batch, who: &Requester, device_id: &str, name: Option<&str>) -> Result<Put> {
    let (now, user_id) = (batch.now, who.user_id.as_str());
    if store::personal::rename_device(batch.sql().await?, user_id, device_id, name).await? {
        // Whoever looks the keys up sees the name beside them.
        if store::keys::keys_of_device(batch.reading(), user_id, device_id).await?.is_some() {
            keys::devices_changed(batch, &who.user_id).await?;
        }
        return Ok(Put::Renamed);
    }
    if who.appservice.is_none() {
        return Ok(Put::Unknown);
    }
    sessions::check_room_for_device(batch, &who.user_id, device_id).await?;
    store::personal::put_device(batch.sql().await?, user_id, device_id, name, now).await?;
    Ok(Put::Made)
}

async fn devices(server: &Server, who: &Requester) -> Result<Vec<Value>> {
    let list = store::personal::devices(&mut server.db.read().await?, who.user_id.as_str()).await?;
    Ok(list
        .into_iter()
        .map(|device| {
            let seen = server.sessions.last_seen(&who.user_id, &device.device_id).or(device.last_seen);
            let address = server.sessions.last_address(&who.user_id, &device.device_id);
            // Every field is there, and a text is a text: matrix-nio asks for the one, the specification's schema for
            // the other.
            json!({
                "device_id": device.device_id,
                "display_name": device.display_name.unwrap_or_default(),
                "last_seen_ip": address.map(|ip| ip.to_string()).unwrap_or_default(),
                "last_seen_ts": seen.unwrap_or_default(),
            })
        })
        .collect())
}

async fn end(server: &Arc<Server>, who: Requester, devices: Vec<String>) -> Result<Answer> {
    let sessions = Arc::clone(&server.sessions);
    let entry = who.entry(server.now(), "device.delete");
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                batch.audit(entry);
                sessions::end_devices(batch, &sessions, &who.user_id, devices).await
            })
        })
        .await?;
    Ok(json!({}).into())
}
