//! The public directory and aliases: off in a city, and refused as the specification says.

use http::Method;
use serde_json::json;

use crate::{
    error::{forbidden, not_found},
    http::{caller, route::Routes},
};

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
            let room_id = <&ruma::RoomId>::try_from(call.arg(0));
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
            let room_id = <&ruma::RoomId>::try_from(call.arg(0));
            if !room_id.is_ok_and(|room_id| server.live.is_joined(&who.user_id, room_id)) {
                return Err(forbidden("You are not a member of this room."));
            }
            Ok(json!({"aliases": []}).into())
        })
        .at(Method::GET, "/_matrix/client/v3/directory/room/{roomAlias}", |server, call| async move {
            caller::requester(&server, &call.parts).await?;
            Err(not_found("There is no room of this alias."))
        })
}
