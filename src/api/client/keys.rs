//! Devices' keys, cross-signing, and messages to devices.

use std::{collections::BTreeMap, sync::Arc};

use http::Method;
use ruma::api::client::uiaa::AuthData;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::uia;
use crate::{
    error::{Code, Result, refuse},
    http::{
        caller, reply,
        route::{Answer, Call, Routes},
    },
    keys::{self, cross_signing, devices, to_device},
    rooms::send::txn_key,
    server::Server,
    sync::token::SyncToken,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::POST, "/_matrix/client/v3/keys/upload", upload)
        .at(Method::POST, "/_matrix/client/v3/keys/query", query)
        .at(Method::POST, "/_matrix/client/v3/keys/claim", claim)
        .at(Method::GET, "/_matrix/client/v3/keys/changes", changes)
        .at(Method::POST, "/_matrix/client/v3/keys/device_signing/upload", upload_identity)
        // matrix-js-sdk asks by this name first, long after the specification took it up.
        .at(Method::POST, "/_matrix/client/unstable/keys/device_signing/upload", upload_identity)
        .at(Method::POST, "/_matrix/client/v3/keys/signatures/upload", upload_signatures)
        .at(Method::PUT, "/_matrix/client/v3/sendToDevice/{eventType}/{txnId}", send_to_device)
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
    let device_id = who.device()?.to_owned();
    let (_, body) = call.json::<Upload>(&server).await?;
    let checked = devices::Upload::check(
        &who.user_id,
        &device_id,
        body.device_keys,
        body.one_time_keys,
        body.fallback_keys,
    )?;
    let counts = devices::upload(&server, &who.user_id, &device_id, checked).await?;
    Ok(json!({"one_time_key_counts": counts.one_time}).into())
}

#[derive(Deserialize)]
struct Query {
    device_keys: BTreeMap<String, Vec<String>>,
}

async fn query(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let (_, body) = call.json::<Query>(&server).await?;
    Ok(Value::Object(devices::query(&server, &who.user_id, &body.device_keys).await?).into())
}

#[derive(Deserialize)]
struct Claim {
    one_time_keys: BTreeMap<String, BTreeMap<String, String>>,
}

async fn claim(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let (_, body) = call.json::<Claim>(&server).await?;
    let answer = devices::claim(&server, &who.user_id, body.one_time_keys).await?;
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
    let (changed, left) = keys::sync::device_lists(&server, &who.user_id, from, to);
    Ok(json!({"changed": changed, "left": left}).into())
}

#[derive(Deserialize)]
struct Identity {
    master_key: Option<Value>,
    self_signing_key: Option<Value>,
    user_signing_key: Option<Value>,
    auth: Option<AuthData>,
}

async fn upload_identity(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    keys::check_allowed(&server)?;
    let (_, body) = call.json::<Identity>(&server).await?;
    let identity = cross_signing::Identity::check(
        &who.user_id,
        body.master_key,
        body.self_signing_key,
        body.user_signing_key,
    )?;
    let mut authenticated = who.appservice.is_some();
    if !authenticated && cross_signing::needs_authentication(&server, &who.user_id, &identity).await? {
        uia::password(&server, &who, body.auth, "upload cross-signing keys").await?;
        authenticated = true;
    }
    cross_signing::upload(&server, &who.user_id, identity, authenticated).await?;
    Ok(json!({}).into())
}

async fn upload_signatures(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    keys::check_allowed(&server)?;
    let (_, body) = call.json::<BTreeMap<String, BTreeMap<String, Value>>>(&server).await?;
    let mut failures: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    for failure in cross_signing::add_signatures(&server, &who.user_id, body).await? {
        let (_, errcode) = reply::status(failure.refusal.code);
        let error = json!({"errcode": errcode, "error": failure.refusal.message});
        failures.entry(failure.user_id).or_default().insert(failure.target, error);
    }
    Ok(json!({"failures": failures}).into())
}

#[derive(Deserialize)]
struct Messages {
    messages: to_device::Messages,
}

async fn send_to_device(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let kind = call.arg(0).to_owned();
    let key = txn_key(&who.user_id, who.device_id.as_deref(), format!("to_device {kind}"), call.arg(1))?;
    let (_, body) = call.json::<Messages>(&server).await?;
    to_device::send(&server, &who.user_id, kind, key, body.messages).await?;
    Ok(json!({}).into())
}
