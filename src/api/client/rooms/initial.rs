//! What clients of before `/sync` ask: `/initialSync` and an event by its id alone (client-server API, deprecated). They
//! tell what `/sync` and `/rooms/…/event` do. `/rooms/{roomId}/initialSync`, by which clients peek, is refused
//! (`versions.rs`).

use std::sync::Arc;

use http::Method;
use ruma::{EventId, OwnedRoomId, RoomId};
use serde_json::{Value, json, value::RawValue};

use super::history::one;
use crate::{
    error::{Code, Result, invalid, not_found},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    reading,
    rooms::{history, ignored},
    server::Server,
    store,
    sync::{
        bundle, render,
        room::timeline,
        token::{SyncToken, room_token},
        v3::invite_is_told,
    },
};

/// Messages of a room, where the request says nothing and at most.
const MESSAGES_DEFAULT: usize = 10;
const MESSAGES_MAX: usize = 50;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes.at(Method::GET, "/_matrix/client/v3/initialSync", all_rooms).at(
        Method::GET,
        "/_matrix/client/v3/events/{eventId}",
        |server: Arc<Server>, call: Call| async move {
            let who = caller::requester(&server, &call.parts).await?;
            let nothing = || not_found("No such event, or you cannot see it.");
            let event_id = <&EventId>::try_from(call.arg(0)).map_err(|_| nothing())?;
            let place = store::rooms::place_of(&mut server.db.read().await?, event_id).await?;
            let (room_id, _) = place.ok_or_else(nothing)?;
            match one(&server, &who, &room_id, event_id).await {
                Err(error) if error.code() == Some(Code::Forbidden) => Err(nothing()),
                told => told,
            }
        },
    )
}

fn limit(call: &Call) -> Result<usize> {
    let given = call.query("limit").map(|n| n.parse().map_err(|_| invalid("limit is no number.")));
    Ok(given.transpose()?.unwrap_or(MESSAGES_DEFAULT).min(MESSAGES_MAX))
}

/// `GET /initialSync`: every room that the caller is in or invited to.
async fn all_rooms(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let limit = limit(&call)?;
    // Rooms that one has left are not told, asked for or not.
    if call
        .query("archived")
        .is_some_and(|archived| !archived.is_empty() && archived.parse::<bool>().is_err())
    {
        return Err(invalid("archived is true or false."));
    }
    let upto = SyncToken { position: server.live.position(), volatile: server.live.volatile(), typed: false };
    let ignored = ignored::by(&server, &who.user_id).await?;
    let memberships: Vec<(OwnedRoomId, String)> = {
        let user = server.live.user(&who.user_id);
        let rooms = user.rooms.read();
        rooms.iter().map(|(id, m)| (id.clone(), m.membership.clone())).collect()
    };
    let mut rooms = Vec::new();
    for (room_id, membership) in memberships {
        match membership.as_str() {
            "join" => rooms.push(one_room(&server, &who, &room_id, limit).await?),
            "invite" if invite_is_told(&server, &who, &ignored, &room_id).await? => {
                let view = server.live.room(&server.db, &room_id).await?.current()?;
                let kind = ruma::events::StateEventType::RoomMember;
                let invite = view.state.event(&kind, who.user_id.as_str()).map(|event| event.value());
                rooms.push(json!({"room_id": room_id, "membership": "invite", "invite": invite}));
            }
            _ => {}
        }
    }
    let global = account_data(&server, &who, "").await?;
    Ok(json!({
        "end": upto.to_text(&server.epoch), "rooms": rooms, "presence": [], "account_data": global,
    })
    .into())
}

/// One room as its member sees it: the newest messages, the state, account data.
async fn one_room(server: &Arc<Server>, who: &Requester, room_id: &RoomId, limit: usize) -> Result<Value> {
    let (room, sight) = history::sight(server, &who.user_id, room_id).await?;
    let view = room.current()?;
    let ignored = ignored::by(server, &who.user_id).await?;
    let upto = server.live.position();
    let pick = |event: &crate::rooms::pdu::Event| sight.sees(event.position) && !ignored.hides(event);
    let chunk = if limit == 0 {
        Vec::new()
    } else {
        timeline(server, &room, room_id, (0, upto), limit, pick).await?.events
    };
    history::complete(&mut server.db.read().await?, &chunk).await?;
    let bundles = bundle::bundle(server, who, &room, &sight, &chunk).await?;
    reading::opened(server, who, room_id, "history").await?;
    let now = server.now();
    let told = chunk
        .iter()
        .map(|event| Ok(RawValue::from_string(render::bundled(event, &bundles, who, now))?))
        .collect::<Result<Vec<_>>>()?;
    // Former members see the state in which they left the room.
    let state = if sight.reads_state() {
        history::state_before(server, &view, sight.upto().saturating_add(1)).await?
    } else {
        Vec::new()
    };
    let state = state
        .iter()
        .map(|event| Ok(RawValue::from_string(render::event(event, Some(who), now))?))
        .collect::<Result<Vec<_>>>()?;
    let membership = server.live.membership(&who.user_id, room_id).map(|m| m.membership);
    let start = chunk.first().map_or(upto, |event| event.position - 1);
    let listed = store::rooms::is_public(&mut server.db.read().await?, room_id).await?;
    Ok(json!({
        "room_id": room_id,
        "membership": membership,
        "visibility": if listed { "public" } else { "private" },
        "messages": {
            "start": room_token(start, &server.epoch), "end": room_token(upto, &server.epoch), "chunk": told,
        },
        "state": state,
        "account_data": account_data(server, who, room_id.as_str()).await?,
    }))
}

/// Account data of the caller, of one room or ("") global.
async fn account_data(server: &Server, who: &Requester, room_id: &str) -> Result<Vec<Value>> {
    let mut conn = server.db.read().await?;
    let rows = store::personal::account_data_after(&mut conn, who.user_id.as_str(), 0, i64::MAX).await?;
    rows.into_iter()
        .filter(|(of, _, _)| of == room_id)
        .map(|(_, kind, content)| {
            Ok(json!({"type": kind, "content": serde_json::from_str::<Value>(&content)?}))
        })
        .collect()
}
