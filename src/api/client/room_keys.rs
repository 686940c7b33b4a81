//! Key backup.

use std::{collections::BTreeMap, sync::Arc};

use http::Method;
use serde::Deserialize;
use serde_json::json;

use crate::{
    config::Encryption,
    error::{Code, Result, not_found, refuse},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    keys::{
        self,
        backup::{self, Described, KeyData, RoomKeys, Which},
    },
    server::Server,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .at(Method::POST, "/_matrix/client/v3/room_keys/version", create)
        .at(Method::GET, "/_matrix/client/v3/room_keys/version", current)
        .at(Method::GET, "/_matrix/client/v3/room_keys/version/{version}", one)
        .at(Method::PUT, "/_matrix/client/v3/room_keys/version/{version}", update)
        .at(Method::DELETE, "/_matrix/client/v3/room_keys/version/{version}", delete)
        .at(Method::PUT, "/_matrix/client/v3/room_keys/keys", put_all)
        .at(Method::GET, "/_matrix/client/v3/room_keys/keys", get_keys)
        .at(Method::DELETE, "/_matrix/client/v3/room_keys/keys", delete_keys)
        .at(Method::PUT, "/_matrix/client/v3/room_keys/keys/{roomId}", put_room)
        .at(Method::GET, "/_matrix/client/v3/room_keys/keys/{roomId}", get_keys)
        .at(Method::DELETE, "/_matrix/client/v3/room_keys/keys/{roomId}", delete_keys)
        .at(Method::PUT, "/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", put_session)
        .at(Method::GET, "/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", get_keys)
        .at(Method::DELETE, "/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", delete_keys)
}

/// Who asks. Where encryption is forbidden no backup is found, and none is made.
async fn caller(server: &Arc<Server>, call: &Call) -> Result<Requester> {
    let who = caller::requester(server, &call.parts).await?;
    if call.parts.method == Method::GET && server.config.policy.encryption == Encryption::Forbidden {
        return Err(not_found("There is no key backup."));
    }
    keys::check_allowed(server)?;
    Ok(who)
}

/// The backup that the query names.
fn version(call: &Call) -> Result<String> {
    call.query("version").ok_or_else(|| refuse(Code::MissingParam, "The query names no version."))
}

fn which(call: &Call) -> Which {
    Which { room_id: call.args.first().cloned(), session_id: call.args.get(1).cloned() }
}

async fn create(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    let (_, body) = call.json::<Described>(&server).await?;
    Ok(json!({"version": backup::create(&server, &who.user_id, body).await?}).into())
}

async fn current(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    Ok(backup::describe(&server, &who.user_id, None).await?.into())
}

async fn one(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    Ok(backup::describe(&server, &who.user_id, Some(call.arg(0))).await?.into())
}

async fn update(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    let (call, body) = call.json::<Described>(&server).await?;
    backup::update(&server, &who.user_id, call.arg(0), body).await?;
    Ok(json!({}).into())
}

async fn delete(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    backup::delete(&server, &who.user_id, call.arg(0)).await?;
    Ok(json!({}).into())
}

#[derive(Deserialize)]
struct AllRooms {
    rooms: BTreeMap<String, RoomKeys>,
}

async fn put_all(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    let version = version(&call)?;
    let (_, body) = call.json::<AllRooms>(&server).await?;
    Ok(backup::put(&server, &who.user_id, &version, body.rooms).await?.into())
}

async fn put_room(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    let version = version(&call)?;
    let (call, keys) = call.json::<RoomKeys>(&server).await?;
    let rooms = BTreeMap::from([(call.arg(0).to_owned(), keys)]);
    Ok(backup::put(&server, &who.user_id, &version, rooms).await?.into())
}

async fn put_session(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    let version = version(&call)?;
    let (call, key) = call.json::<KeyData>(&server).await?;
    let sessions = BTreeMap::from([(call.arg(1).to_owned(), key)]);
    let rooms = BTreeMap::from([(call.arg(0).to_owned(), RoomKeys { sessions })]);
    Ok(backup::put(&server, &who.user_id, &version, rooms).await?.into())
}

async fn get_keys(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    Ok(Answer::Json(backup::get(&server, &who.user_id, &version(&call)?, &which(&call)).await?))
}

async fn delete_keys(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller(&server, &call).await?;
    Ok(backup::delete_keys(&server, &who.user_id, &version(&call)?, which(&call)).await?.into())
}
