//! Reading a room's state.

use std::sync::Arc;

use http::Method;
use ruma::{RoomId, api::client::state::get_state_events::v3 as all};

use crate::{
    error::{Result, forbidden, invalid, not_found},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    reading,
    rooms::{history, pdu::Event},
    server::Server,
    sync::render,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<all::Request, Requester, _, _>(|server, who, request| async move {
            let state = visible_state(&server, &who, &request.room_id).await?;
            let now = server.now();
            let mut out = String::new();
            render::write_list(&mut out, &state, |out, event| {
                render::write_event(out, event, Some(&who), now, true)
            });
            Ok(Answer::Json(out))
        })
        // An empty state key may be written with or without a slash, which ruma's paths do not know.
        .at(Method::GET, "/_matrix/client/v3/rooms/{roomId}/state/{eventType}", one)
        .at(Method::GET, "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/", one)
        .at(Method::GET, "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}", one)
}

async fn one(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let room_id = <&RoomId>::try_from(call.arg(0)).map_err(|_| invalid("That is no room id."))?;
    let whole = match call.query("format").as_deref() {
        None | Some("content") => false,
        Some("event") => true,
        Some(_) => return Err(invalid("format is \"content\" or \"event\".")),
    };
    let state = visible_state(&server, &who, room_id).await?;
    let event = state
        .iter()
        .find(|event| {
            event.kind.to_string() == call.arg(1) && event.state_key.as_deref() == Some(call.arg(2))
        })
        .ok_or_else(|| not_found("The room has no such state."))?;
    Ok(Answer::Json(if whole {
        render::event(event, Some(&who), server.now())
    } else {
        event.content.get().to_owned()
    }))
}

/// The state as a member sees it now, or as it was when a former member left.
async fn visible_state(
    server: &Arc<Server>,
    who: &Requester,
    room_id: &ruma::RoomId,
) -> Result<Vec<Arc<Event>>> {
    let (room, sight) = history::sight(server, &who.user_id, room_id).await?;
    if !sight.reads_state() {
        return Err(forbidden("You are not a member of this room."));
    }
    reading::state(server, who, room_id).await?;
    let view = room.current()?;
    history::state_before(server, &view, sight.upto().saturating_add(1)).await
}
