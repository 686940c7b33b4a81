//! Sending events, state and redactions; typing.

use std::sync::Arc;

use http::Method;
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedRoomId,
    api::client::{
        message::send_message_event::v3 as send, redact::redact_event::v3 as redact,
        typing::create_typing_event::v3 as typing,
    },
};
use serde_json::{json, value::RawValue};

use crate::{
    accounts::moderation,
    api::client::content_of,
    error::{Code, Result, forbidden, invalid, refuse},
    http::{
        caller::{self, Requester},
        route::{Answer, Call, Routes},
    },
    rooms::send::{self as sending, Sending, txn_key},
    server::Server,
    store,
};

/// The longest time that one typing notice lasts.
const TYPING_MS_MAX: i64 = 60_000;

/// Adds the routes.
pub fn routes(routes: Routes) -> Routes {
    routes
        .raw::<send::Request, Requester, _, _>(|server, who, request| async move {
            let scope = format!("send {} {}", request.room_id, request.event_type);
            let txn = txn_key(&who.user_id, who.device_id.as_deref(), scope, request.txn_id.as_str())?;
            let sending = Sending {
                ts: timestamp(&who, request.timestamp),
                origin: origin(&who),
                sender: who.user_id,
                kind: request.event_type.to_string().into(),
                state_key: None,
                content: content_of(request.body.json())?,
                txn: Some(txn),
                room_id: request.room_id,
            };
            stop_typing(&server, &sending);
            Ok(json!({"event_id": sending::send(&server, sending).await?}).into())
        })
        .at(Method::PUT, "/_matrix/client/v3/rooms/{roomId}/state/{eventType}", send_state)
        .at(Method::PUT, "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/", send_state)
        .at(Method::PUT, "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}", send_state)
        .raw::<redact::Request, Requester, _, _>(|server, who, request| async move {
            own_only_while_suspended(&server, &who, &request.event_id).await?;
            let scope = format!("redact {} {}", request.room_id, request.event_id);
            let txn = txn_key(&who.user_id, who.device_id.as_deref(), scope, request.txn_id.as_str())?;
            let event_id = sending::redact(
                &server,
                request.room_id,
                who.user_id,
                request.event_id,
                request.reason,
                Some(txn),
            )
            .await?;
            Ok(json!({"event_id": event_id}).into())
        })
        .raw::<typing::Request, Requester, _, _>(set_typing)
}

/// An empty state key may be written with or without a slash, which ruma's paths do not know.
async fn send_state(server: Arc<Server>, call: Call) -> Result<Answer> {
    let who = caller::requester(&server, &call.parts).await?;
    let room_id = OwnedRoomId::try_from(call.arg(0)).map_err(|_| invalid("That is no room id."))?;
    let ts = call.query("ts").and_then(|ts| ts.parse().ok()).map(MilliSecondsSinceUnixEpoch);
    let (kind, state_key) = (call.arg(1).into(), Some(call.arg(2).to_owned()));
    let (call, body) = call.body(&server).await?;
    let body: Box<RawValue> =
        serde_json::from_slice(&body).map_err(|_| refuse(Code::NotJson, "The body is not valid JSON."))?;
    let content = content_of(&body)?;
    if call.arg(1) == "m.room.member" && who.appservice.is_none() && !server.config.policy.open_profile {
        return super::members::by_state(&server, &who, room_id, call.arg(2), &content).await;
    }
    let sending = Sending {
        ts: timestamp(&who, ts),
        origin: origin(&who),
        sender: who.user_id,
        kind,
        state_key,
        content,
        txn: None,
        room_id,
    };
    Ok(json!({"event_id": sending::send(&server, sending).await?}).into())
}

/// From where people send; appservices are no place.
fn origin(who: &Requester) -> Option<crate::audit::Origin> {
    who.session.as_ref().map(|_| who.origin())
}

/// Only appservices say when something was written (application service API, "Timestamp massaging").
fn timestamp(who: &Requester, ts: Option<MilliSecondsSinceUnixEpoch>) -> Option<i64> {
    ts.filter(|_| who.appservice.is_some()).and_then(|ts| i64::try_from(u64::from(ts.0)).ok())
}

/// Of a suspended account nothing but its own words is redacted (client-server API, "Account suspension").
async fn own_only_while_suspended(server: &Server, who: &Requester, event_id: &EventId) -> Result<()> {
    if !server.moderation.of(&who.user_id).suspended {
        return Ok(());
    }
    let event = store::events::by_id(&mut server.db.read().await?, event_id).await?;
    if event.is_some_and(|event| event.sender == who.user_id) { Ok(()) } else { Err(moderation::suspended()) }
}

/// Whoever has sent a message types no more.
fn stop_typing(server: &Server, sending: &Sending) {
    if let Some(room) = server.live.room_in_memory(&sending.room_id) {
        server.live.set_typing(&room, &sending.sender, None);
    }
}

async fn set_typing(server: Arc<Server>, who: Requester, request: typing::Request) -> Result<Answer> {
    if request.user_id != who.user_id {
        return Err(forbidden("Nobody types for somebody else."));
    }
    if !server.live.is_joined(&who.user_id, &request.room_id) {
        return Err(forbidden("You are not a member of this room."));
    }
    let room = server.live.room(&server.db, &request.room_id).await?;
    if room.current()?.row.status != "open" {
        return Err(forbidden("This room has been closed (この部屋は終了しました)."));
    }
    let until = match request.state {
        typing::Typing::Yes(info) => {
            let ms = i64::try_from(info.timeout.as_millis()).unwrap_or(TYPING_MS_MAX);
            Some(server.now() + ms.clamp(1_000, TYPING_MS_MAX))
        }
        typing::Typing::No => None,
    };
    server.live.set_typing(&room, &who.user_id, until);
    Ok(json!({}).into())
}
