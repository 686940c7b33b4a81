//! Rooms: what they are, who is in them, and the deletion of those that are not the city's. Posts are never shown here.

use std::sync::Arc;

use http::Method;
use ruma::{RoomId, events::StateEventType};
use serde_json::{Value, json};

use super::{Page, admitted, backwards, room};
use crate::{
    error::{Error, Result, invalid, not_found},
    http::route::{Answer, Call, Routes},
    rooms::{committer::Hint, delete, pdu::name_in},
    server::Server,
    store::{self, deletions::Deletion},
    sync::render,
};

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    const ROOM: &str = "/_synapse/admin/v1/rooms/{roomId}";
    routes
        .at(Method::GET, "/_synapse/admin/v1/rooms", list)
        .at(Method::GET, ROOM, |server, call| async move {
            let room_id = room(&call)?;
            admitted(&server, &call, "room", room_id.as_str()).await?;
            view(&server, &room_id).await.map(Into::into)
        })
        .at(Method::GET, "/_synapse/admin/v1/rooms/{roomId}/members", |server, call| async move {
            let room_id = room(&call)?;
            admitted(&server, &call, "room.members", room_id.as_str()).await?;
            let view = server.live.room(&server.db, &room_id).await?.current()?;
            let members: Vec<_> = view.state.members("join").map(|(user_id, _)| user_id).collect();
            Ok(json!({"total": members.len(), "members": members}).into())
        })
        .at(Method::GET, "/_synapse/admin/v1/rooms/{roomId}/state", |server, call| async move {
            let room_id = room(&call)?;
            admitted(&server, &call, "room.state", room_id.as_str()).await?;
            let view = server.live.room(&server.db, &room_id).await?.current()?;
            let state: Vec<Value> = view
                .state
                .events()
                .map(|event| serde_json::from_str(&render::event(event, None, server.now())))
                .collect::<Result<_, _>>()?;
            Ok(json!({"state": state}).into())
        })
        .at(Method::GET, "/_synapse/admin/v1/room/{roomId}/media", |server, call| async move {
            let room_id = room(&call)?;
            admitted(&server, &call, "room.media", room_id.as_str()).await?;
            let shown = store::life::media_of_room(&mut server.db.read().await?, &room_id).await?;
            let mut local: Vec<String> =
                shown.into_iter().map(|(media_id, _)| format!("mxc://{}/{media_id}", server.name)).collect();
            local.dedup();
            Ok(json!({"local": local, "remote": []}).into())
        })
        .at(Method::DELETE, "/_synapse/admin/v2/rooms/{roomId}", delete_room)
        .at(Method::GET, "/_synapse/admin/v2/rooms/{roomId}/delete_status", |server, call| async move {
            let room_id = room(&call)?;
            admitted(&server, &call, "room.delete_status", room_id.as_str()).await?;
            let orders = store::deletions::of_room(&mut server.db.read().await?, room_id.as_str()).await?;
            if orders.is_empty() {
                return Err(not_found("No deletion of this room was ordered."));
            }
            let results: Vec<Value> = orders.iter().map(status).collect::<Result<_>>()?;
            Ok(json!({"results": results}).into())
        })
        .at(Method::GET, "/_synapse/admin/v2/rooms/delete_status/{deleteId}", |server, call| async move {
            admitted(&server, &call, "room.delete_status", "").await?;
            let order = store::deletions::one(&mut server.db.read().await?, call.arg(0)).await?;
            status(&order.ok_or_else(|| not_found("No such deletion was ordered."))?).map(Into::into)
        })
}

/// `GET /_synapse/admin/v1/rooms`.
async fn list(server: Arc<Server>, call: Call) -> Result<Answer> {
    admitted(&server, &call, "rooms", "").await?;
    let page = Page::of(&call)?;
    let wanted = call.query("search_term").unwrap_or_default().to_lowercase();
    let (order, backwards) = (call.query("order_by").unwrap_or_default(), backwards(&call)?);
    let rooms = store::admin::rooms(&mut server.db.read().await?).await?;
    let mut rooms: Vec<(String, store::admin::Room)> = rooms
        .into_iter()
        .map(|room| (name_in(room.name.as_deref()).unwrap_or_default(), room))
        .filter(|(name, room)| {
            wanted.is_empty()
                || room.room_id.to_lowercase() == wanted
                || name.to_lowercase().contains(&wanted)
        })
        .collect();
    match order.as_str() {
        "" | "name" | "alphabetical" => rooms.sort_by(|a, b| (&a.0, &a.1.room_id).cmp(&(&b.0, &b.1.room_id))),
        // As in Synapse, the largest come first.
        "joined_members" | "joined_local_members" | "size" => {
            rooms.sort_by_key(|(_, room)| std::cmp::Reverse(room.joined));
        }
        "state_events" => rooms.sort_by_key(|(_, room)| std::cmp::Reverse(room.state_events)),
        "version" => rooms.sort_by(|a, b| a.1.version.cmp(&b.1.version)),
        _ => return Err(invalid("This order_by is not known.")),
    }
    if backwards {
        rooms.reverse();
    }
    let total = rooms.len();
    let (rooms, next) = page.cut(rooms);
    let mut views = Vec::with_capacity(rooms.len());
    for (_, room) in &rooms {
        views.push(view(&server, <&RoomId>::try_from(room.room_id.as_str())?).await?);
    }
    let mut answer = json!({"rooms": views, "offset": page.from, "total_rooms": total});
    if let Some(next) = next {
        answer["next_batch"] = next.into();
    }
    if page.from > 0 {
        answer["prev_batch"] = page.from.saturating_sub(page.limit).into();
    }
    Ok(answer.into())
}

