//! Dehydrated devices (MSC3814, `org.matrix.msc3814.v1`). Where encryption is forbidden there is no such endpoint, which
//! is how clients find that out.

use std::sync::Arc;

use http::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    accounts::login::check_device,
    config::Encryption,
    error::{Code, Result, invalid, refuse},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    keys::dehydrated::{self, NewDevice},
    server::Server,
};

const DEVICE: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";
const EVENTS: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{deviceId}/events";

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.at(Method::PUT, DEVICE, put).at(Method::GET, DEVICE, get).at(Method::DELETE, DEVICE, delete).at(
        Method::POST,
        EVENTS,
        events,
    )
}

async fn caller(server: &Arc<Server>, call: &Call) -> Result<Requester> {
    let who = caller::requester(server, &call.parts).await?;
    match server.config.policy.encryption {
        Encryption::Allowed => Ok(who),
        Encryption::Forbidden => {
            Err(refuse(Code::Unrecognized, "Encryption between users is switched off on this server."))
        }
    }
}

#[derive(Deserialize)]
struct New {
    device_id: String,
    initial_device_display_name: Option<String>,
    device_data: Map<String, Value>,
    device_keys: Value,
    #[serde(default)]
    one_time_keys: Map<String, Value>,
    #[serde(default)]
    fallback_keys: Map<String, Value>,
}

async fn put(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    let (_, body) = call.json::<New>(&server).await?;
    check_device(Some(&body.device_id), body.initial_device_display_name.as_deref())?;
    let device = NewDevice::check(
        &who.user_id,
        body.device_id,
        body.initial_device_display_name,
        &body.device_data,
        body.device_keys,
        body.one_time_keys,
        body.fallback_keys,
    )?;
    Ok(json!({"device_id": dehydrated::put(&server, &who.user_id, device).await?}).into())
}

async fn get(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    let (device_id, data) = dehydrated::get(&server, &who.user_id).await?;
    Ok(json!({"device_id": device_id, "device_data": data}).into())
}

async fn delete(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    Ok(json!({"device_id": dehydrated::delete(&server, &who.user_id).await?}).into())
}

#[derive(Deserialize)]
struct From {
    next_batch: Option<String>,
}

async fn events(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    let (call, body) = call.json::<From>(&server).await?;
    let after = match body.next_batch.as_deref() {
        None | Some("") => 0,
        Some(text) => text.parse().map_err(|_| invalid("next_batch is not one of ours."))?,
    };
    let (events, next) = dehydrated::events(&server, &who.user_id, call.arg(0), after).await?;
    Ok(Answer::Json(format!("{{\"events\":[{}],\"next_batch\":\"{next}\"}}", events.join(","))))
}
