//! The public directory and aliases. A city has no list of public rooms, and its aliases are those of appservices; the
//! open profile leaves them to everybody.

use std::sync::Arc;

use http::Method;
use ruma::{OwnedRoomId, RoomAliasId, RoomId};
use serde::Deserialize;
use serde_json::json;

use crate::{
    error::{Code, Result, forbidden, invalid, not_found, refuse},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    rooms::committer::Hint,
    server::Server,
    store,
};

/// Aliases of one room.
const ALIASES_MAX: usize = 100;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    let mut routes = routes;
    for method in [Method::GET, Method::POST] {
        routes = routes.at(method, "/_matrix/client/v3/publicRooms", |server, call| async move {
            caller::requester(&server, &call.parts).await?;
            if !server.config.policy.public_directory {
                return Err(forbidden("This server has no list of public rooms."));
            }
            Ok(json!({"chunk": [], "total_room_count_estimate": 0}).into())
        });
    }
    routes
        .at(Method::GET, "/_matrix/client/v3/directory/list/room/{roomId}", |server, call| async move {
            let who = caller::requester(&server, &call.parts).await?;
            let room_id = <&RoomId>::try_from(call.arg(0));
            if !room_id.is_ok_and(|room_id| server.live.is_joined(&who.user_id, room_id)) {
                return Err(not_found("No such room."));
            }
            Ok(json!({"visibility": "private"}).into())
        })
        .at(Method::PUT, "/_matrix/client/v3/directory/list/room/{roomId}", |server, call| async move {
            caller::requester(&server, &call.parts).await?;
            Err(forbidden("This server has no list of public rooms."))
        })
        .at(Method::GET, "/_matrix/client/v3/rooms/{roomId}/aliases", |server, call| async move {
            let who = caller::requester(&server, &call.parts).await?;
            let Some(room_id) = <&RoomId>::try_from(call.arg(0))
                .ok()
                .filter(|room_id| server.live.is_joined(&who.user_id, room_id))
            else {
                return Err(forbidden("You are not a member of this room."));
            };
            let aliases = store::rooms::aliases_of(&mut server.db.read().await?, room_id).await?;
            Ok(json!({"aliases": aliases}).into())
        })
        .at(Method::GET, "/_matrix/client/v3/directory/room/{roomAlias}", |server, call| async move {
            let who = caller::requester(&server, &call.parts).await?;
            let room_id = resolve(&server, &who, alias(&server, call.arg(0))?).await?;
            Ok(json!({"room_id": room_id, "servers": [server.name]}).into())
        })
        .at(Method::PUT, "/_matrix/client/v3/directory/room/{roomAlias}", put)
        .at(Method::DELETE, "/_matrix/client/v3/directory/room/{roomAlias}", delete)
}

/// An alias of this server.
fn alias<'a>(server: &Server, text: &'a str) -> Result<&'a RoomAliasId> {
    let alias = <&RoomAliasId>::try_from(text).map_err(|_| invalid("That is no room alias."))?;
    if alias.server_name() == server.name {
        Ok(alias)
    } else {
        Err(not_found("There is no room of this alias."))
    }
}

/// The room of an alias. For an unknown one in an appservice's namespace the appservice is asked first: it makes the room
/// before it answers. In a city people are told of rooms that they have to do with.
pub(super) async fn resolve(
    server: &Arc<Server>,
    who: &Requester,
    alias: &RoomAliasId,
) -> Result<OwnedRoomId> {
    let mut found = store::rooms::of_alias(&mut server.db.read().await?, alias.as_str()).await?;
    if found.is_none() && server.appservices.ask_alias(alias).await {
        found = store::rooms::of_alias(&mut server.db.read().await?, alias.as_str()).await?;
    }
    let everybody = server.config.policy.open_profile || who.appservice.is_some();
    found
        .map(|(room_id, _)| room_id)
        .filter(|room_id| everybody || server.live.membership(&who.user_id, room_id).is_some())
        .ok_or_else(|| not_found("There is no room of this alias."))
}

/// Whether the caller may make an alias at all.
pub(super) fn may_make(server: &Server, who: &Requester, alias: &RoomAliasId) -> Result<()> {
    let own = who.appservice.as_deref();
    if server.appservices.is_exclusive_alias(alias, own) {
        return Err(refuse(Code::Exclusive, "This alias is kept for an appservice."));
    }
    let of_namespace = own.is_some_and(|id| {
        server.appservices.all().iter().any(|one| one.id == id && one.is_interested_in_alias(alias.as_str()))
    });
    if of_namespace || server.config.policy.open_profile {
        return Ok(());
    }
    Err(match own {
        Some(_) => refuse(Code::Exclusive, "This alias is outside the appservice's namespace."),
        None => forbidden("Rooms of a city have numbers (部屋番号), and no aliases."),
    })
}

#[derive(Deserialize)]
struct Target {
    room_id: OwnedRoomId,
}

async fn put(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let (call, body) = call.json::<Target>(&server).await?;
    let alias = alias(&server, call.arg(0))?.to_owned();
    may_make(&server, &who, &alias)?;
    if !server.live.is_joined(&who.user_id, &body.room_id) {
        return Err(forbidden("You are not a member of this room."));
    }
    let entry =
        crate::audit::Entry { room_id: body.room_id.to_string(), ..who.entry(server.now(), "alias.set") };
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                if store::rooms::aliases_of(batch.reading(), &body.room_id).await?.len() >= ALIASES_MAX {
                    return Err(forbidden("This room has aliases enough."));
                }
                let now = batch.now;
                let conn = batch.sql().await?;
                let made =
                    store::rooms::add_alias(conn, alias.as_str(), &body.room_id, who.user_id.as_str(), now);
                if !made.await? {
                    return Err(refuse(Code::AliasTaken, "There is a room of this alias already."));
                }
                batch.audit(entry);
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}

async fn delete(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let alias = alias(&server, call.arg(0))?.to_owned();
    let (room_id, creator) = store::rooms::of_alias(&mut server.db.read().await?, alias.as_str())
        .await?
        .ok_or_else(|| not_found("There is no room of this alias."))?;
    if creator != who.user_id.as_str() {
        // Who has nothing to do with it is not told that it exists.
        let outside = !server.config.policy.open_profile
            && who.appservice.is_none()
            && server.live.membership(&who.user_id, &room_id).is_none();
        if outside {
            return Err(not_found("There is no room of this alias."));
        }
        may_make(&server, &who, &alias)?;
        if who.appservice.is_none() {
            return Err(forbidden("An alias is deleted by whoever made it."));
        }
    }
    let entry =
        crate::audit::Entry { room_id: room_id.to_string(), ..who.entry(server.now(), "alias.delete") };
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                store::rooms::remove_alias(batch.sql().await?, alias.as_str()).await?;
                batch.audit(entry);
                Ok(())
            })
        })
        .await?;
    Ok(json!({}).into())
}