/// A room as lists show it.
async fn view(server: &Arc<Server>, room_id: &RoomId) -> Result<Value> {
    let live = server.live.room(&server.db, room_id).await?;
    let view = live.current()?;
    let public = store::rooms::is_public(&mut server.db.read().await?, room_id).await?;
    let (row, state) = (&view.row, &view.state);
    let said = |kind: StateEventType, field: &str| state.content_str(&kind, "", field);
    let create = state.event(&StateEventType::RoomCreate, "");
    let federates = create.and_then(|event| event.content_field("m.federate"));
    let joined: Vec<_> = state.members("join").map(|(user_id, _)| user_id).collect();
    Ok(json!({
        "room_id": room_id,
        "name": said(StateEventType::RoomName, "name"),
        "topic": said(StateEventType::RoomTopic, "topic"),
        "avatar": said(StateEventType::RoomAvatar, "url"),
        "canonical_alias": said(StateEventType::RoomCanonicalAlias, "alias"),
        "joined_members": joined.len(),
        "joined_local_members": joined.iter().filter(|user_id| server.is_local(user_id)).count(),
        "version": row.version,
        "creator": create.map(|event| event.sender.clone()),
        "encryption": said(StateEventType::RoomEncryption, "algorithm"),
        "federatable": federates != Some(Value::Bool(false)),
        "public": public,
        "join_rules": said(StateEventType::RoomJoinRules, "join_rule"),
        "guest_access": said(StateEventType::RoomGuestAccess, "guest_access"),
        "history_visibility": said(StateEventType::RoomHistoryVisibility, "history_visibility"),
        "state_events": state.len(),
        "room_type": said(StateEventType::RoomCreate, "type"),
        "forgotten": joined.is_empty(),
        "jp.heya.kind": row.kind,
        "jp.heya.room_number": row.room_number,
        "jp.heya.status": row.status,
    }))
}

/// `DELETE /_synapse/admin/v2/rooms/{roomId}`: answered when it is ordered, carried out meanwhile.
async fn delete_room(server: Arc<Server>, call: Call) -> Result<Answer> {
    let room_id = room(&call)?;
    let who = admitted(&server, &call, "room.delete", room_id.as_str()).await?;
    let (_, body) = call.json::<Value>(&server).await?;
    for wish in ["new_room_user_id", "block"] {
        if body.get(wish).is_some_and(|value| !value.is_null() && *value != false) {
            return Err(invalid(format!("{wish} is not offered: a deleted room's id is never used again.")));
        }
    }
    if body.get("purge") == Some(&Value::Bool(false)) {
        return Err(invalid("A room is deleted with all that was written in it: purge cannot be false."));
    }
    let mut entry = who.entry(server.now(), "room.delete");
    entry.room_id = room_id.to_string();
    let delete_id = server
        .commit(Hint { rooms: vec![room_id.clone()], txn: None }, move |batch| {
            Box::pin(async move {
                batch.audit(entry);
                delete::order(batch, &room_id, who.user_id.as_str()).await
            })
        })
        .await?;
    let (server, id) = (Arc::clone(&server), delete_id.clone());
    tokio::spawn(async move {
        // What fails here, or is cut short, is taken up again within a minute.
        if let Err(error) = delete::carry_out(&server, &id).await {
            tracing::error!(%error, "a room's deletion cannot go on");
        }
    });
    Ok(json!({"delete_id": delete_id}).into())
}

/// An order as it is told.
fn status(order: &Deletion) -> Result<Value> {
    let removed: Vec<String> = serde_json::from_str(&order.removed).map_err(Error::from)?;
    Ok(json!({
        "delete_id": order.delete_id,
        "room_id": order.room_id,
        "status": order.status,
        "shutdown_room": {
            "kicked_users": removed,
            "failed_to_kick_users": [],
            "local_aliases": [],
            "new_room_id": null,
        },
    }))
}
