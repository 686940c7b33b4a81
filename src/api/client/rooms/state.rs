//! Reading a room's state.

use std::sync::Arc;

use ruma::{
    api::client::state::{get_state_event_for_key as one, get_state_events::v3 as all},
    events::StateEventType,
};

use crate::{
    error::{Result, not_found},
    http::{
        caller::Requester,
        route::{Answer, Routes},
    },
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
            render::write_list(&mut out, &state, |out, event| render::write_event(out, event, Some(&who), now, true));
            Ok(Answer::Json(out))
        })
        .raw::<one::v3::Request, Requester, _, _>(|server, who, request| async move {
            let state = visible_state(&server, &who, &request.room_id).await?;
            let found = state.iter().find(|event| {
                StateEventType::from(event.kind.to_string()) == request.event_type
                    && event.state_key.as_deref() == Some(request.state_key.as_str())
            });
            let event = found.ok_or_else(|| not_found("The room has no such state."))?;
            Ok(Answer::Json(match request.format {
                one::v3::StateEventFormat::Event => render::event(event, Some(&who), server.now()),
                _ => event.content.get().to_owned(),
            }))
        })
}

/// The state as a member sees it now, or as it was when a former member left.
async fn visible_state(
    server: &Arc<Server>,
    who: &Requester,
    room_id: &ruma::RoomId,
) -> Result<Vec<Arc<Event>>> {
    let (room, sight) = history::sight(server, &who.user_id, room_id).await?;
    let view = room.current()?;
    history::state_before(server, &view, sight.upto().saturating_add(1)).await
}
